from dataclasses import asdict

import msgspec
import pytest
from isthmus.router.ledger import Ledger
from isthmus.router.metrics import Metrics
from isthmus.router.snapshot import dtype_bytes, kv_bytes_per_token, take_snapshot, worker_gauges
from isthmus.router.workers import Deadlines, Refused, Registry, first_difference
from isthmus.wire.messages import (
    PROTOCOL_VERSION,
    CacheGroup,
    Capacity,
    Credit,
    Fingerprint,
    Heartbeat,
    Hello,
    Ready,
    WorkerStats,
)

MODEL = Fingerprint(
    weights="w1", tokenizer="t1", rope="r1", num_layers=2, vocab_size=100, block_size=16,
    layout=(CacheGroup((0, 1), 4, 32, "float32"),),
)  # fmt: skip
CAPACITY = Capacity(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1024)


def hello(worker="d0", role="decode", epoch=1, protocol=PROTOCOL_VERSION, fingerprint=None):
    return Hello(protocol=protocol, role=role, worker=worker, epoch=epoch, fingerprint=fingerprint)


def ready(fingerprint=MODEL, endpoints=("tcp://d0",)):
    return Ready(fingerprint=fingerprint, capacity=CAPACITY, data_endpoints=endpoints)


def registered(registry, worker_id=b"d0#1", **given):
    worker = registry.on_hello(worker_id, hello(**given), now=0.0)
    registry.on_ready(worker, ready())
    return worker


def test_only_ready_workers_take_work():
    registry = Registry()
    worker = registry.on_hello(b"d0#1", hello(), now=0.0)
    worker.on_heartbeat(Heartbeat(state="ready"))
    assert registry.taking_work("decode") == [], "a heartbeat is no Ready"
    registry.on_ready(worker, ready())
    assert registry.taking_work("decode") == [worker]
    worker.on_heartbeat(Heartbeat(state="loading"))
    assert registry.taking_work("decode") == [worker], "a heartbeat sent before Ready may come after it"
    worker.on_heartbeat(Heartbeat(state="draining"))
    assert registry.taking_work("decode") == []


def test_another_protocol_is_refused():
    with pytest.raises(Refused, match=f"speaks protocol {PROTOCOL_VERSION}, the worker speaks 99"):
        Registry().on_hello(b"d0#1", hello(protocol=99), now=0.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "w2"}, "this router serves weights w1, the worker has w2"),
        ({"tokenizer": "t2"}, "this router serves tokenizer t1, the worker has t2"),
        ({"rope": "r2"}, "this router serves rope r1, the worker has r2"),
        ({"num_layers": 3}, "this router serves number of layers 2, the worker has 3"),
        ({"vocab_size": 101}, "this router serves vocabulary size 100, the worker has 101"),
        ({"block_size": 32}, "this router serves block size 16, the worker has 32"),
        ({"layout": (CacheGroup((0, 1), 4, 32, "bfloat16"),)}, "this router serves KV layout "),
    ],
)
def test_another_fingerprint_is_refused_with_a_sentence(change, sentence):
    registry = Registry()
    registered(registry)
    other = registry.on_hello(b"p0#1", hello("p0", "prefill"), now=0.0)
    with pytest.raises(Refused) as refused:
        registry.on_ready(other, ready(msgspec.structs.replace(MODEL, **change)))
    assert str(refused.value).startswith(sentence)


def test_every_field_of_the_fingerprint_is_compared():
    from isthmus.router.workers import FIELD_NAMES

    assert tuple(FIELD_NAMES) == Fingerprint.__struct_fields__
    assert first_difference(MODEL, MODEL) is None


def test_a_fingerprint_in_hello_is_compared_before_loading():
    registry = Registry(expected=MODEL)
    with pytest.raises(Refused, match="weights"):
        registry.on_hello(b"d0#1", hello(fingerprint=msgspec.structs.replace(MODEL, weights="w2")), now=0.0)


def test_the_expected_fingerprint_outlives_its_worker():
    registry = Registry()
    registry.remove(registered(registry).id)
    other = registry.on_hello(b"d1#1", hello("d1"), now=0.0)
    with pytest.raises(Refused):
        registry.on_ready(other, ready(msgspec.structs.replace(MODEL, weights="w2")))


def test_credit_counts_what_is_under_way():
    worker = registered(Registry())
    assert worker.available == 0
    worker.on_credit(Credit(seen=0, free=10))
    worker.sent = 4
    assert worker.available == 6
    worker.on_credit(Credit(seen=4, free=6))
    assert worker.available == 6
    worker.sent = 14
    assert worker.available == -4


def test_a_decline_closes_the_worker_until_its_next_credit():
    worker = registered(Registry())
    worker.on_credit(Credit(seen=0, free=10))
    worker.declined = True
    assert worker.available == 0
    worker.on_credit(Credit(seen=0, free=10))
    assert worker.available == 10


DEADLINES = Deadlines(silence_s=10, no_progress_s=120, loading_s=600)


