"""Whose tokens are guessed, how many, and what is learnt of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from isthmus.decode.acceptance import Acceptance
from isthmus.decode.decoded_step import Part
from isthmus.decode.draft_policy import MOST_SEARCH_STEPS
from isthmus.decode.guess_costs import PROBE_GUESSES
from isthmus.decode.lookout import LAST_RECALL_STEPS, NUM_SCOUTS, REST_STEPS, SCOUTED_STEPS, Lookout
from isthmus.decode.ngram_proposer import NgramProposer
from isthmus.decode.speculation import Speculation
from isthmus.decode.speculator import PATIENCE, USUAL, EngineProposer, Experience, Proposer, Reach, Speculator
from isthmus.engine.plan import DRAFT
from isthmus.tests.decode.speculating import speculation_of
from isthmus.wire.sampling import Guidance, SamplingParams

TOKENS = [1, 2, 3]


@dataclass
class Classified:
    """A proposer whose guesses are of the class it is told."""

    of: int | None = 0
    num_looks: int = 0
    forgotten: list[int] = field(default_factory=list)

    def look(self, tokens: Sequence[int]) -> int | None:
        self.num_looks += 1
        return self.of

    def propose(self, count: int) -> tuple[int, ...]:
        return tuple(range(count))

    def forget(self, num_tokens: int) -> None:
        self.forgotten.append(num_tokens)


def begun(speculation: Speculation, asked: int | None = None) -> Speculator:
    speculator = speculation.begin(SamplingParams(num_speculative_tokens=asked))
    assert speculator is not None
    return speculator


def rate(speculator: Speculator) -> float:
    """How often its guess would be right."""
    found = speculator.look(TOKENS)
    assert found is not None
    return found


def planned(speculation: Speculation, speculators: Sequence[Speculator | None], budget: int = 100) -> list[int]:
    """How many tokens are guessed of each in the next step."""
    speculation.begin_step(len(speculators))
    speculation.prepare([(one, TOKENS) for one in speculators], budget)
    return [0 if one is None else len(one.propose(100)) for one in speculators]


@pytest.mark.parametrize(("asked", "limit"), [(None, 4), (1, 1), (4, 4), (16, 4)])
def test_a_request_may_want_fewer(asked: int | None, limit: int) -> None:
    speculation = speculation_of(Classified)
    assert planned(speculation, [begun(speculation, asked)]) == [limit]


def test_a_request_may_want_none() -> None:
    assert speculation_of(Classified).begin(SamplingParams(num_speculative_tokens=0)) is None


def test_a_step_has_room_for_so_many() -> None:
    speculation = speculation_of(Classified)
    speculators = [begun(speculation), None, begun(speculation), begun(speculation)]
    assert planned(speculation, speculators, budget=6) == [4, 0, 2, 0]
    assert planned(speculation, speculators, budget=0) == [0, 0, 0, 0]


def test_no_more_than_tokens_may_come() -> None:
    speculation = speculation_of(Classified)
    speculator = begun(speculation)
    speculation.begin_step(1)
    speculation.prepare([(speculator, TOKENS)], 100)
    assert speculator.propose(2) == (0, 1)
    assert speculator.propose(2) == (), "what was wanted was wanted once"
    speculation.begin_step(1)
    speculation.prepare([(speculator, TOKENS)], 100)
    assert speculator.propose(0) == ()


def test_who_has_no_guess_makes_none() -> None:
    speculation = speculation_of(lambda: Classified(None))
    speculator = begun(speculation)
    assert planned(speculation, [speculator]) == [0]


def test_before_steps_are_known_nobody_looks() -> None:
    """With the policy that workers have."""
    proposer = Classified()
    speculation = Speculation(lambda: proposer, 4)
    assert planned(speculation, [begun(speculation)]) == [0]
    assert proposer.num_looks == 0


def test_what_came_of_guesses_is_counted() -> None:
    speculation = speculation_of(Classified)
    one, other = begun(speculation), begun(speculation)
    planned(speculation, [one, other])
    for num_drafts, num_right in ((4, 2), (4, 4), (3, 0), (0, 0), (1, 1)):
        speculation.learn(one, num_drafts, num_right)
    speculation.learn(other, 2, 1)
    assert speculation.num_drafts == 5
    assert speculation.num_draft_tokens == 4 + 4 + 3 + 1 + 2
    assert speculation.num_accepted_per_position == (4, 2, 1, 1)
    assert speculation.num_accepted_tokens == 8


def test_each_class_of_guesses_is_known_by_itself() -> None:
    """And for each sequence, beginning with what came of others' of that class."""
    experience = Experience()
    experience.least_rate = 0.0
    good, bad = Classified(1), Classified(0)
    for proposer, num_right in ((good, 4), (bad, 0)):
        speculator = Speculator(proposer, 4, experience)
        for _ in range(50):
            speculator.look(TOKENS)
            speculator.learn(4, num_right)
    assert rate(Speculator(good, 4, experience)) > 0.9
    assert rate(Speculator(bad, 4, experience)) < 0.2
    assert experience.best_rate > 0.9


