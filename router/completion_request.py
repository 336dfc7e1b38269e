"""The body of POST /v1/completions."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..wire.sampling import SamplingParams
from .errors import bad_field
from .fields import Fields, convert, decode_json, take_apart
from .kobold_fields import filled, in_openai_words
from .openai_request import ALIASES, MAX_N, OpenAiRequest, Prompt, check_request, make_generation
from .prompt_forms import PROMPT, split_prompts
from .served import Served
from .text_stream import Generation

DEFAULT_MAX_TOKENS = 16
COMPLETION_ALIASES = {**ALIASES, "n_probs": "logprobs", "add_bos_token": "add_special_tokens"}


class CompletionRequest(OpenAiRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: Annotated[Any, Meta(extra_json_schema=PROMPT)]
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    echo: bool = False
    """Put the prompt before each choice."""
    add_special_tokens: bool = True
    """Begin text prompts as the model expects (BOS)."""
    best_of: Annotated[
        int, Meta(ge=1, le=MAX_N, description="make so many, and return the n with the highest mean logprob per token")
    ] = 1

    @property
    def num_made(self) -> int:
        """Choices to make for each prompt."""
        return max(self.n, self.best_of)


OWN = frozenset(CompletionRequest.__struct_fields__)


def parse_completion(raw: bytes, request_id: str, served: Served) -> tuple[CompletionRequest, Generation]:
    """Raises ApiError. Safe in a thread, for large bodies."""
    fields = take_apart(decode_json(raw), OWN, COMPLETION_ALIASES)
    fields.sampling.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    return read_completion(fields, request_id, served)


def read_completion(fields: Fields, request_id: str, served: Served) -> tuple[CompletionRequest, Generation]:
    """Also of other routes, which say in these fields what they mean. Raises ApiError."""
    request = in_openai_words(convert(fields.own, CompletionRequest, fields), fields, served)
    check_best_of(request, fields)
    params = asked_logprobs(check_request(request, fields, served), request)
    prompts = [read_prompt(prompt, request, served) for prompt in split_prompts(request.prompt, "prompt")]
    generation = make_generation(request_id, request, params, prompts, "prompt", fields, served)
    return request, generation


def check_best_of(request: CompletionRequest, fields: Fields) -> None:
    """Raises ApiError (400)."""
    if "best_of" in fields.own and request.best_of < request.n:
        raise bad_field("best_of", "must be at least n")
    if request.stream and request.num_made != request.n:
        raise bad_field("best_of", "must not exceed n when streaming: the best are not known before the end")


def asked_logprobs(params: SamplingParams, request: CompletionRequest) -> SamplingParams:
    """Also of the prompt, where that is echoed; also where `best_of` compares by them."""
    if request.echo and params.logprobs is not None:
        num_top = max(params.logprobs, params.prompt_logprobs or 0)
        params = msgspec.structs.replace(params, prompt_logprobs=num_top)
    if request.num_made != request.n and params.logprobs is None:
        params = msgspec.structs.replace(params, logprobs=0)
    return params


def read_prompt(prompt: str | list[int], request: CompletionRequest, served: Served) -> Prompt:
    tokenizer = served.tokenizer
    if isinstance(prompt, str):
        prompt = filled(prompt, request, served)
        ids = tokenizer.encode(prompt, add_special_tokens=request.add_special_tokens)
        return Prompt(ids, prompt if request.echo else "")
    invalid = tokenizer.invalid_id(prompt)
    if invalid is not None:
        raise bad_field("prompt", f"the model has no token {invalid}")
    skip = request.skip_special_tokens
    return Prompt(prompt, tokenizer.decode(prompt, skip_special_tokens=skip) if request.echo else "")
