"""Options to command line and back. Flags, types, defaults and help come from the fields of `config`'s dataclasses."""

import argparse
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option as argparse sees it."""

    name: str
    type: Any
    default: Any
    meta: Mapping[str, Any]

    @property
    def text(self) -> str:
        """`--max-model-len`; a unit at the field's end (`_s`, `_bytes`) is no part of it."""
        name = self.name.removesuffix("_s").removesuffix("_bytes")
        return self.meta["flag"] or "--" + name.replace("_", "-")

    @property
    def many(self) -> bool:
        return get_origin(self.type) is tuple


def flags(options: type) -> list[Flag]:
    hints = get_type_hints(options)
    return [_flag(entry, hints[entry.name]) for entry in fields(options)]


def _flag(entry: Field[Any], hint: Any) -> Flag:
    return Flag(entry.name, _without_none(hint), entry.default, entry.metadata)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (only,) = [one for one in get_args(hint) if one is not type(None)]
    return only


def add_config(parser: argparse.ArgumentParser, config: type) -> None:
    """One group of flags for each of the config's option classes, under the class's docstring."""
    for options in get_type_hints(config).values():
        group = parser.add_argument_group(options.__doc__)
        for flag in flags(options):
            _add_flag(group, flag)


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    keywords: dict[str, Any] = {"default": flag.default, "help": _help(flag), "metavar": flag.meta["metavar"]}
    if flag.meta["positional"]:
        group.add_argument(flag.name, nargs="?", type=str, **keywords)
        return
    if flag.type is bool:
        del keywords["metavar"]
        keywords["action"] = argparse.BooleanOptionalAction
    elif get_origin(flag.type) is Literal:
        keywords["choices"] = get_args(flag.type)
    elif flag.many:
        keywords["nargs"] = "+"
        keywords["type"] = _checked(flag.meta["parse"] or str)
    else:
        keywords["type"] = _checked(flag.meta["parse"] or flag.type)
        keywords["metavar"] = flag.meta["metavar"] or flag.name.upper().split("_")[-1]
    group.add_argument(flag.text, dest=flag.name, **keywords)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return convert


def _help(flag: Flag) -> str:
    text = str(flag.meta["help"]).replace("%", "%%")
    if flag.default is None or flag.default == () or "default:" in text:
        return text
    shown = ("on" if flag.default else "off") if flag.type is bool else flag.default
    return f"{text} (default: {shown})"


def read_config(config: type[Config], parsed: argparse.Namespace) -> Config:
    groups = get_type_hints(config)
    return config(**{name: _read_options(options, parsed) for name, options in groups.items()})


def _read_options(options: type, parsed: argparse.Namespace) -> Any:
    values = {flag.name: getattr(parsed, flag.name) for flag in flags(options)}
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def to_arguments(config: object) -> list[str]:
    """The command line that reads back as this config: what differs from the defaults."""
    groups = [getattr(config, entry.name) for entry in fields(config)]  # type: ignore[arg-type]
    given = [
        (flag, getattr(options, flag.name))
        for options in groups
        for flag in flags(type(options))
        if getattr(options, flag.name) != flag.default
    ]
    arguments = [text for flag, value in given if not flag.meta["positional"] for text in _to_text(flag, value)]
    positional = [str(value) for flag, value in given if flag.meta["positional"]]
    return [*arguments, *(["--", *positional] if positional else [])]


def _to_text(flag: Flag, value: Any) -> Sequence[str]:
    if flag.type is bool:
        return [flag.text if value else "--no-" + flag.text.removeprefix("--")]
    if flag.many:
        return [flag.text, *value]
    return [f"{flag.text}={value}"]
