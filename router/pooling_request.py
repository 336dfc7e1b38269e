"""What the routes that make vectors of texts have in common: fields, and their way to jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from msgspec import Meta

from ..wire.block_hash import salt_of
from ..wire.sampling import SamplingParams
from .errors import bad_field
from .fields import convert, decode_json, take_apart
from .job import Job
from .limits import check_model
from .request_id import RequestId
from .scheduling_fields import SchedulingFields
from .served import Served

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""
NO_OUTPUT = SamplingParams(seed=0, max_tokens=0)

R = TypeVar("R", bound="PoolingRequest")


class PoolingRequest(SchedulingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of all these routes."""

    model: str | None = None
    """One of those that /v1/models lists; may be left out."""
    request_id: RequestId | None = None
    """Of the answer's header X-Request-Id and the log; another than the request's own X-Request-Id is refused."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    """Keep so many tokens of each text, from its beginning; -1: as many as the context holds. A longer text is refused
    where this is left out."""


@dataclass(frozen=True, slots=True)
class PoolingTask:
    """A validated request: a job for each vector, and how the answer is written from them."""

    jobs: tuple[Job, ...]
    render: Callable[[Sequence[np.ndarray]], bytes]
    """The answer's body, from one fp32 vector for each job."""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(job.prompt_ids) for job in self.jobs)


def read_request(raw: bytes, kind: type[R], served: Served) -> R:
    """Raises ApiError. Fields of sampling are unknown here."""
    fields = take_apart(decode_json(raw), frozenset(kind.__struct_fields__), {})
    for name in (*fields.sampling, *fields.shorthands):
        raise bad_field(fields.sent(name), "unknown field", code="unknown_field")
    request = convert(fields.own, kind, fields)
    check_model(request.model, served)
    check_truncation(request.truncate_prompt_tokens, served)
    return request


def check_truncation(num_tokens: int | None, served: Served) -> None:
    """Raises ApiError (400)."""
    if num_tokens == 0:
        raise bad_field("truncate_prompt_tokens", "must be -1, or at least 1")
    if num_tokens is not None and num_tokens > served.max_model_len:
        raise bad_field("truncate_prompt_tokens", f"{num_tokens} is more than the context of {served.max_model_len}")


def check_num_inputs(count: int, param: str) -> None:
    """Raises ApiError (400)."""
    if count > MAX_INPUTS:
        raise bad_field(param, f"{count} texts exceed the limit of {MAX_INPUTS}")


def max_tokens_of(request: PoolingRequest, served: Served) -> int | None:
    """What a text is cut to; None: it is not."""
    asked = request.truncate_prompt_tokens
    return served.max_model_len if asked == -1 else asked


def text_ids(
    text: str,
    param: str,
    request: PoolingRequest,
    served: Served,
    *,
    special: bool = True,
    max_own: int | None = None,
) -> list[int]:
    """`special`: with what the model expects around a text; `max_own`: tokens of the text that are kept, besides that.
    Raises ApiError (400) naming `param`."""
    if not text:
        raise bad_field(param, "must not be empty")
    max_tokens = max_tokens_of(request, served)
    if max_own is not None:
        most = max_own + (served.tokenizer.num_added if special else 0)
        max_tokens = most if max_tokens is None else min(max_tokens, most)
    if max_tokens is None:
        ids = served.tokenizer.encode(text, add_special_tokens=special)
    else:
        try:
            ids = served.tokenizer.encode_within(text, max_tokens, add_special_tokens=special)
        except ValueError as error:
            raise bad_field("truncate_prompt_tokens", str(error)) from None
    check_length(ids, param, served)
    return ids


def given_ids(ids: Sequence[int], param: str, request: PoolingRequest, served: Served) -> list[int]:
    """Raises ApiError (400) naming `param`."""
    invalid = served.tokenizer.invalid_id(ids)
    if invalid is not None:
        raise bad_field(param, f"the model has no token {invalid}")
    kept = list(ids[: max_tokens_of(request, served)])
    check_length(kept, param, served)
    return kept


def check_length(ids: Sequence[int], param: str, served: Served) -> None:
    """Raises ApiError (400)."""
    if not ids:
        raise bad_field(param, "has no token")
    if len(ids) > served.max_model_len:
        message = f"has {len(ids)} tokens, the context is {served.max_model_len}; truncate_prompt_tokens cuts it"
        raise bad_field(param, message, code="context_length_exceeded")


def pooling_jobs(
    request_id: str, prompts: Sequence[Sequence[int]], request: PoolingRequest, served: Served
) -> tuple[Job, ...]:
    """One for each prompt."""
    kind, salt = served.pooling.kind, salt_of(request.cache_salt)
    return tuple(
        Job(request_id, index, ids, 1, NO_OUTPUT, served.eos_ids, kind, request.priority, salt)
        for index, ids in enumerate(prompts)
    )


def usage_of(jobs: Sequence[Job]) -> dict[str, int]:
    """OpenAI's usage object."""
    num_tokens = sum(len(job.prompt_ids) for job in jobs)
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
