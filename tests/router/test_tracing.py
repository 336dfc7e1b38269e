"""Traces, through OpenTelemetry's SDK: spans in memory, and what a collector gets over HTTP."""

import asyncio
import contextlib
import http.server
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import JobError, JobTimings, JobWorkers
from isthmus.tests.local_cluster import LocalCluster
from isthmus.tests.router.edge import run, saying, served
from isthmus.tests.scripted_router import fake_load

pytest.importorskip("opentelemetry.sdk.trace", reason="needs isthmus[tracing]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs isthmus[tracing]")

from isthmus.router.tracing import Tracing, make_provider
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


class Collected:
    """A router edge whose spans are kept."""

    def __init__(self, core: FakeCore):
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._app = create_app(core, served(), observers=[Tracing(provider, model="tiny")])

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **how)

        return run(send())

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def request_span(self) -> ReadableSpan:
        [found] = [span for span in self.spans if span.kind is SpanKind.SERVER]
        return found

    def stages(self) -> list[tuple[str, int]]:
        """Names and nanoseconds of the spans below the request's."""
        parent = self.request_span().context.span_id
        return [(s.name, s.end_time - s.start_time) for s in self.spans if s.parent and s.parent.span_id == parent]


def staged(monkeypatch: pytest.MonkeyPatch, core: FakeCore, timings: JobTimings, workers: JobWorkers) -> Collected:
    """Its jobs all take these times on these workers."""
    submit = core.submit

    def submit_staged(job: Any) -> Any:
        stream = submit(job)
        monkeypatch.setattr(stream, "timings", lambda: timings)
        monkeypatch.setattr(stream, "workers", lambda: workers)
        return stream

    monkeypatch.setattr(core, "submit", submit_staged)
    return Collected(core)


def test_a_request_is_a_span_with_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = JobTimings(queue_s=0.5, prefill_s=0.25, transfer_s=0.125, decode_s=2.0, num_cached_tokens=2)
    edge = staged(monkeypatch, saying("hi"), timings, JobWorkers("p0", "d0"))
    body = {"prompt": "abc", "temperature": 0.5, "top_p": 0.9, "n": 2, "max_tokens": 7}
    edge.ask("POST", "/v1/completions", json=body, headers={"X-Request-Id": "mine"})
    span = edge.request_span()
    assert span.name == "POST /v1/completions"
    assert span.attributes is not None
    expected = {
        "http.request.method": "POST", "http.route": "/v1/completions", "url.path": "/v1/completions",
        "url.scheme": "http", "http.response.status_code": 200, "gen_ai.request.id": "mine",
        "gen_ai.operation.name": "text_completion", "gen_ai.response.model": "tiny", "gen_ai.request.n": 2,
        "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9, "gen_ai.request.max_tokens": 7,
        "gen_ai.response.finish_reasons": ("stop", "stop"), "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 6, "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.num_sequences": 2, "gen_ai.latency.time_in_queue": 0.5,
        "gen_ai.latency.time_in_model_prefill": 0.375, "gen_ai.latency.time_in_model_decode": 2.0,
        "gen_ai.latency.time_in_model_inference": 2.375, "gen_ai.latency.time_to_first_token": 0.875,
    }  # fmt: skip
    assert {name: span.attributes.get(name) for name in expected} == expected
    assert edge.stages() == [
        ("queue", 500_000_000), ("prefill", 250_000_000), ("transfer", 125_000_000), ("decode", 2_000_000_000),
    ]  # fmt: skip
    assert span.end_time == max(s.end_time for s in edge.spans), "though its stages seem to last longer"
    prefill, transfer, decode = (s for s in edge.spans if s.name in ("prefill", "transfer", "decode"))
    assert prefill.end_time == transfer.start_time
    assert prefill.attributes is not None
    assert transfer.attributes is not None
    assert decode.attributes is not None
    assert (prefill.attributes["isthmus.worker"], prefill.attributes["isthmus.num_cached_tokens"]) == ("p0", 2)
    assert (transfer.attributes["isthmus.from_worker"], transfer.attributes["isthmus.to_worker"]) == ("p0", "d0")
    assert decode.attributes["isthmus.worker"] == "d0"


