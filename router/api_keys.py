"""API keys: who may use the router, and how much. Only digests are kept, so no key can get into a log."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key; 0: none."""

    max_requests_per_minute: int = 0
    max_concurrent_requests: int = 0


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    name: str
    """In logs and metrics."""
    digest: bytes = field(repr=False)
    limits: Limits = UNLIMITED
    admin: bool = False


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def make_key(key: str, name: str, limits: Limits = UNLIMITED, *, admin: bool = False) -> ApiKey:
    """Raises ValueError, without quoting it, for a key that no header could carry."""
    if not key or not key.isascii() or not key.isprintable() or set(key) & {" ", ","}:
        raise ValueError("a key is made of printable ASCII characters, without spaces and commas")
    return ApiKey(name, digest_of(key), limits, admin)


class KeyRing:
    """Some keys, each known by one name. Raises ValueError if two are equal, or have the same name."""

    def __init__(self, keys: Sequence[ApiKey] = ()):
        self.keys = tuple(keys)
        if len({key.digest for key in keys}) < len(keys):
            raise ValueError("the same key is listed twice")
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name")

    def find(self, candidate: str) -> ApiKey | None:
        """Takes as long for every candidate: digests are compared in constant time, and all of them."""
        digest, found = digest_of(candidate), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found
