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
    (
        "a slow link to one decode worker counts for that one",
        snapshot(prefill=(replace(P1, to_decode={b"d1": 1e6}),), decode=(D1, D2)),
        1000,
        (b"p1", b"d2"),
    ),
    ("nobody decodes", snapshot(decode=()), 10, None),
]


@pytest.mark.parametrize(("state", "num_tokens", "expected"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_place(state, num_tokens, expected):
    assert where(place(state, Request(num_tokens))) == expected


P2 = replace(P1, worker=b"p2")

ONE_RUNS = replace(D1, num_sequences=1)

MEASURED = [
    ("one runs on D: P", 100, snapshot(decode=(ONE_RUNS,)), ONE_RUNS, P1, (b"p1", b"d1")),
    ("D computes fast", 100, snapshot(), replace(ONE_RUNS, tokens_per_s=4000.0), P1, (None, b"d1")),
    ("the link is slow", 100, snapshot(), ONE_RUNS, replace(P1, transfer_bytes_per_s=9e5), (None, b"d1")),
    ("the link to this one is slow", 100, snapshot(), ONE_RUNS, replace(P1, to_decode={b"d1": 9e5}), (None, b"d1")),
    ("P computes slowly", 100, snapshot(), ONE_RUNS, replace(P1, tokens_per_s=400.0), (None, b"d1")),
    ("another P is faster", 1000, snapshot((P1, P2)), D1, replace(P1, tokens_per_s=900.0), (b"p2", b"d1")),
    ("another D steps faster", 1000, snapshot(decode=(D1, D2)), replace(D1, step_s=0.04), P1, (b"p1", b"d2")),
]
"""What changes when d1 and p1 have been measured."""


@pytest.mark.parametrize(
    ("num_tokens", "state", "decode", "prefill", "expected"), [m[1:] for m in MEASURED], ids=[m[0] for m in MEASURED]
)
def test_measured_rates_change_the_placement(num_tokens, state, decode, prefill, expected):
    known = replace(
        state,
        prefill=tuple(prefill if p.worker == prefill.worker else p for p in state.prefill),
        decode=tuple(decode if d.worker == decode.worker else d for d in state.decode),
    )
    assert where(place(known, Request(num_tokens))) == expected


def test_more_bytes_a_token_keep_a_prompt_at_home():
    state = snapshot(decode=(ONE_RUNS,))
    assert where(place(state, Request(100))) == (b"p1", b"d1")
    assert where(place(replace(state, bytes_per_token=1e6), Request(100))) == (None, b"d1")


@pytest.mark.parametrize("rate", [100.0, 1e3, 1e5])
@pytest.mark.parametrize("bytes_per_s", [1e8, 1e9, 1e12])
@pytest.mark.parametrize("num_tokens", [1, 16, 100, 256])
def test_a_short_prompt_stays_on_an_idle_decode_worker(rate, bytes_per_s, num_tokens):
    p = replace(P1, tokens_per_s=rate, transfer_bytes_per_s=bytes_per_s)
    for faster in (0.1, 1.0, 1.5, 10.0):
        state = snapshot((p,), (replace(D1, tokens_per_s=faster * rate, idle=True),))
        assert where(place(state, Request(num_tokens))) == (None, b"d1")


@pytest.mark.parametrize("num_sequences", [1, 4, 7])
@pytest.mark.parametrize("num_tokens", [300, 1000, 1500])
def test_a_long_prompt_is_never_computed_on_a_busy_decode_worker(num_sequences, num_tokens):
    for p in (P1, replace(P1, queued_tokens=100_000), replace(P1, available_tokens=0)):
        state = snapshot((p,), (replace(D1, num_sequences=num_sequences, tokens_per_s=1e6),))
        found = place(state, Request(num_tokens))
        assert found is None or found.prefill == b"p1"


@pytest.mark.parametrize("num_tokens", [100, 200, 256])
def test_even_without_that_limit_it_goes_where_nobody_waits_for_it(num_tokens):
    state = snapshot(decode=(busy(),), local=10**9)
    assert where(place(state, Request(num_tokens))) == (b"p1", b"d1")


PROMPT_ONLY = [
    ("the shorter queue", snapshot((replace(P1, queued_tokens=9), P2)), (b"p2", None)),
    ("the faster one", snapshot((P1, replace(P2, tokens_per_s=2000.0))), (b"p2", None)),
    ("no credit: waits, though decode is idle", snapshot((replace(P1, available_tokens=0),)), None),
    ("decode need not live", snapshot(decode=()), (b"p1", None)),
    ("without prefill workers: decode", snapshot(prefill=()), (None, b"d1")),
    ("… which must have room", snapshot(prefill=(), decode=(replace(D1, available_blocks=1),)), None),
]


@pytest.mark.parametrize(("state", "expected"), [p[1:] for p in PROMPT_ONLY], ids=[p[0] for p in PROMPT_ONLY])
def test_a_job_that_wants_no_token(state, expected):
    assert where(place(state, Request(100, prompt_only=True))) == expected


def test_charging_a_prompt_alone_costs_decode_nothing():
    state, request = snapshot(), Request(600, prompt_only=True)
    after = charged(state, request, place(state, request))
    assert after.decode == state.decode
    assert (after.prefill[0].available_tokens, after.prefill[0].queued_tokens) == (400, 600)


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
