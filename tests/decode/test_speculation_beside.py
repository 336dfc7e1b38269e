"""Guesses of some beside others who can have none: prompts being computed, and sequences that wait for their masks."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest
from isthmus.bench.batch_decoder import BatchDecoder, Request
from isthmus.decode import scheduler
from isthmus.decode.scheduler import DecodeScheduler
from isthmus.decode.speculator import EngineProposer
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.plan import NOT_TRIED, Plan
from isthmus.tests.decode.speculating import speculation_of
from isthmus.tests.decode.virtual_gpu import CPU, VirtualClock, VirtualGpu
from isthmus.wire.sampling import SamplingParams

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
    monkeypatch.setattr(scheduler, "REFUSED_STEPS", REFUSED_STEPS)
    monkeypatch.setattr("isthmus.bench.batch_decoder.MAX_BATCHED_TOKENS", 16)
    rng, clock = random.Random(1), VirtualClock()
    texts = {tuple(rng.randrange(300) for _ in range(size)): [1] * 60 for size in (4, 600)}
    engine = Refusing(256, 16, texts, clock, CPU, rng, overlaps=False)
    decoder = BatchDecoder(engine, 4, 800, speculation_of(EngineProposer), clock=clock)
    decoder.run([Request(one, SamplingParams(max_tokens=60, ignore_eos=True)) for one in texts], 2)
    places = [place for place, count in enumerate(engine.asked) if count]
    assert len(places) > 2
    assert all(after - before >= REFUSED_STEPS for before, after in pairwise(places))


MASKS = [((), False), ((True,), False), ((False,), True), ((True, False), True)]
"""Whether sequences wait for them, and whether a step then has a grammar."""


@pytest.mark.parametrize(("waiting", "has_grammar"), MASKS)
def test_who_waits_for_a_mask_is_in_no_step(
    waiting: Sequence[bool], has_grammar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it doesn't make one a step with a grammar, of which other things are known."""
    decodes = DecodeScheduler(BlockPool(8, 4), epoch="d", max_num_seqs=4, max_num_batched_tokens=64, max_model_len=16)
    running = [SimpleNamespace(guide=None), *(SimpleNamespace(guide=SimpleNamespace(holds_up=one)) for one in waiting)]
    monkeypatch.setattr(decodes, "_running", running)
    assert decodes._has_grammar() == has_grammar
