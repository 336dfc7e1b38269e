"""Speculation beside none: inter-token latency and acceptance, for each method, kind of task and size of the batch.

A decode worker's scheduler and engine, without sockets, answer the same requests for each method, turn about.
Speculation decides for itself how much to guess, and goes on learning from case to case, as a worker's does. Steps
with prompts in them are left out. Last come random prompts at a high temperature, where nothing can be guessed: what
speculation costs there.

`--sampler` measures instead how much of a step drawing and masks take where all of four guesses are right.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from math import inf
from pathlib import Path

import torch

from ..decode.guidance import make_guides
from ..engine.heap import settle
from ..engine.speculation_config import Method, SpeculationConfig
from ..launch.config import ModelOptions
from ..launch.model import find_model
from ..text.tokenizer import Tokenizer
from .batch_decoder import BatchDecoder, Request, Steps
from .report import command_line, cpu_model, versions
from .sampled_text import TASKS
from .sampler_share import HEADER as SAMPLER_HEADER
from .sampler_share import measure_shares
from .speculation_engines import EngineMaker
from .speculation_rounds import Case, Measured, Until, measure
from .speculation_tasks import RANDOM_TEMPERATURE, Asker

METHODS: tuple[Method, ...] = ("ngram", "first-layers")
OTHERS: tuple[Method, ...] = ("draft", "eagle")
"""Methods that need a --speculative-model."""
MAX_SLOWDOWN = 1.03
RANDOM_TOKENS = 32
"""A round: short ones alternate often, so that a disturbance hits all methods."""
MIN_ROOM_TOKENS = 64
"""For answers to random prompts and those that show what drawing takes."""
MIN_REQUESTS = 2
"""Of a case, at any batch: a task's kinds of prompt."""
WARM_TOKENS = 12
HEADER = (
    "| prompts | T | batch | method | tok/s a sequence | ms a step | tokens a row | guessed a row | right | "
    "right a guessing row | ÷ off | lowest, highest two rounds | ÷ idle | ≥ 1 ÷ 1.03 | same output |\n|" + 15 * "---|"
)


def cases(asker: Asker, options: argparse.Namespace) -> Iterator[Case]:
    for temperature, task, batch in product(options.temperatures, options.tasks, options.batches):
        requests = asker.requests(task, max(batch, MIN_REQUESTS), temperature, options.tokens)
        yield Case(task, temperature, batch, options.repeats, partial(_same, requests))
    for batch in options.batches if options.random_rounds else ():
        requests_of = partial(asker.random_requests, batch, RANDOM_TOKENS)
        yield Case("random", RANDOM_TEMPERATURE, batch, options.random_rounds, requests_of)


def _same(requests: Sequence[Request], number: int) -> Sequence[Request]:
    return requests


def warm(decoders: Sequence[BatchDecoder], asker: Asker, batches: Sequence[int]) -> None:
    """Every size of step has run, and what guesses cost is known of it, before anything is measured."""
    for decoder, batch in product(decoders, batches):
        decoder.run(asker.requests("edit", batch, 0.0, WARM_TOKENS), batch)


def lines(case: Case, off: Measured, found: Mapping[str, Measured]) -> Iterator[str]:
    """Of the table, a line a method. Ratios are medians of `Measured.ratios`, of several engines their mean."""
    yield f"{_begun(case, 'off', off.steps)} | | | | | | | | |"
    for name, one in found.items():
        steps, ratio = one.steps, one.ratio
        guessed, right = share(steps.num_guesses, steps.num_rows), share(steps.num_accepted, steps.num_guesses)
        right_a_row = share(steps.num_accepted, steps.num_drafts)
        resting = found.get(idle(name))
        own = "–" if resting is None else f"{ratio / resting.ratio:.2f} ×"
        spread = f"{min(one.ratios):.2f} {max(one.ratios):.2f}" if len(one.ratios) > 1 else "–"
        met = "met" if ratio * MAX_SLOWDOWN >= 1 else "missed"
        error = f" ± {one.error:.3f}" if one.error < inf else ""
        error += f" ({' '.join(f'{one:.3f}' for one in one.by_engine)})" if one.num_engines > 1 else ""
        compared = f"{ratio:.3f}{error} × | {spread} | {own} | {met}"
        same = f"{num_same(one.outputs, off.outputs)} of {len(off.outputs)}"
        yield f"{_begun(case, name, steps)} | {guessed} | {right} | {right_a_row} | {compared} | {same} |"


def _begun(case: Case, name: str, steps: Steps) -> str:
    what = f"| {case.task} | {case.temperature:g} | {case.batch} | {name}"
    return f"{what} | {steps.tokens_per_s:.1f} | {1e3 * steps.step_s:.2f} | {share(steps.num_tokens, steps.num_rows)}"


def idle(method: str) -> str:
    """Its engine, when nobody has guesses."""
    return f"{method}, idle"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "–"


