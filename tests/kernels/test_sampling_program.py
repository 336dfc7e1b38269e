"""Programs give the tokens of decode's sampler, for every sampler, in any order, and their states."""

import random
from struct import unpack

import numpy as np
import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import Draw, SequenceSeed
from isthmus.kernels.sampling_params import DEFAULT_ORDER
from isthmus.kernels.sampling_program import can_run, needs_program
from isthmus.kernels.sampling_table import SamplingTable, SlotParams
from isthmus.kernels.sampling_tail import PROGRAM, TailWorkspace, launch_programs, ref_sample_tail, sample_tail
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams
from isthmus.wire.sampling_order import order_of

# Triton 3.6 turns a loop's bounds into ints in a way that newer versions of numpy deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

SMALL = {"TILE": 256, "CAPACITY": 128, "num_warps": 4}
"""Little room, so that short rows are sorted in tiles, searched in walks."""
HISTORY = ("dry", "no_repeat_ngram")
RENAMED = {"repetition_penalty": "repetition", "frequency_penalty": "frequency", "presence_penalty": "presence"}

EACH = [
    SamplingParams(nsigma=1.5),
    SamplingParams(top_a=0.2),
    SamplingParams(tfs=0.9),
    SamplingParams(tfs=0.2, top_k=40),
    SamplingParams(typical_p=0.5),
    SamplingParams(typical_p=0.95, temperature=1.5),
    SamplingParams(tfs=0.0, sampler_priority=("tfs", *(s for s in DEFAULT_ORDER if s != "tfs"))),
    SamplingParams(typical_p=0.0, temperature=1.5),
    SamplingParams(eta_cutoff=0.01),
    SamplingParams(epsilon_cutoff=0.01),
    SamplingParams(xtc_probability=1.0, xtc_threshold=0.02),
    SamplingParams(xtc_probability=0.5, xtc_threshold=0.02, min_p=0.02),
    SamplingParams(smoothing_factor=0.3, smoothing_curve=1.5),
    SamplingParams(smoothing_factor=0.01, smoothing_curve=6.0),
    SamplingParams(dynatemp_min=0.5, dynatemp_max=1.5, dynatemp_exponent=0.7),
    SamplingParams(dynatemp_min=1.5, dynatemp_max=0.5, top_p=0.9),
    SamplingParams(skew=0.7),
    SamplingParams(skew=-1.5, top_k=200),
    SamplingParams(mirostat_mode=1, mirostat_tau=0.7),
    SamplingParams(mirostat_mode=1, mirostat_tau=2.0, top_k=1),
    SamplingParams(mirostat_mode=2, mirostat_tau=2.0, skew=0.3),
    SamplingParams(mirostat_mode=2, mirostat_tau=4.0, mirostat_eta=0.5, temperature=0.8),
    SamplingParams(adaptive_target=0.2),
    SamplingParams(adaptive_target=0.5, adaptive_decay=0.5, min_p=0.01),
    SamplingParams(temperature=0.7, min_p=0.05, temperature_last=True),
    SamplingParams(top_p=0.5, top_k=30, sampler_priority=("top_p", *(s for s in DEFAULT_ORDER if s != "top_p"))),
    SamplingParams(top_a=0.01, repetition_penalty=1.4, presence_penalty=0.5),
]
EVERYTHING = SamplingParams(
    temperature=1.2, nsigma=2.5, top_k=60, top_p=0.98, top_a=0.01, min_p=0.01, tfs=0.99, eta_cutoff=0.0003,
    epsilon_cutoff=0.0003, typical_p=0.97, smoothing_factor=0.05, xtc_probability=0.5, xtc_threshold=0.05, skew=0.2,
    repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1,
)  # fmt: skip


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_params(rng):
    def some(neutral, *values):
        return neutral if rng.random() < 0.6 else rng.choice(values)

    order = tuple(rng.sample(DEFAULT_ORDER, len(DEFAULT_ORDER))) if rng.random() < 0.5 else ()
    return SamplingParams(
        temperature=some(1.0, 0.3, 0.7, 1.5),
        top_k=some(0, 1, 20, 300),
        top_p=some(1.0, 0.5, 0.95, 0.0),
        min_p=some(0.0, 0.001, 0.1),
        repetition_penalty=some(1.0, 0.7, 1.3),
        presence_penalty=some(0.0, 0.6),
        dynatemp_max=some(0.0, 1.4),
        smoothing_factor=some(0.0, 0.1),
        smoothing_curve=some(1.0, 2.0),
        nsigma=some(0.0, 1.0, 3.0),
        top_a=some(0.0, 0.003, 0.3),
        tfs=some(1.0, 0.95, 0.5, 0.0),
        typical_p=some(1.0, 0.9, 0.3, 0.0),
        eta_cutoff=some(0.0, 1e-3),
        epsilon_cutoff=some(0.0, 1e-3),
        xtc_probability=some(0.0, 0.5, 1.0),
        skew=some(0.0, 0.5, -0.5),
        mirostat_mode=some(0, 1, 2),
        mirostat_tau=rng.choice([0.5, 1.0, 2.0]),
        adaptive_target=some(-1.0, 0.1, 0.6),
        sampler_priority=order,
    )


