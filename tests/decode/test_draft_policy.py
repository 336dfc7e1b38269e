"""How many tokens are guessed, in worlds where steps and guesses take what they take."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import pytest
from isthmus.decode.decoded_step import DecodedStep, Part
from isthmus.decode.draft_account import FIRST_CREDIT, LOSS_SHARE, MOST_CREDIT
from isthmus.decode.draft_costs import REFRESH_STEPS, SURE_REFRESH_STEPS
from isthmus.decode.draft_policy import LOOK_SHARE, MOST_SEARCH_STEPS, DraftPolicy
from isthmus.decode.guess_costs import FIRST_PROBE_STEPS, KNOWN_SAMPLES, LAST_PROBE_STEPS, PROBE_GUESSES
from isthmus.decode.plain_steps import KNOWN_SAMPLES as FIRST_PLAIN_STEPS

PLAIN_S = 0.01


@dataclass
class World:
    """Each guess adds `guess_s` to a step, one more of a row `turn_s`, and any `wait_s` to the step after it; of all
    guesses `right` are right."""

    guess_s: float
    plain_s: float = PLAIN_S
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    right: float | None = None
    """None: as many as `rate` says."""
    wait_s: float = 0.0
    turn_s: float = 0.0
    had_guesses: bool = False
    elapsed_s: float = 0.0
    num_tokens: float = 0.0

    def step(self, num_rows: int = 1, rate: float = 0.8, limit: int = 8) -> list[int]:
        """Guesses of each row of one step."""
        wanted = self.policy.lengths([rate] * num_rows, [limit] * num_rows, num_rows)
        num_guesses, before = sum(wanted), self.had_guesses
        self.had_guesses = num_guesses > 0
        elapsed_s = self.plain_s + self.guess_s * num_guesses + self.turn_s * max(wanted) + self.wait_s * before
        right = sum(expected(rate, count) for count in wanted) if self.right is None else self.right * num_guesses
        part = Part.WAITED if num_guesses or before else Part.NONE
        self.policy.record(DecodedStep(num_rows, elapsed_s, num_guesses, num_guesses, right, part))
        self.elapsed_s += elapsed_s
        self.num_tokens += num_rows + right
        return wanted

    def steps(self, count: int, **options: float) -> list[list[int]]:
        return [self.step(**options) for _ in range(count)]


def made(steps: list[list[int]]) -> int:
    return sum(any(wanted) for wanted in steps)


def expected(rate: float, count: int) -> float:
    """Of so many guesses, how many are right."""
    return sum(rate**i for i in range(1, count + 1))


def pace(rate: float, count: int, guess_s: float) -> float:
    """Tokens a second of one row."""
    return (1 + expected(rate, count)) / (PLAIN_S + guess_s * count)


def test_plain_steps_come_first() -> None:
    steps = World(0.001).steps(FIRST_PLAIN_STEPS + 1)
    assert made(steps[:-1]) == 0
    assert made(steps[-1:]) == 1


@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_free_guesses_are_all_made(num_rows: int) -> None:
    steps = World(0.0).steps(60, num_rows=num_rows, rate=0.7, limit=4)
    assert all(wanted == [4] * num_rows for wanted in steps[FIRST_PLAIN_STEPS + 1 :]), "after a first try of two each"


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("guess_s", [0.0005, 0.001, 0.003, 0.008])
@pytest.mark.parametrize("limit", [4, 16])
def test_about_as_many_as_are_best(rate: float, guess_s: float, limit: int) -> None:
    """Not every number is tried, but one is found that gives four fifths of the best one's pace, and never less than
    no guesses do."""
    counts = [count for (count,) in World(guess_s).steps(200, rate=rate, limit=limit)[100:]]
    paces = [pace(rate, k, guess_s) for k in range(limit + 1)]
    usual = median(counts)
    assert paces[int(usual)] > 0.8 * max(paces)
    assert paces[int(usual)] >= paces[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_does_not_pay_is_not_made(rate: float) -> None:
    """A guess that takes as long as a step: but for the first, and a try now and then."""
    steps = World(PLAIN_S).steps(400, rate=rate)
    assert made(steps) <= KNOWN_SAMPLES + 400 // FIRST_PROBE_STEPS


@pytest.mark.parametrize("guess_s", [PLAIN_S, 0.6 * PLAIN_S])
def test_tries_become_rarer(guess_s: float) -> None:
    """Until they take a share of the time that does not matter."""
    world = World(guess_s)
    tried = [index for index, wanted in enumerate(world.steps(20 * LAST_PROBE_STEPS, rate=0.5)) if any(wanted)]
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps[-1] > 2 * FIRST_PROBE_STEPS
    world.elapsed_s = world.num_tokens = 0.0
    world.steps(20 * LAST_PROBE_STEPS, rate=0.5)
    assert world.elapsed_s - PLAIN_S * world.num_tokens <= 1.5 * LOSS_SHARE * world.elapsed_s


def test_a_first_step_that_was_held_up_ends_nothing() -> None:
    world = World(50 * PLAIN_S)
    world.steps(FIRST_PLAIN_STEPS + 1)
    world.guess_s = 0.0005
    assert made(world.steps(1500)) > 300


@pytest.mark.parametrize("part", ["guesses", "waited"])
def test_one_step_of_a_size_that_is_not_known_yet_does_not_close_the_account(part: str) -> None:
    """Nor does it where others of that octave know what guesses take."""
    world = World(0.05 * PLAIN_S)
    world.steps(200, num_rows=7)
    for _ in range(FIRST_PLAIN_STEPS):
        world.policy.record(DecodedStep(5, PLAIN_S))
    count = 8 * (part == "guesses")
    world.policy.record(DecodedStep(5, 500 * PLAIN_S, count, count, 0, Part.WAITED))
    assert made(world.steps(1000, num_rows=7)) > 500


@pytest.mark.parametrize("limit", [4, 16])
def test_a_number_that_was_dear_for_a_while_is_measured_again(limit: int) -> None:
    """It was given up, and so not measured otherwise."""
    world = World(0.05 * PLAIN_S)
    most = max(world.steps(300, rate=0.95, limit=limit))
    world.plain_s = 3 * PLAIN_S
    while max(world.step(rate=0.95, limit=limit)) == max(most):
        pass
    world.plain_s = PLAIN_S
    world.steps(4000, rate=0.95, limit=limit)
    assert most in world.steps(100, rate=0.95, limit=limit)


def test_what_pays_is_reckoned_anew_where_plain_steps_change() -> None:
    """Nobody looks for guesses that are not right often enough, so it must be found out without any."""
    policy = DraftPolicy()
    for _ in range(FIRST_PLAIN_STEPS + 1):
        policy.record(DecodedStep(1, PLAIN_S))
    for _ in range(3 * KNOWN_SAMPLES):
        policy.record(DecodedStep(1, 3 * PLAIN_S, 2, 2, 2, Part.WAITED))
    policy.record(DecodedStep(1, PLAIN_S, part=Part.WAITED))
    before, _ = policy.least_rate(1, 2)
    for _ in range(SURE_REFRESH_STEPS // 8):
        policy.record(DecodedStep(1, 8 * PLAIN_S, num_steps=8))
    after, is_probe = policy.least_rate(1, 2)
    assert is_probe or after < before


def test_a_time_that_is_past_is_forgotten() -> None:
    """Steps were long, as their contexts were: what guesses gain is not held against that for long."""
    world = World(0.05 * PLAIN_S, plain_s=2 * PLAIN_S)
    world.steps(400, num_rows=4, rate=0.95, limit=4)
    world.plain_s, world.guess_s, world.right = PLAIN_S, PLAIN_S / 8, 0.05
    world.elapsed_s = world.num_tokens = 0.0
    world.steps(1000, num_rows=4, rate=0.95, limit=4)
    lost = world.elapsed_s / PLAIN_S - world.num_tokens / 4
    assert lost < 2 * SURE_REFRESH_STEPS, "until plain steps were measured again"


def test_it_notices_that_guesses_have_become_cheap() -> None:
    world = World(PLAIN_S)
    assert made(world.steps(300)[FIRST_PLAIN_STEPS + 1 :]) <= 300 // FIRST_PROBE_STEPS
    world.guess_s = 0.0005
    world.steps(5 * LAST_PROBE_STEPS)
    assert made(world.steps(20)) >= 18


def test_it_notices_that_guesses_have_become_dear() -> None:
    world = World(0.0005)
    assert made(world.steps(100)) > 90
    world.guess_s = PLAIN_S
    world.steps(10)
    assert made(world.steps(FIRST_PROBE_STEPS - 12)) == 0


def test_one_step_that_is_held_up_changes_nothing() -> None:
    world = World(0.0005)
    before = world.steps(20)[-1]
    world.guess_s = 5.0
    world.step()
    world.guess_s = 0.0005
    assert world.step() == before


@pytest.mark.parametrize(("guess_s", "every"), [(0.0, SURE_REFRESH_STEPS), (0.3 * PLAIN_S, REFRESH_STEPS)])
def test_plain_steps_are_measured_again(guess_s: float, every: int) -> None:
    """The sooner, the less guesses promise."""
    steps = World(guess_s).steps(10 * every)
    plain = sum(not any(wanted) for wanted in steps[FIRST_PLAIN_STEPS:])
    assert 16 <= plain <= 22, "two each time: the first one comes after guesses"


def test_plain_steps_that_become_shorter_end_guesses_that_then_lose() -> None:
    """What steps with guesses take is the same as before, so nothing else tells."""
    world = World(0.1 * PLAIN_S)
    assert made(world.steps(60, rate=0.4)) > 50
    num_guesses = 2
    world.guess_s, world.plain_s = world.guess_s + 0.5 * PLAIN_S / num_guesses, 0.5 * PLAIN_S
    world.steps(2 * REFRESH_STEPS, rate=0.4)
    assert made(world.steps(40, rate=0.4)) <= 1


@pytest.mark.parametrize("right", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("wait_s", [0.0, 0.3 * PLAIN_S, 2 * PLAIN_S])
@pytest.mark.parametrize("guess_s", [0.05 * PLAIN_S, PLAIN_S])
def test_guesses_that_promise_more_than_they_give(right: float, wait_s: float, guess_s: float) -> None:
    """All that they cost is held against all that came of them, whatever made them look as if they paid."""
    world = World(guess_s, wait_s=wait_s, right=right)
    steps = world.steps(2000, num_rows=4, rate=0.8, limit=4)
    plain_s = world.num_tokens * PLAIN_S / 4
    longest_s = PLAIN_S + 16 * guess_s + wait_s
    assert made(steps) > 0
    assert (
        world.elapsed_s <= plain_s + LOSS_SHARE * world.elapsed_s + (FIRST_CREDIT + MOST_CREDIT) * PLAIN_S + longest_s
    )


def test_what_was_gained_may_not_all_be_lost() -> None:
    world = World(0.05 * PLAIN_S)
    world.steps(1000)
    world.right, world.wait_s, world.elapsed_s, world.num_tokens = 0.0, PLAIN_S, 0.0, 0.0
    world.steps(200)
    assert world.elapsed_s <= PLAIN_S * (world.num_tokens + 2 * MOST_CREDIT + 0.01 * 200 + 2)


def test_guesses_that_come_true_again_are_made_again() -> None:
    world = World(0.05 * PLAIN_S, right=0.0)
    assert made(world.steps(500)) < 200
    world.right = None
    world.steps(500)
    assert made(world.steps(20)) >= 17


@pytest.mark.parametrize("num_together", [1, 8])
def test_steps_around_guesses_count(num_together: int) -> None:
    """Guesses are free, but the step after the last of them takes twice as long: they pay if many come together."""
    world = World(0.0, wait_s=PLAIN_S)
    world.wait_s = 0.0
    made_of = []
    for _ in range(60):
        made_of.append(made([world.step(rate=0.5, limit=1) for _ in range(num_together)]))
        world.wait_s = 1.5 * PLAIN_S
        world.step(limit=0)
        world.wait_s = 0.0
    usual = median(made_of[30:])
    assert usual == (0 if num_together == 1 else num_together)


def test_what_waiting_costs_is_no_reason_against_guesses_once_that_is_done() -> None:
    """A step that has waited takes as long to begin with none."""
    policy = DraftPolicy()
    for _ in range(FIRST_PLAIN_STEPS):
        policy.record(DecodedStep(1, PLAIN_S))
    for _ in range(8):
        policy.record(DecodedStep(1, 1.5 * PLAIN_S, 4, 4, 4, Part.WAITED))
        policy.record(DecodedStep(1, 2 * PLAIN_S, part=Part.WAITED))
    assert not policy.pays([0.5], [4], 1)
    assert policy.lengths([0.5], [4], 1) == [0]
    assert policy.lengths([0.5], [4], 1, waits=True) == [2]
    assert policy.lengths([0.2], [4], 1, waits=True) == [0]


def test_a_growing_batch_ends_guesses_that_take_time() -> None:
    """Many rows give many tokens in the time that one guess adds."""
    world = World(0.001)
    counts = []
    for num_rows in (1, 2, 4, 8, 16, 64):
        last = world.steps(40, num_rows=num_rows, rate=0.7)[-2:]
        counts.append(min(sum(wanted) / num_rows for wanted in last))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 3
    assert counts[-1] == 0
    assert sum(world.steps(2, num_rows=1, rate=0.7)[-1]) >= 3, "a small batch is known by itself"


def test_a_batch_of_about_the_same_size_is_known_with_it() -> None:
    """A batch whose sequences end is never of one size for long: neither plain steps nor guesses are learnt anew."""
    world = World(0.0001)
    world.steps(40, num_rows=7)
    before = made(world.steps(20, num_rows=7))
    assert made(world.steps(20, num_rows=5)) == before == 20


def test_what_guesses_add_in_smaller_batches_is_expected_of_larger_ones() -> None:
    """There they lose: so they are not tried to find that out."""
    world = World(1.5 * PLAIN_S)
    world.steps(200, num_rows=1, limit=1)
    tried = made(world.steps(FIRST_PROBE_STEPS, num_rows=8, limit=1))
    fresh = World(1.5 * PLAIN_S)
    assert tried == 0 < made(fresh.steps(FIRST_PROBE_STEPS, num_rows=8, limit=1))


@pytest.mark.parametrize("size", [8, 32])
def test_where_all_rows_are_guessed_for_as_fast_as_one_that_is_found_out(size: int) -> None:
    """As on a GPU: in a small batch one more guess is one more of each row."""
    world = World(0.0, turn_s=0.3 * PLAIN_S)
    world.steps(60, limit=4, rate=0.95)
    steps = world.steps(60, num_rows=size, limit=4, rate=0.95)
    assert made(steps[30:]) >= 25
    assert steps[-1] == [4] * size


@pytest.mark.parametrize("guess_s", [0.05 * PLAIN_S, 0.1 * PLAIN_S, 0.2 * PLAIN_S])
def test_that_guesses_of_all_rows_take_long_is_seen_at_once(guess_s: float) -> None:
    """As on a CPU, where a batch of one row lets expect far too little; a few guesses had been tried before."""
    world = World(guess_s)
    world.steps(60, limit=4, rate=0.95)
    world.steps(1000, num_rows=32, limit=4, rate=0.1)
    steps = world.steps(300, num_rows=32, limit=4, rate=0.7)
    assert sum(sum(wanted) > PROBE_GUESSES for wanted in steps) <= 2


def test_who_waits_for_guesses_of_a_larger_batch_does_not_pay() -> None:
    """When sequences end with a step, those that are left wait for its guesses."""
    policy = DraftPolicy()
    for num_rows in (8, 1):
        for _ in range(FIRST_PLAIN_STEPS):
            policy.record(DecodedStep(num_rows, PLAIN_S))
    for _ in range(20):
        policy.record(DecodedStep(8, PLAIN_S, 8, 8, 8, Part.WAITED))
        policy.record(DecodedStep(1, 2 * PLAIN_S, part=Part.WAITED))
    policy.record(DecodedStep(1, PLAIN_S))
    assert policy.lengths([0.95], [4], 1) == [2]


def test_rows_that_are_often_right_have_more() -> None:
    world = World(0.001)
    world.steps(20)
    few, some, many = world.policy.lengths([0.2, 0.6, 0.95], [16, 16, 16], 1)
    assert few <= some <= many
    assert few < many


@pytest.mark.parametrize("guess_s", [0.0, 0.0005, 0.004])
def test_never_more_than_there_may_be(guess_s: float) -> None:
    world = World(guess_s)
    world.steps(20, num_rows=4)
    limits = [0, 1, 2, 16]
    wanted = world.policy.lengths([0.99] * 4, limits, 4)
    assert all(0 <= count <= limit for count, limit in zip(wanted, limits, strict=True))
    assert world.policy.lengths([0.9, 0.9], [0, 0], 2) == [0, 0]
    assert world.policy.lengths([], [], 3) == []


def test_a_try_is_for_whoever_has_a_guess() -> None:
    """Also for one who was hardly ever right: how else is it found out that this has changed?"""
    policy = DraftPolicy()
    for _ in range(FIRST_PLAIN_STEPS + 6):
        policy.record(DecodedStep(1, PLAIN_S, num_steps=LAST_PROBE_STEPS // 8))
    policy.record(DecodedStep(1, 9 * PLAIN_S, 2, 2, 0, Part.WAITED))
    for _ in range(8):
        policy.record(DecodedStep(1, PLAIN_S, num_steps=LAST_PROBE_STEPS // 8))
    assert policy.least_rate(1, 4) == (0.0, True)


def test_tries_are_within_limits() -> None:
    world = World(PLAIN_S)
    for _ in range(3 * FIRST_PROBE_STEPS):
        assert world.step(rate=0.5, limit=0) == [0]


@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize("rate", [0.8, 0.95])
def test_where_the_engine_tries_nothing(num_rows: int, rate: float) -> None:
    """It leaves guesses out of such batches: nor are they made, but for a try now and then, ever more rarely."""
    world, asked, steps = World(0.0), 0, 4 * LAST_PROBE_STEPS
    for _ in range(steps):
        wanted = world.policy.lengths([rate] * num_rows, [4] * num_rows, num_rows)
        if any(wanted):
            asked += 1
            world.policy.record(DecodedStep(num_rows, 1.2 * PLAIN_S, 16, part=Part.WAITED))
        else:
            world.policy.record(DecodedStep(num_rows, PLAIN_S))
    assert 1 < asked <= math.log2(LAST_PROBE_STEPS) + steps / LAST_PROBE_STEPS


def test_one_request_that_may_have_none_does_not_end_those_of_others() -> None:
    """An engine leaves out all guesses of a step for one row."""
    world = World(0.0)
    world.steps(20)
    world.policy.record(DecodedStep(1, PLAIN_S, 8, part=Part.WAITED))
    assert made(world.steps(20)) >= 16


def test_where_the_engine_tries_nothing_in_a_batch_that_was_never_measured() -> None:
    """Some rows may have gone since it was said how many guesses pay."""
    policy = DraftPolicy()
    policy.record(DecodedStep(3, 0.01, num_drafts=4, part=Part.WAITED))
    assert policy.least_rate(3, 4) == (1.0, False)
    assert policy.lengths([0.9], [4], 3) == [0]


@pytest.mark.parametrize("num_rows", [1, 8, 64])
def test_looks_are_a_small_part_of_the_time(num_rows: int) -> None:
    world = World(0.0)
    assert world.policy.search_steps(num_rows, PLAIN_S) == 1, "nothing is known"
    world.steps(5, num_rows=num_rows)
    shares = {0.0: 0, LOOK_SHARE: 1, 0.1: 0.1 / LOOK_SHARE, 1.0: MOST_SEARCH_STEPS}
    for share, steps in shares.items():
        assert world.policy.search_steps(num_rows, share * PLAIN_S) == pytest.approx(steps, abs=1)
