"""What Kobold's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from .error_schemas import KoboldDetail
from .openai_schemas import ContentLogprob


class KoboldLogprobs(Struct):
    """Both of OpenAI's shapes."""

    content: list[ContentLogprob]
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """By text."""
    text_offset: list[int]
    """Characters before the token."""


class KoboldResult(Struct):
    text: str
    tool_calls: list[Any]
    finish_reason: Literal["stop", "length", "abort", "error"]
    logprobs: KoboldLogprobs | None
    prompt_tokens: int
    completion_tokens: int


class KoboldAnswer(Struct):
    """Texts that go on from the prompt."""

    results: list[KoboldResult]


class KoboldEvent(Struct):
    """A part of the text; the event's name is `message`."""

    token: str
    finish_reason: Literal["stop", "length", "abort", "error"] | None
    """In the last event."""
    detail: KoboldDetail | UnsetType = UNSET
    """What is wrong, where finish_reason is error."""


class TextSoFar(Struct):
    text: str


class Checked(Struct):
    """The text of the newest generation with this key; empty if there is none."""

    results: list[TextSoFar]


class AbortTold(Struct):
    """What the abort did, as strings."""

    success: Literal["true", "false"]
    done: Literal["true", "false"]
    """false: nothing was running yet; what is arriving ends as soon as it begins."""


class LastLogprobs(Struct):
    """Null where the generation asked for none."""

    logprobs: KoboldLogprobs | None


class Perf(Struct):
    """Figures of the request that ended last, and of the queue. Speeds are tokens a second."""

    last_process: float
    """Milliseconds a token of the prompt."""
    last_eval: float
    """Milliseconds a token of the output."""
    last_token_count: int
    last_input_count: int
    last_process_time: float
    """Seconds."""
    last_eval_time: float
    """Seconds."""
    last_process_speed: float
    last_eval_speed: float
    last_seed: int
    last_draft_success: int | None
    """Null where workers guess tokens: they do not count them by request."""
    last_draft_failed: int | None
    total_gens: int
    stop_reason: int
    """-1: none yet, -2: failed, 0: its length, 1: an end of sequence, 2: a stop string."""
    total_img_gens: int
    total_tts_gens: int
    total_transcribe_gens: int
    queue: int
    idle: int
    """1 while nothing runs."""
    hordeexitcounter: int
    uptime: float
    """Seconds."""
    idletime: float
    """Seconds since a request began."""
    quiet: bool


class Modalities(Struct):
    vision: bool
    audio: bool


class DefaultSettings(Struct):
    n_ctx: int


class Props(Struct):
    """llama.cpp's description of the server."""

    chat_template: str
    total_slots: int
    """Sequences that run at once."""
    modalities: Modalities
    model_path: str
    n_ctx: int
    """Tokens, prompt and output together."""
    default_generation_settings: DefaultSettings


class TokensCounted(Struct):
    """A text's tokens."""

    value: int
    """How many."""
    ids: list[int]
    prompt: str
    """What was counted."""


class Detokenized(Struct):
    result: str
    success: bool


class Nothing(Struct):
    """Nothing to say."""
