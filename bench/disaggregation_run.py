"""One run of the benchmark of disaggregation: starts the topologies, measures them in turns, ends them.

All that a part compares are up at the same time, so that they can take turns and what disturbs the machine disturbs
all; only one has work at a time. What the idle ones take of the CPU meanwhile is measured too.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..launch.config import EngineOptions, ModelOptions
from ..launch.hardware import num_cores
from ..launch.limits import step_limits
from ..launch.model import find_model
from . import added_ttft, long_prompt, mixed_load, overlap
from .added_ttft import Ttft
from .completions import Prompts
from .load import runner
from .long_prompt import WATCHED_PROMPT_TOKENS, Felt
from .mixed_load import Carried, Load
from .overlap import Overlap
from .servers import BLOCK_TOKENS
from .topology import Running, Topology, running

SMALL_CHUNK_TOKENS = 64
DEFAULT_CHUNK_TOKENS = step_limits(EngineOptions(), "cpu", "prefill").max_num_batched_tokens
FAKE_STEP_S, FAKE_TOKEN_S = 0.01, 0.0001


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured, in tokens and numbers of requests."""

    ttft: tuple[tuple[int, int], ...] = ((128, 20), (512, 8), (2048, 4))
    """(prompt length, requests) each."""
    overlap: tuple[int, int] = (4000, 3)
    long_prompt: tuple[int, int] = (6000, 2)
    watched_tokens: int = 2048
    """More than any window lasts: the watcher leaves."""
    load: Load = field(default_factory=lambda: Load(16, 8, 512, 64))
    num_loads: int = 2
    quiet_s: float = 3.0

    @property
    def context(self) -> int:
        """Tokens of the longest request."""
        longest_prompt = max(self.overlap[0], self.long_prompt[0], *(length for length, _ in self.ttft))
        return max(longest_prompt + 64, WATCHED_PROMPT_TOKENS + self.watched_tokens)

    @property
    def num_blocks(self) -> int:
        """Of each worker: what runs at the same time fits."""
        window = self.long_prompt[0] + WATCHED_PROMPT_TOKENS + self.watched_tokens
        loaded = self.load.at_once * (self.load.prompt_tokens + self.load.output_tokens)
        return -(-max(self.context, window, loaded) // BLOCK_TOKENS) + 64


QUICK = Sizes(
    ttft=((128, 4), (512, 2)),
    overlap=(1000, 1),
    long_prompt=(1500, 1),
    watched_tokens=1000,
    load=Load(6, 4, 128, 16),
    num_loads=1,
    quiet_s=1.0,
)


@dataclass(frozen=True, slots=True)
class Engine:
    engine: str
    model: str | None
    """None: the demo model."""
    dtype: str

    def arguments(self, sizes: Sizes) -> list[str]:
        """For `isthmus serve`."""
        room = ["--max-model-len", str(sizes.context), "--num-blocks", str(sizes.num_blocks)]
        fake = ["--fake-step-s", str(FAKE_STEP_S), "--fake-token-s", str(FAKE_TOKEN_S)]
        common = ["--engine", self.engine, "--dtype", self.dtype, *room, "--decode", "1", "--log-level", "warning"]
        return [*common, *(fake if self.engine == "fake" else []), *([self.model] if self.model else [])]


@dataclass(frozen=True, slots=True)
class Topologies:
    split: Topology
    over_zmq: Topology
    """As `split`, with KV by TCP whatever else works."""
    like: Topology
    """Aggregated, with as many threads as one worker of `split` has."""
    whole: Topology
    """Aggregated, with all cores."""
    small: Topology
    """As `whole`, with small chunks."""


def topologies(cores: int) -> Topologies:
    half = max(1, cores // 2)
    chunk = ("--max-num-batched-tokens", str(SMALL_CHUNK_TOKENS))
    return Topologies(
        split=Topology("1P1D", ("--prefill", "1"), half),
        over_zmq=Topology("1P1D over zmq", ("--prefill", "1", "--kv-transport", "zmq"), half),
        like=aggregated("", (), half),
        whole=aggregated("", (), cores),
        small=aggregated(f", chunk {SMALL_CHUNK_TOKENS}", chunk, cores),
    )


def aggregated(suffix: str, arguments: tuple[str, ...], num_threads: int) -> Topology:
    threads = f"{num_threads} thread{'s' * (num_threads != 1)}"
    return Topology(f"--prefill 0{suffix}, {threads}", ("--prefill", "0", *arguments), num_threads)


@dataclass(frozen=True, slots=True)
class Measured:
    sizes: Sizes
    engine: Engine
    topologies: Topologies
    transport: str
    ttft: list[list[Ttft]]
    """Of split, like, whole, over_zmq; each by length."""
    overlap: Overlap
    bytes_per_token: int
    """Of KV."""
    copy_s: float
    """All KV of the overlap's prompt, copied once in memory."""
    copy_chunk_s: float
    """Only that of its last chunk."""
    quiet: list[Felt]
    long_prompt: list[Felt]
    """Of split, whole, small."""
    loads: list[list[Carried]]
    """Of split, whole; by repetition."""
    idle_cores: float
    """What all processes took together while nothing was asked."""
    load_average: float
    """Before the run."""
    wall_s: float


def measure(sizes: Sizes, engine: Engine) -> Measured:
    """Starts what is measured and ends it. Raises LoadError if an answer is not as it should be."""
    load_average, begin = os.getloadavg()[0], time.perf_counter()
    model = find_model(ModelOptions(engine.model, load_format="dummy" if engine.engine == "fake" else "auto"))
    prompts = Prompts(model.resolved.folder, sizes.context)
    compared = topologies(num_cores())
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name, runner() as loop:
        bench = Bench(sizes, engine.arguments(sizes), prompts, loop, Path(name))
        with bench.started(compared.split) as split, bench.started(compared.whole) as whole:
            with bench.started(compared.like) as like, bench.started(compared.over_zmq) as over_zmq:
                idle_cores = bench.idle_cores([split, like, whole, over_zmq])
                ttft = bench.ttft([split, like, whole, over_zmq])
            found_overlap = bench.overlap(split)
            transport = split.transport()
            loads = bench.loads([split, whole])
            with bench.started(compared.small) as small:
                quiet = [bench.quiet(each) for each in (split, whole, small)]
                felt = bench.long_prompt([split, whole, small])
    bytes_per_token = model.facts(engine.dtype).kv_bytes_per_token
    last_chunk = (sizes.overlap[0] - 1) % DEFAULT_CHUNK_TOKENS + 1
    return Measured(
        sizes=sizes,
        engine=engine,
        topologies=compared,
        transport=transport,
        ttft=ttft,
        overlap=found_overlap,
        bytes_per_token=bytes_per_token,
        copy_s=overlap.copy_s(sizes.overlap[0] * bytes_per_token),
        copy_chunk_s=overlap.copy_s(last_chunk * bytes_per_token),
        quiet=quiet,
        long_prompt=felt,
        loads=loads,
        idle_cores=idle_cores,
        load_average=load_average,
        wall_s=time.perf_counter() - begin,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts of a run. Each says on stderr that it begins."""

    sizes: Sizes
    common: Sequence[str]
    prompts: Prompts
    loop: asyncio.Runner
    folder: Path

    @contextmanager
    def started(self, topology: Topology) -> Iterator[Running]:
        say(f"starting {topology.name}")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with running(topology, self.common, folder) as started:
            yield started

    def idle_cores(self, servers: Sequence[Running]) -> float:
        before = sum(each.cpu_s() for each in servers)
        time.sleep(self.sizes.quiet_s)
        return (sum(each.cpu_s() for each in servers) - before) / self.sizes.quiet_s

    def ttft(self, servers: Sequence[Running]) -> list[list[Ttft]]:
        say("time to first token")
        return self.loop.run(added_ttft.in_turns(servers, self.prompts, self.sizes.ttft))

    def overlap(self, split: Running) -> Overlap:
        say("overlap")
        return self.loop.run(overlap.measure(split, self.prompts, *self.sizes.overlap))

    def loads(self, servers: Sequence[Running]) -> list[list[Carried]]:
        """In turns."""
        say("mixed load")
        found: list[list[Carried]] = [[] for _ in servers]
        for _ in range(self.sizes.num_loads):
            for each, carried in zip(servers, found, strict=True):
                carried.append(self.loop.run(mixed_load.carry(each, self.prompts, self.sizes.load)))
        return found

    def quiet(self, server: Running) -> Felt:
        sizes = self.sizes
        window = self.loop.run(long_prompt.quiet(server, self.prompts, sizes.watched_tokens, sizes.quiet_s))
        return long_prompt.summary([window])

    def long_prompt(self, servers: Sequence[Running]) -> list[Felt]:
        """In turns."""
        say("a stream beside a long prompt")
        num_tokens, num_windows = self.sizes.long_prompt
        windows: list[list[long_prompt.Window]] = [[] for _ in servers]
        for _ in range(num_windows):
            for each, found in zip(servers, windows, strict=True):
                watched = self.sizes.watched_tokens
                found.append(self.loop.run(long_prompt.with_long_prompt(each, self.prompts, num_tokens, watched)))
        return [long_prompt.summary(found) for found in windows]


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
