"""The decoder that is measured, on a clock of its own and against text drawn elsewhere; tables of a small one."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from isthmus.bench.batch_decoder import BatchDecoder, Request, Run, Steps, Turns, only_decodes, run_all
from isthmus.bench.fixed_speculation import FixedSpeculation
from isthmus.bench.sampled_text import Law, sample_texts
from isthmus.bench.sampler_share import Replay, Stopwatch, TimedEngine, TimedSampler
from isthmus.bench.speculation import lines, main
from isthmus.bench.speculation_rounds import Case, Measured, Until, measure
from isthmus.bench.speculation_tasks import Asker
from isthmus.decode.decoded_step import Part
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import Draw, Plan, Result, Row, SequenceSeed
from isthmus.launch.demo_model import cache_dir
from isthmus.tests.bench.small_model import save_small_model
from isthmus.tests.engine import tiny
from isthmus.tests.helpers import demo_model_path
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import SamplingParams

PROMPT_S, STEP_S = 7.0, 0.5
RETIRE_S = 0.125
"""Of one sequence."""
NUM_TOKENS = 11
TOKEN = 3


@dataclass
class Clock:
    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class ClockHandle:
    plan: Plan
    clock: Clock
    takes_s: float

    def result(self) -> Result:
        self.clock.now_s += self.takes_s
        return Result([TOKEN] * len(self.plan.draws))


@dataclass
class ClockEngine:
    """Always draws the same token, while its clock goes on."""

    clock: Clock
    overlaps: bool
    num_blocks: int = 64
    block_size: int = 4
    known: set[int] = field(default_factory=set)

    def launch(self, plan: Plan) -> ClockHandle:
        return ClockHandle(plan, self.clock, STEP_S if only_decodes(plan) else PROMPT_S)

    def admit(self, seed: SequenceSeed) -> None:
        self.known.add(seed.seq_id)

    def retire(self, *seq_ids: int) -> None:
        self.known -= set(seq_ids)
        self.clock.now_s += RETIRE_S * len(seq_ids)


@dataclass
class Ticking:
    """As if each step drew for a second."""

    inner: ClockEngine
    watch: Stopwatch
    num_blocks: int = 64
    block_size: int = 4
    overlaps: bool = False

    def launch(self, plan: Plan) -> ClockHandle:
        self.watch.sampling_s += 1
        return self.inner.launch(plan)

    def admit(self, seed: SequenceSeed) -> None:
        self.inner.admit(seed)

    def retire(self, *seq_ids: int) -> None:
        self.inner.retire(*seq_ids)


def request(prompt: Sequence[int], seed: int = 0, temperature: float = 0.0) -> Request:
    return Request(prompt, SamplingParams(temperature=temperature, max_tokens=NUM_TOKENS, seed=seed, ignore_eos=True))


@pytest.mark.parametrize("overlaps", [False, True])
def test_steps_without_prompts_are_measured(overlaps: bool) -> None:
    clock = Clock()
    engine = ClockEngine(clock, overlaps)
    decoder = BatchDecoder(engine, max_num_seqs=4, max_model_len=40, clock=clock.monotonic)
    for _ in range(2):
        run = decoder.run([request(tiny.prompt(9, seed=seed)) for seed in range(3)], batch=2)
        assert run.outputs == [[TOKEN] * NUM_TOKENS] * 3
        # Two at once, then the third alone: each has a first token from its prompt, then a step a token.
        num_steps = NUM_TOKENS - 1
        assert run.steps.num_tokens == run.steps.num_rows == 3 * num_steps
        assert run.steps.num_steps == 2 * num_steps
        assert run.steps.elapsed_s == pytest.approx(2 * num_steps * STEP_S)
        assert run.steps.row_s == pytest.approx(3 * num_steps * STEP_S)
        assert run.steps.tokens_per_s == pytest.approx(1 / STEP_S)
        assert run.steps.step_s == pytest.approx(STEP_S)
        decoder.check()
        assert not engine.known


def test_what_the_engine_does_for_who_has_ended_is_part_of_the_next_step() -> None:
    """As in a worker, which tells tokens first: after the last step nobody waits for it."""
    clock = Clock()
    decoder = BatchDecoder(ClockEngine(clock, overlaps=True), max_num_seqs=4, max_model_len=40, clock=clock.monotonic)
    params = [SamplingParams(temperature=0, max_tokens=length, seed=0, ignore_eos=True) for length in (3, NUM_TOKENS)]
    run = decoder.run([Request(tiny.prompt(9), one) for one in params], batch=2)
    assert [len(output) for output in run.outputs] == [3, NUM_TOKENS]
    assert run.steps.num_steps == NUM_TOKENS - 1
    assert run.steps.elapsed_s == pytest.approx((NUM_TOKENS - 1) * STEP_S + RETIRE_S)


def test_steps_of_few_rows_may_be_left_out() -> None:
    """Of what an engine says of itself, too."""
    clock, watch = Clock(), Stopwatch()
    engine = TimedEngine(Ticking(ClockEngine(clock, overlaps=False), watch), watch, least_rows=2)
    decoder = BatchDecoder(engine, 4, 40, least_rows=2, clock=clock.monotonic)
    params = [SamplingParams(temperature=0, max_tokens=length, seed=0, ignore_eos=True) for length in (3, NUM_TOKENS)]
    run = decoder.run([Request(tiny.prompt(9), one) for one in params], batch=2)
    assert [len(output) for output in run.outputs] == [3, NUM_TOKENS]
    assert (run.steps.num_steps, run.steps.num_tokens) == (2, 4)
    assert (engine.total.sampling_s, watch.sampling_s) == (2, NUM_TOKENS)


def test_turn_about_each_is_measured_alone() -> None:
    clock = Clock()
    engines = [ClockEngine(clock, overlaps=False) for _ in range(2)]
    decoders = [BatchDecoder(engine, max_num_seqs=4, max_model_len=40, clock=clock.monotonic) for engine in engines]
    many = [[request(tiny.prompt(9, seed=seed)) for seed in range(number)] for number in (3, 1)]
    runs = run_all(one.turns(requests, 4) for one, requests in zip(decoders, many, strict=True))
    for run, requests in zip(runs, many, strict=True):
        assert run.outputs == [[TOKEN] * NUM_TOKENS] * len(requests)
        assert run.steps.step_s == pytest.approx(STEP_S)
    elapsed_s = 2 * (PROMPT_S + (NUM_TOKENS - 1) * STEP_S) + 4 * RETIRE_S
    assert clock.now_s == pytest.approx(100 + elapsed_s, abs=STEP_S / 2)


@pytest.mark.parametrize("overlaps", [False, True])
def test_all_may_end_at_once_and_others_take_their_places(overlaps: bool) -> None:
    """By a token that nobody could know of: the next step, with all of them in it, may have been launched."""
    decoder = BatchDecoder(ClockEngine(Clock(), overlaps), max_num_seqs=3, max_model_len=40, eos_ids=[TOKEN])
    requests = [Request(tiny.prompt(9, seed=seed), SamplingParams(max_tokens=NUM_TOKENS, seed=0)) for seed in range(8)]
    assert decoder.run(requests, batch=3).outputs == [[TOKEN]] * 8
    decoder.check()


def test_what_is_not_served_is_told() -> None:
    decoder = BatchDecoder(ClockEngine(Clock(), overlaps=False), max_num_seqs=2, max_model_len=40)
    with pytest.raises(RuntimeError, match="not served"):
        decoder.run([request(tiny.prompt(41))], batch=1)


def test_sums_of_steps() -> None:
    total = Steps(1, 4, 9, 0.5, 2.0, 3, 6, 5) + Steps(2, 4, 4, 0.25, 0.5)
    assert total == Steps(3, 8, 13, 0.75, 2.5, 3, 6, 5)
    assert total.tokens_per_s == pytest.approx(13 / 2.5)
    assert Steps().tokens_per_s == Steps().step_s == 0


def test_prompts_and_decoding_are_told_apart() -> None:
    whole, last = Row(0, (1, 2), 0, (0,)), Row(0, (3,), 2, (0,), (Draw(0, 0),))
    decode = Row(1, (4,), 9, (1,), (Draw(1, 1),))
    guessing = Row(1, (4, 5), 9, (1,), (Draw(1, 1), Draw(1, 2)), num_drafts=1)
    assert only_decodes(Plan(0, (decode, guessing)))
    assert not only_decodes(Plan(0, (decode, whole)))
    assert not only_decodes(Plan(0, (last, decode)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.reference_model(tiny.llama()), tmp_path_factory.mktemp("model"))


def tiny_decoder(checkpoint: Path, speculation: FixedSpeculation | None = None) -> BatchDecoder:
    return BatchDecoder(tiny.engine_of(tiny.llama(), checkpoint, sampler=Sampler(tiny.VOCAB_SIZE)), 4, 64, speculation)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_tokens_are_those_drawn_elsewhere(checkpoint: Path, temperature: float) -> None:
    model, prompt = tiny.tiny_model(tiny.llama(), checkpoint), tiny.prompt(13)
    expected = sample_texts(model, [prompt], Law(temperature), NUM_TOKENS, frozenset(), seed=6)[0].output_ids
    run = tiny_decoder(checkpoint).run([request(prompt, 6, temperature)], batch=1)
    assert run.outputs == [expected]


@pytest.mark.parametrize("right", [True, False])
def test_replayed_text_is_guessed_right(checkpoint: Path, right: bool) -> None:
    requests = [request(tiny.prompt(9 + seed, seed=seed), seed, 1.0) for seed in range(3)]
    plain = tiny_decoder(checkpoint).run(requests, batch=3)
    texts = [
        [*one.prompt_ids, *(token if right else (token + 1) % tiny.VOCAB_SIZE for token in output)]
        for one, output in zip(requests, plain.outputs, strict=True)
    ]
    decoder = tiny_decoder(checkpoint, FixedSpeculation(lambda: Replay(texts), 4))
    run = decoder.run(requests, batch=3)
    decoder.check()
    assert run.outputs == plain.outputs
    assert run.steps.num_tokens == plain.steps.num_tokens == 3 * (NUM_TOKENS - 1)
    if right:
        assert run.steps.num_rows == run.steps.num_drafts == 3 * 2
        assert run.steps.num_accepted == run.steps.num_guesses == 3 * 8
    else:
        assert run.steps.num_accepted == 0
        assert run.steps.num_rows == plain.steps.num_rows


def test_all_rows_guess_within_the_budget() -> None:
    speculation = FixedSpeculation(lambda: Replay([]), 4)
    ours = [speculation.begin(SamplingParams()) for _ in range(3)]
    for _ in range(3):
        rows = [(one, [1, 2]) for one in (ours[0], None, *ours[1:])]
        speculation.begin_step(4)
        speculation.prepare(rows, budget=10)
        assert not speculation.notes(Part.WAITED, has_changed=False)
    assert [one.wanted for one in ours if one is not None] == [4, 4, 2]


def test_the_sampler_is_timed_where_nothing_but_tokens_is_computed(checkpoint: Path) -> None:
    watch = Stopwatch()
    sampler = TimedSampler(Sampler(tiny.VOCAB_SIZE), watch)
    engine = TimedEngine(tiny.engine_of(tiny.llama(), checkpoint, sampler=sampler), watch)
    run = BatchDecoder(engine, 4, 64).run([request(tiny.prompt(9), 1, 1.0)], batch=1)
    assert run.outputs == tiny_decoder(checkpoint).run([request(tiny.prompt(9), 1, 1.0)], batch=1).outputs
    assert 0 < engine.total.sampling_s < watch.sampling_s
    assert engine.total.sampling_s < run.steps.elapsed_s
    assert engine.total.masks_s == 0


def measured(*paces: float, off: Sequence[float] = ()) -> Measured:
    """A round at each pace, in tokens a second, beside one `off` of 10 or these."""
    one = Measured()
    for pace, its in zip(paces, off or [10] * len(paces), strict=True):
        one.add(Run([[1, 2], [3]], at_pace(pace)), at_pace(its))
    return one


def at_pace(pace: float) -> Steps:
    return Steps(10, 10, 10, 10 / pace, 10 / pace, 8, 20, 5)


@pytest.mark.parametrize(("pace", "ratio", "verdict"), [(9.8, "0.980", "met"), (9.6, "0.960", "missed")])
def test_a_line_of_the_table(pace: float, ratio: str, verdict: str) -> None:
    """A round that was held up changes no ratio but its pair's; one that is left over changes none."""
    off, slow = measured(*[10] * 7), measured(pace, pace, 3, 3, pace, pace, 1)
    slow.outputs[2] = [1, 5]
    case = Case("chat", 0.7, 1, 0, lambda _: [])
    found = {"ngram": slow, "ngram, idle": measured(5, 5, 1.5, 1.5, 5, 5, 1)}
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines(case, off, found)]
    assert cells[0][:6] == ["chat", "0.7", "1", "off", "10.0", "100.00"]
    assert cells[1][7:10] == ["2.00", "0.25", "0.62"]
    assert cells[1][10:] == [f"{ratio} ± 0.000 ×", f"0.30 {pace / 10:.2f}", f"{pace / 5:.2f} ×", verdict, "13 of 14"]
    assert cells[2][12] == "–", "it has no engine of its own"


