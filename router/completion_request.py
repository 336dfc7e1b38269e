"""The body of POST /v1/completions."""

from typing import Any

from .errors import bad_field
from .fields import convert, decode_json, take_apart
from .openai_request import ALIASES, OpenAiRequest, Prompt, check_request, make_generation
from .served import Served
from .text_stream import Generation

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(OpenAiRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: Any
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    echo: bool = False
    """Put the prompt before each choice."""
    add_special_tokens: bool = True
    """Begin text prompts as the model expects (BOS)."""


OWN = frozenset(CompletionRequest.__struct_fields__)


def parse_completion(raw: bytes, request_id: str, served: Served) -> tuple[CompletionRequest, Generation]:
    """Raises ApiError. Safe in a thread, for large bodies."""
    fields = take_apart(decode_json(raw), OWN, ALIASES)
    request = convert(fields.own, CompletionRequest, fields)
    fields.sampling.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    params = check_request(request, fields, served)
    prompts = [read_prompt(prompt, request, served) for prompt in split_prompts(request.prompt)]
    return request, make_generation(request_id, request, params, prompts, "prompt", fields, served)


def split_prompts(prompt: Any) -> list[str] | list[list[int]]:
    """The prompts of the four forms `prompt` can have. Raises ApiError if it has none of them, or one is empty."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif not isinstance(prompt, list):
        raise bad_field("prompt", "must be a string, a list of strings, token ids, or a list of lists of token ids")
    elif prompt and isinstance(prompt[0], int):
        prompts = [convert(prompt, list[int], at="prompt")]
    elif prompt and isinstance(prompt[0], list):
        prompts = convert(prompt, list[list[int]], at="prompt")
    else:
        prompts = convert(prompt, list[str], at="prompt")
    if not prompts or not all(prompts):
        raise bad_field("prompt", "must not be empty")
    return prompts


def read_prompt(prompt: str | list[int], request: CompletionRequest, served: Served) -> Prompt:
    tokenizer = served.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=request.add_special_tokens)
        return Prompt(ids, prompt if request.echo else "")
    invalid = tokenizer.invalid_id(prompt)
    if invalid is not None:
        raise bad_field("prompt", f"the model has no token {invalid}")
    skip = request.skip_special_tokens
    return Prompt(prompt, tokenizer.decode(prompt, skip_special_tokens=skip) if request.echo else "")
