"""Logprobs as clients read them: in OpenAI's two shapes, KoboldCpp's, and vLLM's of prompts."""

from collections.abc import Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from ..wire.logprobs import TokenLogprobs
from .token_logprobs import ScoredToken

LOWEST = -9999.0
"""JSON has no -inf; OpenAI writes this for a token without a chance."""
MAX_KOBOLD_TOP = 5


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token by itself. Bytes that are no whole characters are spelt out, as OpenAI does."""
    raw = tokenizer.token_bytes[token_id]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def token_name(tokenizer: Tokenizer, token_id: int, *, as_id: bool) -> str:
    """Its text, or as vLLM names tokens where texts might be ambiguous."""
    return f"token_id:{token_id}" if as_id else token_text(tokenizer, token_id)


def completion_logprobs(
    tokens: Sequence[ScoredToken], tokenizer: Tokenizer, offset: int = 0, *, as_ids: bool = False
) -> dict[str, Any]:
    """Of POST /v1/completions. `offset`: characters before the text that the tokens' `start` counts in. `as_ids`: see
    `token_name`."""
    return {
        "tokens": [token_name(tokenizer, token.token_id, as_id=as_ids) for token in tokens],
        "token_logprobs": [token.logprobs and finite(token.logprobs.chosen) for token in tokens],
        "top_logprobs": [
            token.logprobs and by_name(token.token_id, token.logprobs, tokenizer, as_ids=as_ids) for token in tokens
        ],
        "text_offset": [offset + token.start for token in tokens],
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Of a prompt and what came after it."""
    return {name: [*first[name], *second[name]] for name in first}


def by_name(token_id: int, logprobs: TokenLogprobs, tokenizer: Tokenizer, *, as_ids: bool) -> dict[str, float]:
    """The likeliest tokens, and the token itself. Of different ones that read alike, the likelier counts."""
    shown: dict[str, float] = {}
    for other, logprob in (*logprobs.top, (token_id, logprobs.chosen)):
        shown.setdefault(token_name(tokenizer, other, as_id=as_ids), finite(logprob))
    return shown


def chat_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer, *, as_ids: bool = False) -> dict[str, Any]:
    """Of POST /v1/chat/completions."""
    return {"content": [content_item(token, tokenizer, as_ids=as_ids) for token in tokens], "refusal": None}


def content_item(
    token: ScoredToken, tokenizer: Tokenizer, max_top: int | None = None, *, as_ids: bool = False
) -> dict[str, Any]:
    assert token.logprobs is not None
    top = [token_item(other, logprob, tokenizer, as_id=as_ids) for other, logprob in token.logprobs.top[:max_top]]
    return {**token_item(token.token_id, token.logprobs.chosen, tokenizer, as_id=as_ids), "top_logprobs": top}


def token_item(token_id: int, logprob: float, tokenizer: Tokenizer, *, as_id: bool) -> dict[str, Any]:
    name, raw = token_name(tokenizer, token_id, as_id=as_id), tokenizer.token_bytes[token_id]
    return {"token": name, "logprob": finite(logprob), "bytes": list(raw)}


def kobold_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """KoboldCpp gives both of OpenAI's shapes at once, and five alternatives at most."""
    content = [content_item(token, tokenizer, MAX_KOBOLD_TOP) for token in tokens]
    return {
        "content": content,
        "tokens": [item["token"] for item in content],
        "token_logprobs": [item["logprob"] for item in content],
        "top_logprobs": [{top["token"]: top["logprob"] for top in item["top_logprobs"]} for item in content],
        "text_offset": [token.start for token in tokens],
    }


def prompt_logprobs(
    token_ids: Sequence[int], rows: Sequence[TokenLogprobs], tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """As vLLM gives them: null for the first token, then of each position the likeliest and the actual one by id."""
    positions = zip(token_ids[1:], rows, strict=True)
    return [None, *(prompt_position(token_id, logprobs, tokenizer) for token_id, logprobs in positions)]


def prompt_position(token_id: int, logprobs: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    ranked = {other: (logprob, rank) for rank, (other, logprob) in enumerate(logprobs.top, start=1)}
    ranked[token_id] = logprobs.chosen, logprobs.rank
    return {
        str(other): {"logprob": finite(logprob), "rank": rank, "decoded_token": token_text(tokenizer, other)}
        for other, (logprob, rank) in ranked.items()
    }


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)
