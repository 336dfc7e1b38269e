"""Refusals of a chat, on routes that mean one in other words."""

from collections.abc import Sequence

from .errors import ApiError

Names = Sequence[tuple[str, str]]
"""Parts of a field's path in a chat, and what they are called on the route."""


def renamed(error: ApiError, names: Names) -> ApiError:
    """The same, with the route's name of the field."""
    if error.param is None:
        return error
    param = error.param
    for chat_name, name in names:
        param = param.replace(chat_name, name)
    message = param + error.message.removeprefix(error.param)
    return ApiError(error.status, message, param=param, code=error.code, retry_after_s=error.retry_after_s)
