"""A file of API keys, read again when it changes.

One key a line, then what is particular about it; `#` begins a comment:

    sk-4f1c…  name=alice  max-requests-per-minute=60  max-concurrent-requests=4
    sk-99ab…  name=ops  admin

Limits that a line leaves out are those of the command line, 0 is none.
"""

import logging
import os
from pathlib import Path

from .api_keys import ApiKey, KeyRing, Limits, make_key

log = logging.getLogger(__name__)

LIMITS = ("max-requests-per-minute", "max-concurrent-requests")


def parse_keys(text: str, limits: Limits) -> list[ApiKey]:
    """Raises ValueError naming the line; keys are never quoted."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                keys.append(_parse_line(words, f"key-{len(keys) + 1}", limits))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if not keys:
        raise ValueError("there is no key in it")
    KeyRing(keys)
    return keys


def _parse_line(words: list[str], name: str, limits: Limits) -> ApiKey:
    key, *rest = words
    admin = "admin" in rest
    given = dict(_parse_setting(word) for word in rest if word != "admin")
    numbers = {
        flag.replace("-", "_"): _parse_limit(flag, given[flag])
        if flag in given
        else getattr(limits, flag.replace("-", "_"))
        for flag in LIMITS
    }
    return make_key(key, given.get("name", name), Limits(**numbers), admin=admin)


def _parse_setting(word: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not separator or not value or name not in ("name", *LIMITS):
        raise ValueError(f"after the key come name=…, {'=…, '.join(LIMITS)}=… and admin")
    return name, value


def _parse_limit(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} must be a number, 0 for none")
    return int(text)


class KeyFile:
    """Raises OSError or ValueError, from `__init__` and `read`, if the file cannot be used."""

    def __init__(self, path: Path, limits: Limits):
        self.path = path
        self._limits = limits
        self._seen: tuple[int, ...] | None = None
        self.keys: list[ApiKey] = []
        self.read()

    def read(self) -> None:
        """The keys are what they were if it raises."""
        self._seen = self._signature()
        try:
            self.keys = parse_keys(self.path.read_text(), self._limits)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        log.info("%d API keys in %s", len(self.keys), self.path)

    def reread(self) -> bool:
        """If it has changed. What cannot be used is logged once, and changes nothing."""
        if self._signature() == self._seen:
            return False
        try:
            self.read()
        except (OSError, ValueError) as error:
            log.error("API keys stay as they were: %s", error)
            return False
        return True

    def _signature(self) -> tuple[int, ...] | None:
        """None: there is no such file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
