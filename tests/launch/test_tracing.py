"""Traces, from their option."""

import sys

import pytest
from isthmus.launch.config import TelemetryOptions
from isthmus.launch.main import main
from isthmus.launch.option import traces_url
from isthmus.launch.resolve import CONFIG_ERROR_CODE
from isthmus.launch.tracing import opened_tracing
from isthmus.router.tracing import is_installed


def test_nothing_is_loaded_where_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # importing it would raise
    with opened_tracing(TelemetryOptions(), "m") as tracing:
        assert tracing is None


@pytest.mark.parametrize("command", ["serve", "router"])
def test_what_is_not_installed_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("isthmus.launch.tracing.is_installed", lambda: False)
    assert main([command, "--otlp-traces-endpoint", "http://127.0.0.1:4318"]) == CONFIG_ERROR_CODE
    assert "--otlp-traces-endpoint needs OpenTelemetry's SDK: pip install 'isthmus[tracing]'" in caplog.text


def test_a_package_that_is_not_there_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.router.tracing.MODULES", ("json", "no_such_package.part"))
    assert not is_installed()
    monkeypatch.setattr("isthmus.router.tracing.MODULES", ("json", "email.mime"))
    assert is_installed()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/", "https://collector.example/v1/traces"),
        ("http://h:4318/v1/traces", "http://h:4318/v1/traces"),
        ("https://h/api/otel/v1/traces?x=1", "https://h/api/otel/v1/traces?x=1"),
    ],
)
def test_the_path_is_otlps_own_where_none_is_given(given: str, url: str) -> None:
    assert traces_url(given) == url


@pytest.mark.parametrize("given", ["", "127.0.0.1:4318", "grpc://h:4317", "http://", "/v1/traces"])
def test_other_urls_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="must be a URL"):
        traces_url(given)
