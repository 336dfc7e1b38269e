"""The four conditions on which guesses change no token (DESIGN §3.6): each is broken here, and then they do.

1. Noise belongs to a position of the output, not to a step or a call.
2. A token is drawn with the sampler's state after the tokens before it, and only after tokens that came.
3. Tokens are taken in order, and nothing after an end of sequence, a stop token or a banned phrase.
4. Every place has its own mask, and a guess that the grammar does not let come ends the guesses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.decode.guidance import Guides, make_guides
from isthmus.decode.guide import Guide
from isthmus.decode.history import History
from isthmus.decode.phrase_ban import PhraseBans, make_phrase_bans
from isthmus.decode.sampler import Sampler
from isthmus.decode.sampler_state import Mirostat
from isthmus.decode.sampling_steps import Batch
from isthmus.decode.sequence import Sequence
from isthmus.decode.speculation import Speculation
from isthmus.engine import guesses, torch_engine
from isthmus.engine.chains import draw_chains
from isthmus.engine.guesses import Guesses, followed
from isthmus.engine.plan import Row
from isthmus.engine.torch_engine import TorchEngine
from isthmus.tests.decode.router_sim import EOS
from isthmus.tests.decode.speculating import Ask, Knowing, Outputs, decode, speculation_of, texts_of
from isthmus.tests.engine.tiny import VOCAB_SIZE, engine_of, llama, prompt, reference_model, save
from isthmus.tests.router.edge import byte_tokenizer
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import Guidance, SamplingParams
from msgspec.structs import replace as replace_struct

BYTES = byte_tokenizer()
TOKENIZER = Tokenizer(BYTES._backend, special_tokens=BYTES.special_tokens, eos_ids={EOS}, vocab_size=VOCAB_SIZE)
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Bench:
    """Runs asks, each time on a new engine."""

    checkpoint: Path
    guides: Guides
    phrase_bans: PhraseBans | None

    def plain(self, asks: list[Ask]) -> Outputs:
        return self._run(asks, None)

    def guessed(self, asks: list[Ask], plain: Outputs, wrong_every: int = 3) -> tuple[Outputs, Speculation]:
        """With guesses of what `plain` has, but for some."""
        known = texts_of(asks, plain)
        speculation = speculation_of(lambda: Knowing(known, wrong_every))
        return self._run(asks, speculation), speculation

    def _run(self, asks: list[Ask], speculation: Speculation | None) -> Outputs:
        engine: TorchEngine = engine_of(llama(), self.checkpoint, sampler=Sampler(VOCAB_SIZE), num_blocks=256)
        for _, params, _ in asks:
            if pending := self.guides.pending(params, frozenset(), (EOS,), 0.0):
                pending.grammar.result()  # the sim's time would not wait for it
        options = {"guides": self.guides, "phrase_bans": self.phrase_bans}
        return decode(engine, asks, speculation, **options)

    def assert_it_matters(self, asks: list[Ask], break_it: Callable[[], None]) -> None:
        """Guesses change nothing. Without the condition they do, though plain decoding still repeats itself."""
        plain = self.plain(asks)
        guessed, speculation = self.guessed(asks, plain)
        assert guessed == plain
        assert 0 < speculation.num_accepted_tokens < speculation.num_draft_tokens
        break_it()
        plain = self.plain(asks)
        break_it()
        assert self.plain(asks) == plain
        break_it()
        assert self.guessed(asks, plain)[0] != plain


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    guides = make_guides(TOKENIZER, VOCAB_SIZE)
    assert guides is not None
    checkpoint = save(reference_model(llama()), tmp_path_factory.mktemp("model"))
    yield Bench(checkpoint, guides, make_phrase_bans(TOKENIZER))
    guides.close()


def sampled(**params: Any) -> list[Ask]:
    """Three requests with two choices each, of many tokens."""
    wanted = {"temperature": 1.0, "max_tokens": 30, "ignore_eos": True, **params}
    return [(prompt(9 + i, seed=i), SamplingParams(seed=i + 1, **wanted), 2) for i in range(3)]


def test_noise_of_a_position(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: noise comes from a generator that all draws of a worker share, call by call."""
    of = Batch.of

    def break_it() -> None:
        calls = count()

        def numbered(*args: Any) -> Batch:
            batch = of(*args)
            return replace(batch, positions=torch.full_like(batch.positions, next(calls)))

        monkeypatch.setattr(Batch, "of", numbered)

    bench.assert_it_matters(sampled(), break_it)


