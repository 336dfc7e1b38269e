import asyncio
import dataclasses
import threading

import msgspec
import pytest
from isthmus.router.core import RouterCore
from isthmus.router.job import JobError
from isthmus.router.states import State
from isthmus.router.workers import Deadlines
from isthmus.tests.router.peers import CAPACITY, MODEL, collect, job, stage, until
from isthmus.wire.codec import unpack_ids
from isthmus.wire.hub import Hub
from isthmus.wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Cancelled,
    Credit,
    Declined,
    Drain,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    HelloRefused,
    Pooled,
    Prefill,
    Prefilled,
    Ready,
    Reserve,
    Reserved,
    SayHello,
    Welcome,
    WorkerStats,
)
from isthmus.wire.worker_link import RouterLost, WorkerLink


def run(scenario, **given):
    async def play():
        async with stage(**given) as s:
            await scenario(s)

    asyncio.run(play())


def state_of(stream, choice=0):
    return stream.entry.sequences[choice].state


def test_local_prefill_from_queue_to_done():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        reserve = await decode.reserve(cached=16)
        assert not reserve.remote
        assert unpack_ids(reserve.prompt) == list(range(40))
        assert reserve.cost_blocks == 3
        decode.emit(reserve.placement, 0, 11)
        decode.emit(reserve.placement, 1, 12, 13, finish="stop")
        assert await collect(stream) == ({0: [11, 12, 13]}, {0: "stop"})
        assert stream.timings().num_cached_tokens == 16
        await s.empty()

    run(scenario)


def test_remote_prefill_from_queue_to_done():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(job())
        reserve = await decode.reserve(cached=32, transfer_id="t1")
        sent = await prefill.prefill()
        assert reserve.remote
        assert (sent.placement, sent.first_token, sent.transfer_id) == (reserve.placement, 32, "t1")
        assert (sent.data_endpoint, sent.cost_tokens, unpack_ids(sent.token_ids)) == ("tcp://data", 40, list(range(40)))
        await until(lambda: state_of(stream) is State.RECEIVING)
        decode.emit(reserve.placement, 0, 11, finish="length")
        assert await collect(stream) == ({0: [11]}, {0: "length"})
        await s.empty()

    run(scenario)


def test_the_first_token_may_overtake_prefilled():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(job())
        reserve = await decode.reserve(transfer_id="t1")
        sent = await prefill.expect(Prefill)
        decode.emit(reserve.placement, 0, 11)
        assert (await stream.next())[0].token_ids == (11,)
        decode.emit(reserve.placement, 1, 12, finish="stop")
        assert await collect(stream) == ({0: [12]}, {0: "stop"})
        await s.empty()
        prefill.send(Credit(sent.cost_tokens, 1000))

    run(scenario)


def warming(request_id="r1", **given):
    asked = job(request_id, **given)
    return dataclasses.replace(asked, params=msgspec.structs.replace(asked.params, max_tokens=0))


def test_a_prompt_alone_goes_to_a_prefill_worker_alone():
    async def scenario(s):
        prefill = await s.prefill()
        stream = s.core.submit(warming(num_choices=3))
        sent = await prefill.prefill()
        assert (sent.data_endpoint, sent.transfer_id, sent.first_token, sent.cost_tokens) == ("", "", 0, 40)
        assert await collect(stream) == ({0: [], 1: [], 2: []}, dict.fromkeys(range(3), "length"))
        await s.empty()
        decode = await s.decode()
        full = next(w for w in s.core.registry if w.name == "d0")
        decode.send(Credit(0, 0))
        await until(lambda: full.available == 0)
        waits, stream = s.core.submit(job("r2")), s.core.submit(warming("r3"))
        assert (await prefill.prefill()).request_id == "r3", "it does not wait for decode"
        assert await collect(stream) == ({0: []}, {0: "length"})
        assert state_of(waits) is State.QUEUED
        assert decode.received(Reserve) == []

    run(scenario)


def test_a_prompt_alone_goes_to_decode_where_nobody_else_computes():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(warming())
        reserve = await decode.reserve()
        assert (reserve.remote, reserve.params.max_tokens) == (False, 0)
        decode.emit(reserve.placement, 0, finish="length")
        assert await collect(stream) == ({0: []}, {0: "length"})
        await s.empty()

    run(scenario)