def test_a_class_expects_what_those_below_it_show_whichever_was_met_first() -> None:
    experience = Experience()
    surer, less_sure = experience.acceptance(USUAL, 3), experience.acceptance(USUAL, 1)
    for _ in range(50):
        less_sure.learn(4, 4)
    assert surer.rate == pytest.approx(less_sure.rate)


def test_each_kind_of_request_is_known_by_itself() -> None:
    """A new one is expected to be as those of its kind were."""
    speculation = speculation_of(Classified)
    chat, json = SamplingParams(temperature=0.9), SamplingParams(guidance=Guidance("json_object", ""))
    for params, num_right in ((chat, 0), (json, 4)):
        speculator = speculation.begin(params)
        assert speculator is not None
        for _ in range(50):
            planned(speculation, [speculator])
            speculation.learn(speculator, 4, num_right)
    found = [speculation.begin(params) for params in (chat, json, SamplingParams(temperature=0.0))]
    rates = [0.0 if one is None else rate(one) for one in found]
    assert rates[0] < 0.2 < 0.9 < rates[1]
    assert rates[2] == pytest.approx(0.7), "nothing is known of such"


@pytest.mark.parametrize(
    ("came", "num_right"), [([0, 1, 2, 3], 4), ([0, 1, 9, 9], 2), ([9], 0), ([0, 1], 2), ([0, 1, 2, 3, 4, 5], 4)]
)
def test_guesses_that_are_not_made_are_judged_by_what_came(came: list[int], num_right: int) -> None:
    """As far as it came: so what they are worth is known before any is made."""
    experience, learnt = Experience(), Acceptance()
    speculator = Speculator(Classified(), 4, experience)
    assert speculator.look(TOKENS) == 0, "they do not pay"
    speculator.look([*TOKENS, *came])
    learnt.learn(min(4, len(came)), num_right)
    assert experience.best_rate == pytest.approx(learnt.rate)


def test_guesses_that_are_made_are_not_judged_twice() -> None:
    experience = Experience()
    experience.least_rate = 0.0
    speculator = Speculator(Classified(), 4, experience)
    before = rate(speculator)
    speculator.wanted = 2
    assert len(speculator.propose(4)) == 2
    assert speculator.look([*TOKENS, 0, 1]) == before, "until it is told what came of them"


@pytest.mark.parametrize("proposer", [EngineProposer(), Classified()], ids=["the engine's", "taken back"])
def test_what_nobody_can_judge_is_not_judged(proposer: Proposer) -> None:
    """The engine's guesses are not known here; and of tokens that were taken back others may come."""
    experience = Experience()
    experience.least_rate = 0.0
    speculator = Speculator(proposer, 4, experience)
    before = rate(speculator)
    if isinstance(proposer, Classified):
        speculator.forget(len(TOKENS) - 1)
    assert speculator.look([*TOKENS, 9, 9, 9, 9]) == before


