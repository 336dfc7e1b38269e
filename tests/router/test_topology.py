"""What the status routes tell, with workers played by the test."""

import asyncio
from collections import Counter

import msgspec
from isthmus.router.fake_core import FakeCore
from isthmus.router.history import NUM_KEPT, History
from isthmus.router.kobold_perf import perf
from isthmus.router.topology import RouterView, Topology, WorkerView
from isthmus.tests.router.edge import ask
from isthmus.tests.router.peers import collect, job, stage, until
from isthmus.wire.messages import Goodbye, Heartbeat, Prefill, Prefilled, WorkerStats


def play(scenario):
    async def run():
        async with stage() as s:
            await scenario(s)

    asyncio.run(run())


async def finish(decode, prefill, stream, *ids, **given):
    reserve = await decode.reserve(transfer_id="t")
    await prefill.prefill()
    decode.emit(reserve.placement, 0, *ids, **given)
    return await collect(stream)


def test_workers_and_the_links_between_them():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        await finish(decode, prefill, s.core.submit(job()), 1, 2, finish="stop")
        stats = WorkerStats(
            num_blocks_used=16, num_running=3, num_waiting=2, num_waiting_tokens=90, prefill_tokens_per_s=1e3,
            decode_step_s=0.02, transfer_bytes=100, transfer_s=0.5, num_draft_tokens=9, num_accepted_tokens=4,
        )  # fmt: skip
        decode.send(Heartbeat(stats=stats, step_age_s=0.25))
        await until(lambda: s.core.topology().workers[-1].num_running == 3)
        shown = s.core.topology()
        assert [(w.name, w.role, w.state) for w in shown.workers] == [
            ("p0", "prefill", "ready"), ("d0", "decode", "ready"),
        ]  # fmt: skip
        d0 = shown.workers[1]
        assert (d0.num_blocks_used, d0.num_blocks, d0.max_num_seqs, d0.num_waiting_tokens) == (16, 64, 8, 90)
        assert (d0.decode_step_s, d0.transfer_bytes_per_s, d0.step_age_s) == (0.02, 200.0, 0.25)
        [link] = shown.links
        assert (link.prefill, link.decode, link.num_moving, link.num_transfers, link.num_bytes) == (
            "p0",
            "d0",
            0,
            1,
            100,
        )
        router = shown.router
        assert (router.model, router.num_ended, router.num_prompt_tokens) == ("demo", 1, 40)
        assert (router.num_generation_tokens, router.num_waiting, router.num_running) == (2, 0, 0)
        assert msgspec.json.decode(msgspec.json.encode(shown), type=Topology) == shown

    play(scenario)


def test_kv_on_its_way_shows_on_its_link():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(job())
        reserve = await decode.reserve(transfer_id="t")
        sent = await prefill.expect(Prefill)
        await until(lambda: [link.num_moving for link in s.core.topology().links] == [1])
        prefill.send(Prefilled(sent.placement, 0, 0.01, 100))
        decode.emit(reserve.placement, 0, 5)
        await stream.next()
        assert [link.num_moving for link in s.core.topology().links] == [0]
        decode.emit(reserve.placement, 1, 6, finish="stop")
        await collect(stream)
        prefill.send(Goodbye("done"))
        await s.gone("p0")
        assert s.core.topology().links == ()

    play(scenario)


def test_a_request_is_in_one_stage_after_the_other():
    async def scenario(s):
        def now():
            [first, *_] = s.core.timelines()
            stages = (first.queue_s, first.prefill_s, first.transfer_s, first.decode_s)
            assert abs(sum(stages) - (first.age_s if first.outcome is None else first.age_s - first.ended_s)) < 1e-6
            return first, Counter({name: 1 for name, s in zip("qptd", stages, strict=True) if s > 0})

        stream = s.core.submit(job(num_choices=1))
        first, stages = now()
        assert (first.request_id, first.outcome, first.decode, stages) == ("r1", None, None, {"q": 1})
        decode, prefill = await s.decode(), await s.prefill()
        reserve = await decode.reserve(transfer_id="t")
        if reserve.remote:
            await prefill.prefill()
        await until(lambda: now()[0].decode == "d0")
        decode.emit(reserve.placement, 0, 5)
        await stream.next()
        first, stages = now()
        assert stages["d"] == stages["p"] == 1
        assert (first.num_prompt_tokens, first.num_output_tokens, first.seed) == (40, 1, 7)
        decode.emit(reserve.placement, 1, 6, 7, finish="length")
        await collect(stream)
        first, _ = now()
        assert (first.outcome, first.num_output_tokens, first.decode) == ("length", 3, "d0")
        assert first.ended_s >= 0

    play(scenario)


