from dataclasses import replace

import pytest
from isthmus.router.placement import (
    DecodeView,
    PrefillView,
    Request,
    Snapshot,
    blocks_needed,
    charged,
    place,
)

P1 = PrefillView(b"p1", available_tokens=1000, queued_tokens=0)
D1 = DecodeView(b"d1", available_blocks=100, num_sequences=0, max_num_seqs=8)


def snapshot(prefill=(P1,), decode=(D1,), local=256):
    return Snapshot(prefill, decode, block_size=16, bytes_per_token=1000, local_prefill_max_tokens=local)


def where(found):
    return None if found is None else (found.prefill, found.decode)


def busy(**changes):
    return replace(D1, num_sequences=4, **changes)


D2 = replace(D1, worker=b"d2")

PLACES = [
    ("short, idle: local", snapshot(), 100, (None, b"d1")),
    ("long: remote", snapshot(), 1000, (b"p1", b"d1")),
    ("long, no prefill worker: local", snapshot(prefill=()), 1000, (None, b"d1")),
    ("long, no KV endpoint: local", snapshot(decode=(replace(D1, accepts_kv=False),)), 1000, (None, b"d1")),
    ("long, no prefill credit: waits", snapshot(prefill=(replace(P1, available_tokens=0),)), 1000, None),
    (
        "one token of credit will do",
        snapshot(prefill=(replace(P1, available_tokens=1),)),
        1500,
        (b"p1", b"d1"),
    ),
    ("short, decode busy: its rows would wait", snapshot(decode=(busy(),)), 200, (b"p1", b"d1")),
    (
        "short, decode busy, prefill queue longer than the harm",
        snapshot(prefill=(replace(P1, queued_tokens=5000),), decode=(busy(),)),
        200,
        (None, b"d1"),
    ),
    ("no blocks: waits", snapshot(decode=(busy(available_blocks=6),)), 96, None),
    ("just enough blocks", snapshot(decode=(busy(available_blocks=7),)), 96, (b"p1", b"d1")),
    ("no sequence left: waits", snapshot(decode=(replace(D1, num_sequences=8),)), 10, None),
    (
        "an idle worker is asked though it cannot fit",
        snapshot(decode=(replace(D1, available_blocks=1, idle=True),)),
        96,
        (None, b"d1"),
    ),
    ("the emptier decode worker", snapshot(decode=(replace(D1, num_sequences=3), D2)), 1000, (b"p1", b"d2")),
    ("the faster decode worker", snapshot(decode=(D1, replace(D2, step_s=0.01))), 1000, (b"p1", b"d2")),
    (
        "the one with room to grow",
        snapshot(decode=(busy(available_blocks=8), replace(D2, num_sequences=4))),
        96,
        (b"p1", b"d2"),
    ),
    ("ties by id", snapshot(decode=(D2, D1)), 1000, (b"p1", b"d1")),
    (
        "the shorter prefill queue",
        snapshot(prefill=(replace(P1, queued_tokens=500), replace(P1, worker=b"p2"))),
        1000,
        (b"p2", b"d1"),
    ),
    (
        "a longer queue at a faster worker",
        snapshot(prefill=(replace(P1, queued_tokens=500, tokens_per_s=5000.0), replace(P1, worker=b"p2"))),
        1000,
        (b"p1", b"d1"),
    ),
    (
        "a slow link counts",
        snapshot(prefill=(replace(P1, transfer_bytes_per_s=1e6), replace(P1, worker=b"p2"))),
        1000,
        (b"p2", b"d1"),
    ),
    ("nobody decodes", snapshot(decode=()), 10, None),
]


@pytest.mark.parametrize(("state", "num_tokens", "expected"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_place(state, num_tokens, expected):
    assert where(place(state, Request(num_tokens))) == expected


@pytest.mark.parametrize(
    ("num_tokens", "num_choices", "expected"), [(1, 1, 1), (15, 1, 1), (16, 1, 2), (17, 1, 2), (16, 4, 5)]
)
def test_blocks_needed(num_tokens, num_choices, expected):
    assert blocks_needed(Request(num_tokens, num_choices), 16) == expected


def test_charging_uses_the_credit_up():
    state, request = snapshot(), Request(600)
    placed = []
    while (found := place(state, request)) is not None:
        placed.append(found)
        state = charged(state, request, found)
    assert len(placed) == 2, "1000 tokens of credit: one prompt of 600, and one more while any is left"
    assert state.prefill[0].available_tokens == -200
    assert state.prefill[0].queued_tokens == 1200
    assert state.decode[0].available_blocks == 100 - 2 * 38
    assert state.decode[0].num_sequences == 2


def test_charging_a_local_prefill_queues_it_at_decode():
    request = Request(100, num_choices=2)
    state = snapshot()
    after = charged(state, request, place(state, request))
    assert (after.decode[0].queued_tokens, after.decode[0].num_sequences) == (100, 2)
    assert after.prefill == state.prefill
