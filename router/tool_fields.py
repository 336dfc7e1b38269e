"""The fields of a chat that say which tools there are and whether they must be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..text.tool_calls.grammar import Function
from .chat_messages import Cache
from .errors import bad_field
from .tool_schema import check_schema

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
MAX_TOOLS = 512


class FunctionFields(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[\w.:/-]{1,128}$")]
    """What the model calls it by."""
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments, which are an object."""
    strict: bool | None = None
    """Hold the model's calls to the schema."""


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    """Only functions are called."""
    function: FunctionFields
    """What may be called."""
    cache_control: Cache = None
    """A hint to a provider's cache; prefixes are found by their content here."""


class FunctionName(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """One of those in tools."""


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True):
    function: FunctionName
    """The one to call."""
    type: Literal["function"] = "function"
    """Only functions are called."""


class AllowedTools(Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    """Whether one of them must be called."""
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]
    """Those that may be called."""


class ChosenTools(Struct, frozen=True, forbid_unknown_fields=True):
    """One function, or some of those that the model is told of."""

    type: Literal["function", "allowed_tools"] = "function"
    """Which of the two is chosen."""
    function: FunctionName | None = None
    """The one to call."""
    allowed_tools: AllowedTools | None = None
    """Some of them."""


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ChosenTools


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What an answer may call."""

    functions: tuple[Function, ...]
    """With the schemas that their calls are held to."""
    schemas: Mapping[str, Mapping[str, Any]]
    """Of the arguments of all functions, by their names."""
    must_call: bool
    parallel: bool
    strict: bool
    """Calls the model is free to make are held to these functions and their schemas too."""


def tool_use(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> ToolUse | None:
    """None if nothing may be called. Raises ApiError (400)."""
    check_tools(tools)
    mode, names = read_choice(choice)
    if not tools and (names or mode == "required"):
        raise bad_field("tool_choice", "needs tools")
    if not tools or mode == "none":
        return None
    check_names(names, tools)
    chosen = [tool for tool in tools if not names or tool.function.name in names.values()]
    return ToolUse(
        functions=tuple(called_function(tool, mode) for tool in chosen),
        schemas={tool.function.name: tool.function.parameters or {} for tool in tools},
        must_call=mode != "auto",
        parallel=parallel and mode != "named",
        strict=len(chosen) < len(tools) or any(tool.function.strict for tool in tools),
    )


def read_choice(choice: ToolChoice) -> tuple[str, dict[str, str]]:
    """(mode, functions that it names by the field that does): none, auto, required, or named. Raises ApiError."""
    if isinstance(choice, str):
        return choice, {}
    chosen, other = choice.type, "allowed_tools" if choice.type == "function" else "function"
    if getattr(choice, chosen) is None:
        raise bad_field(f"tool_choice.{chosen}", "missing")
    if getattr(choice, other) is not None:
        raise bad_field(f"tool_choice.{other}", f"not where the type is {chosen!r}")
    if choice.function is not None:
        return "named", {"tool_choice.function.name": choice.function.name}
    assert choice.allowed_tools is not None
    at = "tool_choice.allowed_tools.tools[{}].function.name"
    names = [tool.function.name for tool in choice.allowed_tools.tools]
    return choice.allowed_tools.mode, {at.format(index): name for index, name in enumerate(names)}


def check_names(names: Mapping[str, str], tools: Sequence[Tool]) -> None:
    """Raises ApiError (400) for a function that there is not."""
    known = {tool.function.name for tool in tools}
    for at, name in names.items():
        if name not in known:
            raise bad_field(at, f"there is no function {name!r} in tools")


def called_function(tool: Tool, mode: str) -> Function:
    """A choice left to the model holds only those functions to their schema that are strict."""
    loose = mode == "auto" and not tool.function.strict
    schema = tool.function.parameters or NO_ARGUMENTS
    return Function(tool.function.name, {} if loose else schema)


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises ApiError (400) for what the types cannot say."""
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        at = f"tools[{index}].function"
        if tool.function.name in seen:
            raise bad_field(f"{at}.name", f"there are two functions {tool.function.name!r}")
        seen.add(tool.function.name)
        if tool.function.parameters:
            check_schema(tool.function.parameters, f"{at}.parameters")
            if tool.function.parameters.get("type", "object") != "object":
                raise bad_field(f"{at}.parameters.type", "must be 'object'")
