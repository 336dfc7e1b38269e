"""Each rule of the decode scheduler by itself."""

from typing import Any

import pytest
from isthmus.decode.scheduler import DecodeScheduler
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.plan import IN_FLIGHT, Result, Scoring
from isthmus.tests.decode.router_sim import EOS, Request, RouterSim
from isthmus.wire.codec import pack_ids
from isthmus.wire.logprobs import TokenLogprobs, pack_logprobs
from isthmus.wire.messages import (
    Cancel,
    Cancelled,
    Choice,
    Credit,
    Declined,
    Failed,
    PromptLogprobs,
    Reserve,
    Reserved,
    TokenRow,
    Tokens,
)
from isthmus.wire.sampling import SamplingParams

PROMPT = list(range(1, 11))


class Bench:
    """A scheduler of blocks of 4 tokens, driven by hand: `step` gives every draw the same token, or the ones named."""

    def __init__(self, num_blocks: int = 32, **options: int):
        self.pool = BlockPool(num_blocks, 4)
        sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": num_blocks * 4} | options
        self.scheduler = DecodeScheduler(self.pool, epoch="d", **sizes)

    def reserve(
        self,
        placement: int,
        prompt: list[int],
        *,
        remote: bool = False,
        num_choices: int = 1,
        output: list[int] | None = None,
        salt: bytes = b"",
        **params: Any,
    ) -> None:
        choices = tuple(Choice(i, pack_ids(output or [])) for i in range(num_choices))
        self.scheduler.on_reserve(
            Reserve(
                placement,
                "r",
                pack_ids(prompt),
                choices,
                SamplingParams(**params),
                0,
                1,
                remote,
                (EOS,),
                salt=salt,
            ),
            0.0,
        )

    def receive(self, placement: int) -> None:
        (reserved,) = [m for m in self.messages(Reserved) if m.placement == placement]
        self.scheduler.on_received(reserved.transfer_id, "logits", 0.0)

    def messages(self, kind: type) -> list[Any]:
        effects = self.scheduler.take_effects()
        self.scheduler.check()
        return [message for message in effects.messages if isinstance(message, kind)]

    def step(self, *tokens: int) -> list[TokenRow]:
        """Plans, applies; the rows of tokens that came of it."""
        plan = self.scheduler.plan(0.0, None)
        assert plan is not None
        self.scheduler.apply(plan, Result(tokens or [7] * len(plan.draws)), 0.0)
        return [row for message in self.messages(Tokens) for row in message.rows]

    def finish(self) -> None:
        for placement in self.scheduler.placements():
            self.scheduler.on_cancel(Cancel(placement), 0.0)
        assert self.scheduler.empty
        assert self.pool.num_used == 0
        self.scheduler.check()


# Reservations.


def test_a_remote_reservation_names_the_blocks_after_the_cached_ones() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    bench.step()
    bench.reserve(2, [*PROMPT[:8], 40, 41, 42], remote=True)
    effects = bench.scheduler.take_effects()
    (reserved,) = [message for message in effects.messages if isinstance(message, Reserved)]
    assert reserved.num_cached_tokens == 8
    (receive,) = effects.receive
    assert receive.transfer_id == reserved.transfer_id != ""
    assert len(receive.block_ids) == 1
    bench.finish()


def test_a_match_stops_before_the_last_token() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT[:8])
    bench.step()
    bench.reserve(2, PROMPT[:8])
    assert [message.num_cached_tokens for message in bench.messages(Reserved)] == [4]
    bench.finish()


def test_transfer_ids_are_never_used_twice() -> None:
    bench = Bench()
    seen = set()
    for _ in range(3):
        bench.reserve(1, PROMPT, remote=True)
        (reserved,) = bench.messages(Reserved)
        seen.add(reserved.transfer_id)
        bench.scheduler.on_cancel(Cancel(1), 0.0)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "word"),
    [
        ([], {}, "empty"),
        (PROMPT, {"num_choices": 5}, "at most 4"),
        ([1] * 128, {}, "context"),
        ([1] * 120, {"num_choices": 3}, "33 blocks"),
        (PROMPT, {"output": [5, 6], "max_tokens": 2}, "2 tokens"),
        (PROMPT, {"num_choices": 2, "output": [5]}, "has output"),
        (PROMPT, {"num_choices": 0}, "no choices"),
        (PROMPT, {"max_tokens": 0, "remote": True}, "no token is wanted"),
        (PROMPT, {"max_tokens": 0, "output": [5]}, "1 tokens"),
    ],
)
def test_what_never_fits_fails_for_good(prompt: list[int], options: dict[str, Any], word: str) -> None:
    bench = Bench()
    bench.reserve(1, prompt, **options)
    (failed,) = bench.messages(Failed)
    assert not failed.retriable
    assert word in failed.error
    bench.finish()