def test_what_does_not_pay_is_no_guess() -> None:
    experience = Experience()
    speculator = Speculator(Classified(), 4, experience)
    experience.least_rate = 0.6
    assert speculator.look(TOKENS) == pytest.approx(0.7)
    experience.least_rate = 0.8
    assert speculator.look(TOKENS) == 0


def test_whom_a_look_takes_in() -> None:
    """Who had a guess always; who had none as a scout, or when all are asked."""
    experience = Experience()
    experience.least_rate, experience.scouts = 0.1, (2, 0)
    proposers = [Classified(0), Classified(None), Classified(None)]
    speculators = [Speculator(one, 4, experience, number=number) for number, one in enumerate(proposers, 1)]

    def looked_at(reach: Reach) -> list[int]:
        before, experience.reach = [one.num_looks for one in proposers], reach
        for one in speculators:
            one.look(TOKENS)
        return [number for number, one in enumerate(proposers, 1) if one.num_looks > before[number - 1]]

    assert looked_at(Reach.FOUND) == []
    assert looked_at(Reach.SCOUTS) == [3], "3 + 3 // 2 is even, 1 + 1 // 2 and 2 + 2 // 2 are not"
    assert looked_at(Reach.ALL) == [1, 2, 3]
    assert looked_at(Reach.FOUND) == [1]
    assert looked_at(Reach.SCOUTS) == [1, 3]


