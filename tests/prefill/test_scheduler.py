"""Each rule of the prefill scheduler by itself."""

import pytest
from isthmus.tests.prefill.prefill_sim import PrefillSim
from isthmus.wire.codec import pack_ids
from isthmus.wire.logprobs import unpack_logprobs
from isthmus.wire.messages import Cancel, Cancelled, Credit, Failed, Prefill, Prefilled, PromptLogprobs

LONG = list(range(40))


def spans(sim: PrefillSim, work: int) -> list[tuple[int, int, bool]]:
    """(first block, blocks, last) of the pieces sent."""
    return [(send.first_block, len(send.block_ids), send.last) for send, _ in sim.works[work].pieces]


def test_blocks_are_sent_as_they_fill_and_the_partial_one_with_the_logits() -> None:
    sim = PrefillSim(num_blocks=20, max_num_batched_tokens=10)
    work = sim.submit(LONG[:23])
    for _ in range(3):
        sim.turn()
    assert spans(sim, 0) == [(0, 2, False), (2, 3, False), (5, 1, True)]
    assert [row.keep_logits for plan in sim.plans for row in plan.rows] == [False, False, True]
    assert work.answer is None
    assert sim.pool.num_used == 6
    sim.sent(work)
    sim.carry_out()
    assert isinstance(work.answer, Prefilled)
    assert sim.pool.num_used == 0
    sim.assert_exact(work)


def test_a_chunk_that_fills_no_block_sends_nothing() -> None:
    sim = PrefillSim(num_blocks=20, max_chunk_tokens=3)
    work = sim.submit(LONG[:9])
    sim.turn()
    assert work.pieces == []
    sim.run()
    assert spans(sim, 0) == [(0, 1, False), (1, 2, True)]
    sim.assert_exact(work)


def test_what_decode_holds_is_not_sent_and_what_was_cached_here_goes_first() -> None:
    sim = PrefillSim(num_blocks=30, max_num_batched_tokens=8)
    sim.submit(LONG[:16])
    sim.run()
    work = sim.submit(LONG[:26], first_token=8)
    sim.run()
    assert isinstance(work.answer, Prefilled)
    assert work.answer.num_cached_tokens == 16
    assert spans(sim, 1) == [(0, 4, False), (4, 1, True)]
    sim.assert_exact(work)


def test_the_last_token_is_always_computed() -> None:
    sim = PrefillSim(num_blocks=30)
    sim.submit(LONG[:8])
    sim.run()
    work = sim.submit(LONG[:8], first_token=4)
    sim.run()
    assert isinstance(work.answer, Prefilled)
    assert work.answer.num_cached_tokens == 4
    assert spans(sim, 1) == [(0, 1, True)]
    sim.assert_exact(work)


def test_a_prompts_logprobs_go_with_its_last_piece_and_none_of_it_is_taken_from_the_cache() -> None:
    sim = PrefillSim(num_blocks=40, max_num_batched_tokens=7)
    sim.submit(LONG[:20])
    sim.run()
    work = sim.submit(LONG[:20], first_token=8, prompt_len=18, prompt_logprobs=2)  # two tokens are earlier output
    sim.run()
    assert isinstance(work.answer, Prefilled)
    assert work.answer.num_cached_tokens == 0
    *others, last = [send for send, _ in work.pieces]
    assert not any(send.prompt_logprobs for send in others)
    assert unpack_logprobs(last.prompt_logprobs, 2) == sim.engine.expected_logprobs(LONG[:18], 2)
    sim.assert_exact(work)


def test_a_prompts_logprobs_go_to_the_router_where_nothing_is_sent() -> None:
    sim = PrefillSim(num_blocks=40, max_num_batched_tokens=7)
    sim.submit(LONG[:20], sends=False, prompt_len=20, prompt_logprobs=1)
    sim.run()
    told = [message for message in sim.messages if isinstance(message, PromptLogprobs)]
    assert [message.position for message in told] == [1, 8, 15]
    rows = [row for message in told for row in unpack_logprobs(message.rows, message.num_top)]
    assert rows == sim.engine.expected_logprobs(LONG[:20], 1)
    assert isinstance(sim.messages[-1], Prefilled | Credit)
    assert max(map(sim.messages.index, told)) < next(i for i, m in enumerate(sim.messages) if isinstance(m, Prefilled))


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    sim = PrefillSim(num_blocks=60, max_num_batched_tokens=8)
    long, short = sim.submit(LONG * 4), sim.submit([7, 8, 9])
    sim.turn()
    assert short.logits is not None
    assert long.logits is None
    assert [len(row.token_ids) for row in sim.plans[0].rows] == [5, 3]
    sim.run()


