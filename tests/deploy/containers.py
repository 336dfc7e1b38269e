"""What deploy/ says, read as Docker reads it, as far as our files use its languages."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def command(self) -> list[str]:
        """Of the exec form, the only one in which signals reach the process. Options before it are left out."""
        listed: list[str] = json.loads(self.text[self.text.index("[") :])
        return listed


def dockerfile() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(" ", 1)) for line in whole.splitlines()]


def instructions(name: str) -> list[Instruction]:
    return [one for one in dockerfile() if one.name == name]


def only(name: str) -> Instruction:
    (one,) = instructions(name)
    return one


def image_environment() -> dict[str, str]:
    return {
        name: value for one in instructions("ENV") for name, _, value in (word.partition("=") for word in one.words)
    }


class Unset(ValueError):
    """A variable that must be set is not; the message is the file's own."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}`, the forms that our file uses."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if not variables.get(name) and kind == "?":
            raise Unset(rest)
        return variables.get(name) or rest

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


def compose(**variables: str) -> dict[str, Any]:
    """The compose file with its variables filled in. Raises Unset."""
    text = "\n".join(line for line in COMPOSE.read_text().splitlines() if not line.startswith("#"))
    read: dict[str, Any] = yaml.safe_load(interpolate(text, variables))
    return read
