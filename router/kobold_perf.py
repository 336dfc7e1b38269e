"""What GET /api/extra/perf tells: figures of the request that ended last, whatever API it came by."""

from collections.abc import Sequence
from typing import Any

from .timelines import Timeline
from .topology import Topology

STOP_REASONS = {"error": -2, "length": 0, "abort": 0, "stop": 1}
NO_STOP_REASON = -1
STOP_STRING = 2


def perf(topology: Topology, timelines: Sequence[Timeline]) -> dict[str, Any]:
    """KoboldCpp's fields. Times of a request that never was are 0."""
    router = topology.router
    ended = [each for each in timelines if each.ended_s is not None]
    last = min(ended, key=lambda each: each.ended_s or 0.0, default=None)
    return {
        **last_request(last),
        **last_drafts(topology),
        "total_gens": router.num_ended,
        "stop_reason": stop_reason(last),
        "total_img_gens": 0,
        "total_tts_gens": 0,
        "total_transcribe_gens": 0,
        "queue": router.num_waiting,
        "idle": int(not router.num_waiting and not router.num_running),
        "hordeexitcounter": 0,
        "uptime": router.uptime_s,
        "idletime": min((each.age_s for each in timelines), default=router.uptime_s),
        "quiet": True,
    }


def last_request(last: Timeline | None) -> dict[str, Any]:
    """Seconds, tokens a second, and milliseconds a token. The first token comes with the prompt."""
    if last is None:
        return figures(0.0, 0.0, 0, 0, 0, -1)
    process_s = last.prefill_s + last.transfer_s
    num_computed = last.num_prompt_tokens - last.num_cached_tokens
    return figures(process_s, last.decode_s, num_computed, last.num_prompt_tokens, last.num_output_tokens, last.seed)


def figures(
    process_s: float, decode_s: float, num_computed: int, num_prompt: int, num_output: int, seed: int
) -> dict[str, Any]:
    num_decoded = max(0, num_output - 1)
    return {
        "last_process": ratio(1e3 * process_s, num_computed),
        "last_eval": ratio(1e3 * decode_s, num_decoded),
        "last_token_count": num_output,
        "last_input_count": num_prompt,
        "last_process_time": process_s,
        "last_eval_time": decode_s,
        "last_process_speed": ratio(num_computed, process_s),
        "last_eval_speed": ratio(num_decoded, decode_s),
        "last_seed": seed,
    }


def last_drafts(topology: Topology) -> dict[str, int | None]:
    """Workers count the tokens they guess, but not by request: null where they do guess."""
    count = None if any(worker.num_draft_tokens for worker in topology.workers) else 0
    return {"last_draft_success": count, "last_draft_failed": count}


def stop_reason(last: Timeline | None) -> int:
    if last is None or last.outcome is None:
        return NO_STOP_REASON
    return STOP_STRING if last.at_stop_string else STOP_REASONS[last.outcome]


def ratio(amount: float, per: float) -> float:
    return amount / per if per > 0 else 0.0