@pytest.mark.parametrize(
    ("workers", "max_tokens", "names"),
    [
        (JobWorkers(None, None), 5, ["queue"]),
        (JobWorkers(None, "d0"), 5, ["queue", "prefill", "decode"]),
        (JobWorkers("p0", None), 0, ["queue", "prefill"]),
        (JobWorkers(None, "d0"), 0, ["queue", "prefill"]),
    ],
)
def test_only_stages_that_there_were(
    workers: JobWorkers, max_tokens: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = staged(monkeypatch, saying("hi"), JobTimings(0.5, 0.25, 0.0, 1.0, 0), workers)
    edge.ask("POST", "/v1/completions", json={"prompt": "abc", "max_tokens": max_tokens})
    assert [name for name, _ in edge.stages()] == names


def test_each_prompt_has_its_stages() -> None:
    edge = Collected(saying("hi"))
    edge.ask("POST", "/v1/completions", json={"prompt": ["abc", "de"]})
    indices = [span.attributes["isthmus.prompt_index"] for span in edge.spans if span.name == "queue"]
    assert indices == [0, 1]


def test_a_chat_is_one_and_the_callers_trace_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isthmus.router")
    edge = Collected(saying("hi"))
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    edge.ask("POST", "/v1/chat/completions", json=body, headers=TRACEPARENT)
    span = edge.request_span()
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.attributes is not None
    assert (span.attributes["gen_ai.operation.name"], span.attributes["gen_ai.request.stream"]) == ("chat", True)
    assert {each.context.trace_id for each in edge.spans} == {span.context.trace_id}
    assert f"; trace {TRACE_ID}" in caplog.text


def test_what_the_caller_does_not_sample_is_not_kept() -> None:
    edge = Collected(saying("hi"))
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    assert edge.ask("POST", "/v1/completions", json={"prompt": "a"}, headers=headers).status_code == 200
    assert edge.spans == []


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{PARENT_ID}-01"])
def test_a_bad_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    edge = Collected(saying("hi"))
    edge.ask("POST", "/v1/completions", json={"prompt": "a"}, headers={"traceparent": header})
    assert edge.request_span().parent is None


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/metrics"), ("POST", "/tokenize")])
def test_what_generates_nothing_is_not_traced(method: str, path: str) -> None:
    edge = Collected(saying("hi"))
    edge.ask(method, path)
    assert edge.spans == []


def test_errors() -> None:
    def script(job: object, choice: int) -> Iterator[int]:
        raise JobError(500, "broken")

    edge = Collected(FakeCore(script))
    edge.ask("POST", "/v1/completions", json={"prompt": 7})
    refused = edge.request_span()
    assert refused.attributes is not None
    assert (refused.status.status_code, refused.attributes["http.response.status_code"]) == (StatusCode.UNSET, 400)
    edge = Collected(FakeCore(script))
    edge.ask("POST", "/v1/completions", json={"prompt": "a"})
    failed = edge.request_span()
    assert failed.attributes is not None
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "500")


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, "queue.SimpleQueue[ExportTraceServiceRequest]"]]:
    """An OTLP receiver: its URL, and what it gets."""
    received: queue.SimpleQueue[ExportTraceServiceRequest] = queue.SimpleQueue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
            received.put(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("given", "name"), [(None, "isthmus"), ("mine", "mine")])
def test_the_service_has_a_name(given: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if given is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
    with contextlib.closing(Tracing(make_provider("http://127.0.0.1:9/v1/traces"), model="tiny")) as tracing:
        assert tracing._provider.resource.attributes["service.name"] == name


def test_a_disabled_sdk_traces_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isthmus.router")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    edge = Collected(saying("hi"))
    assert edge.ask("POST", "/v1/completions", json={"prompt": "a"}).status_code == 200
    assert edge.spans == []
    assert "trace" not in caplog.text


def test_a_collector_sees_router_prefill_transfer_and_decode() -> None:
    """Real workers with the fake engine, real HTTP to the collector."""

    async def ask(app: Any) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"X-Request-Id": "mine", **TRACEPARENT}
            reply = await client.post("/v1/completions", json={"prompt": "x" * 100, "max_tokens": 5}, headers=headers)
            assert reply.status_code == 200, reply.text

    with collector() as (url, received):
        with (
            LocalCluster(fake_load(), num_prefill=1, num_decode=1) as cluster,
            contextlib.closing(Tracing(make_provider(url), model="tiny")) as tracing,
        ):
            app = create_app(cluster.core, served(), observers=[tracing])
            asyncio.run_coroutine_threadsafe(ask(app), cluster.loop).result(30)
        [resource] = received.get(timeout=10).resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "isthmus"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    by_name = {span.name: span for span in spans}
    request = by_name.pop("POST /v1/completions")
    assert request.parent_span_id.hex() == PARENT_ID
    stages = sorted(by_name.values(), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in stages] == ["queue", "prefill", "transfer", "decode"]
    assert {span.parent_span_id for span in stages} == {request.span_id}
    ends = [request.start_time_unix_nano, *(t for s in stages for t in (s.start_time_unix_nano, s.end_time_unix_nano))]
    assert ends == sorted(ends)
    assert stages[-1].end_time_unix_nano <= request.end_time_unix_nano
    where = [{a.key: a.value.string_value for a in span.attributes} for span in stages[1:]]
    assert (where[0]["isthmus.worker"], where[2]["isthmus.worker"]) == ("prefill-0", "decode-0")
    assert (where[1]["isthmus.from_worker"], where[1]["isthmus.to_worker"]) == ("prefill-0", "decode-0")