def test_where_no_token_is_wanted_the_prompt_is_computed_and_kept() -> None:
    bench = Bench(max_chunk_tokens=6)
    bench.reserve(1, PROMPT, num_choices=2, max_tokens=0)
    assert bench.step() == []
    assert bench.step() == [TokenRow(1, choice, 0, (), "length") for choice in (0, 1)]
    assert bench.scheduler.empty
    assert bench.scheduler.idle
    assert bench.pool.num_used == 0
    bench.reserve(2, PROMPT)
    assert [message.num_cached_tokens for message in bench.messages(Reserved)] == [8]
    bench.finish()


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
def test_such_a_prompt_may_end_beside_others_and_in_flight(overlap: bool) -> None:
    sim = RouterSim(num_blocks=32, overlap=overlap)
    running = sim.submit(Request(PROMPT, SamplingParams(seed=1, max_tokens=8)))
    warmed = sim.submit(Request([40 + i for i in range(9)], SamplingParams(seed=2, max_tokens=0)))
    dropped = sim.submit(Request([30 + i for i in range(9)], SamplingParams(seed=3, max_tokens=0)))
    sim.carry_out()
    sim.place_what_fits()
    sim.turn()
    sim.cancel(dropped)
    sim.run()
    for request in (running, warmed, dropped):
        sim.assert_exact(request)
    assert (warmed.outputs, warmed.finished[0].finish_reason) == ({0: []}, "length")
    assert (0 in dropped.finished) != overlap


def test_the_watermark_is_kept_beside_others_only() -> None:
    bench = Bench(num_blocks=8, watermark_blocks=3)
    bench.reserve(1, [1] * 20)
    bench.reserve(2, PROMPT)
    assert [m.placement for m in bench.messages(Reserved)] == [1]
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    bench.reserve(3, [1] * 28)
    bench.scheduler.on_cancel(Cancel(3), 0.0)
    assert bench.messages(Declined) == []
    bench.finish()


def test_no_free_blocks_declines_and_keeps_nothing() -> None:
    bench = Bench(num_blocks=8)
    bench.reserve(1, [1] * 20)
    used = bench.pool.num_used
    bench.reserve(2, [1] * 20)
    (declined,) = bench.messages(Declined)
    assert (declined.placement, declined.preempted) == (2, False)
    assert bench.pool.num_used == used
    bench.finish()


def test_too_many_sequences_decline_and_close_the_credit() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, num_choices=3)
    bench.reserve(2, PROMPT, num_choices=2)
    assert [m.placement for m in bench.messages(Declined)] == [2]
    bench.reserve(3, PROMPT)
    (credit,) = bench.messages(Credit)
    assert credit == Credit(seen=3, free=0)
    bench.finish()


def test_a_placement_sent_twice_is_an_error() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    with pytest.raises(ValueError, match="twice"):
        bench.reserve(1, PROMPT)


def test_sizes_that_cannot_work_are_refused() -> None:
    for options in ({"max_num_seqs": 17}, {"max_model_len": 129}, {"max_chunk_tokens": 0}, {"max_num_seqs": 0}):
        with pytest.raises(ValueError, match=r"must|does not fit"):
            Bench(**options)


def test_credit_is_told_once_and_only_when_it_changed() -> None:
    bench = Bench(watermark_blocks=2)
    assert bench.messages(Credit) == [Credit(0, 32)]
    assert bench.messages(Credit) == []
    bench.reserve(1, PROMPT)
    bench.reserve(2, PROMPT)
    assert bench.messages(Credit) == [Credit(2, 32 - 6 - 2)]
    bench.finish()
    assert bench.messages(Credit) == [Credit(2, 32)]