@pytest.mark.parametrize(
    ("is_ready", "heard_at", "step_age_s", "now", "expected"),
    [
        (True, 100, 0, 110, None),
        (True, 100, 0, 110.5, "silent for 10.5 s"),
        (True, 100, 119, 101, None),
        (True, 100, 121, 101, "no progress for 121 s"),
        (False, 599, 500, 600, None),
        (False, 600, 0, 601, "not ready after 601 s"),
    ],
)
def test_deadlines(is_ready, heard_at, step_age_s, now, expected):
    registry = Registry(deadlines=DEADLINES)
    worker = registered(registry) if is_ready else registry.on_hello(b"d0#1", hello(), now=0.0)
    worker.heard_at = heard_at
    worker.on_heartbeat(Heartbeat(step_age_s=step_age_s))
    overdue = registry.overdue(now)
    assert overdue == ([] if expected is None else [(worker, expected)])


def test_a_namesake_is_found():
    registry = Registry()
    old = registered(registry)
    new = registered(registry, b"d0#2", epoch=2)
    assert registry.namesake(new) is old
    assert registry.namesake(registered(registry, b"d1#1", worker="d1")) is None


STATS = WorkerStats(
    num_blocks_used=16, num_running=2, num_waiting=1, num_waiting_tokens=5, prefill_tokens_per_s=500.0,
    decode_step_s=0.01, transfer_bytes=3000, transfer_s=1.5,
)  # fmt: skip


def test_snapshot_uses_what_workers_measured():
    registry, ledger = Registry(), Ledger(router_epoch=1, metrics=Metrics())
    assert take_snapshot(registry, ledger, local_prefill_max_tokens=256) is None
    decode = registered(registry)
    prefill = registered(registry, b"p0#1", worker="p0", role="prefill")
    prefill.on_heartbeat(Heartbeat(stats=STATS))
    decode.on_credit(Credit(0, 60))
    snapshot = take_snapshot(registry, ledger, local_prefill_max_tokens=256)
    (p,), (d,) = snapshot.prefill, snapshot.decode
    assert (p.tokens_per_s, p.transfer_bytes_per_s) == (500.0, 2000.0)
    assert d.tokens_per_s == 500.0, "unmeasured: as the others"
    assert (d.step_s, d.available_blocks, d.idle, d.accepts_kv) == (0.03, 60, True, True)
    assert snapshot.bytes_per_token == 2 * 2 * 4 * 32 * 4
    decode.on_heartbeat(Heartbeat(stats=STATS))
    assert worker_gauges(decode).kv_cache_usage == 0.25


def test_gauges_show_what_a_worker_counted():
    worker = registered(Registry())
    drafts = {
        "num_drafts": 4, "num_draft_tokens": 9, "num_accepted_tokens": 5, "num_accepted_per_position": (3, 2),
    }  # fmt: skip
    worker.on_heartbeat(Heartbeat(stats=msgspec.structs.replace(STATS, **drafts)))
    found = asdict(worker_gauges(worker))
    assert {name: found[name] for name in drafts} == drafts


def test_snapshot_learns_from_transfers():
    registry, ledger = Registry(), Ledger(router_epoch=1, metrics=Metrics())
    for name in ("d0", "d1"):
        registered(registry, f"{name}#1".encode(), worker=name)
    first = registered(registry, b"p0#1", worker="p0", role="prefill")
    registered(registry, b"p1#1", worker="p1", role="prefill")
    first.on_heartbeat(Heartbeat(stats=STATS))
    ledger.rates.record(b"p0#1", b"d0#1", num_tokens=10, num_bytes=5000, transfer_s=5.0)
    snapshot = take_snapshot(registry, ledger, local_prefill_max_tokens=256)
    p0, p1 = snapshot.prefill
    assert [p0.bytes_per_s(d) for d in (b"d0#1", b"d1#1")] == [1000.0, 2000.0], "its own mean where the pair is new"
    assert p1.bytes_per_s(b"d0#1") == 2000.0, "unmeasured: as the others"
    assert snapshot.bytes_per_token == 500.0


def test_a_transfer_rate_is_of_recent_transfers():
    prefill = registered(Registry(), b"p0#1", worker="p0", role="prefill")
    for num_bytes, seconds in ((3000, 1.5), (3000, 1.5), *((3000 + 900 * i, 1.5 + 0.1 * i) for i in range(1, 60))):
        stats = msgspec.structs.replace(STATS, transfer_bytes=num_bytes, transfer_s=seconds)
        prefill.on_heartbeat(Heartbeat(stats=stats))
    assert prefill.transfer_rate.value == pytest.approx(9000, rel=0.01)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", 4), ("fp32", 4), ("bfloat16", 2), ("bf16", 2), ("fp8_e4m3", 1), ("fake", 1)]
)
def test_dtype_bytes(dtype, expected):
    assert dtype_bytes(dtype) == expected


def test_kv_bytes_count_every_group():
    two = msgspec.structs.replace(MODEL, layout=MODEL.layout * 2)
    assert kv_bytes_per_token(two) == 2 * kv_bytes_per_token(MODEL)
