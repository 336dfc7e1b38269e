"""Which pages of other sites a browser lets use the server (Cross-Origin Resource Sharing)."""

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

EXPOSED_HEADERS = ("Retry-After", "X-Request-Id")


@dataclass(frozen=True, slots=True)
class Cors:
    """`*` is any. Without origins no header is sent, and no page of another site gets an answer."""

    origins: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what would let every page act for whoever visits it."""
        if self.credentials and "*" in self.origins:
            raise ValueError("credentials are for origins that are named, not for *")


ANY_SITE = Cors()


def add_cors(app: FastAPI, cors: Cors) -> None:
    if cors.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors.origins,
            allow_methods=cors.methods,
            allow_headers=cors.headers,
            allow_credentials=cors.credentials,
            expose_headers=EXPOSED_HEADERS,
        )