def test_drain_declines_and_lets_the_rest_finish() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, max_tokens=2)
    bench.scheduler.on_drain()
    bench.reserve(2, PROMPT)
    effects = bench.scheduler.take_effects()
    assert Declined(2, "draining") in effects.messages
    assert Credit(2, 0) in effects.messages
    assert [row.finish_reason for row in bench.step() + bench.step()] == [None, "length"]
    bench.finish()


def test_a_new_router_starts_from_nothing() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True)
    bench.reserve(2, PROMPT)
    bench.scheduler.take_effects()
    bench.scheduler.on_welcome(0.0)
    effects = bench.scheduler.take_effects()
    assert effects.messages == [Credit(0, 32)]
    assert len(effects.abandon) == 1
    bench.finish()


# Batching.


def test_running_sequences_come_first_then_chunks_first_come_first_served() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT[:3])
    bench.step()
    bench.reserve(2, [20] * 10)
    bench.reserve(3, [30] * 10)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert [(row.start, len(row.token_ids), len(row.draws)) for row in plan.rows] == [(3, 1, 1), (0, 10, 1), (0, 5, 0)]
    assert plan.num_tokens == 16
    bench.scheduler.apply(plan, Result([7, 7]), 0.0)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert [(row.start, len(row.token_ids)) for row in plan.rows] == [(4, 1), (10, 1), (5, 5)]


@pytest.mark.parametrize("max_chunk_tokens", [1, 3, 16])
def test_chunks_are_capped_and_cover_the_prompt(max_chunk_tokens: int) -> None:
    bench = Bench(max_chunk_tokens=max_chunk_tokens)
    bench.reserve(1, PROMPT)
    seen: list[int] = []
    while len(seen) < len(PROMPT):
        plan = bench.scheduler.plan(0.0, None)
        assert plan is not None
        (row,) = plan.rows
        assert row.start == len(seen)
        assert len(row.token_ids) <= max_chunk_tokens
        seen += row.token_ids
        assert bool(row.draws) == (len(seen) == len(PROMPT))
        bench.scheduler.apply(plan, Result([7] * len(row.draws)), 0.0)
    assert seen == PROMPT


def test_a_received_prompt_is_drawn_from_the_shipped_logits() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True)
    assert bench.scheduler.plan(0.0, None) is None
    assert bench.scheduler.idle
    assert not bench.scheduler.empty
    bench.receive(1)
    assert not bench.scheduler.idle
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert plan.rows == ()
    assert plan.shipped[0].logits == "logits"
    (seed,) = bench.scheduler.take_effects().admit
    assert (seed.prompt_ids, seed.output_ids) == (PROMPT, [])
    bench.scheduler.apply(plan, Result([9]), 0.0)
    assert bench.messages(Tokens) == [Tokens((TokenRow(1, 0, 0, (9,)),))]
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert (plan.rows[0].token_ids, plan.rows[0].start) == ((9,), 10)


def test_choices_share_full_blocks_and_copy_the_partial_one() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, num_choices=3)
    assert bench.pool.num_used == 2 + 3
    assert [(row.choice, row.token_ids) for row in bench.step(5, 6, 7)] == [(0, (5,)), (1, (6,)), (2, (7,))]
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    tables = [list(row.block_table) for row in plan.rows]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert plan.copies == ((tables[0][2], tables[1][2]), (tables[0][2], tables[2][2]))
    assert len({table[2] for table in tables}) == 3
    bench.scheduler.apply(plan, Result([5, 6, 7]), 0.0)
    bench.finish()


def test_choices_of_whole_blocks_need_no_copy() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT[:8], num_choices=2)
    bench.step()
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert plan.copies == ()
    bench.scheduler.apply(plan, Result([5, 6]), 0.0)
    bench.finish()


def test_the_partial_block_outlives_the_choice_that_owned_it() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, num_choices=2)
    bench.step(EOS, 7)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    ((source, destination),) = plan.copies
    assert destination == plan.rows[0].block_table[2] != source
    bench.scheduler.apply(plan, Result([7]), 0.0)
    bench.finish()


