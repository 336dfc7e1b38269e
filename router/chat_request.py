"""The body of POST /v1/chat/completions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..text.chat_template import OPTIONS as RESERVED
from ..text.chat_template import ChatTemplateError
from ..text.reasoning import Thought, detect_style
from ..text.tool_calls.prompt import knows_tools, told_of_tools
from ..wire.sampling import SamplingParams
from .answer import AnswerForm
from .answer_guidance import answer_guidance
from .chat_messages import Message, check_messages, template_messages
from .errors import ApiError, bad_field, from_job_error
from .fields import Fields, convert, decode_json, take_apart
from .job import no_text
from .kobold_fields import filled, in_openai_words
from .logprob_fields import KOBOLD_TOP, put_chat_logprobs, take_chat_logprobs
from .older_functions import NAMES as OLDER_NAMES
from .older_functions import FunctionChoice, newer_choice, newer_messages, newer_tools
from .openai_request import ALIASES, OpenAiRequest, Prompt, check_request, make_generation
from .renamed import renamed
from .served import Served
from .text_stream import Generation
from .tool_fields import MAX_TOOLS, FunctionFields, FunctionName, Tool, ToolChoice, Tools, ToolUse, tool_use

CHAT_ALIASES = {**ALIASES, "max_completion_tokens": "max_tokens"}
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatRequest(OpenAiRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    """The conversation, from its beginning."""
    add_generation_prompt: bool = True
    """End the prompt where the assistant's answer begins."""
    continue_final_message: bool = False
    """Leave the last message open, to be continued."""
    continue_assistant_turn: bool = False
    """Leave it open where it is the assistant's, as KoboldCpp does; the rest is as with a genkey."""
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    """Variables for the chat template."""
    tools: Tools = msgspec.field(default_factory=list)
    """Functions the model may call, each with a JSON schema of its arguments."""
    tool_choice: ToolChoice = "auto"
    """Whether it calls: never, if it wants to, always, this one function, or only those in allowed_tools. Always and
    one function hold it to the schemas, and so does `strict` in a function."""
    parallel_tool_calls: bool = True
    """Whether one answer may call more than once."""
    functions: Annotated[list[FunctionFields], Meta(max_length=MAX_TOOLS)] = msgspec.field(default_factory=list)
    """The older form of `tools`: the answer's call is then in function_call."""
    function_call: FunctionChoice = "auto"
    """The older form of `tool_choice`."""
    reasoning_effort: Effort | Literal[""] | None = None
    """How long the model thinks, for templates that know `reasoning_effort`; none: not at all, for those that know
    `enable_thinking`."""
    include_reasoning: bool = True
    """Show what the model thinks before it answers, in reasoning_content."""
    logprobs: bool = False
    """Tell how likely each token was."""
    top_logprobs: int = 0
    """And the likeliest tokens in its place, so many."""
    add_special_tokens: bool = False
    """Begin the rendered prompt as the model expects any text to begin, besides what the template wrote."""

    @property
    def in_older_form(self) -> bool:
        """Whether its functions are told of, and called, as they were before there were tools."""
        return bool(self.functions) or isinstance(self.function_call, FunctionName)

    @property
    def is_kobolds(self) -> bool:
        return super().is_kobolds or self.continue_assistant_turn


OWN = frozenset(ChatRequest.__struct_fields__)


def parse_chat(raw: bytes, request_id: str, served: Served) -> tuple[ChatRequest, Generation, AnswerForm]:
    """Raises ApiError. Safe in a thread, for large bodies."""
    return read_chat(take_apart(decode_json(raw), OWN, CHAT_ALIASES), request_id, served)


def read_chat(fields: Fields, request_id: str, served: Served) -> tuple[ChatRequest, Generation, AnswerForm]:
    """Also of other routes, which say in these fields what they mean. Raises ApiError."""
    check_messages(fields.own.get("messages"))
    take_chat_logprobs(fields)
    request = with_newer_tools(convert(fields.own, ChatRequest, fields))
    request = in_openai_words(with_open_turn(request, fields), fields, served)
    put_chat_logprobs(request.logprobs, num_top(request, fields, served), fields, served)
    params = check_request(request, fields, served)
    if params.max_tokens == 0:
        raise bad_field(fields.sent("max_tokens"), "must be at least 1; /v1/completions takes 0, to warm a prefix")
    try:
        text, form, params = plan_answer(request, params, fields, served)
    except ApiError as error:
        raise renamed(error, OLDER_NAMES if request.in_older_form else ()) from error
    prompt = Prompt(encode_chat(filled(text, request, served), request, served))
    generation = make_generation(request_id, request, params, [prompt], "messages", fields, served)
    return request, shown_to(form, generation, served), form


def with_newer_tools(request: ChatRequest) -> ChatRequest:
    """What its older fields ask for, in the newer ones. Raises ApiError."""
    if not request.in_older_form:
        return request
    if request.tools or request.tool_choice != "auto":
        newer = "tools" if request.tools else "tool_choice"
        raise bad_field(newer, "not beside functions and function_call, its older form")
    return msgspec.structs.replace(
        request,
        tools=newer_tools(request.functions),
        tool_choice=newer_choice(request.function_call),
        parallel_tool_calls=False,
    )


def with_open_turn(request: ChatRequest, fields: Fields) -> ChatRequest:
    """Its last message open, where that is the assistant's and the request wants to go on there. Raises ApiError."""
    last = request.messages[-1]
    if not request.continue_assistant_turn or last.role != "assistant" or not last.content:
        return request
    if "add_generation_prompt" in fields.own and request.add_generation_prompt:
        raise bad_field("continue_assistant_turn", "contradicts add_generation_prompt")
    return msgspec.structs.replace(request, add_generation_prompt=False, continue_final_message=True)


