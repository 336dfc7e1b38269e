"""Kobold's own fields, which OpenAI's routes take too: Lite's instruct mode sends them with chats."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ..text.chat_template import ChatTemplateError
from ..wire.sampling import MAX_LOGIT_BIAS
from .errors import bad_field
from .fields import Fields
from .guidance_fields import GuidanceFields
from .instruct_tags import InstructTags, instruct_tags
from .logprob_fields import put_kobold_logprobs
from .served import Served

if TYPE_CHECKING:
    from .openai_request import OpenAiRequest

Asked = TypeVar("Asked", bound="OpenAiRequest")
MAX_OUTPUT_SHARE = 0.8
"""Of the context; the rest is always the prompt's."""


class KoboldFields(GuidanceFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    trim_stop: bool = True
    """Leave the stop sequence out of the text."""
    render_special: bool = False
    """Show special tokens as text."""
    bypass_eos: bool = False
    """Another way to say ignore_eos."""
    replace_instruct_placeholders: bool = False
    """Fill in Lite's {{[INPUT]}}, {{[OUTPUT]}}, {{[SYSTEM]}} and their _END from the model's chat template."""
    genkey: Annotated[str, Meta(max_length=256)] = ""
    """Names the generation for Kobold's check, abort and last_logprobs. It is then a KoboldCpp client's: what does not
    fit the context is cut, from the beginning of the prompt, biases are cut to ±100, and `logprobs` that is true gives
    five alternatives."""
    api_type: str = ""
    """What SillyTavern takes its backend for. With koboldcpp the same rules hold as with a genkey; any other changes
    nothing."""

    @property
    def is_kobolds(self) -> bool:
        """Whether a client of KoboldCpp asks, which expects what KoboldCpp does where OpenAI has other rules."""
        return bool(self.genkey) or self.api_type == "koboldcpp"


def in_openai_words(request: Asked, fields: Fields, served: Served) -> Asked:
    """With what Kobold's fields ask for in OpenAI's, but for placeholders in the prompt. Of two switches the one that
    is on counts. Raises ApiError (400)."""
    changes: dict[str, Any] = {}
    if not request.trim_stop:
        changes["include_stop_str_in_output"] = True
    if request.render_special:
        changes["skip_special_tokens"] = False
    if request.bypass_eos:
        fields.sampling["ignore_eos"] = True
    if request.replace_instruct_placeholders:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        changes["stop"] = filled_stops(stops, tags_of_model(served))
    if request.is_kobolds:
        put_kobold_logprobs(fields)
        clamp_biases(fields)
        cut_output(fields, served)
        if request.truncate_prompt_tokens is None:
            changes["truncate_prompt_tokens"] = -1
    return msgspec.structs.replace(request, **changes) if changes else request


def cut_output(fields: Fields, served: Served) -> None:
    """To its share of the context."""
    asked = fields.sampling.get("max_tokens")
    if type(asked) is int:
        fields.sampling["max_tokens"] = min(asked, max_output(served.max_model_len))
    fields.past_context = "cut"


def clamp_biases(fields: Fields) -> None:
    """To what a bias can be: KoboldCpp does so. What is no number is left to be refused."""
    biases = fields.sampling.get("logit_bias")
    if isinstance(biases, dict):
        fields.sampling["logit_bias"] = {token_id: clamped(bias) for token_id, bias in biases.items()}


def clamped(bias: Any) -> Any:
    return max(-MAX_LOGIT_BIAS, min(MAX_LOGIT_BIAS, bias)) if type(bias) in (int, float) else bias


def max_output(context: int) -> int:
    """Tokens that Kobold's clients get at most."""
    return max(1, int(context * MAX_OUTPUT_SHARE))


def filled(text: str, request: KoboldFields, served: Served) -> str:
    """`text` with its placeholders replaced, where the request asks for it. Raises ApiError."""
    return tags_of_model(served).fill(text) if request.replace_instruct_placeholders else text


def filled_stops(stops: Iterable[str], tags: InstructTags) -> list[str]:
    """Without those that are empty then: the template has nothing in that place."""
    return [stop for stop in map(tags.stop, stops) if stop]


def tags_of_model(served: Served) -> InstructTags:
    """Raises ApiError."""
    if served.chat_template is None:
        raise bad_field("replace_instruct_placeholders", "the model has no chat template: choose a format")
    bos_id = served.tokenizer.bos_id
    try:
        return instruct_tags(served.chat_template, "" if bos_id is None else served.tokenizer.token_text(bos_id))
    except ChatTemplateError as error:
        raise bad_field("replace_instruct_placeholders", str(error)) from error
