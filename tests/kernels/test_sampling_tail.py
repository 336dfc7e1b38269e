"""The sampling tail gives the tokens of decode's sampler, for any mix of parameters, ties and broken rows."""

import math
import random

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import Draw, SequenceSeed
from isthmus.kernels.sampling_table import IN_PROMPT, SamplingTable, SlotParams
from isthmus.kernels.sampling_tail import SCAN, TailWorkspace, launch_tail, ref_sample_tail, sample_tail
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

# Triton 3.6 turns a loop's bounds into ints in a way that newer versions of numpy deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

INF = math.inf
PLAIN = SamplingParams()
GREEDY = SamplingParams(temperature=0.0)
ALL = SamplingParams(
    temperature=0.8,
    top_k=50,
    top_p=0.95,
    min_p=0.05,
    repetition_penalty=1.1,
    frequency_penalty=0.3,
    presence_penalty=0.2,
)
MIX = [
    PLAIN,
    GREEDY,
    ALL,
    SamplingParams(top_p=0.9),
    SamplingParams(temperature=1.3, min_p=0.1),
    SamplingParams(top_k=5),
    SamplingParams(temperature=2.0, repetition_penalty=1.5),
    SamplingParams(temperature=2.0, top_k=400, top_p=0.99),
]


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_params(rng):
    def some(neutral, *values):
        return neutral if rng.random() < 0.5 else rng.choice(values)

    return SamplingParams(
        temperature=some(1.0, 0.0, 1e-3, 0.3, 0.7, 1.5, 3.0),
        top_k=some(0, 1, 2, 20, 50, 300, 5000, 10**6),
        top_p=some(1.0, 0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999),
        min_p=some(0.0, 1e-4, 0.02, 0.1, 1.0),
        repetition_penalty=some(1.0, 0.7, 1.1, 2.0),
        frequency_penalty=some(0.0, -0.5, 0.3, 1.7),
        presence_penalty=some(0.0, -0.4, 0.6),
    )


class Sequences:
    """The same sequences in decode's sampler and in a table on `device`: row i of a batch is sequence i, slot 2 i."""

    def __init__(self, params, vocab_size, device, *, num_output=40, choices=None):
        self.sampler = Sampler(vocab_size)
        self.table = SamplingTable(2 * len(params), vocab_size, device)
        self.workspace = TailWorkspace(len(params) + 3, vocab_size, device)
        self.device, self.position, self.num = device, num_output, len(params)
        for i, p in enumerate(params):
            rng = random.Random(i if choices is None else choices[i])
            prompt = [rng.randrange(vocab_size) for _ in range(30)]
            output = [
                rng.choice(prompt) if rng.random() < 0.5 else rng.randrange(vocab_size) for _ in range(num_output)
            ]
            key = philox_key(5, 0, i if choices is None else choices[i])
            self.sampler.admit(SequenceSeed(i, p, key, prompt, output, frozenset()))
            self.table.set(2 * i, slot_params(p, key), prompt, output)

    def expected(self, logits):
        return self.sampler.sample(logits, [Draw(i, self.position) for i in range(self.num)]).token_ids

    def drawn(self, logits, sample=sample_tail, num_padding=0, dtype=torch.int32):
        """Tokens of the kernels, with `num_padding` padding rows at the end."""
        num_rows = self.num + num_padding
        batch = torch.full((num_rows, logits.shape[1]), torch.nan)
        batch[: self.num] = logits
        slots = torch.tensor([2 * i for i in range(self.num)] + [-1] * num_padding, dtype=torch.int32)
        positions = torch.full((num_rows,), self.position, dtype=torch.int32, device=self.device)
        out = torch.full((num_rows,), -7, dtype=dtype, device=self.device)
        self.logits = batch.to(self.device)
        arguments = (self.logits, slots.to(self.device), positions, self.table)
        if sample is sample_tail:
            sample_tail(*arguments, workspace=self.workspace, out=out)
        else:
            sample(*arguments, out=out)
        return out.cpu()


def slot_params(p, key):
    return SlotParams(
        p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty, p.presence_penalty, key
    )


def check_tokens(device, params, logits, sample=sample_tail):
    sequences = Sequences(params, logits.shape[1], device)
    expected = sequences.expected(logits)
    assert sequences.drawn(logits, sample).tolist() == expected.tolist()


def check_mix(device, vocab_size, repeat=1, sample=sample_tail):
    check_tokens(device, MIX * repeat, randn(len(MIX) * repeat, vocab_size), sample)


def check_random_mixes(device, vocab_size, num_rows, sample=sample_tail):
    rng = random.Random(vocab_size)
    logits = randn(num_rows, vocab_size, seed=1)
    logits *= torch.tensor([rng.choice([0.1, 1.0, 3.0]) for _ in range(num_rows)])[:, None]
    check_tokens(device, [random_params(rng) for _ in range(num_rows)], logits, sample)


