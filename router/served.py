"""What one router serves, as its HTTP handlers see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..text.chat_template import ChatTemplate
from ..text.grammar_cache import GrammarCache
from ..text.pooling_config import PoolingConfig
from ..text.reasoning import ReasoningStyle
from ..text.tokenizer import Tokenizer
from ..text.tool_calls.formats import CallFormat


@dataclass(frozen=True, slots=True)
class Served:
    model_names: tuple[str, ...]
    """What clients may call the model; the first is the one shown."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    """None: the model has none, and chat is refused."""
    max_model_len: int
    """Tokens, prompt and output together."""
    eos_ids: tuple[int, ...]
    created: int
    """Unix time, seconds."""
    max_body_bytes: int = 32 << 20
    max_choices: int = 256
    """Prompts × n of one request."""
    max_logprobs: int = 20
    """Likeliest tokens that may be asked for at each position."""
    kobold_lite: Mapping[str, Path] = field(default_factory=dict)
    """Files of the user's copy of Kobold Lite, by URL path; empty where there is none."""
    system_fingerprint: str = f"isthmus-{__version__}"
    """Changes whenever the same request and seed could give other tokens."""

    call_format: CallFormat | None = None
    """How the model writes calls of tools; None: not in a way that is known, and tools are refused."""
    reasoning: ReasoningStyle | None = None
    """How it marks its thoughts; None: not at all."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    """How it makes vectors of texts."""
    hidden_size: int | None = None
    """Numbers of such a vector, if that is known."""
    generates: bool = True
    """False of an encoder: it gives vectors, and no text."""

    special: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Ids of special tokens by their text."""
    grammars: GrammarCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special", self.tokenizer.special_texts())
        object.__setattr__(self, "grammars", GrammarCache.of(self.tokenizer))

    @property
    def name(self) -> str:
        return self.model_names[0]