def test_a_cancelled_choice_gives_back_its_block_before_the_first_draw() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, num_choices=3)
    bench.scheduler.on_cancel(Cancel(1, 0), 0.0)
    assert bench.pool.num_used == 2 + 2
    assert [row.choice for row in bench.step()] == [1, 2]
    bench.finish()


def test_blocks_join_the_prefix_cache_as_they_fill() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    output = [row.token_ids[0] for i in range(7) for row in bench.step(20 + i)]
    bench.reserve(2, [*PROMPT, *output, 1])
    assert [m.num_cached_tokens for m in bench.messages(Reserved)] == [16], "the 17th token has no KV yet"
    bench.finish()


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:3]], ids=["two blocks", "less than a block"])
@pytest.mark.parametrize("remote", [False, True])
def test_only_what_has_the_same_salt_is_found(prompt: list[int], remote: bool) -> None:
    """Of the prompt, and of the output after it."""
    bench = Bench(num_blocks=64)
    bench.reserve(1, prompt, salt=b"a")
    output = [row.token_ids[0] for i in range(7) for row in bench.step(20 + i)]
    bench.messages(Reserved)
    for placement, salt in enumerate((b"", b"b", b"a"), 2):
        bench.reserve(placement, [*prompt, *output, 1], remote=remote, salt=salt)
    num_full = (len(prompt) + 6) // 4
    assert [m.num_cached_tokens for m in bench.messages(Reserved)] == [0, 0, 4 * num_full]
    bench.finish()


def test_received_blocks_join_the_prefix_cache() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True)
    bench.receive(1)
    bench.reserve(2, PROMPT, remote=True)
    assert [m.num_cached_tokens for m in bench.messages(Reserved)] == [8]
    bench.finish()


# The end of a sequence.


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_token_id"),
    [
        ({}, [5, EOS], "stop", EOS),
        ({"ignore_eos": True, "max_tokens": 3}, [5, EOS, 6], "length", None),
        ({"stop_token_ids": (5,)}, [6, 5], "stop", 5),
        ({"stop_token_ids": (5,), "min_tokens": 2}, [5, 5, 5], "stop", 5),
        ({"min_tokens": 1}, [EOS, EOS], "stop", EOS),
        ({"max_tokens": 1}, [5], "length", None),
        ({"max_tokens": 2}, [5, EOS], "stop", EOS),
        ({"ignore_eos": True, "stop_token_ids": (EOS,)}, [EOS], "stop", EOS),
    ],
)
def test_a_sequence_ends(params: dict[str, Any], tokens: list[int], reason: str, stop_token_id: int | None) -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, **params)
    rows = [row for token in tokens for row in bench.step(token)]
    assert [row.position for row in rows] == list(range(len(tokens)))
    assert [row.finish_reason for row in rows] == [None] * (len(tokens) - 1) + [reason]
    assert rows[-1].stop_token_id == stop_token_id
    bench.finish()


def test_the_context_ends_a_sequence() -> None:
    bench = Bench(max_model_len=12)
    bench.reserve(1, PROMPT, max_tokens=50)
    assert [row.finish_reason for row in bench.step() + bench.step()] == [None, "length"]
    bench.finish()


def test_earlier_output_counts() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, output=[5, 6, 7], max_tokens=5)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert list(plan.rows[0].token_ids) == [*PROMPT, 5, 6, 7]
    (seed,) = bench.scheduler.take_effects().admit
    assert (seed.prompt_ids, seed.output_ids) == (PROMPT, [5, 6, 7])
    bench.scheduler.apply(plan, Result([8]), 0.0)
    rows = [row for message in bench.messages(Tokens) for row in message.rows] + bench.step(9)
    assert [(row.position, row.finish_reason) for row in rows] == [(3, None), (4, "length")]
    bench.finish()


def test_one_message_carries_all_tokens_of_a_step() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    bench.reserve(2, PROMPT[:5])
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    bench.scheduler.apply(plan, Result([5, 6]), 0.0)
    (tokens,) = bench.messages(Tokens)
    assert [row.placement for row in tokens.rows] == [1, 2]
    bench.finish()


# Overlap.