def test_short_prompts_do_not_starve_a_long_one() -> None:
    sim = PrefillSim(num_blocks=200, max_num_batched_tokens=8, max_num_seqs=8)
    long = sim.submit(LONG)
    for i in range(10):
        sim.submit([100 + i] * 8)
        sim.turn()
    assert long.logits is not None, "40 tokens at 4 a step"
    sim.run()


def test_blocks_are_given_in_the_order_of_arrival() -> None:
    sim = PrefillSim(num_blocks=10)
    first, second, third = sim.submit(LONG[:30]), sim.submit(LONG[10:40]), sim.submit([1, 2])
    for _ in range(4):
        sim.turn()
    assert first.logits is not None
    assert third.pieces == [], "the second one waits for blocks, and comes before"
    assert sim.scheduler.stats().num_waiting == 2
    sim.sent(first)
    for _ in range(4):
        sim.turn()
    assert second.logits is not None
    sim.sent(second)
    sim.run()


def test_at_most_max_num_seqs_prompts_are_computed_at_once() -> None:
    sim = PrefillSim(num_blocks=60, max_num_seqs=2, max_chunk_tokens=2)
    for i in range(3):
        sim.submit([i] * 6)
    sim.turn()
    assert len(sim.plans[0].rows) == 2
    sim.run()


def test_credit_is_two_steps_ahead() -> None:
    sim = PrefillSim(num_blocks=60)
    sim.carry_out()
    assert sim.credit == Credit(0, 32)
    sim.submit(LONG[:10])
    sim.submit(LONG)
    sim.carry_out()
    assert sim.credit == Credit(50, 0), "overdrawn"
    sim.turn()
    sim.turn()
    assert sim.credit == Credit(50, 32 - 18)
    num_messages = len(sim.messages)
    sim.carry_out()
    assert len(sim.messages) == num_messages
    sim.run()
    assert sim.credit == Credit(50, 32)


@pytest.mark.parametrize(
    ("prompt", "first_token", "word"),
    [(LONG * 7, 0, "context"), ([], 0, "0 tokens"), (LONG, 2, "from token 2"), (LONG, 40, "from token 40")],
)
def test_what_never_fits_fails_for_good(prompt: list[int], first_token: int, word: str) -> None:
    sim = PrefillSim(num_blocks=60)
    work = sim.submit(prompt, first_token)
    sim.carry_out()
    assert isinstance(work.answer, Failed)
    assert not work.answer.retriable
    assert word in work.answer.error
    assert sim.scheduler.empty


def test_bytes_that_are_no_ids_fail() -> None:
    sim = PrefillSim(num_blocks=60)
    sim.scheduler.on_prefill(Prefill(1, "r", b"12345", 0, "tcp://d", "t", 1), 0.0)
    (failed, _) = sim.scheduler.take_effects().messages
    assert isinstance(failed, Failed)


def test_a_placement_sent_twice_is_an_error() -> None:
    sim = PrefillSim(num_blocks=60)
    sim.submit(LONG)
    with pytest.raises(ValueError, match="twice"):
        sim.scheduler.on_prefill(Prefill(0, "r", pack_ids(LONG), 0, "tcp://d", "t", 40), 0.0)


@pytest.mark.parametrize(
    "options",
    [{"max_num_batched_tokens": 1}, {"max_num_seqs": 0}, {"max_chunk_tokens": 0}],
)
def test_sizes_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        PrefillSim(num_blocks=4, **options)


def test_drain_fails_what_comes_and_finishes_what_is_there() -> None:
    sim = PrefillSim(num_blocks=60)
    first = sim.submit(LONG)
    sim.scheduler.on_drain()
    second = sim.submit(LONG)
    sim.carry_out()
    assert second.answer == Failed(1, "draining", retriable=True)
    assert sim.credit.free == 0
    sim.run()
    assert isinstance(first.answer, Prefilled)


def test_a_new_router_starts_from_nothing() -> None:
    sim = PrefillSim(num_blocks=60)
    sim.submit(LONG)
    sim.turn()
    sim.scheduler.on_welcome(0.0)
    effects = sim.scheduler.take_effects()
    assert effects.messages == [Credit(0, 32)]
    assert effects.abandon == ["t0"]
    assert sim.scheduler.empty


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
def test_cancel_in_every_state(num_turns: int, overlap: bool) -> None:
    sim = PrefillSim(num_blocks=60, overlap=overlap)
    work = sim.submit(LONG)
    for _ in range(num_turns):
        sim.turn()
    sim.cancel(work)
    effects = sim.scheduler.take_effects()
    assert Cancelled(0) in effects.messages
    assert effects.abandon == ["t0"]
    assert (sim.pool.num_used > 0) == (sim.step is not None)
    sim.turn()
    assert sim.scheduler.empty
    assert sim.pool.num_used == 0
    sim.scheduler.on_sent("t0", 1, 0.0)
    sim.scheduler.on_send_failed("t0", "late", 0.0)
    assert sim.scheduler.take_effects().messages == []


