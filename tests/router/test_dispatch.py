from dataclasses import replace

from isthmus.router.dispatch import MAX_SCANNED, Waiting, decide
from isthmus.router.placement import DecodeView, PrefillView, Request, Snapshot

D1 = DecodeView(b"d1", available_blocks=4, num_sequences=1, max_num_seqs=8)
D2 = replace(D1, worker=b"d2", available_blocks=2)
P1 = PrefillView(b"p1", available_tokens=20, queued_tokens=0)
BIG, SMALL, WARM = Request(80), Request(10), Request(10, prompt_only=True)


def snapshot(*decode):
    return Snapshot((), decode, block_size=16, bytes_per_token=1, local_prefill_max_tokens=256)


def run(waiting, *decode, now=100.0, max_bypass_s=5.0):
    return decide(iter(waiting), snapshot(*decode), now=now, max_bypass_s=max_bypass_s)


def tickets(decisions):
    return [ticket for ticket, _ in decisions.placed]


def test_first_come_first_served_until_credit_is_used_up():
    decisions = run([Waiting(i, SMALL) for i in range(6)], D1)
    assert tickets(decisions) == [0, 1, 2, 3]
    assert decisions.passed == []


def test_younger_ones_pass_what_does_not_fit():
    decisions = run([Waiting(0, BIG), Waiting(1, SMALL), Waiting(2, BIG)], D1)
    assert tickets(decisions) == [1]
    assert decisions.passed == [0], "2 waits too, but nobody younger went first"


def test_passed_over_for_too_long_holds_a_worker():
    waiting = [Waiting(0, BIG, passed_since=94.0), Waiting(1, SMALL)]
    decisions = run(waiting, D1)
    assert tickets(decisions) == []
    assert decisions.held == {0: b"d1"}


def test_other_workers_go_on_and_the_held_one_stays_the_same():
    waiting = [Waiting(0, BIG, passed_since=94.0, held=b"d2"), Waiting(1, SMALL)]
    decisions = run(waiting, D1, D2)
    assert decisions.held == {0: b"d2"}
    assert [(t, p.decode) for t, p in decisions.placed] == [(1, b"d1")]


def test_a_held_worker_that_is_gone_is_replaced():
    decisions = run([Waiting(0, BIG, passed_since=94.0, held=b"gone")], D1, D2)
    assert decisions.held == {0: b"d1"}


def test_what_is_overdue_goes_anywhere_it_fits():
    waiting = [Waiting(0, BIG, passed_since=94.0, held=b"d2")]
    decisions = run(waiting, replace(D1, available_blocks=6), D2)
    assert [(t, p.decode) for t, p in decisions.placed] == [(0, b"d1")]


def test_a_preempted_one_before_it_is_not_stopped():
    decisions = run([Waiting(0, SMALL), Waiting(1, BIG, passed_since=94.0)], D1)
    assert tickets(decisions) == [0]


def test_the_scan_is_bounded():
    looked_at = []

    def endless():
        while True:
            looked_at.append(1)
            yield Waiting(0, BIG)

    decide(endless(), snapshot(D1), now=0.0, max_bypass_s=5.0)
    assert len(looked_at) == MAX_SCANNED + 1


def test_nothing_is_looked_at_without_room():
    waiting = iter([Waiting(0, SMALL)])
    decide(waiting, snapshot(replace(D1, available_blocks=0)), now=0.0, max_bypass_s=5.0)
    decisions = decide(waiting, snapshot(), now=0.0, max_bypass_s=5.0)
    assert tickets(decisions) == []


def with_prefill(waiting, *decode, prefill=(P1,), **given):
    state = replace(snapshot(*decode), prefill=prefill)
    return decide(iter(waiting), state, now=100.0, max_bypass_s=5.0, prompt_only=True, **given)


def test_what_wants_no_token_goes_past_full_decode_workers_and_delays_nobody():
    full = replace(D1, available_blocks=0)
    decisions = with_prefill([Waiting(0, BIG), *(Waiting(i, WARM) for i in (1, 2, 3))], full)
    assert [(t, p.prefill, p.decode) for t, p in decisions.placed] == [(1, b"p1", None), (2, b"p1", None)]
    assert decisions.passed == []


def test_it_goes_with_nobody_to_decode():
    assert tickets(with_prefill([Waiting(0, WARM)])) == [0]


def test_it_never_holds_a_decode_worker():
    spent = replace(P1, available_tokens=0)
    decisions = with_prefill([Waiting(0, WARM, passed_since=0.0), Waiting(1, SMALL)], D1, prefill=(spent,))
    assert decisions.held == {}
    assert [(t, p.decode) for t, p in decisions.placed] == [(1, b"d1")]


def test_without_prefill_workers_it_waits_for_decode_like_others():
    decisions = with_prefill([Waiting(0, Request(80, prompt_only=True), passed_since=0.0)], D1, prefill=())
    assert decisions.held == {0: b"d1"}