def test_a_token_in_flight_stands_for_itself() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    first = bench.scheduler.plan(0.0, None)
    second = bench.scheduler.plan(0.0, first)
    assert first is not None
    assert second is not None
    (row,) = second.rows
    assert (row.token_ids, row.start) == ((IN_FLIGHT,), 10)
    assert row.draws[0].position == 1
    bench.scheduler.apply(first, Result([5]), 0.0)
    third = bench.scheduler.plan(0.0, second)
    assert third is not None
    assert third.rows[0].start == 11


def test_what_stopped_in_flight_is_discarded_and_holds_its_blocks_until_then() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    first = bench.scheduler.plan(0.0, None)
    second = bench.scheduler.plan(0.0, first)
    assert first is not None
    assert second is not None
    bench.scheduler.apply(first, Result([EOS]), 0.0)
    effects = bench.scheduler.take_effects()
    assert effects.retire == []
    assert bench.pool.num_used == 3
    bench.scheduler.check()
    assert bench.scheduler.plan(0.0, second) is None
    bench.scheduler.apply(second, Result([5]), 0.0)
    effects = bench.scheduler.take_effects()
    assert effects.retire == [first.draws[0].seq_id]
    assert not [message for message in effects.messages if isinstance(message, Tokens)]
    bench.finish()


@pytest.mark.parametrize("params", [{"max_tokens": 2}, {"max_tokens": 50}])
def test_a_sure_last_token_is_not_planned_past(params: dict[str, Any]) -> None:
    bench = Bench(max_model_len=12)
    bench.reserve(1, PROMPT, **params)
    first = bench.scheduler.plan(0.0, None)
    second = bench.scheduler.plan(0.0, first)
    assert first is not None
    assert second is not None
    bench.scheduler.apply(first, Result([5]), 0.0)
    assert bench.scheduler.plan(0.0, second) is None
    assert not bench.scheduler.idle
    bench.scheduler.apply(second, Result([5]), 0.0)
    bench.finish()


def test_a_prompts_logprobs_come_before_its_first_token() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    bench.step()
    bench.finish()
    bench.reserve(2, PROMPT, output=[40, 41], prompt_logprobs=0)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    (row,) = plan.rows
    assert row.start == 0, "what the cache has is computed again"
    assert row.prompt_logprobs == Scoring(PROMPT[1:], 0), "earlier output is not the prompt's"
    rows = [TokenLogprobs(-float(i)) for i in range(9)]
    bench.scheduler.apply(plan, Result([7], prompt_logprobs={row.seq_id: rows}), 0.0)
    told, tokens = bench.messages(PromptLogprobs | Tokens)
    assert told == PromptLogprobs(2, 1, 0, pack_logprobs(rows, 0))
    assert isinstance(tokens, Tokens)
    bench.finish()


def test_a_prompts_logprobs_may_come_with_its_kv() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True, prompt_logprobs=3)
    (reserved,) = bench.messages(Reserved)
    bench.scheduler.on_received(reserved.transfer_id, "logits", 0.0, b"packed")
    assert bench.messages(PromptLogprobs) == [PromptLogprobs(1, 1, 3, b"packed")]
    assert bench.step()
    bench.finish()


def test_rows_carry_logprobs_and_state_and_a_seed_the_state_it_is_given() -> None:
    bench = Bench()
    message = Reserve(1, "r", pack_ids(PROMPT), (Choice(0, pack_ids([9]), b"before"),), SamplingParams(), 0, 1, False)
    bench.scheduler.on_reserve(message, 0.0)
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    (seed,) = bench.scheduler.take_effects().admit
    assert (seed.output_ids, seed.state) == ([9], b"before")
    one = TokenLogprobs(-0.5, ((3, -0.25),), 2)
    bench.scheduler.apply(plan, Result([7], logprobs=[one], states=[b"after"]), 0.0)
    (tokens,) = bench.messages(Tokens)
    assert tokens.rows == (TokenRow(1, 0, 1, (7,), state=b"after", logprobs=(one,)),)
    bench.finish()


def test_chunks_follow_each_other_in_flight() -> None:
    bench = Bench(max_chunk_tokens=4)
    bench.reserve(1, PROMPT)
    first = bench.scheduler.plan(0.0, None)
    second = bench.scheduler.plan(0.0, first)
    assert first is not None
    assert second is not None
    assert second.rows[0].start == 4
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    assert bench.pool.num_used == 3
    bench.scheduler.apply(first, Result([]), 0.0)
    assert bench.pool.num_used == 3
    bench.scheduler.apply(second, Result([]), 0.0)
    bench.finish()


