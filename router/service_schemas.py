"""What routes about the server itself answer, for OpenAPI's page."""

from typing import Literal

from msgspec import Struct

from .timelines import Timeline


class Ready(Struct):
    """A decode worker is ready."""

    status: Literal["ready"]


class Alive(Struct):
    """The router runs."""

    status: Literal["alive"]


class Version(Struct):
    version: str


class Load(Struct):
    """Sequences that are queued or running."""

    server_load: int


class Timelines(Struct):
    """Requests, the newest first."""

    object: Literal["list"]
    data: list[Timeline]


class KeysReloaded(Struct):
    num_keys: int
    """How many there are."""


class Draining(Struct):
    """The worker takes no more work."""

    worker: str
    state: Literal["draining"]
