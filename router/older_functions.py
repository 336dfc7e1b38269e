"""OpenAI's older form of tools, as the newer one: `functions`, `function_call`, messages of the role "function".

An answer in this form has one call at most, and no ids.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec.structs import replace

from .chat_messages import Message, ToolCall
from .renamed import Names
from .tool_fields import ChosenTools, FunctionFields, FunctionName, Tool, ToolChoice

FunctionChoice = Literal["none", "auto"] | FunctionName
NAMES: Names = (
    ("tool_choice.function", "function_call"),
    ("tool_choice", "function_call"),
    ("tools", "functions"),
    (".function", ""),
)
"""What the newer form's fields are called in it."""


def newer_tools(functions: Sequence[FunctionFields]) -> list[Tool]:
    return [Tool("function", function) for function in functions]


def newer_choice(choice: FunctionChoice) -> ToolChoice:
    return ChosenTools(function=choice) if isinstance(choice, FunctionName) else choice


def newer_messages(messages: Sequence[Message]) -> Iterator[Message]:
    """Each call gets an id, and the result after it the same. Some templates want nine letters and digits."""
    num_calls = 0
    for message in messages:
        if message.function_call is not None:
            num_calls += 1
            call = ToolCall(message.function_call, f"fcall{num_calls:04d}")
            yield replace(message, function_call=None, tool_calls=[*(message.tool_calls or ()), call])
        elif message.role == "function":
            yield replace(message, role="tool", tool_call_id=message.tool_call_id or f"fcall{num_calls:04d}")
        else:
            yield message
