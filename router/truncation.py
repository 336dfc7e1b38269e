"""What is left of a prompt that a request wants shortened."""

from collections.abc import Sequence

from ..text.tokenizer import Tokenizer
from ..wire.sampling import SamplingParams
from .errors import bad_field
from .served import Served


def prompt_limit(asked: int, params: SamplingParams, served: Served) -> int:
    """Tokens that may be left, of which `truncate_prompt_tokens` asks for `asked`. Raises ApiError."""
    if asked == 0:
        raise bad_field("truncate_prompt_tokens", "must be at least 1, or -1 for what the context holds")
    return asked if asked > 0 else max(1, served.max_model_len - max(1, params.max_tokens or 1))


def last_tokens(ids: Sequence[int], limit: int, tokenizer: Tokenizer) -> Sequence[int]:
    """At most `limit` tokens, the first of them the prompt's BOS where the model expects one."""
    if len(ids) <= limit:
        return ids
    num_bos = int(tokenizer.adds_bos and ids[0] == tokenizer.bos_id)
    return [*ids[:num_bos], *ids[len(ids) - limit + num_bos :]]
