"""Guesses of some beside others who can have none: prompts being computed, and sequences that wait for their masks."""

import random
import typing
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from isthmus.bench.batch_decoder import BatchDecoder, Request
from isthmus.decode import step_guesses
from isthmus.decode.guidance import Guides
from isthmus.decode.sequence import Sequence
from isthmus.decode.speculator import EngineProposer
from isthmus.engine.plan import NOT_TRIED, Plan
from isthmus.tests.decode.guided_sim import TOKENS, vocabulary
from isthmus.tests.decode.router_sim import VOCAB
from isthmus.tests.decode.speculating import speculation_of
from isthmus.tests.decode.virtual_gpu import CPU, GPU, VirtualClock, VirtualGpu, VirtualStep
from isthmus.text.grammar_cache import GrammarCache
from isthmus.text.grammar_compiler import GrammarCompiler
from isthmus.wire.sampling import Guidance, SamplingParams

REFUSED_STEPS = 8


@dataclass(slots=True)
class Refusing(VirtualGpu):
    """Tries no guesses beside prompts."""

    asked: list[int] = field(init=False, default_factory=list)
    """Guesses of each step beside a prompt."""

    def drawn(self, plan: Plan) -> list[int]:
        is_beside = any(not row.draws for row in plan.rows)
        if is_beside and any(row.draws for row in plan.rows):
            self.asked.append(sum(row.num_drafts for row in plan.rows))
        tokens = list[int]()
        for row in plan.rows:
            drawn = self._draw(row)
            tokens += [*drawn[:1], *[NOT_TRIED] * (len(drawn) - 1)] if is_beside else drawn
        return tokens


def test_an_engine_that_tries_none_beside_prompts_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have had a reason that has gone."""
    monkeypatch.setattr(step_guesses, "REFUSED_STEPS", REFUSED_STEPS)
    monkeypatch.setattr("isthmus.bench.batch_decoder.MAX_BATCHED_TOKENS", 16)
    rng, clock = random.Random(1), VirtualClock()
    texts = {tuple(rng.randrange(300) for _ in range(size)): [1] * 60 for size in (4, 600)}
    engine = Refusing(256, 16, texts, clock, CPU, rng, overlaps=False)
    decoder = BatchDecoder(engine, 4, 800, speculation_of(EngineProposer), clock=clock)
    decoder.run([Request(one, SamplingParams(max_tokens=60, ignore_eos=True)) for one in texts], 2)
    places = [place for place, count in enumerate(engine.asked) if count]
    assert len(places) > 2
    assert all(after - before >= REFUSED_STEPS for before, after in pairwise(places))


MASKS = [
    (None, 0, False),
    (SimpleNamespace(takes_long=True, holds_up=True), 0, False),
    (SimpleNamespace(takes_long=True, holds_up=False), 0, True),
    (SimpleNamespace(takes_long=False, holds_up=False), 0, True),
    (SimpleNamespace(takes_long=True, holds_up=False), 1, False),
    (SimpleNamespace(takes_long=False, holds_up=False), 1, True),
]
"""A sequence's grammar, its tokens in flight, and whether the next step has a grammar because of it."""


@pytest.mark.parametrize(("guide", "pending", "is_guided"), MASKS)
def test_who_waits_for_a_mask_is_in_no_step(guide: Any, pending: int, is_guided: bool) -> None:
    """So it doesn't make one a step with a grammar, of which other things are known. While its last token is in flight
    it is known of its mask only how long the one before took."""
    sequence: Any = SimpleNamespace(guide=guide, pending=pending)
    assert vars(Sequence)["is_guided"].__get__(sequence) == is_guided


@dataclass(slots=True)
class Telling(VirtualGpu):
    """Notes when steps are launched and when they end, as `happened`."""

    happened: list[str] = field(init=False, default_factory=list)

    def launch(self, plan: Plan) -> VirtualStep:
        self.happened.append("launched")
        return VirtualGpu.launch(self, plan)

    def finish(self, step: VirtualStep) -> None:
        self.happened.append("ended")
        VirtualGpu.finish(self, step)


@dataclass(slots=True)
class Looking:
    """Finds no guess."""

    happened: list[str]

    def look(self, tokens: typing.Sequence[int]) -> int | None:
        self.happened.append("looked")
        return None

    def propose(self, count: int) -> tuple[int, ...]:
        raise AssertionError

    def forget(self, num_tokens: int) -> None: ...


def test_within_a_grammar_guesses_are_looked_for_while_a_step_is_in_flight() -> None:
    """As everywhere: so it takes none of the time of a step that waits."""
    text, clock = [TOKENS.index(b"a")] * 40, VirtualClock()
    engine = Telling(64, 16, {(1, 2, 3): text}, clock, GPU, random.Random(1))
    guides = Guides(GrammarCache(GrammarCompiler(vocabulary)), VOCAB, num_threads=1)
    params = SamplingParams(max_tokens=40, ignore_eos=True, guidance=Guidance("regex", "a{40}"))
    speculation = speculation_of(lambda: Looking(engine.happened))
    decoder = BatchDecoder(engine, 1, 64, speculation, guides, clock=clock)
    assert decoder.run([Request((1, 2, 3), params)], 1).outputs == [text]
    guides.close()
    looks = [engine.happened[:place] for place, what in enumerate(engine.happened) if what == "looked"]
    assert len(looks) > 30
    assert all(before.count("launched") == before.count("ended") + 1 for before in looks)