def test_who_comes_first_in_a_round_makes_no_difference() -> None:
    """Though the first takes half as long: in every other round it is the other one."""
    assert measured(20, 10, 20, 10, 20, off=[10, 20, 10, 20, 10]).ratios == pytest.approx([1, 1])
    assert measured(9).ratios == [0.9]


@dataclass
class Named(BatchDecoder):
    """Takes two turns of a second, slower by a hundredth of it each time that any does."""

    name: str = ""
    order: list[str] = field(default_factory=list)

    def turns(self, requests: Sequence[Request], batch: int) -> Turns:
        elapsed_s = 0.0
        for _ in range(2):
            self.order.append(self.name)
            elapsed_s += 1 + len(self.order) / 100
            yield
        return Run([], Steps(2, 2, 2, elapsed_s, elapsed_s))


def named(order: list[str], *, overlaps: bool) -> dict[str, BatchDecoder]:
    """They note their turns in `order`."""
    names = ("off", "ngram", "eagle")
    return {name: Named(ClockEngine(Clock(), overlaps), 1, 8, name=name, order=order) for name in names}


def test_methods_take_turns_step_by_step() -> None:
    order: list[str] = []
    others = named(order, overlaps=False)
    off = others.pop("off")
    each = {name: [decoder] for name, decoder in others.items()}
    measure(Case("chat", 0, 1, 3, lambda _: []), [off], each, backwards=False)
    measure(Case("chat", 0, 1, 1, lambda _: []), [off], each, backwards=True)
    there, back = ["off", "ngram", "eagle"] * 2, ["eagle", "ngram", "off"] * 2
    assert order == there + back + there + back