def test_plans_are_applied_in_order() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT)
    first = bench.scheduler.plan(0.0, None)
    second = bench.scheduler.plan(0.0, first)
    assert second is not None
    with pytest.raises(AssertionError):
        bench.scheduler.apply(second, Result([5]), 0.0)


# Room for growth.


def test_the_youngest_reservation_without_bytes_goes_first() -> None:
    bench = Bench(num_blocks=8, max_model_len=32)
    bench.reserve(1, [1] * 7)
    bench.step()
    for placement in (2, 3, 4):
        bench.reserve(placement, [placement] * 7, remote=True)
    transfers = [message.transfer_id for message in bench.messages(Reserved)]
    bench.scheduler.on_receiving(transfers[2])
    bench.step()
    plan = bench.scheduler.plan(0.0, None)
    effects = bench.scheduler.take_effects()
    assert plan is not None
    (declined,) = [message for message in effects.messages if isinstance(message, Declined)]
    assert (declined.placement, declined.choice, declined.preempted) == (3, None, False)
    assert effects.abandon == [transfers[1]]
    bench.scheduler.apply(plan, Result([7]), 0.0)
    bench.finish()


def test_a_local_prompt_not_begun_is_revoked_too() -> None:
    bench = Bench(num_blocks=4, max_model_len=16)
    bench.reserve(1, [1] * 7)
    bench.step()
    bench.step()
    bench.reserve(2, [2] * 7)
    bench.scheduler.take_effects()
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert [(m.placement, m.preempted) for m in bench.messages(Declined)] == [(2, False)]
    assert len(plan.rows) == 1
    bench.scheduler.apply(plan, Result([7]), 0.0)
    bench.finish()


def test_a_local_prompt_begun_is_preempted_by_age() -> None:
    bench = Bench(num_blocks=4, max_model_len=16, max_chunk_tokens=4)
    bench.reserve(1, [1] * 7)
    bench.step()
    bench.step()
    bench.reserve(2, [2] * 7)
    bench.step()
    bench.scheduler.take_effects()
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    assert [(m.placement, m.choice, m.preempted) for m in bench.messages(Declined)] == [(2, None, True)]
    bench.scheduler.apply(plan, Result([7]), 0.0)
    bench.finish()


def test_then_the_youngest_running_sequence() -> None:
    bench = Bench(num_blocks=6, max_model_len=24)
    for placement in (1, 2, 3):
        bench.reserve(placement, [placement] * 7)
    while True:
        plan = bench.scheduler.plan(0.0, None)
        assert plan is not None
        if declined := bench.messages(Declined):
            break
        bench.scheduler.apply(plan, Result([7] * len(plan.draws)), 0.0)
    assert [(m.placement, m.choice, m.preempted) for m in declined] == [(3, 0, True)]
    assert len(plan.rows) == 2
    bench.scheduler.apply(plan, Result([7, 7]), 0.0)
    bench.finish()


def test_a_preempted_choice_leaves_its_siblings() -> None:
    bench = Bench(num_blocks=3, max_model_len=12)
    bench.reserve(1, [1] * 7, num_choices=2)
    bench.step()
    bench.step()
    (row,) = bench.step()
    assert row.choice == 0
    assert bench.scheduler.placements() == [1]
    bench.finish()


def test_a_victim_in_flight_first_delivers_its_token() -> None:
    bench = Bench(num_blocks=4, max_model_len=16)
    bench.reserve(1, [1] * 7)
    bench.reserve(2, [2] * 7)
    bench.step()
    flying = bench.scheduler.plan(0.0, None)
    assert flying is not None
    assert bench.scheduler.plan(0.0, flying) is None, "nobody has a block, and the victim's are in use"
    assert bench.messages(Declined) == []
    bench.scheduler.apply(flying, Result([8, 9]), 0.0)
    tokens, declined = [m for m in bench.scheduler.take_effects().messages if not isinstance(m, Credit)]
    assert isinstance(tokens, Tokens)
    assert isinstance(declined, Declined)
    assert [row.token_ids for row in tokens.rows] == [(8,), (9,)]
    assert (declined.placement, declined.choice, declined.preempted) == (2, 0, True)
    assert [row.placement for row in bench.step()] == [1]
    bench.finish()