@pytest.mark.parametrize(
    ("num_right", "has_guess", "num_looks"),
    [(3, False, PATIENCE), (0, False, PATIENCE // 4), (3, True, PATIENCE.bit_length())],
    ids=["right", "wrong", "not sure enough"],
)
def test_who_has_lost_his_guesses_is_looked_at_for_a_while(num_right: int, has_guess: bool, num_looks: int) -> None:
    """The longer, the better they were; not for long if he has some that do not pay."""
    experience, proposer = Experience(), Classified()
    experience.least_rate = 0.1
    one = Speculator(proposer, 4, experience)
    rate(one)
    one.learn(4, num_right)
    experience.reach, proposer.of = Reach.FOUND, None
    if has_guess:
        experience.least_rate, proposer.of = 0.99, 0
    assert [one.look(TOKENS) for _ in range(num_looks + 2)] == [0.0] * num_looks + [None] * 2


def test_while_somebody_is_looked_at_each_step_has_looks() -> None:
    lookout = Lookout()
    told = {"search_steps": 64, "is_ahead": False, "found": False, "promises": False}
    lookout.begin_step(1)
    lookout.looked(Reach.ALL, **{**told, "found": True, "promises": True}, num_looked=1, pays=True)
    for num_looked in (1, 1, 0):
        assert lookout.num_quiet(1) == 0
        assert lookout.begin_step(1) is Reach.FOUND
        lookout.looked(Reach.FOUND, **told, num_looked=num_looked, pays=False)
    assert lookout.begin_step(1) is None
    assert lookout.num_quiet(1) > 0


def test_where_nothing_is_found_few_are_looked_at() -> None:
    """Others after a while; as soon as one of them has a guess, all are."""
    proposers = [Classified(None) for _ in range(32)]
    waiting = iter(proposers)
    speculation = speculation_of(lambda: next(waiting))
    speculation._lookout = Lookout()
    speculators = [begun(speculation) for _ in proposers]

    def looked_at(num_steps: int) -> set[int]:
        before = [one.num_looks for one in proposers]
        for _ in range(num_steps):
            planned(speculation, speculators)
        return {index for index, one in enumerate(proposers) if one.num_looks > before[index]}

    first = looked_at(4 * MOST_SEARCH_STEPS)
    assert abs(len(first) - NUM_SCOUTS) <= 1
    assert {index % 2 for index in first} == {0, 1}, "what is asked in turns is not always asked of one kind"
    second = looked_at(SCOUTED_STEPS) - first
    assert abs(len(second) - NUM_SCOUTS) <= 1
    proposers[max(second)].of = 0
    assert looked_at(2 * MOST_SEARCH_STEPS) == set(range(32))


def test_for_too_few_guesses_not_all_are_asked_time_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    proposers = [Classified(None) for _ in range(32)]
    waiting = iter(proposers)
    speculation = speculation_of(lambda: next(waiting))
    speculation._lookout = Lookout()
    monkeypatch.setattr(speculation._policies[0], "lengths", lambda rates, *_, **__: [0] * len(rates))
    monkeypatch.setattr(speculation._policies[0], "pays", lambda *rows: False)
    speculators = [begun(speculation) for _ in proposers]
    planned(speculation, speculators)
    scout = max(index for index, one in enumerate(proposers) if one.num_looks)
    proposers[scout].of = 0
    other = proposers[(scout + 1) % 32]
    before = other.num_looks
    for _ in range(4 * LAST_RECALL_STEPS):
        planned(speculation, speculators)
    assert 3 < other.num_looks - before < 10


def test_all_are_asked_at_once_where_that_pays_if_others_are_like_scouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of 32 are too few to guess for, but then all others have a guess, too."""
    proposers = [Classified(0) for _ in range(32)]
    waiting = iter(proposers)
    speculation = speculation_of(lambda: next(waiting))
    speculation._lookout = Lookout()
    asked: list[int] = []

    def lengths(rates: Sequence[float], limits: Sequence[int], num_rows: int, *, waits: bool) -> list[int]:
        asked.append(len(rates))
        return [4 if len(rates) > 16 else 0] * len(rates)

    monkeypatch.setattr(speculation._policies[0], "lengths", lengths)
    speculators = [begun(speculation) for _ in proposers]
    while len(asked) < 2:
        planned(speculation, speculators)
    assert 0 < asked[0] < 8
    assert asked[1] == 32


def test_while_nothing_pays_nobody_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who was not looked at had no chance to have a guess."""
    speculation = speculation_of(Classified)
    speculation._lookout = Lookout()
    speculators = [begun(speculation) for _ in range(32)]
    with monkeypatch.context() as spent:
        spent.setattr(speculation._policies[0], "least_rate", lambda num_rows, limit: (1.0, False))
        for _ in range(LAST_RECALL_STEPS):
            assert planned(speculation, speculators, 1000) == [0] * 32
    made = [sum(planned(speculation, speculators, 1000)) for _ in range(REST_STEPS + 2)]
    assert 0 < next(filter(None, made)) < 4 * 32, "scouts"
    assert made[-1] == 4 * 32, "whom they have called"


@pytest.mark.parametrize("is_fresh", [True, False])
def test_while_nothing_pays_nothing_is_reckoned(is_fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes or goes within an octave, and though it was a while ago that plain steps were measured."""
    speculation = speculation_of(Classified)
    speculation._lookout, policy = Lookout(), speculation._policies[0]
    asked: list[int] = []

    def nothing_pays(num_rows: int, limit: int) -> tuple[float, bool]:
        asked.append(num_rows)
        return 1.0, False

    monkeypatch.setattr(policy, "least_rate", nothing_pays)
    monkeypatch.setattr(policy, "knows", lambda num_rows: is_fresh)
    monkeypatch.setattr(policy, "search_steps", lambda num_rows, look_s: 1)
    speculators = [begun(speculation) for _ in range(8)]
    for _ in range(REST_STEPS // 8):
        speculators.append(begun(speculation))
        for size in range(8, 16):
            planned(speculation, speculators[:size])
    assert asked == [8]
    planned(speculation, speculators[:7])
    planned(speculation, speculators[:4])
    assert asked == [8, 7]


def test_of_a_size_that_was_never_measured_plain_steps_are_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    speculation = speculation_of(Classified)
    speculation._lookout, policy = Lookout(), speculation._policies[0]
    monkeypatch.setattr(policy, "least_rate", lambda num_rows, limit: (1.0, False))
    monkeypatch.setattr(policy, "has_known", lambda num_rows: False)
    begun(speculation)
    for _ in range(3):
        assert not speculation.passes(1)
        speculation.begin_step(1)
        assert speculation.notes(speculation.end_step(0), has_changed=False) == 1


@pytest.mark.parametrize("least_rate", [0.0, 1.0])
def test_what_a_look_takes_begins_with_whether_guesses_can_pay(
    least_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is reckoned anew now and then, and takes longer than the look."""
    speculation, now_s, took = speculation_of(lambda: Classified(None)), [0.0], list[float]()

    def reckoned(num_rows: int, limit: int) -> tuple[float, bool]:
        now_s[0] += 0.5
        return least_rate, False

    def search_steps(num_rows: int, look_s: float) -> int:
        took.append(look_s)
        return 1

    policy = speculation._policies[0]
    monkeypatch.setattr(speculation, "_clock", lambda: now_s[0])
    monkeypatch.setattr(policy, "least_rate", reckoned)
    monkeypatch.setattr(policy, "search_steps", search_steps)
    speculators = [begun(speculation)]
    for _ in range(2):
        planned(speculation, speculators)
    assert took == [0.5, 0.5]


@pytest.mark.parametrize("pays", [True, False])
def test_all_wait_for_guesses_that_pay_or_nobody(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    speculation = speculation_of(Classified)
    monkeypatch.setattr(speculation._policies[0], "pays", lambda rates, limits, num_rows: pays)
    speculators = [begun(speculation), None, begun(speculation)]
    speculation.begin_step(3)
    assert speculation.awaits([(one, TOKENS) for one in speculators]) == pays
    speculation.prepare([(one, TOKENS) for one in speculators], 100)
    assert [one.wanted for one in speculators if one is not None] == [4 * pays] * 2


@pytest.mark.parametrize(("num_drafts", "num_looks"), [(8, 1), (PROBE_GUESSES, 2)])
def test_after_guesses_that_pay_all_wait_unlooked(num_drafts: int, num_looks: int) -> None:
    """Nothing new is known while they are in flight; after a try it is looked whether one pays."""
    proposers = [Classified(), Classified()]
    makers = iter(proposers)
    speculation = speculation_of(lambda: next(makers))
    speculators = [begun(speculation), begun(speculation)]
    assert planned(speculation, speculators) == [4, 4]
    speculation.end_step(num_drafts)
    speculation.begin_step(2)
    assert speculation.awaits([(one, TOKENS) for one in speculators])
    assert [one.num_looks for one in proposers] == [num_looks] * 2


def test_what_part_it_had_in_a_step() -> None:
    speculation = speculation_of(Classified)
    one, none = begun(speculation), speculation_of(lambda: Classified(None))
    nothing = begun(none)
    planned(speculation, [one])
    assert speculation.end_step(4) is Part.WAITED
    speculation.begin_step(1)
    assert speculation.end_step(0) is Part.WAITED, "the step before had guesses"
    assert speculation.end_step(0) is Part.NONE
    planned(none, [nothing])
    assert none.end_step(0) is Part.LOOKED
    speculation.begin_step(1)
    assert speculation.awaits([(one, TOKENS)])
    assert speculation.end_step(0) is Part.WAITED, "for guesses that were none then"


def test_tokens_that_were_taken_back_are_forgotten() -> None:
    proposer = Classified()
    Speculator(proposer, 4, Experience()).forget(7)
    assert proposer.forgotten == [7]


@pytest.mark.parametrize(("make", "guesses"), [(EngineProposer, (DRAFT,) * 3), (NgramProposer, (2, 3, 4))])
def test_proposers(make: type[Proposer], guesses: tuple[int, ...]) -> None:
    proposer, tokens = make(), [9, 8, 1, 2, 3, 4, 5, 9, 8, 1]
    assert proposer.look(tokens) == 0
    assert proposer.propose(3) == guesses
    assert proposer.propose(0) == ()
