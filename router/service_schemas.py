"""What routes about the server itself answer, for OpenAPI's page."""

from typing import Literal

from msgspec import Struct

from .timelines import Timeline


class Ready(Struct):
    """A worker is ready that can serve requests."""

    status: Literal["ready"]
    """Always this: before, the answer is a 503."""


class Alive(Struct):
    """The router runs."""

    status: Literal["alive"]
    """Always this, with or without workers."""


class Version(Struct):
    version: str
    """Of Isthmus, such as 0.1.0."""


class Load(Struct):
    """Sequences that are queued or running."""

    server_load: int
    """How many there are, in the queue and at workers."""


class Timelines(Struct):
    """Requests, the newest first."""

    object: Literal["list"]
    data: list[Timeline]
    """Those that run and the last 200 that have ended."""


class KeysReloaded(Struct):
    num_keys: int
    """How many there are now, those on the command line included."""


class Draining(Struct):
    """The worker takes no more work."""

    worker: str
    """Its name, as /v1/topology shows it."""
    state: Literal["draining"]
    """It finishes what it has, and leaves."""