def test_where_steps_are_launched_ahead_each_round_is_between_two_without_speculation() -> None:
    """A machine whose pace drifts makes none look slower."""
    order: list[str] = []
    others = named(order, overlaps=True)
    off = others.pop("off")
    each = {name: [decoder] for name, decoder in others.items()}
    plain, found = measure(Case("chat", 0, 1, 2, lambda _: []), [off], each, backwards=False)
    there, back = ["off", "ngram", "off", "eagle", "off"], ["off", "eagle", "off", "ngram", "off"]
    assert order == [name for name in (*there, *back) for _ in range(2)]
    assert [len(one.rounds) for one in (plain, *found.values())] == [2, 2, 2]
    for one in found.values():
        assert one.ratios == pytest.approx([1.0])
        assert one.off[0].num_steps == 4, "of both"


def test_how_well_a_ratio_is_known() -> None:
    """As medians of normally distributed ratios lie apart."""
    rng, deviation, num_pairs = random.Random(1), 0.02, 25
    paces = [[10 * rng.gauss(1, deviation) for _ in range(num_pairs)] for _ in range(400)]
    many = [measured(*(pace for pace in some for _ in range(2))) for some in paces]
    apart = stdev(one.ratio for one in many)
    assert mean(one.error for one in many) == pytest.approx(apart, rel=0.1)
    assert measured(9).error == math.inf


