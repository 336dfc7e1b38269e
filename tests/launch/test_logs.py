"""Log lines for programs."""

import json
import logging
import sys
from typing import Any

import pytest
from isthmus.launch.logs import JsonFormatter, TextFormatter, name_json, name_text
from isthmus.tests.router.edge import ask, saying
from isthmus.wire import log_context


def formatted(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_is_an_object_with_what_it_is_about() -> None:
    record = logging.makeLogRecord(
        {"name": "isthmus.x", "levelname": "WARNING", "msg": "%s\nlines", "args": ("two",), "created": 0.5}
    )
    assert formatted(record) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "warning",
        "logger": "isthmus.x",
        "message": "two\nlines",
    }
    record.request_id = "r1"
    assert formatted(record)["request_id"] == "r1"


def test_facts_are_members_of_the_object() -> None:
    record = logging.makeLogRecord({"msg": "m", "facts": {"status": 200, "queue_s": 0.0}})
    assert formatted(record).items() >= {"message": "m", "status": 200, "queue_s": 0.0}.items()


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_is_logged_within_a_request_names_it(formatter: logging.Formatter) -> None:
    with log_context.about("r7"):
        assert "r7" in formatter.format(logging.makeLogRecord({"msg": "m"}))
    assert "r7" not in formatter.format(logging.makeLogRecord({"msg": "m"}))


def test_a_text_line_names_its_request_once() -> None:
    record = logging.makeLogRecord({"msg": "request r1: gone", "request_id": "r1", "levelname": "INFO"})
    assert TextFormatter().format(record).endswith("INFO    request r1: gone")


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        record = logging.makeLogRecord({"exc_info": sys.exc_info()})
    assert formatted(record)["exception"].endswith("ZeroDivisionError: by zero")


@pytest.mark.parametrize("body", [{"prompt": "x"}, {"prompt": "x", "stream": True}, {"nonsense": 1}])
def test_every_line_of_a_request_has_its_id(body: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    found: list[dict[str, Any]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(formatted(record))

    handler, log = Collect(), logging.getLogger("isthmus.router")
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "isthmus.router"):
            ask(saying("ok"), "POST", "/v1/completions", json=body, headers={"X-Request-Id": "mine"})
    finally:
        log.removeHandler(handler)
    assert found
    assert {line.get("request_id") for line in found} == {"mine"}
    assert log_context.request_id.get() == ""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"level": "info", "message": "m"}', {"process": "decode-0", "level": "info", "message": "m"}),
        ("plain {", {"process": "decode-0", "message": "plain {"}),
        ("3", {"process": "decode-0", "message": "3"}),
    ],
)
def test_a_childs_line_says_whose_it_is(line: str, named: dict[str, str]) -> None:
    assert json.loads(name_json("decode-0", line)) == named
    assert name_text("router", line) == f"   router | {line}"
