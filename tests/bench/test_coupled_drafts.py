"""Acceptance in closed form against draws and brute force; distributions against transformers and the sampled text."""

from pathlib import Path

import pytest
import torch
from isthmus.bench.coupled_drafts import HOTTER, Drafts, logits_after, main, measure_law
from isthmus.bench.coupling import optimum, own_noise, second_guess, shared_noise
from isthmus.bench.sampled_text import TASKS, Law, Text, sample_texts
from isthmus.engine.config import ModelConfig
from isthmus.engine.load import load_model
from isthmus.engine.models.llama import Llama
from isthmus.kernels.gumbel_draw import draw_tokens
from isthmus.tests.bench.small_model import save_small_model
from isthmus.tests.engine import tiny
from isthmus.wire.noise import DRAW, philox_key
from torch import Tensor

NUM_DRAWS = 20_000
LAWS = (Law(1.0), Law(0.7, 0.9))
SEED = 5


def pairs(vocab_size: int = 37) -> tuple[Tensor, Tensor]:
    """p and q, fp64 [6, V]: ever further apart, then equal, then truncated differently, then without a common token."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(6, vocab_size, generator=generator)
    distance = torch.tensor([0.1, 1.0, 4.0, 0.0, 1.0, 1.0])[:, None]
    other = logits + distance * torch.randn(6, vocab_size, generator=generator)
    ids = torch.arange(vocab_size)
    logits[4, ids % 3 == 0] = other[4, ids % 4 == 0] = -torch.inf
    logits[5, ids % 2 == 0] = other[5, ids % 2 == 1] = -torch.inf
    return logits.double().softmax(-1), other.double().softmax(-1)


def draws(probabilities: Tensor, first_key: int) -> Tensor:
    """int64 [NUM_DRAWS]: of one distribution, each with a key of its own."""
    logits = probabilities.log().float().expand(NUM_DRAWS, -1)
    number = torch.arange(first_key, first_key + NUM_DRAWS)
    zeros = torch.zeros_like(number)
    return draw_tokens(logits, torch.stack((number, zeros), -1), zeros, zeros, stream=DRAW)


@pytest.mark.parametrize("case", range(6))
def test_shares_of_draws(case: int) -> None:
    p, q = (part[case] for part in pairs())
    target, shared, own = draws(p, 0), draws(q, 0), draws(q, NUM_DRAWS)
    for guesses, expected in ((shared, shared_noise(p, q)), (own, own_noise(p, q))):
        share, probability = float((guesses == target).double().mean()), float(expected)
        variance = max(probability * (1 - probability), 0.0)
        assert share == pytest.approx(probability, abs=4 * (variance / NUM_DRAWS) ** 0.5 + 1e-9)


def test_a_second_guess_of_two_tokens_is_the_other_one() -> None:
    """And of a sure guess there is none."""
    p, q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double(), torch.tensor([[0.1, 0.9], [0.5, 0.5]]).double()
    second = second_guess(p, q, NUM_DRAWS, SEED)
    torch.testing.assert_close(second, 1 - shared_noise(p, q), rtol=0, atol=0.015)
    sure = torch.tensor([[1.0, 0.0, 0.0]]).double()
    assert second_guess(sure, sure, 50, SEED) == 0


def test_every_pair_of_tokens() -> None:
    """The sum as it is defined, V² terms a row."""
    p, q = pairs()
    ratios = torch.maximum(p[:, None] / p[..., None], q[:, None] / q[..., None])
    expected = (1 / ratios.nan_to_num(0.0, posinf=torch.inf).sum(-1)).where(p * q > 0, 0.0).sum(-1)
    torch.testing.assert_close(shared_noise(p, q), expected, rtol=1e-12, atol=1e-15)


def test_bounds() -> None:
    p, q = pairs(1000)
    shared, best = shared_noise(p, q), optimum(p, q)
    distance = (p - q).abs().sum(-1) / 2
    torch.testing.assert_close(best, 1 - distance, rtol=0, atol=1e-12)
    assert (shared <= best + 1e-12).all()
    assert (shared >= (1 - distance) / (1 + distance) - 1e-12).all()
    assert (own_noise(p, q)[:5] < shared[:5]).all()
    assert shared[3] == pytest.approx(1, abs=1e-12)
    assert shared[5] == best[5] == 0


def test_law() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    whole = (logits.double() / 0.5).softmax(-1)
    torch.testing.assert_close(Law(0.5).probabilities(logits), whole)
    kept = whole.where(torch.tensor([[False, True, True, False]]), 0.0)
    torch.testing.assert_close(Law(0.5, 0.9).probabilities(logits), kept / kept.sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_no_law(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Law(temperature, top_p)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.reference_model(tiny.llama()), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Llama:
    return tiny.tiny_model(tiny.llama(), checkpoint)


@pytest.fixture(scope="module")
def rounded(checkpoint: Path) -> Llama:
    return load_model(ModelConfig.from_hf(tiny.llama()), checkpoint, torch.bfloat16)


def test_logits_after_each_layer(model: Llama) -> None:
    text = Text(tiny.prompt(19), tiny.prompt(30, seed=2))
    token_ids = torch.tensor([[*text.prompt_ids, *text.output_ids]])
    reference = tiny.reference_model(tiny.llama())
    with torch.no_grad():
        output = reference(token_ids, output_hidden_states=True)
        first = reference.lm_head(reference.model.norm(output.hidden_states[1]))
    found = logits_after(model, text, [1, 2])
    assert sorted(found) == [1, 2]
    torch.testing.assert_close(found[1], first[0, 18:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], output.logits[0, 18:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=["plain", "top-p"])
def test_texts_are_draws_from_the_law_at_each_position(model: Llama, law: Law) -> None:
    prompts = [tiny.prompt(9, seed=3), tiny.prompt(40, seed=4)]
    texts = sample_texts(model, prompts, law, 24, frozenset(), SEED)
    for i, text in enumerate(texts):
        logits = law.probabilities(logits_after(model, text, [2])[2]).log().float()
        keys, positions = torch.tensor([philox_key(SEED, i, 0)] * 24), torch.arange(24)
        expected = draw_tokens(logits, keys, positions, torch.zeros_like(positions), stream=DRAW)
        assert text.prompt_ids == prompts[i]
        assert text.output_ids == expected.tolist()


def test_a_text_ends_with_a_stop(model: Llama) -> None:
    prompts = [tiny.prompt(9, seed=3), tiny.prompt(40, seed=4)]
    free = sample_texts(model, prompts, LAWS[0], 12, frozenset(), SEED)
    stop = next(token for token in free[0].output_ids[2:] if token not in free[1].output_ids)
    stopped = sample_texts(model, prompts, LAWS[0], 12, frozenset([stop]), SEED)
    assert stopped[0].output_ids == free[0].output_ids[: free[0].output_ids.index(stop) + 1]
    assert stopped[1] == free[1]


def test_drafts_of_a_law(model: Llama, rounded: Llama) -> None:
    law = LAWS[1]
    texts = sample_texts(model, [tiny.prompt(9), tiny.prompt(20)], law, 10, frozenset(), SEED)
    found = measure_law(Drafts(model, rounded, [1]), texts, law)
    assert list(found) == ["first 1 of 2 layers", f"target, temperature × {HOTTER:g}", "target in bf16"]
    assert {acceptance.num_positions for acceptance in found.values()} == {20}
    shared, own, best, second = torch.stack([acceptance.sums / 20 for acceptance in found.values()]).unbind(-1)
    assert ((own < shared) & (shared <= best)).all()
    assert ((second > 0) & (second <= 1 - shared)).all()
    assert shared[2] > 0.9
    assert found["target in bf16"].line("x", law).startswith("| x | 0.7 | 0.9 | 20 | 0.9")
    hot = [
        (law.probabilities(a), law.probabilities(a / HOTTER)) for a in (logits_after(model, t, [2])[2] for t in texts)
    ]
    assert float(best[1]) == pytest.approx(float(torch.cat([optimum(p, q) for p, q in hot]).mean()))


@pytest.mark.parametrize("layers", [[0], [1, 2]])
def test_a_draft_has_fewer_layers(model: Llama, rounded: Llama, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="the model has 2"):
        Drafts(model, rounded, layers)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layers", "3", "--temperatures", "1", "--top-ps", "1", "--prompts", "json", "--tokens", "3"]
    main(["--model", str(save_small_model(tmp_path)), "--threads", str(torch.get_num_threads()), *options])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [line[:4] for line in cells] == [
        [name, "1", "1", str(3 * len(TASKS["json"]))]
        for name in ("first 3 of 4 layers", f"target, temperature × {HOTTER:g}", "target in bf16")
    ]
    assert all(0 < float(cell) <= 1 for line in cells for cell in line[4:-1])
    assert all(0 <= float(line[-1]) < 1 for line in cells), (
        "where a draft is nearly sure, a second guess may be worth nothing"
    )
    assert float(cells[2][4]) > 0.9
