"""schemathesis over /openapi.json, in process: what the page allows and what it forbids is sent to every route, and
each answer must be one that the page tells of, to the last field."""

import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from isthmus.router.access import Access
from isthmus.router.api_keys import make_key
from isthmus.router.app import create_app
from isthmus.tests.router.edge import saying, served
from schemathesis import Case, Config, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

ADMIN = {"X-API-Key": "sk-root"}
ALWAYS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHECKS = {GenerationMode.POSITIVE: ALWAYS, GenerationMode.NEGATIVE: [*ALWAYS, negative_data_rejection]}
JSON, EVENTS = "application/json", "text/event-stream"
LAST_TYPES = ("message_stop", "response.completed", "response.incomplete")


def closed(schema: Any) -> Any:
    """With no fields besides those that are told of."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return {**inner, "additionalProperties": False} if isinstance(inner.get("properties"), dict) else inner


def strict_page(app: Any) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    for operations in page["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status < "300":
                    response["content"] = closed(response["content"])
    return page


APP = create_app(saying("What it says."), served(), Access([make_key("sk-root", "root", admin=True)]))
PAGE = strict_page(APP)
SCHEMA = schemathesis.openapi.from_dict(PAGE, config=Config.from_dict({"max-stream-events": 10_000}))
SCHEMA.app = APP
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}


RUNS = [
    pytest.param(label, mode, id=f"{label} {mode.value}")
    for label in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or OPERATIONS[label].body
]


@pytest.mark.parametrize("num_examples", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("label", "mode"), RUNS)
def test_answers_are_as_told(label: str, mode: GenerationMode, num_examples: int) -> None:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(OPERATIONS[label].as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:
            make_servable(case)
        statuses[answer_of(case, mode).status_code] += 1
        if EVENTS in told_answers(label) and mode is GenerationMode.POSITIVE:
            check_stream(case, label)

    run()
    assert mode is GenerationMode.NEGATIVE or statuses[200] or statuses[202], "so that answers are seen"


def answer_of(case: Case, mode: GenerationMode) -> Response:
    response = case.call(headers=ADMIN)
    case.validate_response(response, checks=CHECKS[mode])
    return response


def make_servable(case: Case) -> None:
    """Adds what a schema cannot ask for: something that is there, and no empty prompt."""
    for name, value in case.path_parameters.items():
        if len(value) % 2:
            case.path_parameters[name] = {"model": "tiny", "name": "decode-0"}[name]
    if isinstance(case.body, dict) and case.path.endswith(("/generate", "/generate/stream")):
        case.body["prompt"] = f"x{case.body.get('prompt') or ''}"
    if isinstance(case.body, dict) and case.path.endswith("/tokenize") and len(case.body) % 2:
        case.body.clear()
        case.body["prompt"] = "A text alone, no conversation."


def told_answers(label: str) -> dict[str, Any]:
    method, path = label.split()
    [answers] = [
        answers for status, answers in PAGE["paths"][path][method.lower()]["responses"].items() if status < "3"
    ]
    content: dict[str, Any] = answers["content"]
    return content


def check_stream(case: Case, label: str) -> None:
    """It has an end, and says so; schemathesis looks at each event."""
    if JSON in told_answers(label):
        assert isinstance(case.body, dict)
        case.body["stream"] = True
    response = answer_of(case, GenerationMode.POSITIVE)
    if response.status_code == 200:
        last = response.content.decode().rstrip("\n").rpartition("data: ")[2]
        assert last == "[DONE]" or is_end(json.loads(last))


def is_end(event: dict[str, Any]) -> bool:
    return event.get("finish_reason") is not None or event.get("type") in LAST_TYPES