def edge_rows(vocab_size):
    """(params, logits) where ties, masks or magnitudes are out of the ordinary."""
    equal = torch.zeros(vocab_size)
    signed_zeros = equal.clone()
    signed_zeros[::2] = -0.0
    coarse = (randn(vocab_size, seed=3) * 0.7).round()
    two = torch.full((vocab_size,), -INF)
    two[[vocab_size // 3, vocab_size - 1]] = torch.tensor([1.0, 1.5])
    normal = randn(vocab_size, seed=4)
    half = normal.clone()
    half[: vocab_size // 2] = -INF
    nine = torch.full((vocab_size,), -INF)
    step = -(-vocab_size // 9)
    nine[::step] = normal[::step]
    nine_equal = nine.clamp(max=-1e6)
    return [
        (SamplingParams(top_p=0.5), equal),
        (SamplingParams(top_p=0.1, top_k=3), equal),
        (SamplingParams(top_k=3, min_p=1.0), equal),
        (SamplingParams(top_p=1e-6), equal),
        (SamplingParams(top_p=0.0), equal),
        (SamplingParams(top_p=0.0, top_k=3), equal),
        (PLAIN, equal),
        (GREEDY, signed_zeros),
        (SamplingParams(top_k=2, top_p=0.3), signed_zeros),
        (SamplingParams(top_k=7), coarse),
        (SamplingParams(top_p=0.6), coarse),
        (SamplingParams(top_p=0.0), coarse),
        (SamplingParams(top_k=40, top_p=0.0, min_p=0.3), coarse),
        (SamplingParams(top_k=40, top_p=0.8, min_p=0.3), coarse),
        (GREEDY, coarse),
        (SamplingParams(top_k=5, top_p=0.99), two),
        (SamplingParams(top_p=0.9), two),
        (SamplingParams(top_p=0.0), two),
        (PLAIN, two),
        (SamplingParams(top_k=10**6, top_p=0.7), half),
        (SamplingParams(top_k=vocab_size), normal),
        (SamplingParams(top_k=1), normal),
        (SamplingParams(temperature=1e-3, top_p=0.9), normal),
        (PLAIN, normal + 3e4),
        (PLAIN, normal - 1e7),
        (SamplingParams(top_p=0.9), normal + 1e6),
        (PLAIN, normal * 1e30),
        (SamplingParams(min_p=0.01), normal * 1e30),
        (SamplingParams(top_p=0.9999999), normal * 0.1),
        (SamplingParams(top_k=50), nine),
        (SamplingParams(top_k=50, top_p=0.9, min_p=0.02), nine),
        (SamplingParams(top_k=9, top_p=0.5), nine),
        (SamplingParams(top_k=50, top_p=0.4), nine_equal),
        (SamplingParams(top_k=5), nine_equal),
        (SamplingParams(top_p=0.4), nine_equal),
        (SamplingParams(min_p=0.3), nine),
    ]


def walk(logits, slots, positions, table, *, out):
    """`sample_tail` with little room for lists, so that rows are walked which would else be searched in registers."""
    workspace = TailWorkspace(len(logits), logits.shape[1], logits.device)
    finish = {"TILE": 1024, "CAPACITY": 32, "num_warps": 4}
    return launch_tail(logits, slots, positions, table, workspace=workspace, out=out, scan=SCAN, finish=finish)


def check_wide_nuclei(device, vocab_size, sample=sample_tail, scales=(0.1, 1.0, 4.0)):
    """Of flat logits, peaked ones, and ones with ties: drawn inside and outside the nucleus."""
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for top_p in (0.1, 0.6, 0.99)
        for temperature, top_k, min_p in ((1.0, 0, 0.0), (0.7, 0, 0.01), (1.0, vocab_size // 4, 0.0))
    ]
    params.append(SamplingParams(top_p=0.0))
    for scale in scales:
        check_tokens(device, params, randn(len(params), vocab_size, scale=scale), sample)
    check_tokens(device, params, randn(len(params), vocab_size).round(), sample)


def check_edges(device, vocab_size, rows=slice(None), sample=sample_tail):
    params, logits = zip(*edge_rows(vocab_size)[rows], strict=True)
    check_tokens(device, list(params), torch.stack(logits), sample)


def check_the_table_is_kept(device, vocab_size, num_steps=3):
    """Over several steps: `last_token` and, with penalties, `counts` follow; other slots and rows stay as they were."""
    params = [PLAIN, ALL, GREEDY, SamplingParams(temperature=0.0, presence_penalty=2.0)]
    sequences = Sequences(params, vocab_size, device)
    table = sequences.table
    before = table.counts.clone()
    for step in range(num_steps):
        logits = randn(len(params), vocab_size, seed=step, scale=0.5)
        expected = sequences.expected(logits)
        tokens = sequences.drawn(logits, num_padding=2)
        assert tokens.tolist() == [*expected.tolist(), 0, 0]
        assert table.last_token[::2].tolist() == expected.tolist()
        assert table.last_token[1::2].tolist() == [0] * len(params)
        before[2, int(tokens[1])] += 1
        before[6, int(tokens[3])] += 1
        sequences.position += 1
    assert torch.equal(table.counts, before)
    assert torch.equal(sequences.logits[:-2].cpu(), logits)
    assert bool(sequences.logits[-2:].isnan().all())


def check_broken_rows(device, vocab_size):
    """Token −1, and nothing changed, where decode's sampler raises."""
    params = [PLAIN, GREEDY, ALL, SamplingParams(top_p=0.5), SamplingParams(min_p=0.5)]
    logits = randn(len(params), vocab_size)
    for bad in (math.nan, INF):
        logits[:, vocab_size - 2] = bad
        _check_refused(device, params, logits)
    _check_refused(device, params, torch.full_like(logits, -INF))


def check_masked_rows_are_not_walked(device, vocab_size):
    """Where fewer tokens are left than top-k keeps, they are listed: what a walk would write is not touched."""
    logits = torch.full((1, vocab_size), -INF)
    logits[0, :: vocab_size // 7] = 1.0
    sequences = Sequences([SamplingParams(top_k=50)], vocab_size, device)
    sequences.workspace.scores.fill_(7.0)
    assert sequences.drawn(logits).tolist() == sequences.expected(logits).tolist()
    assert bool((sequences.workspace.scores == 7.0).all())


def _check_refused(device, params, logits):
    sequences = Sequences(params, logits.shape[1], device)
    before = sequences.table.counts.clone(), sequences.table.last_token.clone()
    assert sequences.drawn(logits).tolist() == [-1] * len(params)
    assert torch.equal(sequences.table.counts, before[0])
    assert torch.equal(sequences.table.last_token, before[1])


def check_alone_and_together(device, vocab_size, rows):
    logits = randn(len(MIX), vocab_size, seed=8)
    together = Sequences(MIX, vocab_size, device).drawn(logits)
    for i in rows:
        alone = Sequences([MIX[i]], vocab_size, device, choices=[i]).drawn(logits[i : i + 1])
        assert alone.tolist() == [together[i]]


@pytest.mark.parametrize("vocab_size", [1000, 4099])
def test_reference_of_a_mix(vocab_size):
    check_mix("cpu", vocab_size, sample=ref_sample_tail)


@pytest.mark.parametrize("vocab_size", [77, 1000, 4096])
def test_reference_of_random_parameters(vocab_size):
    check_random_mixes("cpu", vocab_size, 100, sample=ref_sample_tail)


def test_reference_of_edges():
    check_edges("cpu", 1000, sample=ref_sample_tail)


@pytest.mark.interpreter
def test_mix_interpreted():
    check_mix("cpu", 4099)


@pytest.mark.interpreter
def test_random_parameters_interpreted():
    check_random_mixes("cpu", 77, 12)


@pytest.mark.interpreter
@pytest.mark.parametrize("start", range(0, 36, 8))
def test_edges_interpreted(start):
    check_edges("cpu", 1000, slice(start, start + 8))


@pytest.mark.interpreter
def test_walks_interpreted():
    check_wide_nuclei("cpu", 700, walk, scales=(1.0,))


@pytest.mark.interpreter
def test_table_interpreted():
    check_the_table_is_kept("cpu", 100, num_steps=2)


@pytest.mark.interpreter
def test_broken_rows_interpreted():
    check_broken_rows("cpu", 70)


@pytest.mark.interpreter
def test_masked_rows_are_not_walked_interpreted():
    check_masked_rows_are_not_walked("cpu", 4099)


@pytest.mark.interpreter
def test_alone_and_together_interpreted():
    check_alone_and_together("cpu", 300, rows=(0, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [2, 31, 32, 33, 2047, 2048, 2049, 49_151, 49_152, 49_153, 128_256])
def test_mix_compiled(vocab_size):
    check_mix("cuda", vocab_size)


@pytest.mark.gpu
@pytest.mark.parametrize(("vocab_size", "num_rows"), [(77, 200), (1000, 200), (49_153, 60), (128_256, 60)])
def test_random_parameters_compiled(vocab_size, num_rows):
    check_random_mixes("cuda", vocab_size, num_rows)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [200, 1000, 49_152, 128_256])
def test_edges_compiled(vocab_size):
    check_edges("cuda", vocab_size)


@pytest.mark.gpu
@pytest.mark.parametrize("sample", [sample_tail, walk])
@pytest.mark.parametrize("vocab_size", [5000, 49_153, 128_256])
def test_wide_nuclei_compiled(vocab_size, sample):
    check_wide_nuclei("cuda", vocab_size, sample)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [200, 49_152])
def test_walked_edges_compiled(vocab_size):
    check_edges("cuda", vocab_size, sample=walk)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [100, 49_152])
def test_table_compiled(vocab_size):
    check_the_table_is_kept("cuda", vocab_size, num_steps=6)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [70, 49_152])
def test_broken_rows_compiled(vocab_size):
    check_broken_rows("cuda", vocab_size)


@pytest.mark.gpu
def test_masked_rows_are_not_walked_compiled():
    check_masked_rows_are_not_walked("cuda", 49_152)


@pytest.mark.gpu
def test_alone_and_together_compiled():
    check_alone_and_together("cuda", 49_152, rows=range(len(MIX)))


@pytest.mark.gpu
def test_one_graph_serves_parameters_that_change():
    """Captured once with neutral rows; then sequences with other parameters take the slots."""
    vocab_size, num_rows = 4099, len(MIX)
    table = SamplingTable(num_rows, vocab_size, "cuda")
    workspace = TailWorkspace(num_rows, vocab_size, "cuda")
    logits = randn(num_rows, vocab_size).cuda()
    slots = torch.arange(num_rows, dtype=torch.int32, device="cuda")
    positions = torch.zeros(num_rows, dtype=torch.int32, device="cuda")
    out = torch.zeros(num_rows, dtype=torch.int64, device="cuda")
    sample_tail(logits, slots, positions, table, workspace=workspace, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_tail(logits, slots, positions, table, workspace=workspace, out=out)
    for seed in range(3):
        sampler = Sampler(vocab_size)
        for i in range(num_rows):
            params, key = MIX[(i + seed) % num_rows], philox_key(seed, 0, i)
            sampler.admit(SequenceSeed(i, params, key, (1, 2, 3), (), frozenset()))
            table.set(i, slot_params(params, key), (1, 2, 3))
        fresh = randn(num_rows, vocab_size, seed=seed)
        logits.copy_(fresh)
        graph.replay()
        assert out.tolist() == sampler.sample(fresh, [Draw(i, 0) for i in range(num_rows)]).token_ids.tolist()


def test_a_slot_holds_what_was_set():
    table = SamplingTable(3, 50, "cpu")
    table.set(1, SlotParams(temperature=0.5, top_k=7, repetition=1.2, key=(2**32 - 1, 5)), (3, 4, 3), (4, 9, 9))
    expected = torch.zeros(50, dtype=torch.int32)
    expected[[3, 4, 9]] = torch.tensor([IN_PROMPT, IN_PROMPT + 1, 2], dtype=torch.int32)
    assert torch.equal(table.counts[1], expected)
    assert table.last_token.tolist() == [0, 9, 0]
    assert not table.counts[[0, 2]].any()
    table.set(1, SlotParams(presence=1.0), (3, 4), (8,))
    assert table.counts[1].nonzero().flatten().tolist() == [8]
    table.set(1, SlotParams())
    assert torch.equal(table.words, table.words[:1].expand(3, -1))


def test_a_prompt_alone_gives_the_last_token():
    table = SamplingTable(1, 50, "cpu")
    table.set(0, SlotParams(), (3, 4))
    assert table.last_token.tolist() == [4]


@pytest.mark.parametrize("ids", [(50,), (-1,)])
def test_tokens_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match="vocabulary of 50"):
        SamplingTable(1, 50, "cpu").set(0, SlotParams(presence=1.0), (), ids)


@pytest.mark.parametrize("slot", [-1, 3])
def test_slots_that_are_not_there_are_refused(slot):
    with pytest.raises(IndexError, match=f"slot {slot} of 3"):
        SamplingTable(3, 50, "cpu").set(slot, SlotParams())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 50, dtype=torch.float64)}, "logits must be"),
        ({"logits": torch.zeros(50, 2).T}, "logits must be"),
        ({"logits": torch.zeros(2, 51)}, "51 logits"),
        ({"logits": torch.zeros(9, 50)}, "9 rows in a workspace for 2"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots must be"),
        ({"positions": torch.zeros(1, dtype=torch.int32)}, "positions must be"),
        ({"out": torch.zeros(4, dtype=torch.int64)[::2]}, "out must be"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "logits": torch.zeros(2, 50),
        "slots": torch.zeros(2, dtype=torch.int32),
        "positions": torch.zeros(2, dtype=torch.int32),
        "table": SamplingTable(2, 50, "cpu"),
        "workspace": TailWorkspace(2, 50, "cpu"),
        "out": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        sample_tail(**{**arguments, **change})