def test_an_unknown_cancel_is_answered() -> None:
    sim = PrefillSim(num_blocks=60)
    sim.scheduler.on_cancel(Cancel(5, 1), 0.0)
    assert Cancelled(5, 1) in sim.scheduler.take_effects().messages


def test_pieces_that_were_not_taken_are_not_sent_after_a_cancel() -> None:
    sim = PrefillSim(num_blocks=60)
    work = sim.submit(LONG)
    plan = sim.scheduler.plan(0.0, None)
    assert plan is not None
    sim.scheduler.apply(plan, sim.engine.launch(plan).result(), 0.0)
    sim.cancel(work)
    assert sim.scheduler.take_effects().send == []


def test_a_failed_send_is_retriable() -> None:
    sim = PrefillSim(num_blocks=60)
    work = sim.submit(LONG)
    sim.turn()
    sim.scheduler.on_send_failed("t0", "connection lost", 0.0)
    sim.carry_out()
    assert work.answer == Failed(0, "connection lost", retriable=True)
    assert sim.scheduler.empty
    assert sim.pool.num_used == 0


def test_only_what_has_the_same_salt_is_found() -> None:
    sim = PrefillSim(num_blocks=60)
    found = []
    for salt in (b"a", b"", b"b", b"a", b""):
        work = sim.submit(LONG[:26], sends=False, salt=salt)
        sim.run()
        assert isinstance(work.answer, Prefilled)
        found.append(work.answer.num_cached_tokens)
    assert found == [0, 0, 0, 24, 24]


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
def test_what_is_not_sent_stays_in_the_prefix_cache(overlap: bool) -> None:
    sim = PrefillSim(num_blocks=60, overlap=overlap)
    kept = sim.submit(LONG[:26], sends=False)
    sim.run()
    assert isinstance(kept.answer, Prefilled)
    assert (kept.answer.num_cached_tokens, kept.answer.transfer_bytes, kept.answer.transfer_s) == (0, 0, 0.0)
    assert kept.pieces == []
    assert not any(row.keep_logits for plan in sim.plans for row in plan.rows)
    assert sim.scheduler.stats().transfer_bytes == 0
    later = sim.submit(LONG)
    sim.run()
    assert isinstance(later.answer, Prefilled)
    assert later.answer.num_cached_tokens == 24
    assert sim.scheduler.stats().prefix_hit_tokens == 24
    sim.assert_exact(later)


@pytest.mark.parametrize("num_turns", [0, 1, 2])
@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
def test_what_is_not_sent_is_cancelled_without_a_word_to_the_transport(num_turns: int, overlap: bool) -> None:
    sim = PrefillSim(num_blocks=60, overlap=overlap)
    work, other = sim.submit(LONG, sends=False), sim.submit(LONG, sends=False)
    for _ in range(num_turns):
        sim.turn()
    sim.cancel(work)
    effects = sim.scheduler.take_effects()
    assert Cancelled(0) in effects.messages
    assert effects.abandon == []
    sim.run()
    assert isinstance(other.answer, Prefilled)


@pytest.mark.parametrize(("endpoint", "transfer_id"), [("tcp://d", ""), ("", "t")])
def test_half_an_address_is_refused(endpoint: str, transfer_id: str) -> None:
    sim = PrefillSim(num_blocks=60)
    sim.scheduler.on_prefill(Prefill(1, "r", pack_ids(LONG), 0, endpoint, transfer_id, 1), 0.0)
    (failed, _) = sim.scheduler.take_effects().messages
    assert isinstance(failed, Failed)
    assert not failed.retriable


def test_stats_measure_rates() -> None:
    sim = PrefillSim(num_blocks=60, max_num_batched_tokens=20)
    work = sim.submit(LONG)
    for start in (10.0, 12.0):
        plan = sim.scheduler.plan(start, None)
        assert plan is not None
        sim.scheduler.apply(plan, sim.engine.launch(plan).result(), start + 2)
    sim.carry_out()
    sim.scheduler.on_sent("t0", 100, 15.0)
    sim.carry_out()
    assert work.answer == Prefilled(0, 0, 4.0, 100, 1.0)
    stats = sim.scheduler.stats()
    assert stats.prefill_tokens_per_s == 10.0
    assert (stats.transfer_bytes, stats.transfer_s) == (100, 1.0)
    assert stats.prefix_query_tokens == 40
