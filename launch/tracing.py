"""Traces, where options ask for them."""

from contextlib import AbstractContextManager, closing, nullcontext

from ..router.tracing import Tracing, is_installed, make_provider
from .config import TelemetryOptions
from .resolve import ConfigError


def check_tracing(options: TelemetryOptions) -> None:
    """Raises ConfigError where what it needs is not installed."""
    if options.otlp_traces_endpoint is not None and not is_installed():
        raise ConfigError("--otlp-traces-endpoint needs OpenTelemetry's SDK: pip install 'isthmus[tracing]'")


def opened_tracing(options: TelemetryOptions, model: str) -> AbstractContextManager[Tracing | None]:
    """None where nothing is to be traced; left, it sends what is left. After `check_tracing`."""
    if options.otlp_traces_endpoint is None:
        return nullcontext()
    return closing(Tracing(make_provider(options.otlp_traces_endpoint), model=model))
