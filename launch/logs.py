"""Log lines: one format for all processes, and what names a child."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from ..wire.log_context import request_id, trace_id

LogFormat = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """An object a line: time (ISO 8601, UTC), level, logger, message; the ids of the request and of its trace and the
    exception, if any. What else a record tells for programs is its `facts`, a dict."""

    def format(self, record: logging.LogRecord) -> str:
        about = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_of(record),
            "trace_id": trace_id.get(),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        facts = getattr(record, "facts", {})
        return json.dumps({**{name: value for name, value in about.items() if value}, **facts})


class TextFormatter(logging.Formatter):
    """Time of day, level, message, and the id of the request where the message does not name it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text, about = super().formatMessage(record), request_of(record)
        return text if about in text else f"{text} (request {about})"


def request_of(record: logging.LogRecord) -> str:
    """As given with `extra`, else that of the running task; empty where it is about none."""
    return getattr(record, "request_id", None) or request_id.get()


def set_up(level: str, log_format: LogFormat = "text") -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level == "info":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are ours to tell


def passing_on(log_format: LogFormat) -> Callable[[str, str], None]:
    """Writes a line of a child's log, given its name, on ours."""
    name_it = name_json if log_format == "json" else name_text

    def pass_on(name: str, line: str) -> None:
        print(name_it(name, line), file=sys.stderr, flush=True)

    return pass_on


def name_text(name: str, line: str) -> str:
    return f"{name:>9} | {line}"


def name_json(name: str, line: str) -> str:
    """What is no object, such as a library's own output, becomes one."""
    try:
        about = json.loads(line)
    except ValueError:
        about = None
    return json.dumps({"process": name, **(about if isinstance(about, dict) else {"message": line})})