def slot_params(p, key, epoch):
    names = [name for name in SlotParams.__slots__ if name not in ("key", "epoch", "order", *RENAMED.values())]
    return SlotParams(
        **{name: getattr(p, name) for name in names},
        **{name: getattr(p, long) for long, name in RENAMED.items()},
        key=key,
        epoch=epoch,
        order=order_of(p),
    )


def has_program(p):
    params = slot_params(p, (0, 0), 0)
    return can_run(params) and needs_program(params)


class Sequences:
    """The same sequences in decode's sampler and in a table on `device`: row i of a batch is sequence i, slot i."""

    def __init__(self, params, vocab_size, device, epoch=0):
        self.sampler, self.epoch, self.position = Sampler(vocab_size), epoch, 40
        self.table = SamplingTable(len(params), vocab_size, device)
        self.workspace = TailWorkspace(len(params), vocab_size, device)
        self.params, self.device = params, device
        for i, p in enumerate(params):
            rng = random.Random(i)
            prompt, output = ([rng.randrange(vocab_size) for _ in range(n)] for n in (30, 40))
            key = philox_key(5, 0, i)
            self.sampler.admit(SequenceSeed(i, p, key, prompt, output, frozenset()))
            self.table.set(i, slot_params(p, key, epoch), prompt, output)

    def expected(self, logits):
        """(tokens, packed states)"""
        draws = [Draw(i, self.position, self.epoch) for i in range(len(self.params))]
        samples = self.sampler.sample(logits, draws)
        return samples.token_ids.tolist(), list(samples.states)

    def drawn(self, logits, config):
        """(tokens, states fp32 [N, 2]); by the reference where `config` is None."""
        n = len(self.params)
        slots = torch.arange(n, dtype=torch.int32, device=self.device)
        out = torch.full((n,), -7, dtype=torch.int32, device=self.device)
        arguments = (logits.to(self.device).clone(), slots, torch.full_like(slots, self.position), self.table)
        states = self.workspace.states
        if config is None:
            ref_sample_tail(*arguments, out=out, states=states)
        elif config is PROGRAM:
            sample_tail(*arguments, workspace=self.workspace, out=out)
        else:
            assert all(map(has_program, self.params))
            launch_programs(*arguments, workspace=self.workspace, out=out, config=config)
        self.position += 1
        return out.tolist(), states.cpu()


def check(device, params, logits, config, *, num_steps=1, epoch=0):
    sequences = Sequences(params, logits.shape[1], device, epoch)
    for step in range(num_steps):
        turned = logits.roll(step, 1)
        tokens, states = sequences.expected(turned)
        drawn, found = sequences.drawn(turned, config)
        assert drawn == tokens
        for packed, state in zip(states, found, strict=True):
            wanted = unpack(f"<{len(packed) // 4}f", packed)
            np.testing.assert_allclose(state.numpy()[: len(wanted)], wanted, rtol=1e-5)


def check_each(device, vocab_size, config, **kwargs):
    check(device, EACH, randn(len(EACH), vocab_size, seed=3), config, **kwargs)