def test_a_prompt_alone_moves_on_when_its_prefill_worker_is_gone():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(warming())
        first = await prefill.expect(Prefill)
        prefill.send(Goodbye("leaving"))
        reserve = await decode.reserve()
        assert reserve.placement > first.placement
        decode.emit(reserve.placement, 0, finish="length")
        assert await collect(stream) == ({0: []}, {0: "length"})
        await s.empty()

    run(scenario)


def test_a_cancelled_prompt_alone_is_let_go_by_its_worker():
    async def scenario(s):
        prefill = await s.prefill()
        stream = s.core.submit(warming())
        sent = await prefill.expect(Prefill)
        stream.cancel()
        assert await prefill.acknowledge() == Cancel(sent.placement)
        await s.empty()

    run(scenario)


def pooling(kind="last", **given):
    return dataclasses.replace(warming(**given), pooling=kind)


def test_a_vector_comes_from_a_prefill_worker_alone():
    async def scenario(s):
        await s.decode()
        prefill = await s.prefill()
        stream = s.core.submit(pooling())
        sent = await prefill.expect(Prefill)
        assert (sent.pooling, sent.data_endpoint) == ("last", "")
        prefill.send(Pooled(sent.placement, b"vector"), Prefilled(sent.placement, 0, 0.01, 0))
        assert await collect(stream) == ({0: []}, {0: "length"})
        assert stream.pooled == b"vector"
        await s.empty()

    run(scenario)


def test_a_vector_is_computed_anew_when_its_worker_is_gone():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(pooling("mean"))
        await prefill.expect(Prefill)
        prefill.send(Goodbye("leaving"))
        reserve = await decode.reserve()
        assert reserve.pooling == "mean"
        decode.send(Pooled(reserve.placement, b"vector"))
        decode.emit(reserve.placement, 0, finish="length")
        assert await collect(stream) == ({0: []}, {0: "length"})
        assert stream.pooled == b"vector"
        await s.empty()

    run(scenario)


def test_a_prompt_alone_may_fill_a_decode_worker():
    async def scenario(s):
        decode = await s.decode(free=64)
        with pytest.raises(JobError):
            s.core.submit(job("r1", num_tokens=1024))
        stream = s.core.submit(pooling(num_tokens=1024))
        assert (await decode.reserve()).cost_blocks == 64
        stream.cancel()

    run(scenario)


def test_choices_go_together_and_end_apart():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job(num_choices=3))
        reserve = await decode.reserve()
        assert [c.index for c in reserve.choices] == [0, 1, 2]
        assert reserve.cost_blocks == 5
        for choice in range(3):
            decode.emit(reserve.placement, 0, choice, choice=choice)
        decode.emit(reserve.placement, 1, 9, choice=1, finish="stop")
        await until(lambda: state_of(stream, 1) is State.DONE)
        stream.stop(0)
        assert await decode.acknowledge() == Cancel(reserve.placement, 0)
        decode.emit(reserve.placement, 1, 8, choice=2, finish="length")
        tokens, reasons = await collect(stream)
        assert (tokens, reasons) == ({0: [0], 1: [1, 9], 2: [2, 8]}, {1: "stop", 2: "length"})
        await s.empty()

    run(scenario)


def test_a_declined_placement_waits_for_the_next_credit():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        first = await decode.expect(Reserve)
        decode.send(Declined(first.placement, "no room"))
        await until(lambda: state_of(stream) is State.QUEUED)
        await asyncio.sleep(0.02)
        assert decode.received(Reserve) == []
        decode.send(Credit(first.cost_blocks, 60))
        second = await decode.reserve()
        assert second.placement == first.placement + 1
        decode.emit(first.placement, 0, 99)
        decode.emit(second.placement, 0, 11, finish="stop")
        assert await collect(stream) == ({0: [11]}, {0: "stop"}), "late tokens of the first placement are dropped"
        await s.empty()

    run(scenario)


