"""Trains an EAGLE-3 head for a model, on text that the model writes itself: `--speculative-method eagle` loads it.

    python -m isthmus.bench.train_eagle --out FOLDER [--model MODEL] [--device cuda]

First the model answers prompts of many kinds; they are kept in FOLDER/texts.safetensors, or --texts, and read from
there the next time. Then the head is trained, and saved to FOLDER/head after every report and at the end. Finally a few
held-out prompts are answered with it, in our engine on the CPU, and its guesses compared with training's own. See
docs/eagle_training.md.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..decode.guidance import make_guides
from ..engine.eagle.config import EagleConfig
from ..launch.config import ModelOptions
from ..launch.model import Model, find_model
from ..text.chat_template import load_chat_template
from ..text.tokenizer import Tokenizer
from .eagle_training.check import check_head
from .eagle_training.checkpoint import frequent_ids, head_config, save_head
from .eagle_training.documents import library_documents
from .eagle_training.head import DraftHead
from .eagle_training.objective import Objective
from .eagle_training.prompts import PromptMaker
from .eagle_training.target import FrozenTarget
from .eagle_training.texts import Text, hold_out, load_texts, make_batch, save_texts
from .eagle_training.trainer import Length, Trainer
from .eagle_training.writer import Amount, Writer
from .report import command_line, versions
from .speculation_engines import EngineMaker

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
FIRST_TEXTS = 16
"""Of which streams are measured before training."""


def main(arguments: Sequence[str] | None = None) -> None:
    options, start_s = parse(arguments), time.monotonic()
    torch.set_num_threads(options.threads)
    model = find_model(ModelOptions(options.model))
    tokenizer = Tokenizer.from_folder(model.resolved.folder)
    print(f"```\n{command_line()}\n```\n{Path(model.resolved.source).name}, {versions(['torch'])}", flush=True)
    texts = find_texts(options, model, tokenizer)
    held_out, texts = hold_out(texts, options.held_out)
    if not texts or not held_out:
        raise SystemExit(f"{len(held_out)} texts to hold out and {len(texts)} to train on are not enough")
    folder = options.out / "head"
    train(options, model, texts, held_out, folder)
    torch.set_num_threads(options.threads)
    prompts = [text.prompt_ids for text in held_out[: options.checked]]
    length = max(map(len, prompts), default=0) + options.check_tokens
    checker = EngineMaker(model, tokenizer, "cpu", 1, length)
    print(check_head(folder, checker, prompts, options.check_tokens, options.guesses), flush=True)
    print(f"{folder}; {time.monotonic() - start_s:.0f} s in all")


def find_texts(options: argparse.Namespace, model: Model, tokenizer: Tokenizer) -> list[Text]:
    """Those of an earlier run, or new ones."""
    path = options.texts or options.out / "texts.safetensors"
    if path.exists():
        texts = load_texts(path)
        print(f"{len(texts)} texts of {path}", flush=True)
        return texts
    rng = random.Random(options.seed)
    guides = make_guides(tokenizer, model.config.vocab_size)
    length = options.prompt_tokens + options.answer_tokens
    maker = EngineMaker(model, tokenizer, options.device, options.writing_batch, length, guides)
    prompts = PromptMaker(library_documents(options.documents), rng)
    template = load_chat_template(model.resolved.folder)
    writer = Writer(maker, template, prompts, max_output_tokens=options.answer_tokens)
    texts = writer.write(Amount(options.texts_tokens, options.texts_seconds), rng)
    if guides is not None:
        guides.close()
    rng.shuffle(texts)
    save_texts(path, texts)
    return texts


def train(
    options: argparse.Namespace, model: Model, texts: Sequence[Text], held_out: Sequence[Text], folder: Path
) -> None:
    """Leaves the head in `folder`."""
    own = model.resolved.config()
    config = head_config(own, options.draft_vocab_size, options.aux_layers, options.intermediate_size)
    sizes = EagleConfig.from_hf(config, model.decoder_config)
    target_ids, covered = frequent_ids(texts, sizes.draft_vocab_size, model.config.vocab_size)
    device, dtype = torch.device(options.device), DTYPES[options.device]
    target = FrozenTarget.load(model.decoder_config, model.path, dtype, device, sizes.aux_layers, model.load_format)
    head = make_head(sizes, target, target_ids, texts, options.seed).to(device)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    print(f"{num_parameters / 1e6:.1f} M parameters, {100 * covered:.2f}% of tokens can be guessed", flush=True)
    trainer = Trainer(
        head,
        Objective(target, target_ids, options.guesses),
        texts,
        held_out,
        Length(options.steps, options.seconds),
        options.learning_rate,
        options.batch_tokens,
        device,
        options.report_seconds,
        on_report=lambda: save_head(folder, head, config, target_ids),
    )
    trainer.run(random.Random(options.seed))


def make_head(
    sizes: EagleConfig, target: FrozenTarget, target_ids: torch.Tensor, texts: Sequence[Text], seed: int
) -> DraftHead:
    head, batch = DraftHead(sizes), make_batch(texts[:FIRST_TEXTS]).to(target.device)
    features, _ = target.read(batch.token_ids, torch.tensor([0], device=target.device))
    output = target.head.weight[target_ids.to(target.device)]
    head.initialise(target.head.norm.cpu(), output.cpu(), features.cpu(), seed)
    return head


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.train_eagle", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of texts and head")
    parser.add_argument("--model", help="MODEL; default: the demo model")
    parser.add_argument("--device", default="cpu", choices=tuple(DTYPES))
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--seed", type=int, default=1)
    writing = parser.add_argument_group("texts")
    writing.add_argument("--texts", type=Path, metavar="FILE", help="default: texts.safetensors in --out")
    writing.add_argument("--texts-tokens", type=int, default=10_000_000, help="of answers, about, if time allows")
    writing.add_argument("--texts-seconds", type=float, default=600.0)
    writing.add_argument("--writing-batch", type=int, default=256, help="answers written at once")
    writing.add_argument("--prompt-tokens", type=int, default=320, help="at most")
    writing.add_argument("--answer-tokens", type=int, default=256, help="at most")
    writing.add_argument("--documents", type=int, default=1000, help="of Python's library, at most")
    training = parser.add_argument_group("head and training")
    training.add_argument("--draft-vocab-size", type=int, default=16_384, help="tokens that can be guessed")
    training.add_argument("--intermediate-size", type=int, help="of the head's MLP; default: the model's")
    training.add_argument("--aux-layers", type=int, nargs="+", help="streams that it reads; default: 2, n/2, n-3 of n")
    training.add_argument("--guesses", type=int, default=4, help="in a row that it is trained for")
    training.add_argument("--seconds", type=float, default=600.0, help="at most")
    training.add_argument("--steps", type=int, default=1_000_000, help="at most")
    training.add_argument("--batch-tokens", type=int, default=16_384)
    training.add_argument("--learning-rate", type=float, default=1e-3)
    training.add_argument("--report-seconds", type=float, default=60.0)
    training.add_argument("--held-out", type=int, default=256, help="texts that are not trained on, nor their prompts")
    training.add_argument("--checked", type=int, default=4, help="of those, prompts answered by our engine at the end")
    training.add_argument("--check-tokens", type=int, default=48, help="of such an answer, at most")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
