"""Checks of a request against the model it is for: names, ids, context length; and the jobs that come out of it."""

import secrets
from collections.abc import Sequence

import msgspec
import numpy as np

from ..wire.block_hash import salt_of
from ..wire.sampling import MAX_BANNED_CHARS, MAX_RANGE_BANS, SamplingParams
from .errors import ApiError, bad_field
from .fields import Fields
from .job import Job
from .scheduling_fields import SchedulingFields
from .served import Served


def check_model(model: str | None, served: Served) -> None:
    """Raises ApiError (404) if the model is not served here. None: whichever is."""
    if model is not None and model not in served.model_names:
        raise ApiError(404, f"model: there is no model {model!r} here", param="model", code="model_not_found")


def check_params(params: SamplingParams, fields: Fields, served: Served) -> None:
    """Raises ApiError (400) for what the types of single fields cannot say."""
    tokenizer = served.tokenizer
    for name, ids in ids_in(params).items():
        invalid = tokenizer.invalid_id(ids)
        if invalid is not None:
            raise bad_field(fields.sent(name), f"the model has no token {invalid}")
    check_bans(params, fields, tokenizer.vocab_size)
    if (num_chars := sum(map(len, params.banned_strings))) > MAX_BANNED_CHARS:
        message = f"{num_chars} characters in all exceed the limit of {MAX_BANNED_CHARS}"
        raise bad_field(fields.sent("banned_strings"), message)
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise bad_field(fields.sent("min_tokens"), f"must not exceed {fields.sent('max_tokens')}")


def ids_in(params: SamplingParams) -> dict[str, list[int]]:
    """The token ids that a request names, by field."""
    return {
        "logit_bias": list(params.logit_bias),
        "stop_token_ids": list(params.stop_token_ids),
        "allowed_token_ids": list(params.allowed_token_ids),
        "custom_token_bans": list(params.custom_token_bans),
        "token_ban_ranges": range_bans(params),
    }


def range_bans(params: SamplingParams) -> list[int]:
    return [token for one in params.token_ban_ranges for token in one.tokens]


def check_bans(params: SamplingParams, fields: Fields, vocab_size: int) -> None:
    """Raises ApiError (400) if no token may come at all, or too many are named for a part of the output."""
    if (num_bans := len(range_bans(params))) > MAX_RANGE_BANS:
        raise bad_field(fields.sent("token_ban_ranges"), f"{num_bans} tokens exceed the limit of {MAX_RANGE_BANS}")
    if not params.custom_token_bans:
        return
    allowed = np.zeros(vocab_size, bool)
    allowed[list(params.allowed_token_ids) or slice(None)] = True
    allowed[list(params.custom_token_bans)] = False
    if not allowed.any():
        raise bad_field(fields.sent("custom_token_bans"), "leaves no token that may come")


def check_num_choices(num_prompts: int, n: int, served: Served, param: str = "n") -> None:
    if num_prompts * n > served.max_choices:
        raise bad_field(param, f"{num_prompts} prompts × {n} choices exceed the limit of {served.max_choices}")


def with_seed(params: SamplingParams) -> SamplingParams:
    """A request without a seed gets one, so that it can be replayed."""
    return msgspec.structs.replace(params, seed=secrets.randbits(63)) if params.seed == -1 else params


def fit_context(params: SamplingParams, num_prompt_tokens: int, param: str, fields: Fields, served: Served) -> int:
    """The number of tokens that may be made after the prompt. Raises ApiError (400) if prompt, or prompt and asked-for
    tokens, exceed the context, but for what `past_context` of the fields allows."""
    if fields.past_context == "count":
        return 1
    room = served.max_model_len - num_prompt_tokens
    context = f"this model's maximum context length is {served.max_model_len} tokens"  # clients look for these words
    if room < 1:
        message = f"prompt is too long: {context}, and it has {num_prompt_tokens}, which leaves no room for output"
        raise bad_field(param, message, code="context_length_exceeded")
    if params.max_tokens is not None and params.max_tokens > room and fields.past_context == "refuse":
        message = f"{params.max_tokens} is too large: {context}, and the prompt has {num_prompt_tokens}"
        raise bad_field(fields.sent("max_tokens"), message, code="context_length_exceeded")
    if params.min_tokens > room:
        raise bad_field(fields.sent("min_tokens"), f"{params.min_tokens} is too large: {context}")
    return room if params.max_tokens is None else min(room, params.max_tokens)


def make_jobs(
    request_id: str,
    prompts: Sequence[tuple[Sequence[int], int]],
    n: int,
    params: SamplingParams,
    served: Served,
    scheduling: SchedulingFields,
) -> tuple[Job, ...]:
    """A job for each prompt, given as (ids, max_tokens)."""
    seeded, salt = with_seed(params), salt_of(scheduling.cache_salt)
    return tuple(
        Job(
            request_id=request_id,
            prompt_index=index,
            prompt_ids=ids,
            num_choices=n,
            params=msgspec.structs.replace(seeded, max_tokens=max_tokens),
            eos_ids=served.eos_ids,
            priority=scheduling.priority,
            salt=salt,
        )
        for index, (ids, max_tokens) in enumerate(prompts)
    )