ROUNDS = [(1, math.inf, 1, 1), (3, math.inf, 1, 3), (1, 0.1, 1, 4), (7, 0.1, 1, 8), (1, 0.0, 1, 12), (20, 0.0, 1, 20)]
ROUNDS += [(1, math.inf, 3, 6), (7, math.inf, 3, 12), (1, 0.1, 2, 8), (1, 0.0, 5, 20)]


@pytest.mark.parametrize(("least", "precision", "num_engines", "expected"), ROUNDS)
def test_rounds_go_on_until_ratios_are_known(least: int, precision: float, num_engines: int, expected: int) -> None:
    """As many in one order as in the other, of each engine, and not for ever."""
    rng = random.Random(1)

    class Varying(BatchDecoder):
        def turns(self, requests: Sequence[Request], batch: int) -> Turns:
            yield
            return Run([], at_pace(rng.uniform(9.9, 10.1)))

    off, other = ([Varying(ClockEngine(Clock(), overlaps=True), 1, 8) for _ in range(num_engines)] for _ in range(2))
    case = Case("chat", 0, 1, least, lambda _: [])
    plain, found = measure(case, off, {"other": other}, backwards=False, until=Until(precision, 12))
    assert len(plain.rounds) == expected
    assert len(found["other"].by_engine) == num_engines


