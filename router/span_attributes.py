"""What a trace tells of a request, without OpenTelemetry itself: attributes and stages.

Names are those of its semantic conventions (https://opentelemetry.io/docs/specs/semconv/, HTTP and generative AI), and
beside them those that vLLM's traces have, for dashboards that were made for these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .exchange import Exchange
from .job import Job, JobTimings, JobWorkers
from .text_stream import TextStream

Attribute = str | int | float | bool | Sequence[str]

CHAT_ROUTES = frozenset(["/v1/chat/completions", "/v1/responses", "/v1/messages"])


@dataclass(frozen=True, slots=True)
class Stage:
    """A span below that of the request."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Attribute]


def http_attributes(exchange: Exchange) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {
        "http.request.method": exchange.method,
        "url.scheme": exchange.scheme,
        "url.path": exchange.path,
        "gen_ai.request.id": exchange.request_id,
    }
    if exchange.status:
        found["http.response.status_code"] = exchange.status
    if exchange.route:
        found["http.route"] = exchange.route
    if exchange.status >= 500:
        found["error.type"] = str(exchange.status)
    return found


def generation_attributes(exchange: Exchange, text: TextStream, model: str) -> dict[str, Attribute]:
    """`model`: the name it is served under."""
    generation, params = text.generation, text.generation.jobs[0].params
    num_prompt, num_output, num_choices = generation.num_prompt_tokens, text.num_output_tokens, generation.num_choices
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": "chat" if exchange.route in CHAT_ROUTES else "text_completion",
        "gen_ai.provider.name": "isthmus",
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": exchange.outcome.split(","),
        "gen_ai.request.n": generation.jobs[0].num_choices,
        "gen_ai.request.choice.count": generation.jobs[0].num_choices,
        "gen_ai.request.stream": exchange.stream,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.usage.input_tokens": num_prompt,
        "gen_ai.usage.output_tokens": num_output,
        "gen_ai.usage.prompt_tokens": num_prompt,
        "gen_ai.usage.completion_tokens": num_output,
        "gen_ai.usage.num_sequences": num_choices,
        **latencies(exchange, text),
    }
    if params.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = params.max_tokens
    return found


def latencies(exchange: Exchange, text: TextStream) -> dict[str, Attribute]:
    """vLLM's, in seconds. It has none for a transfer, which counts as prefill, so that they add up."""
    stages = text.timings()
    prefill_s = stages.prefill_s + stages.transfer_s
    found: dict[str, Attribute] = {
        "gen_ai.latency.e2e": exchange.duration_s,
        "gen_ai.latency.time_in_queue": stages.queue_s,
        "gen_ai.latency.time_in_model_prefill": prefill_s,
        "gen_ai.latency.time_in_model_decode": stages.decode_s,
        "gen_ai.latency.time_in_model_inference": prefill_s + stages.decode_s,
    }
    if text.num_output_tokens:
        found["gen_ai.latency.time_to_first_token"] = stages.queue_s + prefill_s
    return found


def stages_of(exchange: Exchange, text: TextStream) -> Iterator[Stage]:
    """Of each prompt in turn: queue, prefill, transfer, decode, those that there were."""
    for job, timings, workers in text.each_job():
        start_ns = exchange.submitted_ns
        for name, lasted_s, attributes in job_stages(job, timings, workers):
            end_ns = start_ns + round(lasted_s * 1e9)
            yield Stage(name, start_ns, end_ns, attributes)
            start_ns = end_ns


def job_stages(job: Job, timings: JobTimings, workers: JobWorkers) -> Iterator[tuple[str, float, dict[str, Attribute]]]:
    """(name, seconds, attributes). A job that no worker has answered has only queued."""
    prompt: dict[str, Attribute] = {"isthmus.prompt_index": job.prompt_index}
    yield "queue", timings.queue_s, prompt
    computes = workers.prefill or workers.decode
    if computes is None:
        return
    about_prompt = {
        "isthmus.num_prompt_tokens": len(job.prompt_ids),
        "isthmus.num_cached_tokens": timings.num_cached_tokens,
    }
    yield "prefill", timings.prefill_s, {**prompt, "isthmus.worker": computes, **about_prompt}
    if workers.decode is None:
        return
    if workers.prefill is not None:
        ends = {"isthmus.from_worker": workers.prefill, "isthmus.to_worker": workers.decode}
        yield "transfer", timings.transfer_s, {**prompt, **ends}
    if not job.prompt_only:
        yield "decode", timings.decode_s, {**prompt, "isthmus.worker": workers.decode}