def test_how_a_request_ended():
    async def scenario(s):
        decode = await s.decode()
        stopped = s.core.submit(job("stopped"))
        reserve = await decode.reserve()
        decode.emit(reserve.placement, 0, 5)
        await stopped.next()
        stopped.stop(0)
        await decode.acknowledge()
        s.core.submit(job("left")).cancel()
        shown = {each.request_id: (each.outcome, each.at_stop_string) for each in s.core.timelines()}
        assert shown == {"stopped": ("stop", True), "left": ("abort", False)}
        assert perf(s.core.topology(), s.core.timelines())["stop_reason"] == 0, "the last one was aborted"

    play(scenario)


def test_the_history_forgets():
    history = History()
    for number in range(NUM_KEPT + 5):
        history.add(number)
    kept: list = [*history]
    assert kept == list(range(NUM_KEPT + 4, 4, -1))
    assert history.num_ended == NUM_KEPT + 5


def last(**changes):
    [timeline] = _one_ended()
    return msgspec.structs.replace(timeline, **changes)


def _one_ended():
    core = FakeCore()
    ask(core, "POST", "/api/v1/generate", json={"prompt": "abcd", "max_length": 5, "sampler_seed": 3})
    return core.timelines()


def test_perf_is_of_the_request_that_ended_last():
    topology = Topology(RouterView("m", uptime_s=90.0, num_waiting=2, num_running=0, num_ended=7))
    newest = last(ended_s=1.0, age_s=9.0, prefill_s=0.5, transfer_s=0.5, decode_s=2.0, num_output_tokens=5)
    running = last(ended_s=None, outcome=None, age_s=0.5)
    found = perf(topology, [running, last(ended_s=5.0, age_s=6.0), newest])
    assert (found["last_process_time"], found["last_process_speed"], found["last_process"]) == (1.0, 4.0, 250.0)
    assert (found["last_eval_time"], found["last_eval_speed"], found["last_eval"]) == (2.0, 2.0, 500.0)
    assert (found["last_token_count"], found["last_input_count"], found["last_seed"]) == (5, 4, 3)
    assert (found["queue"], found["idle"], found["uptime"], found["idletime"], found["total_gens"]) == (
        2,
        0,
        90,
        0.5,
        7,
    )


def test_perf_before_any_request_and_where_workers_guess():
    drafting = WorkerView("d", "decode", "ready", 0.0, 0.0, num_draft_tokens=5)
    found = perf(Topology(RouterView("m", 3.0, 0, 0), (drafting,)), [])
    assert (found["last_seed"], found["stop_reason"], found["idle"], found["idletime"]) == (-1, -1, 1, 3.0)
    assert found["last_draft_success"] is found["last_draft_failed"] is None, "it is not known of one request"


def test_stop_reasons_are_koboldcpps():
    topology = Topology(RouterView("m", 1.0, 0, 0))
    codes = {
        name: perf(topology, [last(outcome=outcome, at_stop_string=at)])["stop_reason"]
        for name, outcome, at in (
            ("eos", "stop", False), ("text", "stop", True), ("length", "length", False), ("error", "error", False),
        )
    }  # fmt: skip
    assert codes == {"eos": 1, "text": 2, "length": 0, "error": -2}


def test_the_routes():
    core = FakeCore()
    ask(core, "POST", "/v1/completions", json={"prompt": "abcd", "max_tokens": 3})
    topology, timelines = ask(core, "GET", "/v1/topology"), ask(core, "GET", "/v1/timelines")
    assert topology.json()["router"]["model"] == "fake"
    assert [each["num_output_tokens"] for each in timelines.json()["data"]] == [3]
    assert topology.headers["cache-control"] == timelines.headers["cache-control"] == "no-store"


def test_the_load_is_what_waits_and_what_runs():
    class Busy(FakeCore):
        def topology(self) -> Topology:
            return Topology(RouterView("fake", uptime_s=1.0, num_waiting=2, num_running=3))

    assert ask(Busy(), "GET", "/load").json() == {"server_load": 5}
