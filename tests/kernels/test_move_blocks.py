import mmap
import platform
from dataclasses import dataclass

import pytest
import torch
from isthmus.kernels.dispatch import INTERPRETED
from isthmus.kernels.move_blocks import MoveConfig, copy_blocks, gather_blocks, scatter_blocks, store_blocks_to_peer

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3, FP8: 4e-2, torch.float8_e5m2: 8e-2}
"""Of a conversion, by the destination: ‖out − exact‖ / ‖exact‖."""
TRUNCATED = {torch.bfloat16: 8e-3, FP8: 0.25, torch.float8_e5m2: 0.25}
"""Of the interpreter, which cuts bf16 instead of rounding, and loses fp8's carry into the exponent."""


@dataclass(frozen=True)
class Shape:
    """A pool, and what of it moves: `ids` of units of `unit` tokens."""

    pool: tuple[int, ...]
    ids: tuple[int, ...]
    layers: range
    heads: range
    unit: int
    dtype: torch.dtype = torch.bfloat16
    num_programs: int | None = None

    @property
    def buffer(self):
        return (len(self.ids), len(self.layers), len(self.heads), 2, self.unit, self.pool[5])

    @property
    def options(self):
        return {
            "first_head": self.heads.start,
            "num_heads": len(self.heads),
            "first_layer": self.layers.start,
            "num_layers": len(self.layers),
            "num_programs": self.num_programs,
        }

    def places(self, pool):
        """Of each id, what it names in the pool: a view [num_layers, num_heads, 2, unit, head_dim]."""
        layers, heads = (slice(part.start, part.stop) for part in (self.layers, self.heads))
        for block, part in (divmod(i, self.pool[4] // self.unit) for i in self.ids):
            yield pool[layers, block, heads, :, part * self.unit : (part + 1) * self.unit]


def noise(shape, dtype, device):
    """Any bits there are, NaN among them."""
    num_bytes = (*shape[:-1], shape[-1] * dtype.itemsize)
    return torch.randint(0, 256, num_bytes, dtype=torch.uint8, device=device).view(dtype)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def check_gather(device, shape, id_dtype=torch.int32, **more):
    pool, ids = noise(shape.pool, shape.dtype, device), torch.tensor(shape.ids, dtype=id_dtype, device=device)
    out = noise(shape.buffer, shape.dtype, device)
    before = pool.clone()
    assert gather_blocks(pool, ids, out, **shape.options, **more) is out
    assert torch.equal(bits(pool), bits(before))
    for got, expected in zip(out, shape.places(pool), strict=True):
        assert torch.equal(bits(got), bits(expected))


def check_scatter(device, shape, id_dtype=torch.int32, **more):
    pool, ids = noise(shape.pool, shape.dtype, device), torch.tensor(shape.ids, dtype=id_dtype, device=device)
    buffer, expected = noise(shape.buffer, shape.dtype, device), pool.clone()
    for place, part in zip(shape.places(expected), buffer, strict=True):
        place.copy_(part)
    scatter_blocks(buffer, pool, ids, **shape.options, **more)
    assert torch.equal(bits(pool), bits(expected))


def check_store(device, shape, peer, memory=None, **more):
    """`peer`: the destination's Shape, which may lie in `memory`."""
    pool, destination = noise(shape.pool, shape.dtype, device), noise(peer.pool, shape.dtype, device)
    if memory is not None:
        destination = memory.view(shape.dtype)[: destination.numel()].view(peer.pool).copy_(destination)
    ids, peer_ids = (torch.tensor(s.ids, dtype=torch.int32, device=device) for s in (shape, peer))
    expected = destination.clone()
    for place, part in zip(peer.places(expected), shape.places(pool), strict=True):
        place.copy_(part)
    places = {"peer_first_head": peer.heads.start, "peer_first_layer": peer.layers.start, "peer_shape": peer.pool}
    store_blocks_to_peer(pool, ids, destination.data_ptr(), peer_ids, **places, **shape.options, **more)
    assert torch.equal(bits(destination), bits(expected))


def check_copy(device, shape, pairs, dtype=torch.bfloat16):
    pool = noise(shape, dtype, device)
    expected = pool.clone()
    for source, destination in pairs:
        expected[:, destination] = pool[:, source]
    copy_blocks(pool, torch.tensor(pairs, dtype=torch.int32, device=device).view(-1, 2))
    assert torch.equal(bits(pool), bits(expected))


def tolerance(dtype):
    return (TRUNCATED if INTERPRETED else {}).get(dtype, TOLERANCE[dtype])


def check_conversion(device, source, destination, factors):
    """There and back through a buffer of another dtype."""
    shape = (2, 5, 2, 2, 16, 64)
    pool, ids = torch.randn(shape, device=device).to(source), torch.tensor([3, 1], device=device)
    out = noise((2, 2, 2, 2, 16, 64), destination, device)
    k_factor, v_factor = factors
    gather_blocks(pool, ids, out, k_factor=k_factor, v_factor=v_factor)
    exact = pool[:, [3, 1]].transpose(0, 1).double() * torch.tensor(factors, device=device)[:, None, None]
    assert (out.double() - exact).norm() < tolerance(destination) * exact.norm()
    back = torch.full(shape, 7.0, device=device).to(source)
    scatter_blocks(out, back, ids, k_factor=1 / k_factor, v_factor=1 / v_factor)
    exact = out.double() / torch.tensor(factors, device=device)[:, None, None]
    stored = back[:, [3, 1]].transpose(0, 1).double()
    assert (stored - exact).norm() <= tolerance(source) * exact.norm()
    assert (back[:, [0, 2, 4]].float() == 7).all()


SMALL = {
    "all": Shape((2, 5, 2, 2, 16, 64), (4, 0, 2), range(2), range(2), 16),
    "slice": Shape((3, 4, 3, 2, 16, 64), (3,), range(1, 3), range(1, 3), 16, num_programs=1),
    "units": Shape((2, 3, 2, 2, 32, 64), (5, 0, 1), range(2), range(1, 2), 16, num_programs=2),
    "units of 8": Shape((1, 3, 2, 2, 64, 80), (1, 23), range(1), range(2), 8),
    "head_dim 80": Shape((1, 2, 3, 2, 16, 80), (1, 0), range(1), range(3), 16, num_programs=2),
    "fp8": Shape((2, 3, 2, 2, 16, 64), (1, 2), range(1, 2), range(2), 16, dtype=FP8),
    "fp32": Shape((1, 3, 1, 2, 8, 96), (2,), range(1), range(1), 8, dtype=torch.float32),
    "jobs of three layers of five": Shape((6, 4, 1, 2, 8, 64), (3, 0, 2), range(5), range(1), 8, num_programs=1),
    "nothing": Shape((1, 3, 1, 2, 8, 64), (), range(1), range(1), 8),
}
LARGE = {
    **SMALL,
    "8B": Shape((32, 40, 8, 2, 16, 128), tuple(range(39, 0, -3)), range(32), range(8), 16),
    "8B, few programs": Shape(
        (32, 40, 8, 2, 16, 128), tuple(range(39, 0, -3)), range(32), range(8), 16, num_programs=8
    ),
    "8B, fp8 units": Shape((4, 9, 8, 2, 64, 128), (35, 0, 7), range(1, 4), range(4, 8), 16, dtype=FP8),
    "SmolLM2": Shape((30, 9, 3, 2, 16, 64), (8, 1, 3), range(30), range(3), 16),
    "head_dim 256": Shape((2, 9, 4, 2, 16, 256), (8, 1, 3), range(2), range(4), 16),
}
PEERS = {
    "same": (SMALL["all"], Shape((2, 7, 2, 2, 16, 64), (6, 1, 5), range(2), range(2), 16)),
    "heads of one rank of two": (
        Shape((2, 3, 2, 2, 16, 64), (2, 0), range(2), range(2), 16, num_programs=3),
        Shape((2, 4, 4, 2, 16, 64), (1, 3), range(2), range(2, 4), 16),
    ),
    "heads of two ranks": (
        Shape((2, 4, 4, 2, 16, 64), (1, 3), range(2), range(2, 4), 16),
        Shape((2, 3, 2, 2, 16, 64), (2, 0), range(2), range(2), 16),
    ),
    "into larger blocks": (
        Shape((1, 6, 2, 2, 16, 80), (5, 0, 2), range(1), range(2), 16),
        Shape((1, 3, 2, 2, 64, 80), (11, 4, 0), range(1), range(2), 16),
    ),
    "out of larger blocks": (
        Shape((2, 3, 2, 2, 64, 64), (11, 4), range(1, 2), range(2), 16),
        Shape((3, 6, 2, 2, 16, 64), (5, 0), range(2, 3), range(2), 16),
    ),
    "fp8": (SMALL["fp8"], Shape((2, 7, 2, 2, 16, 64), (6, 1), range(1, 2), range(2), 16)),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("name", SMALL)
def test_gather_and_scatter_under_the_interpreter(name):
    check_gather("cpu", SMALL[name])
    check_scatter("cpu", SMALL[name], torch.int64)


@pytest.mark.interpreter
def test_a_chunk_of_many_pieces_under_the_interpreter():
    config = MoveConfig(piece_bytes=1024, num_warps=4, num_stages=2)
    check_gather("cpu", SMALL["head_dim 80"], config=config)
    check_scatter("cpu", SMALL["units"], config=config)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", PEERS)
def test_store_to_a_peer_under_the_interpreter(name):
    check_store("cpu", *PEERS[name])


@pytest.mark.interpreter
@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks Linux for low memory in a way of this processor's")
def test_store_to_a_low_address_under_the_interpreter():
    """Where the heap begins low, an address may be small enough for an int32."""
    below_2_gib = 0x40  # MAP_32BIT
    memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | below_2_gib)
    low = torch.frombuffer(memory, dtype=torch.uint8)
    assert low.data_ptr() < 1 << 31
    check_store("cpu", *PEERS["same"], memory=low)


@pytest.mark.interpreter
def test_copy_under_the_interpreter():
    check_copy("cpu", (2, 6, 2, 2, 16, 80), [(1, 4), (1, 0), (3, 5)])


CONVERSIONS = [
    pytest.param(torch.bfloat16, FP8, (4.0, 0.5), id="bf16 to e4m3"),
    pytest.param(FP8, torch.bfloat16, (0.25, 2.0), id="e4m3 to bf16"),
    pytest.param(torch.float16, torch.float8_e5m2, (1.0, 1.0), id="fp16 to e5m2"),
    pytest.param(torch.float32, torch.bfloat16, (1.0, 1.0), id="fp32 to bf16"),
    pytest.param(FP8, FP8, (0.5, 2.0), id="scales of e4m3"),
]


@pytest.mark.interpreter
@pytest.mark.parametrize(("source", "destination", "factors"), CONVERSIONS)
def test_conversion_under_the_interpreter(source, destination, factors):
    check_conversion("cpu", source, destination, factors)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
def test_gather_and_scatter_on_a_gpu(name):
    check_gather("cuda", LARGE[name])
    check_scatter("cuda", LARGE[name], torch.int64)


@pytest.mark.gpu
@pytest.mark.parametrize("num_stages", [1, 4])
def test_a_chunk_of_many_pieces_on_a_gpu(num_stages):
    config = MoveConfig(piece_bytes=4096, num_warps=4, num_stages=num_stages)
    check_gather("cuda", LARGE["8B"], config=config)
    check_scatter("cuda", LARGE["SmolLM2"], config=config)
    check_store("cuda", *PEERS["into larger blocks"], config=config)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PEERS)
def test_store_to_the_same_gpu(name):
    check_store("cuda", *PEERS[name])


@pytest.mark.gpu
def test_copy_on_a_gpu():
    check_copy("cuda", (32, 40, 8, 2, 16, 128), [(1, 4), (1, 0), (3, 39)])


@pytest.mark.gpu
def test_places_pass_two_to_the_31():
    """In words of the last layer's; 9.7 GB, of which few bytes are touched."""
    pool = torch.empty(9, 32_800, 8, 2, 16, 128, dtype=FP8, device="cuda")
    ids = [32_799, 32_700, 32_701]
    for i in ids:
        pool[:, i] = noise((9, 8, 2, 16, 128), FP8, "cuda")
    copy_blocks(pool, torch.tensor([[32_799, 32_700]], device="cuda"))
    out = torch.empty(3, 9, 8, 2, 16, 128, dtype=FP8, device="cuda")
    gather_blocks(pool, torch.tensor(ids, device="cuda"), out)
    assert torch.equal(bits(out[1]), bits(out[0]))
    for got, i in zip(out, ids, strict=True):
        assert torch.equal(bits(got), bits(pool[:, i]))
    scatter_blocks(out.flip(0).contiguous(), pool, torch.tensor(ids, device="cuda"))
    assert torch.equal(bits(pool[:, 32_799]), bits(out[2]))


@pytest.mark.gpu
@pytest.mark.parametrize(("source", "destination", "factors"), CONVERSIONS)
def test_conversion_on_a_gpu(source, destination, factors):
    check_conversion("cuda", source, destination, factors)


@pytest.mark.multi_gpu
def test_store_to_another_gpu_of_the_process():
    """In a process that has access enabled, as torch enables it for a copy."""
    shape, peer = PEERS["same"]
    pool, destination = noise(shape.pool, shape.dtype, "cuda:0"), noise(peer.pool, shape.dtype, "cuda:1")
    torch.empty_like(destination, device="cuda:0").copy_(destination)
    expected = destination.clone()
    for place, part in zip(peer.places(expected), shape.places(pool), strict=True):
        place.copy_(part)
    ids, peer_ids = (torch.tensor(s.ids, device="cuda:0") for s in (shape, peer))
    store_blocks_to_peer(pool, ids, destination.data_ptr(), peer_ids, peer_shape=peer.pool)
    torch.cuda.synchronize(0)
    assert torch.equal(bits(destination), bits(expected))


@pytest.mark.parametrize("name", SMALL)
def test_references_of_gather_and_scatter(name):
    check_gather("cpu", SMALL[name])
    check_scatter("cpu", SMALL[name])


@pytest.mark.parametrize("name", PEERS)
def test_reference_of_a_store_to_a_peer(name):
    check_store("cpu", *PEERS[name])


def test_reference_of_copy():
    check_copy("cpu", (2, 6, 2, 2, 16, 80), [(1, 4), (1, 0), (3, 5)])
    check_copy("cpu", (2, 6, 2, 2, 16, 80), [])


@pytest.mark.parametrize(("source", "destination", "factors"), CONVERSIONS)
def test_conversion_of_the_references(source, destination, factors):
    check_conversion("cpu", source, destination, factors)


POOL = torch.zeros(2, 4, 3, 2, 16, 64)
IDS = torch.arange(2)


@pytest.mark.parametrize(
    ("ids", "buffer", "options"),
    [
        (IDS.float(), (2, 2, 3, 2, 16, 64), {}),
        (IDS[None], (2, 2, 3, 2, 16, 64), {}),
        (IDS, (2, 2, 3, 16, 64), {}),
        (IDS, (3, 2, 3, 2, 16, 64), {}),
        (IDS, (2, 2, 3, 2, 12, 64), {}),
        (IDS, (2, 2, 3, 2, 32, 64), {}),
        (IDS, (2, 2, 3, 2, 16, 32), {}),
        (IDS, (2, 2, 2, 2, 16, 64), {"first_head": 2, "num_heads": 2}),
        (IDS, (2, 2, 2, 2, 16, 64), {"first_head": -1, "num_heads": 2}),
        (IDS, (2, 2, 3, 2, 16, 64), {"first_layer": 1, "num_layers": 2}),
    ],
    ids=[
        "ids' dtype",
        "ids' shape",
        "dimensions",
        "blocks",
        "unit",
        "larger unit",
        "head_dim",
        "heads",
        "no head",
        "layers",
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(ids, buffer, options):
    with pytest.raises(ValueError):
        gather_blocks(POOL, ids, torch.zeros(buffer), **options)
    with pytest.raises(ValueError):
        scatter_blocks(torch.zeros(buffer), POOL, ids, **options)


@pytest.mark.parametrize(
    "pool",
    [
        torch.zeros(2, 4, 3, 2, 16),
        torch.zeros(2, 4, 2, 3, 16, 64),
        POOL.transpose(0, 1),
        torch.zeros(1, 1, 1, 2, 16, 2),
    ],
    ids=["dimensions", "K and V", "strides", "16 bytes"],
)
def test_a_pool_that_does_not_fit_is_refused(pool):
    with pytest.raises(ValueError):
        gather_blocks(pool, IDS, torch.zeros(2, *pool.shape[:1], *pool.shape[2:]))
    with pytest.raises(ValueError):
        copy_blocks(pool, torch.zeros(1, 2, dtype=torch.int32))


@pytest.mark.parametrize(
    ("address", "peer_ids", "peer_shape", "options"),
    [
        (8, IDS, (2, 4, 3, 2, 16, 64), {}),
        (16, torch.arange(3), (2, 4, 3, 2, 16, 64), {}),
        (16, IDS, (2, 4, 3, 2, 16, 32), {}),
        (16, IDS, (2, 4, 3, 2, 24, 64), {}),
        (16, IDS, (2, 4, 2, 2, 16, 64), {}),
        (16, IDS, (2, 4, 3, 2, 16, 64), {"peer_first_head": 1}),
        (16, IDS, (2, 4, 3, 2, 16, 64), {"peer_first_layer": 1}),
    ],
    ids=["alignment", "ids", "head_dim", "block size", "heads", "first head", "first layer"],
)
def test_a_peer_that_does_not_fit_is_refused(address, peer_ids, peer_shape, options):
    with pytest.raises(ValueError):
        store_blocks_to_peer(POOL, IDS, address, peer_ids, peer_shape=peer_shape, **options)


@pytest.mark.parametrize("pairs", [torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 2)], ids=["shape", "dtype"])
def test_pairs_that_do_not_fit_are_refused(pairs):
    with pytest.raises(ValueError):
        copy_blocks(POOL, pairs)
