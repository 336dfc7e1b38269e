"""Traces for OpenTelemetry: a span for each request, with a span for each of its stages below it.

The router knows when each stage of a request began and ended, and where it ran, so that it alone makes the spans;
workers need no SDK. It is imported when a router that traces is made: this module can be loaded without it.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..wire import log_context
from .access import is_limited
from .exchange import Exchange
from .span_attributes import generation_attributes, http_attributes, stages_of
from .text_stream import TextStream

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

EXPORT_TIMEOUT_S = 3.0
"""For a batch, with all that is tried again: a router that ends waits so long for a collector that does not answer."""


def is_installed() -> bool:
    """Whether there is all that `make_provider` needs."""
    try:
        return all(find_spec(name) for name in MODULES)
    except ModuleNotFoundError:  # of a package above one of them
        return False


def make_provider(endpoint: str) -> "TracerProvider":
    """Sends spans in batches, from a thread of its own, to a full URL such as http://127.0.0.1:4318/v1/traces.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS in the environment
    are the SDK's to read. Raises ImportError.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "isthmus"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S)))
    return provider


class Tracing:
    """Observes exchanges. Those that may generate are traced, as part of the trace that a `traceparent` header names:
    https://www.w3.org/TR/trace-context/."""

    def __init__(self, provider: "TracerProvider", *, model: str):
        """`model`: the name it is served under."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("isthmus.router")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model
        self._spans: dict[Exchange, Span] = {}

    def began(self, exchange: Exchange) -> None:
        if not is_limited(exchange.method, exchange.raw_path):
            return
        span = self._spans[exchange] = self._tracer.start_span(
            exchange.method,
            context=self._propagator.extract(exchange.headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=exchange.started_ns,
        )
        if span.get_span_context().is_valid:  # it is not where the environment disables the SDK
            log_context.trace_id.set(self._trace.format_trace_id(span.get_span_context().trace_id))

    def ended(self, exchange: Exchange) -> None:
        span = self._spans.pop(exchange, None)
        if span is None:
            return
        ended_ns = exchange.ended_ns
        if span.is_recording():
            # Stages are measured from a moment before their request's text begins: none ends after the request.
            ended_ns = max(ended_ns, self._describe(span, exchange))
        span.end(ended_ns)

    def _describe(self, span: "Span", exchange: Exchange) -> int:
        """When its last stage ended, Unix nanoseconds; 0 without stages."""
        span.update_name(f"{exchange.method} {exchange.route}".strip())
        span.set_attributes(http_attributes(exchange))
        if exchange.status >= 500 or exchange.outcome == "error":
            span.set_status(self._trace.StatusCode.ERROR)
        if exchange.text is not None:
            span.set_attributes(generation_attributes(exchange, exchange.text, self._model))
            return self._add_stages(span, exchange, exchange.text)
        return 0

    def _add_stages(self, parent: "Span", exchange: Exchange, text: TextStream) -> int:
        within, ended_ns = self._trace.set_span_in_context(parent), 0
        for stage in stages_of(exchange, text):
            span = self._tracer.start_span(
                stage.name, context=within, attributes=stage.attributes, start_time=stage.start_ns
            )
            span.end(stage.end_ns)
            ended_ns = max(ended_ns, stage.end_ns)
        return ended_ns

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self._provider.shutdown()
