"""An answer as OpenAI's messages and deltas.

A thought has two names: `reasoning_content`, which most clients read, and `reasoning`, which vLLM has changed to.
"""

from typing import Any

from .answer import AnswerPart, CallPart


def delta_json(part: AnswerPart, *, in_older_form: bool = False) -> dict[str, Any]:
    """`in_older_form`: a call, of which there is one at most, is called `function_call`."""
    delta: dict[str, Any] = reasoning_json(part.reasoning)
    if part.content:
        delta["content"] = part.content
    if part.calls and in_older_form:
        delta["function_call"] = call_json(part.calls[0])["function"]
    elif part.calls:
        delta["tool_calls"] = [{"index": call.index, **call_json(call)} for call in part.calls]
    return delta


def message_json(answer: AnswerPart, *, in_older_form: bool = False) -> dict[str, Any]:
    """Of the whole answer."""
    message = {"role": "assistant", "content": answer.content, "refusal": None, **reasoning_json(answer.reasoning)}
    if answer.calls:
        message["content"] = answer.content or None
        if in_older_form:
            message["function_call"] = call_json(answer.calls[0])["function"]
        else:
            message["tool_calls"] = [call_json(call) for call in answer.calls]
    return message


def reasoning_json(text: str) -> dict[str, Any]:
    return {"reasoning_content": text, "reasoning": text} if text else {}


def call_json(call: CallPart) -> dict[str, Any]:
    if call.id is None:
        return {"function": {"arguments": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