def test_of_several_engines_each_counts_the_same() -> None:
    """Each has as many pairs of rounds in either order, and none of them is better known for another's."""
    order: list[str] = []
    off, other = (
        [Named(ClockEngine(Clock(), True), 1, 8, name=f"{kind}{i}", order=order) for i in range(2)]
        for kind in ("off", "other")
    )
    case = Case("chat", 0, 1, 4, lambda _: [])
    plain, _ = measure(case, off, {"other": other}, backwards=False, until=Until(1e-9, 8))
    assert len(plain.rounds) == 8
    turns = [["off0", "other0", "off0"], ["off1", "other1", "off1"]]
    assert order[::2] == [name for turn in turns * 2 for _ in range(2) for name in turn]
    one = measured(*[9] * 2, *[10] * 2, *[9] * 2, *[10] * 2, *[9] * 2, *[40] * 2)
    one.num_engines = 2
    assert one.by_engine == pytest.approx([0.9, 1.0])
    assert one.ratio == pytest.approx(0.95)
    assert one.error == 0
    assert measured(9, 9, 10, 10).error > 0
    for few in (measured(), measured(9, 9), measured(9, 9, 10, 10)):
        few.num_engines = 2
        assert few.error == math.inf


def test_requests() -> None:
    folder = resolve(str(demo_model_path()), cache_dir(), tokenizer_only=True).folder
    tokenizer = Tokenizer.from_folder(folder)
    asker = Asker(folder, tokenizer)
    few, many = (asker.requests("json", count, 0.7, 20) for count in (3, 8))
    assert few == many[:3]
    assert len({(*one.prompt_ids,) for one in many}) == 8
    assert [one.params.guidance is None for one in many] == [False] * 8
    assert asker.longest_prompt(8) >= max(len(one.prompt_ids) for one in many)
    again, other = asker.random_requests(2, 20, 1), asker.random_requests(2, 20, 2)
    assert again == asker.random_requests(2, 20, 1) != other
    assert tokenizer.invalid_id([*again[0].prompt_ids, *other[1].prompt_ids]) is None


def table(text: str) -> list[list[str]]:
    """Cells, without the heading."""
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("model"), idle_layers=True))


def test_the_table(small_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batches", "2", "--temperatures", "0", "--tasks", "edit", "--tokens", "40", "--random-rounds", "0"]
    threads = ["--threads", str(torch.get_num_threads())]
    methods = ["--methods", "ngram", "first-layers", "--fixed", "--control"]
    main(["--model", small_model, *methods, *options, *threads])
    found = table(capsys.readouterr().out)
    names = ("off", "off again", "ngram", "first-layers")
    assert [line[:4] for line in found] == [["edit", "0", "2", name] for name in names]
    assert all(float(line[4]) > 0 and float(line[5]) > 0 for line in found)
    assert float(found[0][6]) == float(found[1][6]) == 1 < float(found[2][6])
    assert [line[14] for line in found[1:]] == ["2 of 2"] * 3


@pytest.mark.parametrize(
    ("methods", "message"),
    [(["draft"], "draft needs a"), (["ngram", "eagle"], "eagle needs a"), (["eagle", "draft"], "one at a time")],
)
def test_methods_that_need_a_model(methods: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--methods", *methods])
    assert message in capsys.readouterr().err


def test_the_table_of_samplers(small_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = ["--threads", str(torch.get_num_threads())]
    main(["--model", small_model, "--sampler", "--sampler-batch", "1", "--guesses", "2", *threads])
    found = table(capsys.readouterr().out)
    assert [line[1] for line in found][:2] == ["greedy", "defaults"]
    assert all(float(line[4]) == 3 for line in found)
    assert all(0 < float(line[5]) < float(line[3]) for line in found)
    assert [float(line[7]) > 0 for line in found] == [False, False, False, True, True]
