"""The bytes that clients get: whole call sequences and streams, compared with recordings.

A change of a single byte shows up as a changed line. `python -m isthmus.tests.router.test_recordings` records anew.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import say
from isthmus.tests.router.recorded import Call, exchanges
from isthmus.tests.router.test_openai import failing
from isthmus.tests.router.test_recorded_clients import CLIENTS, SAID
from isthmus.text.reasoning import STYLES
from isthmus.text.tool_calls.formats import FORMATS

FOLDER = Path(__file__).with_name("recordings")
CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HI = {"messages": [{"role": "user", "content": "hi"}]}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


STREAMS = {
    "chat": (CHAT, {**HI, "stream": True}, say("né🎉")),
    "chat_usage": (CHAT, {**HI, **USAGE}, say("Hi!")),
    "chat_logprobs": (CHAT, {**HI, **USAGE, "logprobs": True, "top_logprobs": 2}, say("é.")),
    "chat_choices_stop_and_length": (
        CHAT,
        {**HI, "stream": True, "n": 2, "stop": ["#"], "max_tokens": 3},
        say("a#b", "cdef"),
    ),
    "chat_tools": (CHAT, {**HI, **USAGE, "tools": [WEATHER]}, say("Well. " + CALL + CALL)),
    "chat_reasoning": (CHAT, {**HI, **USAGE}, say("<think>\nHm.\n</think>\n\nYes.")),
    "chat_error": (CHAT, {**HI, "stream": True}, failing("abcdef").script),
    "chat_whole": (CHAT, {**HI, "tools": [WEATHER], "n": 2}, say("<think>Hm.</think>Well. " + CALL, "Yes.")),
    "completion_usage": (TEXT, {"prompt": "a", **USAGE}, say("Hi!")),
    "completion_logprobs": (TEXT, {"prompt": "a", "n": 2, "echo": True, "logprobs": 1, **USAGE}, say("é", "b")),
    "completion_whole": (TEXT, {"prompt": "a", "logprobs": 2, "n": 2, "best_of": 2}, say("Hi", "é")),
    "response": (RESPONSES, {"input": "hi", "stream": True}, say("Hi!")),
    "response_tools": (
        RESPONSES,
        {"input": "hi", "stream": True, "tools": [{"type": "function", "name": "weather", "parameters": CITY}]},
        say("<think>Hm.</think>" + CALL),
    ),
    "messages": (MESSAGES, {**HI, "max_tokens": 9, "stream": True}, say("Hi!")),
    "messages_tools": (
        MESSAGES,
        {**HI, "max_tokens": 300, "stream": True, "tools": [{"name": "weather", "input_schema": CITY}]},
        say("<think>Hm.</think>Well. " + CALL),
    ),
}
"""Path, body and what the model says, 4 tokens at a time."""


def settings() -> dict[str, Any]:
    """Of a server whose model thinks and calls; its calls are call_1, call_2, …"""
    numbers = count(1)
    hermes = replace(FORMATS["hermes"], make_id=lambda: f"call_{next(numbers)}")
    return {"call_format": hermes, "reasoning": STYLES["qwen3"], "max_model_len": 2000}


def recorded(name: str) -> str:
    """What a run gives now."""
    if name in CLIENTS:
        told = exchanges(CLIENTS[name], FakeCore(say(SAID)))
    else:
        path, body, script = STREAMS[name]
        told = exchanges([Call("POST", path, bytes, body)], FakeCore(script, tokens_per_step=4), **settings())
    return "".join(exchange.told for exchange in told)


def file_of(name: str) -> Path:
    return FOLDER / f"{name}.txt"


@pytest.mark.parametrize("name", [*CLIENTS, *STREAMS])
def test_every_byte_is_as_it_was_recorded(name: str) -> None:
    assert recorded(name) == file_of(name).read_bytes().decode()


def test_no_recording_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == CLIENTS.keys() | STREAMS.keys()


if __name__ == "__main__":
    for each in (*CLIENTS, *STREAMS):
        file_of(each).write_bytes(recorded(each).encode())
