"""The models served, as Anthropic's clients read them: they name their version of the API in a header."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from .served import Served


def wants_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def models_page(served: Served) -> dict[str, Any]:
    """All of them: there is one page."""
    names = served.model_names
    data = [model_info(name, served) for name in names]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def model_info(name: str, served: Served) -> dict[str, Any]:
    created = datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": created,
        "max_input_tokens": served.max_model_len,
        "max_tokens": served.max_model_len,
    }
