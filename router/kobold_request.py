"""The body of Kobold's generate routes, with KoboldCpp's defaults."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from ..wire.sampler_lists import KOBOLD_ORDER, kobold_order
from ..wire.sampling import SamplingParams
from .errors import bad_field
from .fields import Fields, convert, decode_json, take_apart
from .guidance_fields import ALIASES as GUIDANCE_ALIASES
from .guidance_fields import put_guidance
from .kobold_fields import KoboldFields, clamp_biases, filled_stops, max_output, tags_of_model
from .limits import check_num_choices, check_params, make_jobs
from .logprob_fields import check_logprobs, put_kobold_logprobs
from .openai_request import MAX_N, MAX_STOPS, StopString
from .sampling_fields import sampling_params
from .served import Served
from .text_stream import Generation, TextOptions

DEFAULT_MAX_LENGTH = 2048
SAMPLING_DEFAULTS = {
    "temperature": 0.7,
    "top_k": 100,
    "top_p": 0.9,
    "repetition_penalty_range": 320,
    "xtc_threshold": 0.2,
    "dry_range": 320,
    "dry_sequence_breakers": (),
    "sampler_priority": kobold_order(KOBOLD_ORDER),
}
"""KoboldCpp's, where they are not ours."""
ALIASES = {
    "max_tokens": "max_length",
    "max_new_tokens": "max_length",
    "n_predict": "max_length",
    "num_predict": "max_length",
    "stop": "stop_sequence",
    "stopping_strings": "stop_sequence",
    **GUIDANCE_ALIASES,
}


class KoboldRequest(KoboldFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields besides sampling's."""

    prompt: str = ""
    """The text to go on from. Its beginning is cut off where it does not fit."""
    memory: str = ""
    """Goes before the prompt, and stays when that is cut."""
    n: Annotated[int, Meta(ge=1, le=MAX_N)] = 1
    """Texts to make; 1 when streaming."""
    max_context_length: Annotated[int, Meta(ge=2, description="tokens; the server's own where that is less")] = 2**31
    max_length: Annotated[int, Meta(ge=1, description="tokens to make at most")] = DEFAULT_MAX_LENGTH
    stop_sequence: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] = msgspec.field(default_factory=list)
    """End the text at any of these strings."""


OWN = frozenset(KoboldRequest.__struct_fields__)


def parse_kobold(raw: bytes, request_id: str, served: Served) -> tuple[KoboldRequest, Generation]:
    """Raises ApiError. Safe in a thread, for large bodies."""
    fields = take_apart(decode_json(raw), OWN, ALIASES)
    request = convert(fields.own, KoboldRequest, fields)
    params = kobold_params(request, fields, served)
    request = without_placeholders(request, served)
    check_num_choices(1, request.n, served)
    context, max_length = lengths(request, served)
    params = msgspec.structs.replace(params, min_tokens=min(params.min_tokens, max_length))
    prompt_ids = kobold_prompt(request, context - max_length, served)
    generation = Generation(
        jobs=make_jobs(request_id, [(prompt_ids, max_length)], request.n, params, served, request),
        options=TextOptions(tuple(request.stop_sequence), not request.trim_stop, not request.render_special),
        guided_by=fields.sent("guidance"),
    )
    return request, generation


def kobold_params(request: KoboldRequest, fields: Fields, served: Served) -> SamplingParams:
    put_kobold_logprobs(fields)
    put_guidance(request, fields)
    check_logprobs(fields, served)
    if request.bypass_eos:
        fields.sampling["ignore_eos"] = True
    clamp_biases(fields)
    params = sampling_params(fields, SAMPLING_DEFAULTS)
    check_params(params, fields, served)
    if params.min_tokens > request.max_length:
        raise bad_field("min_tokens", f"must not exceed {fields.sent('max_length')}")
    return params


def lengths(request: KoboldRequest, served: Served) -> tuple[int, int]:
    """(context, output tokens) that the request gets: both cut to what there is, as Kobold does."""
    context = min(request.max_context_length, served.max_model_len)
    return context, min(request.max_length, max_output(context))


def kobold_prompt(request: KoboldRequest, budget: int, served: Served) -> list[int]:
    """Memory and prompt in at most `budget` tokens. Raises ApiError if both are empty."""
    tokenizer = served.tokenizer
    memory = tokenizer.encode(request.memory, add_special_tokens=False) if request.memory else []
    prompt = tokenizer.encode(request.prompt, add_special_tokens=False) if request.prompt else []
    if not memory and not prompt:
        raise bad_field("prompt", "must not be empty")
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    without = [ids[1:] if bos and ids[:1] == bos else ids for ids in (memory, prompt)]
    return cut_left(bos, *without, budget=budget)


def cut_left(bos: Sequence[int], memory: Sequence[int], prompt: Sequence[int], *, budget: int) -> list[int]:
    """`bos`, `memory` and `prompt` in at most `budget` tokens: the prompt gives its beginning first, then memory."""
    bos = bos[:budget]
    memory = last(memory, budget - len(bos))
    return [*bos, *memory, *last(prompt, budget - len(bos) - len(memory))]


def last(ids: Sequence[int], count: int) -> Sequence[int]:
    return ids[max(0, len(ids) - count) :]


def without_placeholders(request: KoboldRequest, served: Served) -> KoboldRequest:
    """Raises ApiError."""
    if not request.replace_instruct_placeholders:
        return request
    tags = tags_of_model(served)
    return msgspec.structs.replace(
        request,
        prompt=tags.fill(request.prompt, before=request.memory),
        memory=tags.fill(request.memory),
        stop_sequence=filled_stops(request.stop_sequence, tags),
    )
