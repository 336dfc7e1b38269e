"""What workers are told about speculation, decided from the flags and the model. Pure."""

from dataclasses import replace

from ..engine.speculation_config import Method, SpeculationConfig
from .config import SpeculationOptions
from .resolve import ConfigError

LAYERS_SHARE = 3
"""Of first-layers: one in so many of the model's layers guesses."""
GOES_WITH: dict[str, tuple[Method, ...]] = {
    "--speculative-model": ("draft", "eagle"),
    "--num-speculative-tokens": ("ngram", "first-layers", "draft", "eagle"),
    "--speculative-layers": ("first-layers",),
}
"""Methods that a flag means something to."""


def resolve_speculation(options: SpeculationOptions) -> SpeculationConfig:
    """Raises ConfigError, naming the flag, for one that would do nothing or that is missing."""
    method = options.speculative_method or ("off" if options.speculative_model is None else "draft")
    check_flags(method, options)
    num_tokens = options.num_speculative_tokens or SpeculationConfig().num_tokens
    return SpeculationConfig(method, num_tokens, options.speculative_model, options.speculative_layers)


def check_flags(method: Method, options: SpeculationOptions) -> None:
    """As `resolve_speculation`, once the method is known."""
    given = {
        "--speculative-model": options.speculative_model,
        "--num-speculative-tokens": options.num_speculative_tokens,
        "--speculative-layers": options.speculative_layers,
    }
    for flag, methods in GOES_WITH.items():
        if given[flag] is not None and method not in methods:
            raise ConfigError(f"{flag} goes with --speculative-method {' or '.join(methods)}, not with {method}")
    if method in GOES_WITH["--speculative-model"] and not options.speculative_model:
        raise ConfigError(f"--speculative-method {method} needs a --speculative-model")


def with_layers(speculation: SpeculationConfig, num_layers: int) -> SpeculationConfig:
    """With the layers of first-layers decided; the model has `num_layers`. Raises ConfigError if that is no more."""
    if speculation.method != "first-layers":
        return speculation
    first = speculation.num_layers or max(1, num_layers // LAYERS_SHARE)
    if first >= num_layers:
        raise ConfigError(f"--speculative-layers {first}: must be fewer than the model's {num_layers} layers")
    return replace(speculation, num_layers=first)


def to_options(speculation: SpeculationConfig) -> SpeculationOptions:
    """Flags that mean this."""
    if speculation.method == "off":
        return SpeculationOptions()
    return SpeculationOptions(speculation.method, speculation.model, speculation.num_tokens, speculation.num_layers)