def test_a_preempted_choice_returns_first_and_with_its_output():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job(num_choices=2))
        reserve = await decode.reserve()
        for choice in (0, 1):
            decode.emit(reserve.placement, 0, 10 + choice, choice=choice)
        decode.send(Credit(reserve.cost_blocks, 0))
        await until(lambda: state_of(stream, 1) is State.RUNNING)
        younger = s.core.submit(job("r2"))
        decode.send(Declined(reserve.placement, "preempted", choice=1, preempted=True))
        await until(lambda: state_of(stream, 1) is State.QUEUED)
        decode.send(Credit(reserve.cost_blocks, 60))
        again, other = await decode.reserve(), await decode.reserve()
        assert again.request_id == "r1"
        assert [(c.index, unpack_ids(c.output)) for c in again.choices] == [(1, [11])]
        decode.emit(again.placement, 1, 21, choice=1, finish="stop")
        decode.emit(reserve.placement, 1, 20, choice=0, finish="stop")
        decode.emit(other.placement, 0, 30, finish="stop")
        assert await collect(stream) == ({0: [10, 20], 1: [11, 21]}, {0: "stop", 1: "stop"})
        assert await collect(younger) == ({0: [30]}, {0: "stop"})
        await s.empty()
        assert b"isthmus:num_preemptions_total" in s.core.metrics()

    run(scenario)


