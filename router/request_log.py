"""The access log: a line for each request, when it has been answered."""

import logging
from typing import Any

from ..wire import log_context
from .access import ANONYMOUS
from .exchange import Exchange
from .request_usage import RequestUsage

log = logging.getLogger(__name__)


class RequestLog:
    """Observes exchanges. Those that generate are worth a line at INFO, all others at DEBUG: clients poll them."""

    def began(self, exchange: Exchange) -> None:
        pass

    def ended(self, exchange: Exchange) -> None:
        level = logging.DEBUG if exchange.text is None else logging.INFO
        if log.isEnabledFor(level):
            facts = facts_of(exchange)
            extra = {"request_id": exchange.request_id, "facts": facts}
            trace_id = log_context.trace_id.get()
            text = sentence(facts) + (f"; trace {trace_id}" if trace_id else "")
            log.log(level, "request %s: %s", exchange.request_id, text, extra=extra)


class UsageCount:
    """Observes exchanges for `RequestUsage`."""

    def __init__(self, usage: RequestUsage):
        self._usage = usage

    def began(self, exchange: Exchange) -> None:
        pass

    def ended(self, exchange: Exchange) -> None:
        if exchange.text is not None:
            self._usage.count(exchange.text.generation, stream=exchange.stream)


def facts_of(exchange: Exchange) -> dict[str, Any]:
    """For programs. Seconds are rounded to a tenth of a millisecond."""
    facts: dict[str, Any] = {"method": exchange.method, "path": exchange.path, "status": exchange.status}
    if exchange.key not in ("", ANONYMOUS):
        facts["key"] = exchange.key
    if exchange.text is not None:
        stages = exchange.text.timings()
        facts |= {
            "outcome": exchange.outcome,
            "stream": exchange.stream,
            "prompt_tokens": exchange.text.generation.num_prompt_tokens,
            "cached_tokens": stages.num_cached_tokens,
            "tokens": exchange.text.num_output_tokens,
            "queue_s": round(stages.queue_s, 4),
            "prefill_s": round(stages.prefill_s, 4),
            "transfer_s": round(stages.transfer_s, 4),
            "decode_s": round(stages.decode_s, 4),
        }
    return {**facts, "duration_s": round(exchange.duration_s, 4)}


def sentence(facts: dict[str, Any]) -> str:
    """`POST /v1/completions 200, 3 + 5 tokens, stop; queue 0.001, prefill 0.02, … of 0.3 s; key alice`"""
    text = f"{facts['method']} {facts['path']} {facts['status']}"
    if "outcome" in facts:
        stages = ", ".join(f"{name} {facts[name + '_s']:g}" for name in ("queue", "prefill", "transfer", "decode"))
        text += f", {facts['prompt_tokens']} + {facts['tokens']} tokens, {facts['outcome']}; {stages}"
    text += f" of {facts['duration_s']:g} s" if "outcome" in facts else f", {facts['duration_s']:g} s"
    return text + (f"; key {facts['key']}" if "key" in facts else "")
