"""The fields of a chat that say which tools there are and whether they must be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..text.tool_calls.grammar import Function
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


class FunctionName(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """One of those in tools."""


class NamedTool(Struct, frozen=True, forbid_unknown_fields=True):
    function: FunctionName
    """The one to call."""
    type: Literal["function"] = "function"
    """Only functions are called."""


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


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
    """Calls the model is free to make are held to the schemas too."""


def tool_use(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> ToolUse | None:
    """None if nothing may be called. Raises ApiError (400)."""
    check_tools(tools)
    if not tools and choice not in ("none", "auto"):
        raise bad_field("tool_choice", "needs tools")
    if not tools or choice == "none":
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else None
    functions = tuple(called_function(tool, choice) for tool in tools)
    chosen = tuple(each for each in functions if named in (None, each.name))
    if not chosen:
        raise bad_field("tool_choice.function.name", f"there is no function {named!r} in tools")
    strict = any(tool.function.strict for tool in tools)
    schemas = {tool.function.name: tool.function.parameters or {} for tool in tools}
    return ToolUse(chosen, schemas, must_call=choice != "auto", parallel=parallel and named is None, strict=strict)


def called_function(tool: Tool, choice: ToolChoice) -> Function:
    """A choice left to the model holds only those functions to their schema that are strict."""
    loose = choice == "auto" and not tool.function.strict
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
