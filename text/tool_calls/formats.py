"""The formats that models write calls in, by the names that vLLM gives them, and which one a chat template uses."""

import json
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from . import deepseek, hermes, llama3, mistral, pythonic, qwen3_coder
from .grammar import CallSyntax, markup_arguments, markup_text, python_arguments, python_text
from .parser import Read

ALPHANUMERIC = string.ascii_letters + string.digits


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def mistral_call_id() -> str:
    """Mistral's templates refuse any other."""
    return "".join(secrets.choice(ALPHANUMERIC) for _ in range(9))


@dataclass(frozen=True, slots=True)
class CallFormat:
    name: str
    read: Read
    syntax: CallSyntax
    markers: tuple[str, ...] = ()
    """To be shown to the reader even where they are special tokens."""
    make_id: Callable[[], str] = call_id


def json_head(arguments_key: str, before: str = "") -> Callable[[str], str]:
    """The beginning of a call that is a JSON object."""
    return lambda name: f'{before}{{"name": {json.dumps(name)}, "{arguments_key}": '


HERMES = CallFormat(
    "hermes",
    hermes.read_hermes,
    CallSyntax(json_head("arguments", "<tool_call>\n"), "}\n</tool_call>", between="\n", trigger="<tool_call>"),
    (hermes.BEGIN, hermes.END),
)
LLAMA3_JSON = CallFormat(
    "llama3_json", llama3.read_llama3, CallSyntax(json_head("parameters"), "}", between="; "), (llama3.TAG,)
)
MISTRAL = CallFormat(
    "mistral",
    mistral.read_mistral,
    CallSyntax(json_head("arguments"), "}", between=", ", before="[TOOL_CALLS] [", after="]", trigger="[TOOL_CALLS]"),
    (mistral.BEGIN,),
    mistral_call_id,
)
MISTRAL_ARGS = CallFormat(
    "mistral_args",
    mistral.read_mistral,
    CallSyntax(lambda name: f"[TOOL_CALLS]{name}[ARGS]", "", between="", trigger="[TOOL_CALLS]"),
    (mistral.BEGIN, mistral.ARGS, mistral.CALL_ID),
    mistral_call_id,
)
PYTHONIC = CallFormat(
    "pythonic",
    pythonic.read_pythonic,
    CallSyntax(
        lambda name: f"{name}(", ")", between=", ", before="[", after="]", arguments=python_arguments, write=python_text
    ),
    (pythonic.BEGIN, pythonic.END),
)
QWEN3_CODER = CallFormat(
    "qwen3_coder",
    qwen3_coder.read_qwen3_coder,
    CallSyntax(
        lambda name: f"<tool_call>\n<function={name}>\n",
        "</function>\n</tool_call>",
        between="\n",
        trigger="<tool_call>",
        arguments=markup_arguments,
        write=markup_text,
    ),
    (hermes.BEGIN, hermes.END),
)
DEEPSEEK_V3 = CallFormat(
    "deepseek_v3",
    deepseek.read_deepseek,
    CallSyntax(
        lambda name: f"{deepseek.BEGIN}function{deepseek.SEPARATOR}{name}\n```json\n",
        f"\n```{deepseek.END}",
        between="\n",
        before=deepseek.ALL_BEGIN,
        after=deepseek.ALL_END,
        trigger=deepseek.ALL_BEGIN,
    ),
    deepseek.MARKERS,
)
DEEPSEEK_V31 = CallFormat(
    "deepseek_v31",
    deepseek.read_deepseek,
    CallSyntax(
        lambda name: f"{deepseek.BEGIN}{name}{deepseek.SEPARATOR}",
        deepseek.END,
        between="",
        before=deepseek.ALL_BEGIN,
        after=deepseek.ALL_END,
        trigger=deepseek.ALL_BEGIN,
    ),
    deepseek.MARKERS,
)
FORMATS = {
    each.name: each
    for each in (HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS, PYTHONIC, QWEN3_CODER, DEEPSEEK_V3, DEEPSEEK_V31)
}
SIGNS: tuple[tuple[str, CallFormat], ...] = (
    ("[ARGS]", MISTRAL_ARGS),
    ("[TOOL_CALLS]", MISTRAL),
    (pythonic.BEGIN, PYTHONIC),
    (llama3.TAG, LLAMA3_JSON),
    ('{"name": function name, "parameters":', LLAMA3_JSON),
    (qwen3_coder.FUNCTION, QWEN3_CODER),
    (hermes.BEGIN, HERMES),
)
"""What the templates of each format contain, the telling ones first."""


def detect_format(template: str) -> CallFormat | None:
    """The format that a chat template asks for; None if it is none of ours."""
    if deepseek.ALL_BEGIN in template:
        return DEEPSEEK_V3 if deepseek.FENCE_BEGIN in template else DEEPSEEK_V31
    return next((form for sign, form in SIGNS if sign in template), None)


def default_format(template: str) -> CallFormat | None:
    """Also for a template without tools: the model is told of them in words, and may answer in any format."""
    return detect_format(template) or (None if "tools" in template else HERMES)
