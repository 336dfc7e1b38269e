"""The measurements of disaggregation as a table in Markdown: ours, its peers and its ceiling, from one run."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .added_ttft import Ttft
from .disaggregation_run import DEFAULT_CHUNK_TOKENS, FAKE_STEP_S, FAKE_TOKEN_S, Measured
from .long_prompt import Felt
from .mixed_load import Carried
from .report import Report, command_line, versions

TITLE = "One prefill and one decode worker beside `--prefill 0`, on a CPU"
PACKAGES = ("torch", "pyzmq", "msgspec", "numpy", "uvicorn")
NO_CEILING = "–"


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    ours: str
    peer: str
    peer_name: str
    ceiling: str
    compared: str

    def markdown(self) -> str:
        return row([self.what, self.ours, self.peer, self.peer_name, self.ceiling, self.compared])


def markdown(measured: Measured) -> str:
    report = Report(TITLE, (), notes(measured), PACKAGES, measured.load_average)
    heading = ["", f"1P1D over {measured.transport}", "peer", "peer is", "ceiling", "1P1D to peer"]
    lines = [
        f"# {report.title}",
        "",
        "```",
        command_line(),
        "```",
        f"{report.device()}.",
        f"{versions(PACKAGES)}.",
        "",
        row(heading),
        row(["---"] * len(heading)),
        *(line.markdown() for line in all_of(measured)),
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in report.notes)])


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def all_of(measured: Measured) -> list[Line]:
    return [*ttft_lines(measured), *overlap_lines(measured), *long_prompt_lines(measured), *load_lines(measured)]


def ttft_lines(measured: Measured) -> list[Line]:
    split, *peers = measured.ttft
    compared = measured.topologies
    names = (compared.like.name, compared.whole.name, compared.over_zmq.name)
    return [
        ttft_line(ours, theirs, name)
        for ours, *both in zip(split, *peers, strict=True)
        for theirs, name in zip(both, names, strict=True)
    ]


def ttft_line(ours: Ttft, theirs: Ttft, name: str) -> Line:
    return Line(
        f"TTFT, idle, {ours.num_tokens} tokens, p50 / p99 of {ours.num_requests}",
        f"{seconds(ours.p50_s)} / {seconds(ours.p99_s)}",
        f"{seconds(theirs.p50_s)} / {seconds(theirs.p99_s)}",
        name,
        "the peer",
        f"{added(ours.p50_s, theirs.p50_s)} / {added(ours.p99_s, theirs.p99_s)}",
    )


def overlap_lines(measured: Measured) -> list[Line]:
    found, engine = measured.overlap, measured.engine.engine
    copies = [seconds(measured.copy_s), seconds(measured.copy_chunk_s)] if engine == "torch" else [NO_CEILING] * 2
    num_mb = found.num_tokens * measured.bytes_per_token / 1e6
    return [
        Line(
            f"last chunk's compute to first token, {found.num_tokens} tokens, median (longest)",
            f"{seconds(found.tail_s)} ({seconds(found.worst_tail_s)})",
            copies[0],
            f"all {num_mb:.0f} MB of KV copied once in memory",
            f"{copies[1]}: the last chunk's",
            f"{found.tail_s / found.prefill_s:.2%} of the {seconds(found.prefill_s)} before",
        )
    ]


def long_prompt_lines(measured: Measured) -> list[Line]:
    split, *peers = measured.long_prompt
    names = (f"{measured.topologies.whole.name}, chunk {DEFAULT_CHUNK_TOKENS}", measured.topologies.small.name)
    num_tokens = measured.sizes.long_prompt[0]
    quiet, *peers_quiet = measured.quiet
    lines = []
    for theirs, theirs_quiet, name in zip(peers, peers_quiet, names, strict=True):
        lines += [
            Line(
                f"longest gap in a stream while {num_tokens} tokens are prefilled",
                seconds(split.worst_gap_s),
                seconds(theirs.worst_gap_s),
                name,
                f"{seconds(quiet.worst_gap_s)}, peer {seconds(theirs_quiet.worst_gap_s)}: nothing prefilled",
                shorter(split.worst_gap_s, theirs.worst_gap_s),
            ),
            Line(
                "… ITL p50 / p99 meanwhile",
                itl(split),
                itl(theirs),
                name,
                f"{itl(quiet)}, peer {itl(theirs_quiet)}: nothing prefilled",
                f"p99 {shorter(split.itl_p99_s, theirs.itl_p99_s)}",
            ),
            Line(
                f"… TTFT of the {num_tokens} tokens",
                seconds(split.ttft_s),
                seconds(theirs.ttft_s),
                name,
                "the peer",
                f"{added(split.ttft_s, theirs.ttft_s)}: the price",
            ),
        ]
    return lines


def itl(felt: Felt) -> str:
    return f"{seconds(felt.itl_p50_s)} / {seconds(felt.itl_p99_s)}"


def load_lines(measured: Measured) -> list[Line]:
    split, whole = measured.loads
    ours, theirs = rate(split), rate(whole)
    ours_s, theirs_s = (statistics.median(each.ttft_s for each in carried) for carried in (split, whole))
    name, load = measured.topologies.whole.name, measured.sizes.load
    return [
        Line(
            f"output tokens/s, {load}",
            f"{ours:.1f}",
            f"{theirs:.1f}",
            name,
            prefill_bound(measured),
            f"{ours / theirs:.2f} ×",
        ),
        Line("… TTFT, median", seconds(ours_s), seconds(theirs_s), name, "the peer", added(ours_s, theirs_s)),
    ]


def rate(carried: Sequence[Carried]) -> float:
    return statistics.median(each.output_tokens_per_s for each in carried)


def prefill_bound(measured: Measured) -> str:
    """What the prefill worker alone allows: it computes one prompt after the other."""
    load = measured.sizes.load
    known = [found for found in measured.ttft[0] if found.num_tokens == load.prompt_tokens]
    if not known:
        return NO_CEILING
    return f"{load.output_tokens / known[0].p50_s:.1f}: P's time for {load.prompt_tokens} tokens, decoding free"


def notes(measured: Measured) -> list[str]:
    names, engine = measured.topologies, measured.engine
    model = engine.model or "the demo model"
    fake = (
        f" Fake: {FAKE_STEP_S * 1000:g} ms a step, {FAKE_TOKEN_S * 1e6:g} µs a prompt token on each worker, whatever "
    )
    fake += "cores there are; no KV to speak of."
    split_threads = f"{names.split.num_threads} thread{'s' * (names.split.num_threads != 1)} a worker"
    return [
        f"`isthmus serve`, {model}, engine {engine.engine}, {engine.dtype}, prefix cache on, no prompt twice, greedy, "
        f"chunks of {DEFAULT_CHUNK_TOKENS} unless said. 1P1D: {split_threads}." + fake * (engine.engine == "fake"),
        f"`{names.like.name}` computes with as many threads as each worker of 1P1D: like for like. "
        f"`{names.whole.name}` has all cores: what a user gets. KV moved over {measured.transport}, seen in the memory "
        "maps of the workers.",
        "TTFT: at the client, prompts as token ids, one request at a time, topologies in turns with the same prompts; "
        "p99 is the largest, of fewer than a hundred.",
        "Last chunk's compute to first token: `usage.timings.transfer_s`. The prefill worker tells with Prefilled how "
        "long ago the last chunk was computed; the router counts from then to the arrival of the first token, so one "
        "ZeroMQ hop, the first draw and the way back are in it.",
        f"Gaps: one stream, greedy, from the moment the long prompt is sent to its first token, {windows(measured)}; "
        "gaps at the edges count whole. An event can carry several tokens: ITL is that of events. The prompt's TTFT is "
        "a median.",
        "On one CPU 1P1D is expected to be slower in throughput: prompts have one part of the cores and decoding the "
        "other, and what one leaves idle the other cannot use, while `--prefill 0` always computes with all.",
        f"While one topology was measured the others were idle; all processes of three together then took "
        f"{measured.idle_cores:.1%} of a core. The whole run took {measured.wall_s:.0f} s.",
    ]


def windows(measured: Measured) -> str:
    number = measured.sizes.long_prompt[1]
    return f"{number} window{'s' * (number != 1)} each, in turns"


def shorter(ours_s: float, theirs_s: float) -> str:
    return f"{theirs_s / ours_s:.1f} × shorter" if ours_s <= theirs_s else f"{ours_s / theirs_s:.1f} × longer"


def added(ours_s: float, theirs_s: float) -> str:
    added_s = ours_s - theirs_s
    return f"{added_s:+.2f} s" if abs(added_s) >= 1 else f"{added_s * 1000:+.1f} ms"


def seconds(value_s: float) -> str:
    return f"{value_s:.2f} s" if value_s >= 1 else f"{value_s * 1000:.1f} ms"