def check_random(device, vocab_size, num_rows, config, seed=0):
    rng = random.Random(seed)
    params = [p for p in (random_params(rng) for _ in range(4 * num_rows)) if has_program(p)]
    logits = randn(num_rows, vocab_size, seed=seed)
    logits *= torch.tensor([rng.choice([0.3, 1.0, 2.0]) for _ in range(num_rows)])[:, None]
    check(device, params[:num_rows], logits, config)


def edge_rows(vocab_size):
    """(params, logits) where ties, masks or magnitudes are out of the ordinary."""
    equal = torch.zeros(vocab_size)
    coarse = (randn(vocab_size, seed=5) * 0.5).round()
    masked = randn(vocab_size, seed=6)
    masked[::2] = -torch.inf
    one = torch.full((vocab_size,), -torch.inf)
    one[vocab_size // 2] = 2.0
    two = one.clone()
    two[vocab_size - 1] = 2.0
    steps = [
        {"nsigma": 1.0}, {"top_a": 0.5}, {"tfs": 0.5}, {"typical_p": 0.3}, {"eta_cutoff": 0.1}, {"epsilon_cutoff": 0.1},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0}, {"smoothing_factor": 1.0}, {"skew": 1.0},
        {"mirostat_mode": 1, "mirostat_tau": 1.0}, {"mirostat_mode": 2, "mirostat_tau": 1.0}, {"adaptive_target": 0.1},
        {"dynatemp_max": 2.0}, {"top_k": 7, "skew": 0.5}, {"top_p": 0.3, "skew": 0.5},
        {"tfs": 0.0}, {"typical_p": 0.0}, {"top_p": 0.0, "skew": 0.5},
    ]  # fmt: skip
    return [(SamplingParams(**step), line) for line in (equal, coarse, masked, one, two) for step in steps]


def check_edges(device, vocab_size, config, rows=slice(None)):
    params, logits = zip(*edge_rows(vocab_size)[rows], strict=True)
    check(device, list(params), torch.stack(logits), config)


def check_broken_rows(device, vocab_size):
    """Token −1, and nothing changed."""
    params = [SamplingParams(nsigma=1.0, presence_penalty=1.0), SamplingParams(mirostat_mode=2, mirostat_tau=2.0)]
    for bad in (torch.nan, torch.inf, -torch.inf):
        sequences = Sequences(params, vocab_size, device)
        table = sequences.table
        before = [t.clone() for t in (table.counts, table.last_token, table.states)]
        logits = randn(len(params), vocab_size) if bad > 0 or bad != bad else torch.full((2, vocab_size), bad)
        logits[:, 3] = bad
        assert sequences.drawn(logits, PROGRAM)[0] == [-1, -1]
        assert all(map(torch.equal, before, (table.counts, table.last_token, table.states)))


def check_alone_and_together(device, vocab_size, rows, config):
    """A row is drawn the same, to the bits of its state, whatever stands beside it."""
    logits = randn(len(EACH), vocab_size, seed=8)
    tokens, states = Sequences(EACH, vocab_size, device).drawn(logits, config)
    for i in rows:
        params = [EACH[0]] * i + [EACH[i]]
        alone, state = Sequences(params, vocab_size, device).drawn(logits[: i + 1], config)
        assert alone[i] == tokens[i]
        assert torch.equal(state[i], states[i])


@pytest.mark.parametrize("vocab_size", [100, 3001])
def test_reference_of_each(vocab_size):
    check_each("cpu", vocab_size, None, num_steps=3)


def test_reference_of_random_programs():
    check_random("cpu", 1000, 150, None)


def test_reference_of_edges():
    check_edges("cpu", 200, None)


def test_reference_of_a_rewound_sequence():
    check_each("cpu", 100, None, epoch=3)


@pytest.mark.interpreter
@pytest.mark.parametrize("vocab_size", [1, 2, 100])
def test_each_interpreted(vocab_size):
    check_each("cpu", vocab_size, SMALL, epoch=2)


@pytest.mark.interpreter
def test_each_of_more_than_fits_interpreted():
    check_each("cpu", 700, SMALL)


@pytest.mark.interpreter
def test_everything_interpreted():
    check("cpu", [EVERYTHING] * 4, randn(4, 400), SMALL, num_steps=2)


