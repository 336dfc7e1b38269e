"""The benchmark of disaggregation, as small as it runs, on the fake engine: its times have floors that can be known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from isthmus.bench.completions import Prompts, ask_once, completion, gaps_s, stage_s
from isthmus.bench.disaggregation_report import all_of, markdown
from isthmus.bench.disaggregation_run import (
    DEFAULT_CHUNK_TOKENS,
    FAKE_STEP_S,
    FAKE_TOKEN_S,
    SMALL_CHUNK_TOKENS,
    Engine,
    Measured,
    Sizes,
    measure,
    topologies,
)
from isthmus.bench.load import Answer, LoadError, connect
from isthmus.bench.long_prompt import Window, quiet, summary
from isthmus.bench.mixed_load import Load
from isthmus.bench.mixed_load import summary as load_summary
from isthmus.bench.servers import BLOCK_TOKENS, Server
from isthmus.bench.topology import Running, Topology, process_specs_of
from isthmus.launch.config import ModelOptions
from isthmus.launch.model import find_model
from isthmus.tests.helpers import demo_model_path

SIZES = Sizes(
    ttft=((80, 2), (600, 1)),
    overlap=(700, 1),
    long_prompt=(1100, 1),
    watched_tokens=1500,
    load=Load(4, 2, 80, 8),
    num_loads=1,
    quiet_s=0.2,
)
CHUNK_S = FAKE_STEP_S + (DEFAULT_CHUNK_TOKENS - 1) * FAKE_TOKEN_S
SMALL_CHUNK_S = FAKE_STEP_S + (SMALL_CHUNK_TOKENS - 1) * FAKE_TOKEN_S


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(SIZES, Engine("fake", str(demo_model_path()), "float32"))


def test_a_first_token_takes_the_prompt_s_steps_and_another_one_after_a_transfer(measured: Measured) -> None:
    split, *peers = measured.ttft
    for found in (split, *peers):
        assert [(each.num_tokens, each.num_requests) for each in found] == list(SIZES.ttft)
        for each in found:
            num_steps = -(-each.num_tokens // DEFAULT_CHUNK_TOKENS) + (found is split)
            assert each.p99_s >= each.p50_s >= num_steps * FAKE_STEP_S + each.num_tokens * FAKE_TOKEN_S


def test_the_kv_was_moved_and_what_was_left_of_it_was_told(measured: Measured) -> None:
    found = measured.overlap
    assert measured.transport in ("shm", "zmq")
    assert found.prefill_s >= found.num_tokens * FAKE_TOKEN_S
    assert 0 < found.tail_s <= found.worst_tail_s
    assert 0 < measured.copy_chunk_s < measured.copy_s


def test_a_stream_beside_a_local_prefill_waits_for_a_chunk_and_beside_a_remote_one_need_not(measured: Measured) -> None:
    split, whole, small = measured.long_prompt
    assert whole.worst_gap_s >= 0.9 * CHUNK_S
    assert small.itl_p50_s >= 0.9 * SMALL_CHUNK_S
    assert split.itl_p50_s < CHUNK_S
    assert all(felt.ttft_s >= SIZES.long_prompt[0] * FAKE_TOKEN_S for felt in measured.long_prompt)
    assert all(0 < felt.itl_p50_s <= felt.itl_p99_s <= felt.worst_gap_s for felt in measured.quiet)


def test_throughput_is_below_what_the_steps_allow(measured: Measured) -> None:
    for carried in measured.loads:
        assert len(carried) == SIZES.num_loads
        assert 0 < carried[0].output_tokens_per_s < SIZES.load.at_once / FAKE_STEP_S
        assert carried[0].ttft_s >= FAKE_STEP_S + SIZES.load.prompt_tokens * FAKE_TOKEN_S


def test_idle_topologies_leave_the_cores_to_the_others(measured: Measured) -> None:
    assert 0 < measured.idle_cores < 0.5


def test_the_report(measured: Measured) -> None:
    text = markdown(measured)
    lines = all_of(measured)
    assert f"1P1D over {measured.transport}" in text
    assert text.count("\n| ") == 2 + len(lines)
    assert all(line.markdown().count("|") == 7 for line in lines)
    assert {line.peer_name for line in lines} >= {measured.topologies.like.name, measured.topologies.whole.name}
    assert "load average" in text
    assert "torch 2." in text


def test_workers_get_the_threads_of_their_topology_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    common = [str(demo_model_path()), "--engine", "fake"]
    router, *workers = process_specs_of(Topology("1P1D", ("--prefill", "1"), 3), common, tmp_path)
    assert router.name == "router"
    assert [worker.name for worker in workers] == ["prefill-0", "decode-0"]
    assert [worker.environment["OMP_NUM_THREADS"] for worker in workers] == ["3", "3"]


def test_the_like_for_like_has_the_threads_of_one_worker() -> None:
    found = topologies(cores=4)
    assert [t.num_threads for t in (found.split, found.like, found.whole, found.small)] == [2, 2, 4, 4]
    assert topologies(cores=1).split.num_threads == 1


def test_prompts_have_their_length_and_share_no_block() -> None:
    model = find_model(ModelOptions(str(demo_model_path()), load_format="dummy"))
    prompts = Prompts(model.resolved.folder, 300)
    taken = [prompts.take(length) for length in (300, 16, 299)]
    assert [len(prompt) for prompt in taken] == [300, 16, 299]
    assert len({tuple(prompt[:BLOCK_TOKENS]) for prompt in taken}) == 3


def test_stages_are_read_from_the_usage() -> None:
    usage = b'data: {"usage":{"timings":{"queue_s":0.5,"transfer_s":1e-05,"decode_s":2}}}\n\n'
    answer = Answer(0.0, arrivals=[1.0], parts=[usage])
    assert (stage_s(answer, "queue"), stage_s(answer, "transfer"), stage_s(answer, "decode")) == (0.5, 1e-05, 2.0)
    with pytest.raises(LoadError, match="tells no prefill time"):
        stage_s(answer, "prefill")


def test_gaps_at_the_edges_of_a_window_count_whole() -> None:
    answer = Answer(0.0, arrivals=[1.0, 2.0, 5.0, 6.0, 9.0])
    assert gaps_s(answer, 2.5, 5.5) == [3.0, 1.0]
    assert gaps_s(answer, 3.0, 4.0) == [3.0]


def test_summaries() -> None:
    felt = summary([Window([0.1, 0.3], 5.0), Window([0.2, 0.9], 7.0)])
    assert (felt.worst_gap_s, felt.itl_p50_s, felt.itl_p99_s, felt.ttft_s) == (0.9, 0.2, 0.9, 6.0)
    event = b"\ndata: {}"
    answers = [Answer(sent, [sent + 1.0, end], [event, event]) for sent, end in ((10.0, 12.0), (11.0, 14.0))]
    carried = load_summary(10.0, Load(2, 2, 8, 6), answers)
    assert (carried.output_tokens_per_s, carried.ttft_s) == (3.0, 1.0)


@asynccontextmanager
async def scripted(reply: bytes) -> AsyncIterator[int]:
    """The port of a server that answers a request with `reply` and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /v1/completions ")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(("queue_s", "error"), [("0.001", None), ("3.5", "placed again")])
def test_a_request_that_an_idle_server_placed_twice_is_an_error(queue_s: str, error: str | None) -> None:
    body = f'\ndata: {{"finish_reason":"length","queue_s":{queue_s}}}\ndata: [DONE]'.encode()

    async def ask() -> None:
        async with scripted(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as port:
            await ask_once(await connect(port), completion([1, 2], 1))

    with pytest.raises(LoadError, match=error) if error else nullcontext():
        asyncio.run(ask())


def test_a_watched_stream_that_ends_too_soon_is_an_error() -> None:
    model = find_model(ModelOptions(str(demo_model_path()), load_format="dummy"))
    prompts = Prompts(model.resolved.folder, 128)

    async def run() -> None:
        async with scripted(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull") as port:
            running = Running(topologies(2).whole, None, (), Server("router", port, ""), "")
            await quiet(running, prompts, 10, 0.1)

    with pytest.raises(LoadError, match="the watched stream has ended"):
        asyncio.run(run())
