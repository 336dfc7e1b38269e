"""The router's measurements as a report."""

from . import stall
from .fan_out import FanOut
from .report import Report, Row
from .router_run import STEP_S, Measured
from .stall import Stalls

PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "fastapi", "msgspec", "pyzmq", "tokenizers")
MIN_RATIO, AIM_RATIO = 0.5, 0.8
MAX_ADDED_P50_S, MAX_ADDED_P99_S = 0.001, 0.003


def report(measured: Measured) -> Report:
    sizes = measured.sizes
    ours, peer, _ = measured.saturated
    notes = [
        f"Saturated: medians of {sizes.repetitions} turns each; the decode worker and the load generator took "
        f"{ours.others_cpu_s_per_1k * 1000:.0f} µs of CPU a token beside the router, the load generator "
        f"{peer.others_cpu_s_per_1k * 1000:.0f} µs beside the peer, on the same cores.",
        "Peer: a bare Starlette app under the same uvicorn, chunks made beforehand; a chunk each turn of its event "
        "loop, as a step's tokens come (at once: no pause between chunks, so that one write carries many).",
        "An event carries all tokens that came together for a choice, so a busy router sends fewer events than tokens.",
        f"TTFT: {sizes.requests} requests each, in turns, one at a time, prompts as token ids, on a kept connection; "
        "differences of percentiles. From placement to first token it is ZeroMQ and the decode worker that take time.",
        f"Gaps: {stall.NUM_WATCHED} streams of a token each {STEP_S * 1000:.0f} ms, {sizes.prompts} windows of each "
        f"kind, prompts of {sizes.prompt_tokens} tokens; worst (median) of the windows. The decode worker's time is in "
        "them; the longest answer to GET /ping shows the server's own loop.",
    ]
    rows = [*saturated_rows(measured), *first_token_rows(measured), *stall_rows(measured)]
    return Report("The router alone", rows, notes, PACKAGES, measured.load_average)


def saturated_rows(measured: Measured) -> list[Row]:
    sizes, (ours, peer, at_once), (our_paced, peer_paced) = measured.sizes, measured.saturated, measured.paced
    ratio = ours.tokens_per_s / peer.tokens_per_s
    ratio_at_once = ours.tokens_per_s / at_once.tokens_per_s
    return [
        Row(
            f"streamed tokens/s, {sizes.streams} × {sizes.tokens}, saturated",
            rate(ours),
            rate(peer),
            f"{ratio:.2f} ×",
            f"≥ {MIN_RATIO} ×, aim {AIM_RATIO}",
            ratio >= MIN_RATIO,
        ),
        Row("… beside the peer at once", rate(ours), rate(at_once), f"{ratio_at_once:.2f} ×"),
        Row("events a token", f"{ours.events_per_token:.2f}", f"{peer.events_per_token:.2f}", ""),
        cpu_row("server's CPU for 1,000 tokens, saturated", ours, peer),
        cpu_row(f"… paced, a step each {STEP_S * 1000:.0f} ms", our_paced, peer_paced),
    ]


def cpu_row(what: str, ours: FanOut, peer: FanOut) -> Row:
    return Row(
        what,
        f"{ours.cpu_s_per_1k * 1000:.1f} ms",
        f"{peer.cpu_s_per_1k * 1000:.1f} ms",
        f"{ours.cpu_s_per_1k / peer.cpu_s_per_1k:.1f} ×",
    )


def rate(found: FanOut) -> str:
    low, high = found.spread
    return f"{found.tokens_per_s:,.0f} ({low:,.0f}–{high:,.0f})"


def first_token_rows(measured: Measured) -> list[Row]:
    ours, peer = measured.first_token
    return [
        first_token_row("TTFT, low load, p50", ours.p50_s, peer.p50_s, MAX_ADDED_P50_S),
        Row("… of it from placement to first token, p50", ms(ours.worker_p50_s), "", ""),
        first_token_row("TTFT, low load, p99", ours.p99_s, peer.p99_s, MAX_ADDED_P99_S),
    ]


def first_token_row(what: str, ours_s: float, peer_s: float, budget_s: float) -> Row:
    added_s = ours_s - peer_s
    return Row(
        what, ms(ours_s), ms(peer_s), f"{added_s * 1000:+.2f} ms", f"≤ + {budget_s * 1000:g} ms", added_s <= budget_s
    )


def stall_rows(measured: Measured) -> list[Row]:
    windows = (
        ("no long prompt", measured.quiet),
        ("a long text arrives", measured.text),
        ("as many token ids arrive", measured.ids),
    )
    gaps = [stall_row(f"longest gap in a stream, {what}", *both) for what, both in windows]
    pings = [
        Row(f"longest ping, {what}", ms(ours.worst_ping_s), ms(peer.worst_ping_s), "") for what, (ours, peer) in windows
    ]
    return [*gaps, *pings]


def stall_row(what: str, ours: Stalls, peer: Stalls) -> Row:
    return Row(what, gap(ours), gap(peer), f"{(ours.worst_gap_s - peer.worst_gap_s) * 1000:+.2f} ms")


def gap(found: Stalls) -> str:
    return f"{ms(found.worst_gap_s)} ({ms(found.median_gap_s)})"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
