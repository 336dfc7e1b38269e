"""What OpenAI's two generation routes have in common: fields, and their way to a generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from ..wire.sampling import SamplingParams
from .errors import bad_field
from .fields import Fields
from .guidance_fields import ALIASES as GUIDANCE_ALIASES
from .guidance_fields import put_guidance
from .kobold_fields import KoboldFields
from .limits import check_model, check_num_choices, check_params, fit_context, make_jobs
from .logprob_fields import check_logprobs
from .request_id import RequestId
from .sampling_fields import sampling_params
from .served import Served
from .text_stream import Generation, TextOptions, TextStream
from .truncation import last_tokens, prompt_limit

MAX_N = 128
MAX_STOPS = 64
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]

ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "stopping_strings": "stop",
    "stop_sequence": "stop",
    **GUIDANCE_ALIASES,
}
"""Other clients' names, on top of `wire.sampling.ALIASES`."""


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """Usage as a last event; the others say `usage: null`."""
    continuous_usage_stats: bool | None = None
    """The others tell the usage so far. Only with `include_usage`."""
    include_obfuscation: bool | None = None
    """Padding against observers of packet lengths. Not built."""


class OpenAiRequest(KoboldFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of both routes besides sampling's."""

    model: str | None = None
    """One of those that /v1/models lists; may be left out."""
    stream: bool = False
    """Send the answer as events, while it is made."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: Annotated[int, Meta(ge=1, le=MAX_N, description="choices for each prompt")] = 1
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] = field(default_factory=list)
    """End the text before any of these strings."""
    include_stop_str_in_output: bool = False
    """End it after the string that stopped it."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    return_token_ids: bool = False
    """Tell the tokens of the prompt (prompt_token_ids) and of each choice or chunk (token_ids)."""
    return_tokens_as_token_ids: bool = False
    """Name tokens in `logprobs` by their ids, as in token_id:123."""
    request_id: RequestId | None = None
    """Of the answer, its header X-Request-Id and the log; another than the request's own X-Request-Id is refused."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    """Keep only the last so many tokens of a prompt, and before them its BOS; -1: as many as the context holds beside
    max_tokens."""

    @property
    def num_made(self) -> int:
        """Choices to make for each prompt."""
        return self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def text_options(self) -> TextOptions:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return TextOptions(
            stops, self.include_stop_str_in_output, self.skip_special_tokens, with_ids=self.return_token_ids
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: Sequence[int]
    text: str = ""
    """For echo; empty where that was not asked for."""


def check_request(request: OpenAiRequest, fields: Fields, served: Served) -> SamplingParams:
    """The request's sampling parameters. Raises ApiError."""
    check_model(request.model, served)
    if request.stream_options is not None and not request.stream:
        raise bad_field("stream_options", "only allowed when stream is true")
    if request.continuous_usage and not request.include_usage:
        raise bad_field("stream_options.continuous_usage_stats", "needs include_usage true")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise bad_field("stream_options.include_obfuscation", "not supported yet; leave it out or send false")
    check_logprobs(fields, served)
    if request.stream and "prompt_logprobs" in fields.sampling:
        raise bad_field("prompt_logprobs", "not when streaming; echo with logprobs streams the prompt's")
    if request.return_tokens_as_token_ids and "logprobs" not in fields.sampling:
        raise bad_field("return_tokens_as_token_ids", "needs logprobs")
    put_guidance(request, fields)
    params = sampling_params(fields, {})
    check_params(params, fields, served)
    return params


def make_generation(
    request_id: str,
    request: OpenAiRequest,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    param: str,
    fields: Fields,
    served: Served,
) -> Generation:
    """`param` names the field that holds the prompts. Raises ApiError."""
    named = "n" if request.num_made == request.n else "best_of"
    check_num_choices(len(prompts), request.num_made, served, named)
    prompts = [shortened(prompt, request, params, served) for prompt in prompts]
    sized = [(p.ids, fit_context(params, len(p.ids), param, fields, served)) for p in prompts]
    echoes = tuple(prompt.text for prompt in prompts)
    return Generation(
        jobs=make_jobs(request.request_id or request_id, sized, request.num_made, params, served, request),
        options=request.text_options,
        echoes=echoes if any(echoes) else (),
        num_logprobs=fields.sampling.get("logprobs"),
        num_prompt_logprobs=fields.sampling.get("prompt_logprobs"),
        guided_by=fields.sent("guidance"),
    )


def shortened(prompt: Prompt, request: OpenAiRequest, params: SamplingParams, served: Served) -> Prompt:
    """As `truncate_prompt_tokens` asks; its text, for echo, is then that of the tokens left. Raises ApiError."""
    if request.truncate_prompt_tokens is None:
        return prompt
    tokenizer, limit = served.tokenizer, prompt_limit(request.truncate_prompt_tokens, params, served)
    ids = last_tokens(prompt.ids, limit, tokenizer)
    if len(ids) == len(prompt.ids) or not prompt.text:
        return Prompt(ids, prompt.text)
    return Prompt(ids, tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens))


def usage_of(text: TextStream) -> dict[str, Any]:
    """OpenAI's usage object, with `timings`: seconds in queue, prefill, transfer (to the first token) and decode."""
    num_prompt, num_output, timings = text.generation.num_prompt_tokens, text.num_output_tokens, text.timings()
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": timings.num_cached_tokens},
        "timings": {
            "queue_s": timings.queue_s,
            "prefill_s": timings.prefill_s,
            "transfer_s": timings.transfer_s,
            "decode_s": timings.decode_s,
        },
    }