def test_a_victim_that_ends_in_flight_is_not_declined() -> None:
    bench = Bench(num_blocks=4, max_model_len=16)
    bench.reserve(1, [1] * 7)
    bench.reserve(2, [2] * 7)
    bench.step()
    flying = bench.scheduler.plan(0.0, None)
    assert flying is not None
    assert bench.scheduler.plan(0.0, flying) is None
    bench.scheduler.apply(flying, Result([8, EOS]), 0.0)
    assert bench.messages(Declined) == []
    bench.finish()


@pytest.mark.parametrize("overlap", [False, True])
def test_one_sequence_may_fill_the_pool(overlap: bool) -> None:
    sim = RouterSim(num_blocks=5, overlap=overlap, watermark_blocks=2)
    request = sim.submit(Request(PROMPT, SamplingParams(seed=3, ignore_eos=True)))
    sim.run()
    sim.assert_exact(request)
    assert len(request.outputs[0]) == 10
    assert request.finished[0].finish_reason == "length"


# Cancels and failures.


def test_every_cancel_is_answered() -> None:
    bench = Bench()
    bench.scheduler.on_cancel(Cancel(99, 3), 0.0)
    assert bench.messages(Cancelled) == [Cancelled(99, 3)]


@pytest.mark.parametrize("state", ["reserved", "receiving", "received", "prefilling", "running", "in flight"])
def test_a_cancel_frees_at_once_unless_in_flight(state: str) -> None:
    bench = Bench(max_chunk_tokens=4)
    bench.reserve(1, PROMPT, remote=state.startswith("re"))
    flying = None
    if state.startswith("re"):
        (reserved,) = bench.messages(Reserved)
        if state != "reserved":
            bench.scheduler.on_receiving(reserved.transfer_id)
        if state == "received":
            bench.scheduler.on_received(reserved.transfer_id, "logits", 0.0)
    else:
        for _ in range(1 if state == "prefilling" else 4):
            bench.step()
        if state == "in flight":
            flying = bench.scheduler.plan(0.0, None)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    effects = bench.scheduler.take_effects()
    assert Cancelled(1) in effects.messages
    assert (effects.abandon != []) == (state in ("reserved", "receiving"))
    assert (bench.pool.num_used > 0) == (state == "in flight")
    if flying is not None:
        bench.scheduler.apply(flying, Result([7]), 0.0)
        assert not bench.messages(Tokens)
    bench.finish()


def test_a_reservation_cancelled_before_its_effects_were_taken_is_not_received() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True)
    bench.scheduler.on_cancel(Cancel(1), 0.0)
    assert bench.scheduler.take_effects().receive == []


def test_a_failed_transfer_is_retriable_and_late_events_are_ignored() -> None:
    bench = Bench()
    bench.reserve(1, PROMPT, remote=True)
    (reserved,) = bench.messages(Reserved)
    bench.scheduler.on_transfer_failed(reserved.transfer_id, "connection lost", 0.0)
    assert bench.messages(Failed) == [Failed(1, "connection lost", retriable=True)]
    bench.scheduler.on_receiving(reserved.transfer_id)
    bench.scheduler.on_received(reserved.transfer_id, "logits", 0.0)
    bench.scheduler.on_transfer_failed(reserved.transfer_id, "again", 0.0)
    assert bench.messages(Failed) == []
    assert bench.scheduler.plan(0.0, None) is None
    bench.finish()


def test_stats_count_what_runs_and_waits() -> None:
    bench = Bench(max_chunk_tokens=4)
    bench.reserve(1, PROMPT)
    bench.reserve(2, PROMPT, remote=True, num_choices=2)
    plan = bench.scheduler.plan(10.0, None)
    assert plan is not None
    bench.scheduler.apply(plan, Result([]), 12.0)
    stats = bench.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (0, 3, 6)
    assert stats.num_blocks_used == 3 + 4
    assert stats.prefill_tokens_per_s == 2.0
    assert stats.prefix_query_tokens == 20
    bench.finish()