@pytest.mark.parametrize("position", [0, 3])
def test_tokens_at_another_position_fail_only_their_sequence(position):
    async def scenario(s):
        decode = await s.decode()
        streams = [s.core.submit(job(f"r{i}")) for i in range(2)]
        reserves = [await decode.reserve() for _ in streams]
        for reserve in reserves:
            decode.emit(reserve.placement, 0, 10, 11)
        decode.emit(reserves[0].placement, position, 99)
        assert (await decode.acknowledge()).placement == reserves[0].placement
        again = await decode.reserve()
        assert unpack_ids(again.choices[0].output) == [10, 11]
        decode.emit(again.placement, 2, 12, finish="stop")
        decode.emit(reserves[1].placement, 2, 12, finish="stop")
        for stream in streams:
            assert await collect(stream) == ({0: [10, 11, 12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_a_retriable_failure_is_tried_three_times():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        for _ in range(3):
            reserve = await decode.reserve()
            decode.send(Failed(reserve.placement, "engine broke", retriable=True))
        with pytest.raises(JobError) as error:
            await stream.next()
        assert (error.value.status, error.value.message) == (500, "failed 3 times, at last: engine broke")
        await s.empty()

    run(scenario)


def test_a_final_failure_is_the_clients():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        reserve = await decode.expect(Reserve)
        decode.send(Failed(reserve.placement, "it could never fit", retriable=False))
        with pytest.raises(JobError) as error:
            await stream.next()
        assert (error.value.status, error.value.message) == (400, "it could never fit")
        await s.empty()

    run(scenario)


def test_a_failed_prefill_frees_the_reservation_and_is_tried_elsewhere():
    async def scenario(s):
        decode, first, second = await s.decode(), await s.prefill("p0"), await s.prefill("p1")
        stream = s.core.submit(job())
        reserve = await decode.reserve(transfer_id="t1")
        await until(lambda: first.received(Prefill) or second.received(Prefill))
        chosen = first if first.received(Prefill) else second
        chosen.send(Failed(reserve.placement, "transport broke", retriable=True))
        assert (await decode.acknowledge()).placement == reserve.placement
        again = await decode.reserve(transfer_id="t2")
        await until(lambda: any(m.transfer_id == "t2" for p in (first, second) for m in p.received(Prefill)))
        decode.emit(again.placement, 0, 11, finish="stop")
        assert await collect(stream) == ({0: [11]}, {0: "stop"})
        await s.empty()

    run(scenario)


async def brought_to(s, state, decode, prefill):
    """A job in this state, and its placement."""
    if state is State.QUEUED:
        decode.send(Credit(0, 0))
        await until(lambda: next(w for w in s.core.registry if w.name == "d0").available == 0)
        return s.core.submit(job()), None
    stream = s.core.submit(job())
    if state is State.RESERVED:
        return stream, (await decode.expect(Reserve)).placement
    placement = (await decode.reserve(transfer_id="t1")).placement
    sent = await prefill.expect(Prefill)
    assert sent.placement == placement
    if state is State.RECEIVING:
        prefill.send(Prefilled(placement, 0, 0.01, 100))
    if state is State.RUNNING:
        decode.emit(placement, 0, 11)
    await until(lambda: state_of(stream) is state)
    return stream, placement


OPEN_STATES = [State.QUEUED, State.RESERVED, State.PREFILLING, State.RECEIVING, State.RUNNING]


@pytest.mark.parametrize("state", OPEN_STATES)
def test_cancel_in_every_state(state):
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream, placement = await brought_to(s, state, decode, prefill)
        (sequence,) = stream.entry.sequences
        stream.cancel()
        stream.cancel()
        assert sequence.state is State.CANCELLED
        if placement is not None:
            assert not s.core.ledger.is_empty, "until the workers have let go"
            assert await decode.acknowledge() == Cancel(placement)
        if state is State.PREFILLING:
            assert await prefill.acknowledge() == Cancel(placement)
        await s.empty()
        assert prefill.received(Cancel) == []
        assert decode.received(Cancel) == []

    run(scenario)


@pytest.mark.parametrize("state", OPEN_STATES[1:])
def test_a_silent_decode_worker_is_replaced_in_every_state(state):
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream, placement = await brought_to(s, state, decode, prefill)
        silent = next(w for w in s.core.registry if w.name == "d0")
        silent.heard_at -= 100
        await s.gone("d0")
        if state is State.PREFILLING:
            await prefill.acknowledge()
        other = await s.decode("d1")
        again = await other.reserve(transfer_id="t2")
        assert again.placement != placement
        output = [11] if state is State.RUNNING else []
        assert unpack_ids(again.choices[0].output) == output
        sent = await prefill.expect(Prefill)
        assert unpack_ids(sent.token_ids) == [*range(40), *output]
        other.emit(again.placement, len(output), 12, finish="stop")
        assert await collect(stream) == ({0: [*output, 12]}, {0: "stop"})
        await s.empty()

    run(scenario, deadlines=Deadlines(silence_s=1.0))


@pytest.mark.parametrize("state", [State.RESERVED, State.PREFILLING, State.RECEIVING])
def test_a_lost_prefill_worker_is_replaced(state):
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream, placement = await brought_to(s, state, decode, prefill)
        prefill.send(Goodbye("leaving"))
        await s.gone("p0")
        assert await decode.acknowledge() == Cancel(placement)
        again = await decode.reserve()
        assert not again.remote
        decode.emit(again.placement, 0, 12, finish="stop")
        assert await collect(stream) == ({0: [12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_a_running_stream_does_not_care_for_its_prefill_worker():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream, placement = await brought_to(s, State.RUNNING, decode, prefill)
        prefill.send(Goodbye("leaving"))
        await s.gone("p0")
        decode.emit(placement, 1, 12, finish="stop")
        assert await collect(stream) == ({0: [11, 12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_two_deaths_end_a_request():
    async def scenario(s):
        first = await s.decode("d0")
        stream = s.core.submit(job())
        first.emit((await first.reserve()).placement, 0, 11)
        await until(lambda: state_of(stream) is State.RUNNING)
        second = await s.decode("d1")
        first.send_bytes(b"\xc1")
        reserve = await second.reserve()
        second.emit(reserve.placement, 1, 12)
        await until(lambda: state_of(stream) is State.RUNNING)
        second.send_bytes(b"\xc1")
        assert [n.token_ids for n in await stream.next()] == [(11,), (12,)]
        with pytest.raises(JobError) as error:
            await stream.next()
        assert error.value.status == 500
        await s.empty()

    run(scenario)


def test_an_undecodable_message_drops_that_peer_only():
    async def scenario(s):
        bad, good = await s.decode("d0"), await s.decode("d1")
        bad.send_bytes(b"\xff", b"two frames")
        refused = await bad.expect(HelloRefused)
        assert "frames" in refused.reason
        await s.gone("d0")
        assert s.core.ready
        stream = s.core.submit(job())
        reserve = await good.reserve()
        good.emit(reserve.placement, 0, 11, finish="stop")
        assert await collect(stream) == ({0: [11]}, {0: "stop"})

    run(scenario)


def test_another_protocol_is_refused():
    async def scenario(s):
        peer = s.peer()
        peer.send(msgspec.structs.replace(peer.hello, protocol=99))
        assert "speaks 99" in (await peer.expect(HelloRefused)).reason
        assert not s.core.ready

    run(scenario)


def test_another_model_is_refused():
    async def scenario(s):
        await s.decode()
        other = s.peer("d1")
        await other.register(fingerprint=msgspec.structs.replace(MODEL, weights="w2"))
        assert (await other.expect(HelloRefused)).reason == "this router serves weights w1, the worker has w2"
        await s.gone("d1")
        assert s.core.ready

    run(scenario)


def test_a_stranger_is_asked_to_say_hello():
    async def scenario(s):
        peer = s.peer()
        peer.send(Heartbeat())
        await peer.expect(SayHello)
        await peer.register()
        await s.ready("d0")

    run(scenario)


def test_welcome_names_the_model_and_is_repeated():
    async def scenario(s):
        peer = s.peer()
        peer.send(peer.hello, peer.hello)
        first, second = await peer.expect(Welcome), await peer.expect(Welcome)
        assert first == second
        assert (first.model, first.heartbeat_interval_s) == ("demo", 0.05)

    run(scenario)


def test_a_worker_that_starts_over_loses_its_placements():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        first = await decode.reserve()
        decode.emit(first.placement, 0, 11)
        await until(lambda: state_of(stream) is State.RUNNING)
        await decode.register()
        again = await decode.reserve()
        assert unpack_ids(again.choices[0].output) == [11]
        decode.emit(again.placement, 1, 12, finish="stop")
        assert await collect(stream) == ({0: [11, 12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_a_worker_that_says_ready_twice_starts_over():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        await decode.reserve()
        decode.send(Ready(MODEL, CAPACITY, ("tcp://data",)))
        await decode.expect(SayHello)
        assert state_of(stream) is State.QUEUED
        await decode.register()
        again = await decode.reserve()
        decode.emit(again.placement, 0, 12, finish="stop")
        assert await collect(stream) == ({0: [12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_a_worker_that_cannot_be_sent_to_is_lost():
    async def scenario(s):
        decode = await s.decode("d0")
        decode.close()
        await s.unreachable(decode)
        other = await s.decode("d1", free=3)
        streams = [s.core.submit(job(f"r{i}")) for i in range(2)]
        for i in (1, 2):
            reserve = await other.reserve()
            other.emit(reserve.placement, 0, 12, finish="stop")
            other.send(Credit(i * reserve.cost_blocks, 60))
        for stream in streams:
            assert await collect(stream) == ({0: [12]}, {0: "stop"})
        await s.gone("d0")
        await s.empty()

    run(scenario)


def test_a_crash_of_the_core_ends_streams_and_is_reported(monkeypatch):
    def broken(*args, **given):
        raise ZeroDivisionError

    async def play():
        hub, crashes = Hub("tcp://127.0.0.1:*"), []
        core = RouterCore(hub, model="demo", on_crash=crashes.append)
        core.start()
        monkeypatch.setattr("isthmus.router.core.take_snapshot", broken)
        with pytest.raises(JobError) as error:
            await core.submit(job()).next()
        with pytest.raises(JobError):
            core.submit(job())
        core.close()
        hub.close()
        return error.value.status, crashes

    status, crashes = asyncio.run(play())
    assert status == 500
    assert isinstance(crashes[0], ZeroDivisionError)


def test_a_new_epoch_replaces_the_old():
    async def scenario(s):
        old = await s.decode()
        stream = s.core.submit(job())
        old.emit((await old.reserve()).placement, 0, 11)
        await until(lambda: state_of(stream) is State.RUNNING)
        new = s.peer("d0", epoch=2)
        await new.register()
        assert "another worker took the name d0" in (await old.expect(HelloRefused)).reason
        again = await new.reserve()
        new.emit(again.placement, 1, 12, finish="stop")
        assert await collect(stream) == ({0: [11, 12]}, {0: "stop"})
        await s.empty()

    run(scenario)


def test_a_draining_worker_gets_nothing_new():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(job())
        reserve = await decode.expect(Reserve)
        assert s.core.drain_worker("p0")
        assert not s.core.drain_worker("nobody")
        await prefill.expect(Drain)
        assert await decode.acknowledge() == Cancel(reserve.placement), "its prompt had not been sent yet"
        again = await decode.reserve()
        assert not again.remote
        decode.emit(again.placement, 0, 11)
        await until(lambda: state_of(stream) is State.RUNNING)
        decode.send(Heartbeat(state="draining"))
        await until(lambda: not s.core.ready)
        decode.emit(again.placement, 1, 12, finish="stop")
        assert await collect(stream) == ({0: [11, 12]}, {0: "stop"})
        s.core.submit(job("r2"))
        await asyncio.sleep(0.02)
        assert decode.received(Reserve) == []

    run(scenario)


def test_a_full_queue_is_503_with_retry_after():
    async def scenario(s):
        s.core.submit(job(num_choices=3))
        with pytest.raises(JobError) as error:
            s.core.submit(job("r2", num_choices=2))
        assert error.value.status == 503
        assert (error.value.retry_after_s or 0) >= 1
        s.core.submit(job("r3"))

    run(scenario, max_waiting=4)


def test_no_first_token_in_time_is_504():
    async def scenario(s):
        decode = await s.decode()
        streams = [s.core.submit(job(f"r{i}")) for i in range(2)]
        begun = await decode.reserve()
        decode.emit(begun.placement, 0, 11)
        await streams[0].next()
        with pytest.raises(JobError) as error:
            await streams[1].next()
        assert error.value.status == 504
        decode.emit(begun.placement, 1, 12, finish="stop")
        assert await collect(streams[0]) == ({0: [12]}, {0: "stop"})

    run(scenario, request_timeout_s=0.1, deadlines=Deadlines(silence_s=0.4))


def test_what_can_never_fit_is_400():
    async def scenario(s):
        await s.decode()
        with pytest.raises(JobError) as error:
            s.core.submit(job(num_tokens=64 * 16))
        assert error.value.status == 400

    run(scenario)


def test_prompts_beyond_prefill_credit_wait():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill(free=310)
        for i in range(3):
            s.core.submit(job(f"r{i}", num_tokens=300))
        reserves = [await decode.reserve() for _ in range(2)]
        sent = [await prefill.expect(Prefill) for _ in reserves]
        await asyncio.sleep(0.02)
        assert decode.received(Reserve) == []
        prefill.send(Credit(600, 310))
        third = await decode.reserve()
        assert third.placement not in {m.placement for m in sent}

    run(scenario)


def test_metrics_show_workers():
    async def scenario(s):
        decode = await s.decode()
        stats = WorkerStats(16, 2, 1, 5, 500.0, 0.01)
        decode.send(Heartbeat(stats=stats))
        await until(
            lambda: b'kv_cache_usage_perc{model_name="demo",role="decode",worker="d0"} 0.25' in s.core.metrics()
        )

    run(scenario)


def test_closing_ends_streams_with_an_error_and_tells_the_workers():
    async def scenario(s):
        decode = await s.decode()
        stream = s.core.submit(job())
        reserve = await decode.reserve()
        s.core.fail_all(JobError(503, "the server is shutting down"))
        with pytest.raises(JobError, match="shutting down"):
            await stream.next()
        assert await decode.acknowledge() == Cancel(reserve.placement)
        await s.empty()

    run(scenario)


def test_answers_for_strangers_change_nothing():
    async def scenario(s):
        decode, prefill = await s.decode(), await s.prefill()
        stream = s.core.submit(job())
        reserve = await decode.reserve(transfer_id="t1")
        prefill.emit(reserve.placement, 0, 66)
        prefill.send(Declined(reserve.placement, "not mine"), Reserved(reserve.placement, 0, "x"))
        decode.send(Reserved(reserve.placement, 16, "again"), Cancelled(reserve.placement), Cancelled(12345))
        await prefill.expect(Prefill)
        decode.emit(reserve.placement, 0, 11, finish="stop")
        assert await collect(stream) == ({0: [11]}, {0: "stop"})
        assert prefill.received(Prefill) == []
        await s.empty()

    run(scenario)


def test_a_worker_given_up_comes_back_over_its_link():
    async def scenario(s):
        hangs = threading.Event()
        hello = Hello(PROTOCOL_VERSION, "decode", "d0", 7)
        link = WorkerLink(s.address, hello, lambda: Heartbeat(step_age_s=200.0 * hangs.is_set()))
        link.start()
        try:
            for _ in range(5):
                await until(lambda: not link.inbox.empty())
                assert isinstance(link.inbox.get(), Welcome)
                link.send(Ready(MODEL, CAPACITY, ()))
                link.send(Credit(0, 60))
                await s.ready("d0")
                hangs.set()
                await until(lambda: not link.inbox.empty())
                assert isinstance(link.inbox.get(), RouterLost)
                hangs.clear()
        finally:
            await asyncio.to_thread(link.close)

    run(scenario, deadlines=Deadlines(silence_s=1.0))


def test_a_model_that_does_not_generate_needs_no_decode_worker():
    async def scenario(s):
        assert not s.core.ready
        prefill = await s.prefill()
        assert s.core.ready
        with pytest.raises(JobError, match="does not generate text") as refused:
            s.core.submit(job())
        assert refused.value.status == 400
        stream = s.core.submit(pooling("mean"))
        assert (await prefill.expect(Prefill)).pooling == "mean"
        stream.cancel()

    run(scenario, generates=False)