def test_noise_of_each_draw_of_a_step(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: all draws of a step have the noise of its first one."""
    of = Batch.of

    def draw_alike(sampler: Sampler, logits: torch.Tensor, chains: Any) -> Any:
        first = {chain.draws[0].seq_id: chain.draws[0].position for chain in chains}

        def alike(rows: Any, draws: Any, device: Any) -> Batch:
            positions = torch.tensor([first[draw.seq_id] for draw in draws])
            return replace(of(rows, draws, device), positions=positions)

        with monkeypatch.context() as patch:
            patch.setattr(Batch, "of", alike)
            return draw_chains(sampler, logits, chains)

    bench.assert_it_matters(sampled(), lambda: monkeypatch.setattr(torch_engine, "draw_chains", draw_alike))


MEMORIES = [
    (History, "append", {"temperature": 0.6, "frequency_penalty": 1.5, "presence_penalty": 1.5}),
    (
        History,
        "append",
        {"dry_multiplier": 3.0, "dry_sequence_breakers": (), "allowed_token_ids": tuple(range(20, 30))},
    ),
    (Mirostat, "update", {"mirostat_mode": 2, "mirostat_tau": 1.0, "mirostat_eta": 1.0}),
]


@pytest.mark.parametrize(("memory", "learn", "params"), MEMORIES, ids=["penalties", "DRY", "Mirostat"])
def test_state_after_the_tokens_before(
    bench: Bench, monkeypatch: Patch, memory: type, learn: str, params: dict[str, Any]
) -> None:
    """Broken: all draws of a step are made with the state at its beginning."""

    def draw_with_old_state(sampler: Sampler, logits: torch.Tensor, chains: Any) -> Any:
        late: list[tuple[Any, Any]] = []
        with monkeypatch.context() as patch:
            patch.setattr(memory, learn, lambda self, fact: late.append((self, fact)))
            drawn = draw_chains(sampler, logits, chains)
        for one, fact in late:
            getattr(one, learn)(fact)
        return drawn

    bench.assert_it_matters(
        sampled(**params), lambda: monkeypatch.setattr(torch_engine, "draw_chains", draw_with_old_state)
    )


def test_state_without_tokens_that_did_not_come(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: the history keeps the guesses that were wrong."""

    def draw_and_keep_guesses(sampler: Sampler, logits: torch.Tensor, chains: Any) -> Any:
        drawn = draw_chains(sampler, logits, chains)
        for chain, made in zip(chains, drawn, strict=True):
            history = sampler._states[chain.draws[0].seq_id].history
            for token in () if chain.guesses is None else chain.guesses.token_ids[len(made) - 1 :]:
                history.append(token)
        return drawn

    asks = sampled(temperature=0.6, frequency_penalty=1.5, repetition_penalty=1.5)
    bench.assert_it_matters(asks, lambda: monkeypatch.setattr(torch_engine, "draw_chains", draw_and_keep_guesses))


def test_only_draws_after_right_guesses_count(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: what is drawn after a wrong guess is taken too."""

    def reaches(self: Guesses, index: int, last_drawn: int) -> bool:
        return index <= len(self.token_ids)

    bench.assert_it_matters(sampled(), lambda: monkeypatch.setattr(Guesses, "reaches", reaches))


def take_all(self: Sequence, made: list[Any]) -> list[Any]:
    """As `Sequence._accept_all` for a sequence without a grammar, with no regard to what a token brings about."""
    rows = [self._accept(drawn, guided=False) for drawn in made]
    self.num_planned = self.num_computed = len(self.tokens) - 1
    return [row for row in rows if row is not None]


@pytest.mark.parametrize("wrong_every", [0, 3])
@pytest.mark.parametrize("end", ["end of sequence", "stop token"])
def test_nothing_after_an_end(bench: Bench, monkeypatch: Patch, end: str, wrong_every: int) -> None:
    """Broken: the rest of what a step drew is taken as well."""
    stop = EOS if end == "end of sequence" else 7
    asks = sampled(ignore_eos=stop != EOS, logit_bias={stop: 4.0}, stop_token_ids=() if stop == EOS else (stop,))
    plain = bench.plain(asks)
    assert sum(one[-1] == stop for made in plain for one in made.values()) > 3
    assert bench.guessed(asks, plain, wrong_every)[0] == plain
    monkeypatch.setattr(Sequence, "_accept_all", take_all)
    assert bench.plain(asks) == plain
    assert bench.guessed(asks, plain, wrong_every)[0] != plain


def test_nothing_after_a_phrase(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: what was drawn after a phrase that was taken back stays."""
    phrases = tuple(chr(one) for one in range(ord("a"), ord("z") + 1))
    asks = sampled(banned_strings=phrases, logit_bias=dict.fromkeys(range(60, 100), 3.0), temperature=0.8)
    free = bench.plain([(ids, replace_struct(params, banned_strings=()), n) for ids, params, n in asks])
    plain = bench.plain(asks)
    assert free != plain
    for known in (plain, free):
        guessed, speculation = bench.guessed(asks, known)
        assert guessed == plain
        assert 0 < speculation.num_accepted_tokens < speculation.num_draft_tokens
    monkeypatch.setattr(Sequence, "_accept_all", take_all)
    assert bench.plain(asks) == plain
    assert bench.guessed(asks, free)[0] != plain


def guided() -> list[Ask]:
    shapes = ("([a-f]{3} [0-9]{2}, ){9}", '("[a-z]{1,9}": [0-9]{1,3}; ){9}')
    wanted = {"temperature": 1.5, "max_tokens": 40, "seed": 5}
    return [(prompt(9), SamplingParams(guidance=Guidance("regex", shape), **wanted), 2) for shape in shapes]


@pytest.mark.parametrize("instead", ["none", "that of the first draw"])
def test_a_mask_for_every_place(bench: Bench, monkeypatch: Patch, instead: str) -> None:
    """Broken: draws after guesses have no mask, or that of the place before them."""

    def without_masks(row: Row, token_ids: Any) -> Guesses:
        found = followed(row, token_ids)
        mask = None if instead == "none" else row.draws[0].mask
        return replace(found, draws=(row.draws[0], *(replace_struct(draw, mask=mask) for draw in found.draws[1:])))

    bench.assert_it_matters(guided(), lambda: monkeypatch.setattr(guesses, "followed", without_masks))


def test_a_guess_that_may_not_come_ends_them(bench: Bench, monkeypatch: Patch) -> None:
    """Broken: guesses go on after one that the grammar does not let come, with the mask of the place before it."""

    def follow(self: Guide, token_id: int) -> Any:
        mask = guide_follow(self, token_id)
        if mask is None:
            self.advance((token_id,))
        return self.mask()

    guide_follow = Guide.follow
    asks = guided()
    plain = bench.plain(asks)
    assert bench.guessed(asks, plain)[0] == plain
    monkeypatch.setattr(Guide, "follow", follow)
    assert bench.plain(asks) == plain
    assert bench.guessed(asks, plain)[0] != plain
