"""What an answer tells of its prompt's tokens."""

from collections.abc import Sequence
from typing import Any

from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from ..wire.logprobs import TokenLogprobs
from .logprobs_json import completion_logprobs, prompt_logprobs
from .text_stream import TextStream
from .token_logprobs import score_prompt


def prompt_logprobs_of(text: TextStream, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The field `prompt_logprobs` for a choice's prompt; no field where nobody asked for it."""
    num_top = text.generation.num_prompt_logprobs
    if num_top is None:
        return {}
    ids, rows = text.generation.job_of(index).prompt_ids, likeliest(text.prompt_logprobs(index), num_top)
    return {"prompt_logprobs": prompt_logprobs(ids, rows, tokenizer)}


def echo_logprobs(text: TextStream, index: int, tokenizer: Tokenizer, *, as_ids: bool = False) -> dict[str, Any]:
    """Of a choice's prompt, which is put before its text. Offsets count in what its tokens read as: that is the
    client's text, unless tokenizing changed it."""
    generation = text.generation
    assert generation.num_logprobs is not None
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=generation.options.skip_special_tokens)
    rows = likeliest(text.prompt_logprobs(index), generation.num_logprobs)
    scored = score_prompt(generation.job_of(index).prompt_ids, rows, detokenizer)
    return completion_logprobs(scored, tokenizer, as_ids=as_ids)


def likeliest(rows: Sequence[TokenLogprobs], num_top: int) -> list[TokenLogprobs]:
    """At most `num_top` alternatives of each: where more were measured, for another field."""
    return [TokenLogprobs(row.chosen, row.top[:num_top], row.rank) for row in rows]