@pytest.mark.interpreter
def test_random_programs_interpreted():
    check_random("cpu", 300, 20, SMALL)


@pytest.mark.interpreter
@pytest.mark.parametrize("start", range(0, 90, 15))
def test_edges_interpreted(start):
    check_edges("cpu", 150, SMALL, slice(start, start + 15))


@pytest.mark.interpreter
def test_broken_rows_interpreted():
    check_broken_rows("cpu", 70)


@pytest.mark.interpreter
def test_alone_and_together_interpreted():
    check_alone_and_together("cpu", 130, (1, 4, 14), SMALL)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [33, 2048, 2049, 4097, 49_153, 128_256])
def test_each_compiled(vocab_size):
    check_each("cuda", vocab_size, PROGRAM, num_steps=2, epoch=1)


@pytest.mark.gpu
@pytest.mark.parametrize(("vocab_size", "num_rows"), [(300, 300), (3000, 150), (49_153, 60), (128_256, 32)])
def test_random_programs_compiled(vocab_size, num_rows):
    check_random("cuda", vocab_size, num_rows, PROGRAM, seed=vocab_size)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [150, 5000, 49_152])
def test_edges_compiled(vocab_size):
    check_edges("cuda", vocab_size, PROGRAM)


@pytest.mark.gpu
def test_everything_compiled():
    check("cuda", [EVERYTHING] * 64, randn(64, 128_256), PROGRAM, num_steps=3)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [70, 49_152])
def test_broken_rows_compiled(vocab_size):
    check_broken_rows("cuda", vocab_size)


@pytest.mark.gpu
def test_alone_and_together_compiled():
    check_alone_and_together("cuda", 49_152, range(len(EACH)), PROGRAM)


@pytest.mark.gpu
def test_ordinary_rows_and_programs_in_one_graph():
    """Captured once with neutral rows; then sequences with programs, and without, take the slots."""
    vocab_size, params = 4099, [p for one in EACH for p in (one, SamplingParams(top_p=0.9))]
    n = len(params)
    sequences = Sequences([SamplingParams()] * n, vocab_size, "cuda")
    logits = randn(n, vocab_size).cuda()
    slots = torch.arange(n, dtype=torch.int32, device="cuda")
    positions, out = torch.full_like(slots, 40), torch.zeros_like(slots)
    table, workspace = sequences.table, sequences.workspace
    sample_tail(logits, slots, positions, table, workspace=workspace, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_tail(logits, slots, positions, table, workspace=workspace, out=out)
    fresh, expected = randn(n, vocab_size, seed=9), Sequences(params, vocab_size, "cpu")
    for i, p in enumerate(params):
        table.set(i, slot_params(p, philox_key(5, 0, i), 0))
    logits.copy_(fresh)
    graph.replay()
    for i, p in enumerate(params):
        expected.sampler.retire(i)
        expected.sampler.admit(SequenceSeed(i, p, philox_key(5, 0, i), (), (), frozenset()))
    positions.zero_()
    logits.copy_(fresh)
    for i, p in enumerate(params):
        table.set(i, slot_params(p, philox_key(5, 0, i), 0))
    graph.replay()
    expected.position = 0
    assert out.tolist() == expected.expected(fresh)[0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, presence_penalty=1.0), False),
        (SamplingParams(temperature=0.0, tfs=0.5, skew=1.0, mirostat_mode=2, adaptive_target=0.5), False),
        (SamplingParams(temperature_last=True, top_k=5), False),
        (SamplingParams(temperature=0.7, temperature_last=True, top_k=5), True),
        (SamplingParams(temperature=0.0, dynatemp_max=1.0), True),
        (SamplingParams(mirostat_mode=1), True),
        (SamplingParams(smoothing_factor=0.2), True),
    ],
)
def test_who_needs_a_program(params, expected):
    assert needs_program(slot_params(params, (0, 0), 0)) is expected


def test_skewed_adaptive_p_is_refused():
    params = SlotParams(adaptive_target=0.3, skew=0.5)
    assert not can_run(params)
    with pytest.raises(ValueError, match="not run together"):
        SamplingTable(1, 50, "cpu").set(0, params)
