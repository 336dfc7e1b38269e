"""A head is trained by what the book says it computes, and our engine guesses with it as its training did."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from isthmus.bench.eagle_training.check import walk
from isthmus.bench.eagle_training.checkpoint import frequent_ids, head_config, load_head, save_head
from isthmus.bench.eagle_training.documents import MAX_CHARS, MIN_CHARS, docstrings, library_documents
from isthmus.bench.eagle_training.head import DraftHead
from isthmus.bench.eagle_training.objective import Objective, Score
from isthmus.bench.eagle_training.prompts import PromptMaker
from isthmus.bench.eagle_training.target import FrozenTarget
from isthmus.bench.eagle_training.texts import Text, batches, hold_out, load_texts, make_batch, save_texts
from isthmus.bench.eagle_training.trainer import Length, rate_at
from isthmus.bench.train_eagle import main
from isthmus.engine.config import ModelConfig
from isthmus.engine.eagle.config import EagleConfig
from isthmus.tests.bench.small_model import save_small_model
from isthmus.tests.engine import tiny
from isthmus.tests.engine.eagle_reference import Reference
from torch import Tensor

NUM_GUESSES = 3
DRAFT_VOCAB_SIZE = 200
CONFIG = tiny.llama(num_hidden_layers=8, num_key_value_heads=2, head_dim=16)
AUX_LAYERS = (2, 4, 5)
CPU = torch.device("cpu")


@dataclass
class World:
    """A random target with a random head, and both by the book."""

    model: Any
    target: FrozenTarget
    head: DraftHead
    target_ids: Tensor
    reference: Reference

    def features(self, token_ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            states = self.model(torch.tensor([list(token_ids)]), output_hidden_states=True).hidden_states
        return torch.cat([states[index][0] for index in AUX_LAYERS], -1)

    def chain(self, token_ids: Sequence[int], root: int, num_guesses: int) -> Tensor:
        """Logits of the guesses from a root, the text's own tokens going in: fp64 [num_guesses, vocab_size]."""
        hidden, made = self.reference.fuse(self.features(token_ids)[: root + 1]), []
        for turn in range(num_guesses):
            out = self.reference.forward(torch.tensor(token_ids[1 : root + 2 + turn]), hidden)[-1:]
            made.append(self.reference.logits(out)[0])
            hidden = torch.cat((hidden, out))
        return torch.stack(made)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    model = tiny.reference_model(CONFIG)
    sizes = ModelConfig.from_hf(CONFIG)
    target = FrozenTarget.load(sizes, tiny.save(model, folder), torch.float32, CPU, AUX_LAYERS)
    config = head_config(CONFIG, DRAFT_VOCAB_SIZE)
    target_ids = torch.randperm(tiny.VOCAB_SIZE, generator=torch.Generator().manual_seed(4))[:DRAFT_VOCAB_SIZE]
    head, target_ids = DraftHead(EagleConfig.from_hf(config, sizes)), target_ids.sort().values
    features, _ = target.read(torch.tensor([tiny.prompt(20)]), torch.tensor([0]))
    head.initialise(target.head.norm, target.head.weight[target_ids], features, seed=3)
    save_head(folder / "head", head, config, target_ids)
    head, target_ids = load_head(folder / "head", sizes)
    published = {"d2t": target_ids - torch.arange(len(target_ids)), **head.state_dict()}
    checkpoint: Any = SimpleNamespace(version=3, prefix="midlayer", fc="fc", tensors=published, config=config)
    parts = {"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
    tensors = {ours: model.state_dict()[f"{theirs}.weight"] for ours, theirs in parts.items()}
    return World(model, target, head, target_ids, Reference(checkpoint, tensors))


def text(num_prompt: int, num_output: int, seed: int = 0) -> Text:
    token_ids = tiny.prompt(num_prompt + num_output, seed=seed)
    return Text(token_ids[:num_prompt], token_ids[num_prompt:])


def test_docstrings() -> None:
    fits = "word " * (MIN_CHARS // 5)
    parts = (
        '"""Short."""',
        "class A:",
        f'    """{fits}',
        '    more."""',
        "    def f(self):",
        f'        """{"x" * 1000}"""',
    )
    assert MAX_CHARS < 1000
    assert list(docstrings("\n".join(parts))) == [fits + "more."]


def test_documents_of_this_python() -> None:
    found = library_documents(40)
    assert len({*found}) == 40
    assert all(MIN_CHARS <= len(one) <= MAX_CHARS for one in found)
    assert found == library_documents(40)


def test_prompts_are_of_every_kind_and_answers_become_some() -> None:
    maker = PromptMaker(["Once there was a document."], random.Random(1))
    made = [maker.make() for _ in range(300)]
    assert {prompt.use for prompt in made} == {None, "document", "question"}
    guided = [prompt for prompt in made if prompt.guidance is not None]
    assert 10 < len(guided) < 60
    assert {json.loads(prompt.guidance.spec)["type"] for prompt in guided} == {"object", "array"}
    assert len({prompt.text for prompt in made}) > 200
    maker.take(next(prompt for prompt in made if prompt.use == "question"), "Who is it?")
    maker.take(next(prompt for prompt in made if prompt.use == "document"), "A new text.")
    later = [maker.make().text for _ in range(300)]
    assert "Who is it?" in later
    assert any("A new text." in one for one in later)


def test_texts_are_read_as_they_were_written(tmp_path: Path) -> None:
    texts = [text(5, 2), text(1, 9, seed=2), text(3, 1, seed=3)]
    save_texts(tmp_path / "deep" / "texts", texts)
    assert load_texts(tmp_path / "deep" / "texts") == texts


def test_prompts_that_are_held_out_are_not_trained_on() -> None:
    texts = [Text([1, 2], [5]), Text([3], [6]), Text([1, 2], [7]), Text([2, 1], [8])]
    assert hold_out(texts, 2) == (texts[:2], texts[3:])


def test_batches_hold_every_text_once() -> None:
    texts = [text(4, length, seed=length) for length in range(1, 40)]
    made = list(batches(texts, 100, random.Random(3)))
    found = [
        (row[:prompt].tolist(), row[prompt:length].tolist())
        for batch in made
        for row, prompt, length in zip(batch.token_ids, batch.prompt_lengths, batch.lengths, strict=True)
    ]
    assert sorted(found) == sorted((list(one.prompt_ids), list(one.output_ids)) for one in texts)
    assert all(batch.token_ids.numel() <= 100 for batch in made)
    assert sum(batch.token_ids.numel() for batch in made) < 1.3 * sum(map(len, (a + b for a, b in found)))
    assert next(batches([text(90, 20)], 100, random.Random(3))).lengths == [110]


@pytest.mark.parametrize(
    "config",
    [CONFIG, tiny.qwen2(), tiny.qwen3(), tiny.mistral(), tiny.llama(tie_word_embeddings=True)],
    ids=["llama", "qwen2", "qwen3", "mistral", "tied"],
)
def test_the_target_reads_texts_as_transformers_does(config: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.reference_model(config)
    target = FrozenTarget.load(ModelConfig.from_hf(config), tiny.save(model, tmp_path), torch.float32, CPU, (0, 1))
    batch = make_batch([text(9, 8), text(5, 3, seed=1)])
    features, logits = target.read(batch.token_ids, torch.tensor([3, 16, 17 + 7]))
    for row, length in enumerate(batch.lengths):
        with torch.no_grad():
            expected = model(batch.token_ids[row : row + 1, :length], output_hidden_states=True)
        states = torch.cat([expected.hidden_states[index][0] for index in (0, 1)], -1)
        torch.testing.assert_close(features[row, :length], states, rtol=1e-4, atol=1e-4)
        at = [3, 16] if row == 0 else [7]
        mine = logits[:2] if row == 0 else logits[2:]
        torch.testing.assert_close(mine, expected.logits[0, at], rtol=1e-4, atol=1e-4)


def test_chains_are_those_of_the_book(world: World) -> None:
    """Of two texts side by side, from every root, each guess after the text's tokens and the head's own outputs."""
    texts = [text(6, 8), text(4, 5, seed=7)]
    batch = make_batch(texts)
    features, _ = world.target.read(batch.token_ids, torch.tensor([0]))
    chains, made = world.head.chains(features), []
    for turn in range(NUM_GUESSES):
        made.append(world.head.logits(chains.step(world.target.embed(batch.token_ids.roll(-1 - turn, 1)))))
    for row, length in enumerate(batch.lengths):
        tokens = batch.token_ids[row, :length].tolist()
        for root in range(length - NUM_GUESSES):
            mine = torch.stack([logits[row, root] for logits in made])
            expected = world.chain(tokens, root, NUM_GUESSES)[:, world.target_ids]
            torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)


def test_loss_and_score_are_those_of_the_book(world: World) -> None:
    one = text(5, 9)
    tokens, batch = [*one.prompt_ids, *one.output_ids], make_batch([one, text(6, 2, seed=9)])
    objective = Objective(world.target, world.target_ids, NUM_GUESSES)
    lone = make_batch([one])
    loss = objective.loss(world.head, lone, objective.truth(lone))
    with torch.no_grad():
        laws = world.model(torch.tensor([tokens])).logits[0].double().softmax(-1)
    losses, same, overlap, unbroken = [], [0] * NUM_GUESSES, [0.0] * NUM_GUESSES, [0] * NUM_GUESSES
    positions = range(5, 13)
    right: dict[tuple[int, int], bool] = {}
    for turn in range(NUM_GUESSES):
        for position in positions:
            guessed = world.chain(tokens, position - 1 - turn, turn + 1)[turn].log_softmax(-1)
            p, q = laws[position][world.target_ids], guessed[world.target_ids]
            losses.append(-(p * q).sum() * 0.8**turn)
            overlap[turn] += float(torch.minimum(p, q.exp()).sum())
            right[position - 1 - turn, turn] = bool(guessed.argmax() == laws[position].argmax())
            same[turn] += right[position - 1 - turn, turn]
    for root in range(13):
        for turn in range(NUM_GUESSES):
            unbroken[turn] += all(right.get((root, earlier), False) for earlier in range(turn + 1))
    expected = torch.stack(losses).sum() / len(positions) / sum(0.8**turn for turn in range(NUM_GUESSES))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    score = objective.score(world.head, lone)
    assert score.num_positions == len(positions)
    assert score.num_same.tolist() == same
    assert score.num_unbroken.tolist() == unbroken
    assert score.overlap.tolist() == pytest.approx(overlap, rel=1e-4)
    both = objective.score(world.head, batch)
    assert both.num_positions == len(positions) + 1
    assert loss.requires_grad


def test_scores_add_up_and_tell_the_length_of_a_chain() -> None:
    one = Score(4, torch.tensor([3, 2]), torch.tensor([1.0, 0.5]), torch.tensor([3, 1]))
    assert (
        str(one + one)
        == "same top token 0.750 / 0.500; 1 - TV 0.250 / 0.125; unbroken 0.750 / 0.250; 2.00 tokens a step"
    )


def test_the_draft_vocabulary_has_what_is_frequent() -> None:
    texts = [Text([7, 7, 7], [5, 9, 9]), Text([7], [2, 9, 5])]
    ids, covered = frequent_ids(texts, 3, 20)
    assert ids.tolist() == [2, 5, 9]
    assert covered == 1
    assert frequent_ids(texts, 4, 20)[0].tolist() == [0, 2, 5, 9]
    assert frequent_ids(texts, 2, 20)[1] == pytest.approx(5 / 6)


def test_the_head_is_published_as_others_are(world: World, tmp_path: Path) -> None:
    config = head_config(CONFIG | {"rope_theta": 500000.0}, 10**6, aux_layers=(1, 8), intermediate_size=40)
    sizes = EagleConfig.from_hf(config, ModelConfig.from_hf(CONFIG))
    assert (sizes.version, sizes.draft_vocab_size, sizes.aux_layers) == (3, tiny.VOCAB_SIZE, (1, 8))
    assert (sizes.layer.intermediate_size, sizes.layer.rope.theta) == (40, 500000.0)
    head, ids = DraftHead(sizes), torch.arange(tiny.VOCAB_SIZE)
    save_head(tmp_path, head, config, ids)
    save_head(tmp_path, head, config, ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again, same_ids = load_head(tmp_path, ModelConfig.from_hf(CONFIG))
    assert torch.equal(same_ids, ids)
    for name, value in again.state_dict().items():
        assert torch.equal(value, head.state_dict()[name].bfloat16().float())


def test_schedule() -> None:
    length = Length(100, 60.0)
    assert [length.progress(50, 6.0), length.progress(10, 45.0), length.progress(120, 1.0)] == [0.5, 0.75, 1.0]
    rates = [rate_at(progress / 50) for progress in range(51)]
    assert 0 < rates[0] < 0.1
    assert max(rates) == rates[2] == 1
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.05


@pytest.mark.parametrize(
    ("guesses", "length", "accepted"),
    [
        ({1: [5, 6, 7], 5: [3, 9, 9]}, 8, [3]),  # of the last token alone nothing is guessed
        ({1: [5, 1, 7], 3: [7, 8, 1]}, 8, [1, 2]),
        ({1: [1, 6, 7], 2: [6, 7, 8]}, 8, [0, 3]),
        ({1: [5, 6, 7]}, 6, [2]),  # there is room for two
    ],
)
def test_steps_of_an_engine_that_guesses(guesses: dict[int, list[int]], length: int, accepted: list[int]) -> None:
    token_ids = [1, 2, 4, 5, 6, 7, 8, 3][:length]
    table = [guesses.get(root, [0, 0, 0]) for root in range(length)]
    assert walk(table, token_ids, prompt_length=2) == accepted


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_small_model(folder, {**CONFIG, "initializer_range": 0.5}, idle_layers=True)


def test_training_lowers_the_loss_and_our_engine_agrees(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writing = {"texts-tokens": 600, "writing-batch": 4, "prompt-tokens": 150, "answer-tokens": 24, "documents": 20}
    training = {"draft-vocab-size": 250, "batch-tokens": 256, "steps": 60, "held-out": 4, "report-seconds": 0}
    given = {**writing, **training, "learning-rate": 1e-2, "checked": 3, "check-tokens": 24, "guesses": 3}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    threads = ["--threads", str(torch.get_num_threads())]
    main(["--out", str(tmp_path), "--model", str(model_folder), *options, *threads])
    shown = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\S+);", shown)]
    assert len(losses) >= 60
    assert fmean(losses[-20:]) < 0.8 * fmean(losses[:10])
    in_engine, in_training = re.findall(r"(\d+ / \d+ / \d+) in", shown)
    assert in_engine == in_training
    assert int(in_engine.split(" / ")[1]) > 0
    assert len(load_texts(tmp_path / "texts.safetensors")) >= 24
    with pytest.raises(SystemExit, match="not enough"):
        main(["--out", str(tmp_path), "--model", str(model_folder), "--held-out", "1000", *threads])
    assert "texts of" in capsys.readouterr().out
