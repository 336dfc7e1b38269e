"""--speculative-model, found on this machine and fit for MODEL."""

from dataclasses import replace
from pathlib import Path

from ..engine.speculation_config import SpeculationConfig
from ..text.resolve import download, locate
from .config import ModelOptions
from .model import Model, find_model
from .resolve import ConfigError
from .speculation import with_layers


def settle_speculation(speculation: SpeculationConfig, target: Model) -> SpeculationConfig:
    """With nothing left open: the number of layers, and in place of the other model's name a path, fetched if need be.

    Raises ConfigError if there is no such model, or it cannot guess for `target`.
    """
    if speculation.method != "off" and not target.generates:
        raise ConfigError(f"--speculative-method {speculation.method}: {target.resolved.source} is an encoder")
    match speculation.method:
        case "draft":
            return replace(speculation, model=str(find_draft(speculation, target).path))
        case "eagle":
            return replace(speculation, model=str(find_head(speculation)))
        case _:
            return with_layers(speculation, target.config.num_layers)


def with_draft(model: Model, speculation: SpeculationConfig) -> Model:
    """The model, with what guesses for it where that is another. Raises ConfigError."""
    return replace(model, draft=find_draft(speculation, model)) if speculation.method == "draft" else model


def find_draft(speculation: SpeculationConfig, target: Model) -> Model:
    """The smaller model. Raises ConfigError unless it is there, of a supported kind, and has `target`'s tokenizer."""
    try:
        draft = find_model(ModelOptions(speculation.model, load_format=target.load_format))
    except ConfigError as error:
        raise ConfigError(f"--speculative-model: {error}") from error
    if draft.resolved.tokenizer_digest != target.resolved.tokenizer_digest:
        name = target.resolved.source
        raise ConfigError(f"--speculative-model {speculation.model} has another tokenizer than {name}: it cannot guess")
    return draft


def find_head(speculation: SpeculationConfig) -> Path:
    """Folder of an EAGLE head, which is no model of its own: it has no tokenizer. Raises ConfigError."""
    assert speculation.model is not None
    try:
        folder = locate(speculation.model) or download(speculation.model, "head")
    except ValueError as error:
        raise ConfigError(f"--speculative-model: {error}") from error
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--speculative-model {speculation.model} is no EAGLE head: it has no config.json")
    return folder