def num_top(request: ChatRequest, fields: Fields, served: Served) -> int:
    """Alternatives to tell beside each token: KoboldCpp's clients ask for logprobs and get as many as it gives."""
    if request.is_kobolds and request.logprobs and "top_logprobs" not in fields.own:
        return min(KOBOLD_TOP, served.max_logprobs)
    return request.top_logprobs


def plan_answer(
    request: ChatRequest, params: SamplingParams, fields: Fields, served: Served
) -> tuple[str, AnswerForm, SamplingParams]:
    """The prompt's text, and what is to be made and read after it. Raises ApiError."""
    use = tool_use(request.tools, request.tool_choice, parallel=request.parallel_tool_calls)
    text = render_chat(request, use, served)
    form = answer_form(request, use, text, served)
    return text, form, guided(params, use, form, fields, served)


def encode_chat(text: str, request: ChatRequest, served: Served) -> list[int]:
    """The conversation as the model was trained to read it."""
    if request.add_special_tokens:
        return served.tokenizer.encode(text)
    return served.tokenizer.encode_chat(text)


def render_chat(request: ChatRequest, use: ToolUse | None, served: Served) -> str:
    if not served.generates:
        raise from_job_error(no_text(served.name))
    if served.chat_template is None:
        raise bad_field("messages", "the model has no chat template; start the server with --chat-template")
    if request.add_generation_prompt and request.continue_final_message:
        raise bad_field("continue_final_message", "needs add_generation_prompt false")
    if reserved := sorted(RESERVED & request.chat_template_kwargs.keys()):
        raise bad_field(f"chat_template_kwargs.{reserved[0]}", "a name that rendering itself needs; choose another")
    kwargs = {**effort_of(request, served.chat_template.source, served), **request.chat_template_kwargs}
    refusals: list[ChatTemplateError] = []
    request = msgspec.structs.replace(request, messages=list(newer_messages(request.messages)))
    for messages in template_messages(request.messages, served.chat_template.source):
        try:
            return render(messages, request, use, served, kwargs)
        except ChatTemplateError as error:
            refusals.append(error)
    raise bad_field("messages", str(refusals[0])) from refusals[0]


def render(
    messages: list[dict[str, Any]],
    request: ChatRequest,
    use: ToolUse | None,
    served: Served,
    kwargs: Mapping[str, Any],
) -> str:
    """Raises ChatTemplateError."""
    template, call_format = served.chat_template, served.call_format
    assert template is not None
    tools = [] if use is None else [template_tool(tool) for tool in request.tools]
    if call_format is not None and not knows_tools(template.source) and speaks_of_tools(request):
        messages, tools = told_of_tools(messages, tools, call_format), []
    return template.render(
        messages,
        tools=tools or None,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        template_kwargs=kwargs,
    )


def template_tool(tool: Tool) -> dict[str, Any]:
    return {"type": tool.type, "function": msgspec.to_builtins(tool.function)}


def effort_of(request: ChatRequest, template: str, served: Served) -> dict[str, Any]:
    """As the template's variables. Raises ApiError (400) if it knows none for it."""
    effort = request.reasoning_effort
    if not effort:
        return {}
    if effort == "none" and "enable_thinking" in template:
        return {"enable_thinking": False}
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    if effort == "none" and served.reasoning is None and detect_style(template) is None:
        return {}  # it does not think anyway
    raise bad_field("reasoning_effort", f"the model's chat template does not know {effort!r}; leave it out")


def speaks_of_tools(request: ChatRequest) -> bool:
    return bool(request.tools) or any(message.role == "tool" or message.tool_calls for message in request.messages)


def answer_form(request: ChatRequest, use: ToolUse | None, prompt: str, served: Served) -> AnswerForm:
    """`prompt`: as text, which tells whether the model has begun to think."""
    if use is not None and served.call_format is None:
        message = "not in a format that is known for this model; start the server with --tool-call-parser"
        raise bad_field("tools", message, code="unsupported_field")
    return AnswerForm(
        thought=thought_of(request, prompt, served),
        call_format=None if use is None else served.call_format,
        schemas={} if use is None else use.schemas,
        shows_reasoning=request.include_reasoning,
    )


def thought_of(request: ChatRequest, prompt: str, served: Served) -> Thought | None:
    """What the output begins with. Of a message that is continued, its own text tells whether it is still a thought."""
    style = served.reasoning
    if style is None:
        return None
    content = request.messages[-1].content if request.continue_final_message else None
    said = content if isinstance(content, str) else "".join(part.text for part in content or ())
    if not said.strip():
        return style.begun(prompt)
    return Thought(style, is_open=True) if said.rfind(style.open) > said.rfind(style.close) else None


def guided(
    params: SamplingParams, use: ToolUse | None, form: AnswerForm, fields: Fields, served: Served
) -> SamplingParams:
    """With the grammar of the whole answer."""
    try:
        guidance = answer_guidance(params.guidance, use, form.call_format, form.thought, served.special)
    except ValueError as error:
        raise bad_field("tools", str(error)) from error
    if params.guidance is None:
        fields.sent_as["guidance"] = "tools"
    return msgspec.structs.replace(params, guidance=guidance)


def shown_to(form: AnswerForm, generation: Generation, served: Served) -> Generation:
    """With the special tokens in its text that the reader of the answer looks for."""
    shown = form.shown_special(served.special)
    return replace(generation, options=replace(generation.options, shown_special=shown)) if shown else generation