def num_same(outputs: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    return sum(mine == other for mine, other in zip(outputs, others, strict=True))


def compare(maker: EngineMaker, asker: Asker, options: argparse.Namespace) -> None:
    """Prints the table, line by line."""
    caches, no_guesses, count = not options.idle, SpeculationConfig(), options.engines
    off, others = maker.decoders(no_guesses, count, caches=caches), dict[str, list[BatchDecoder]]()
    if options.control:
        others["off again"] = maker.decoders(no_guesses, count, caches=caches)
    for method in options.methods:
        others[method] = maker.decoders(config_of(method, options), count, fixed=options.fixed, caches=caches)
        if options.idle:
            others[idle(method)] = [maker.around(one.engine, None, caches=False) for one in others[method]]
    decoders = [*chain(off, *others.values())]
    warm(decoders, asker, options.batches)
    settle()
    print(f"\n{HEADER}", flush=True)
    until = Until(options.precision, options.most_rounds)
    for number, case in enumerate(cases(asker, options)):
        plain, found = measure(case, off, others, backwards=number % 2 == 1, until=until)
        for line in lines(case, plain, found):
            print(line, flush=True)
    for decoder in decoders:
        decoder.check()


def config_of(method: Method, options: argparse.Namespace) -> SpeculationConfig:
    layers = options.layers if method == "first-layers" else None
    model = options.speculative_model if method in OTHERS else None
    return SpeculationConfig(method, options.guesses, model, layers)


def main(arguments: Sequence[str] | None = None) -> None:
    options, start_s, load = parse(arguments), time.monotonic(), os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    model = find_model(ModelOptions(options.model))
    tokenizer = Tokenizer.from_folder(model.resolved.folder)
    asker = Asker(model.resolved.folder, tokenizer)
    guides = make_guides(tokenizer, model.config.vocab_size)
    max_num_seqs = options.sampler_batch if options.sampler else max(*options.batches, MIN_REQUESTS)
    length = asker.longest_prompt(max_num_seqs) + max(options.tokens, MIN_ROOM_TOKENS)
    maker = EngineMaker(model, tokenizer, options.device, max_num_seqs, length, guides)
    print(f"```\n{command_line()}\n```\n{Path(model.resolved.source).name}, {maker.dtype}, {device(options)}, ", end="")
    print(f"{versions(['torch', 'llguidance'])}; at most {options.guesses} guesses, ", end="")
    print("always as many" if options.fixed else "as many as pay", end="")
    print(f"; load average {load:.2f} before the run", flush=True)
    if options.sampler:
        print(f"\n{SAMPLER_HEADER}", flush=True)
        for line in measure_shares(maker, asker, options.sampler_batch, options.guesses):
            print(line, flush=True)
    else:
        compare(maker, asker, options)
    if guides is not None:
        guides.close()
    print(f"\n{time.monotonic() - start_s:.0f} s in all")


def device(options: argparse.Namespace) -> str:
    return f"{cpu_model()}, {options.threads} threads" if options.device == "cpu" else torch.cuda.get_device_name()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.speculation", description=__doc__)
    parser.add_argument("--model", help="MODEL; default: the demo model")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=(*METHODS, *OTHERS))
    parser.add_argument("--speculative-model", metavar="MODEL", help="of draft or eagle")
    parser.add_argument("--layers", type=int, help="of first-layers; default: a third of the model's")
    parser.add_argument("--guesses", type=int, default=4, help="at once, at most")
    parser.add_argument("--fixed", action="store_true", help="guess as many always, whether it pays or not")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--temperatures", type=float, nargs="+", default=(0.0, 0.7))
    parser.add_argument("--tasks", nargs="+", default=tuple(TASKS), choices=tuple(TASKS))
    parser.add_argument("--tokens", type=int, default=64, help="of each answer, at most")
    parser.add_argument("--repeats", type=int, default=1, help="of each task, at least")
    parser.add_argument(
        "--precision", type=float, default=inf, help="rounds go on until this is the standard error of every ratio"
    )
    parser.add_argument(
        "--most-rounds", type=int, default=Until().most_rounds, help="of a case, if --precision is given"
    )
    parser.add_argument("--random-rounds", type=int, default=4, help="of random prompts; 0 leaves them out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", type=int, default=1, help="for each method, in turn: no two are as fast")
    parser.add_argument("--control", action="store_true", help="a second engine without guesses, to see what is chance")
    parser.add_argument(
        "--idle",
        action="store_true",
        help="each method's engine without guesses, too, and no cached prompts; cuda only",
    )
    parser.add_argument("--quick", action="store_true", help="a check that all runs, in under a minute")
    parser.add_argument("--sampler", action="store_true", help="measure drawing and masks instead")
    parser.add_argument("--sampler-batch", type=int, default=64)
    options = parser.parse_args(arguments)
    asking = [method for method in options.methods if method in OTHERS]
    if len(asking) > 1:
        parser.error(f"{' and '.join(asking)} each need a --speculative-model: measure one at a time")
    if asking and options.speculative_model is None:
        parser.error(f"{asking[0]} needs a --speculative-model")
    if options.engines < 1:
        parser.error(f"--engines is {options.engines}: each method needs one")
    if options.idle and options.device == "cpu":
        parser.error("--idle takes turns on one engine, round by round: it needs --device cuda")
    return quick(options) if options.quick else options


def quick(options: argparse.Namespace) -> argparse.Namespace:
    """Batches, tasks and rounds cut to the least that has one of each kind."""
    changes = {
        "batches": (1, 4),
        "temperatures": (0.0,),
        "tasks": ("edit", "json"),
        "tokens": 24,
        "precision": inf,
        "random_rounds": 1,
    }
    return argparse.Namespace(**{**vars(options), **changes, "sampler_batch": 8})


if __name__ == "__main__":
    main()
