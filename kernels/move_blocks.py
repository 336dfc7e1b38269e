"""Moves KV blocks: pool to buffer, buffer to pool, pool to a peer's pool, and within a pool. One launch for all blocks
and layers.

    pool   [num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim]   contiguous; 2: K, V
    buffer [n, num_layers, num_heads, 2, unit, head_dim]                     contiguous; num_layers, num_heads: a slice
    ids    int32 or int64 [n]

A block of one layer is contiguous, and so is a slice of its heads: a *chunk*, moved in pieces, several in flight. A job
is a block's chunks in a few layers; jobs are dealt to `num_programs` programs, those of the first layers first. Few
programs leave the GPU to the compute that a transfer hides behind.

Block sizes may differ by a power of two: `unit` is the smaller one, and ids count units. In a pool of blocks of
r · unit tokens, unit i is part i % r of block i // r.

dtypes may differ (fp32, bf16, fp16, fp8), except with a peer. Then, and where factors are given, K becomes
K · k_factor and V likewise, in fp32, rounded once, saturating in fp8. To carry the meaning of fp8 with scales
(value = stored · scale) a factor is the source's scale / the destination's.

Ids within the pool, and no destination named twice or read by the same call, are the caller's to see to.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches, num_multiprocessors


class MoveConfig(NamedTuple):
    piece_bytes: int
    """Of the source, that a program moves at once."""
    num_warps: int
    num_stages: int
    """Pieces in flight in a program, and one."""


CONFIG = MoveConfig(piece_bytes=32768, num_warps=16, num_stages=4)
LAYERS_A_JOB = 4
"""The programs of a launch work on so few layers at a time: addresses in many are slow to translate, a peer's most."""


class _Side(NamedTuple):
    """The source or the destination of a move; strides count elements."""

    memory: Tensor | int
    """Or an address."""
    ids: Tensor | None
    """None: unit i is at place i."""
    start: int
    block_stride: int
    layer_stride: int
    tile_stride: int
    """Between two [tokens, head_dim] tiles of one block."""
    units_a_block: int


class Part(NamedTuple):
    """Layers and heads of a pool."""

    layers: range
    heads: range

    @property
    def layer_slice(self) -> slice:
        return slice(self.layers.start, self.layers.stop)

    @property
    def head_slice(self) -> slice:
        return slice(self.heads.start, self.heads.stop)


def ref_gather_blocks(kv: Tensor, block_ids: Tensor, part: Part, unit: int) -> Tensor:
    """[n, num_layers, num_heads, 2, unit, head_dim] in the pool's dtype."""
    ids, ratio = block_ids.long(), kv.shape[4] // unit
    return _in_units(kv, unit)[part.layer_slice, ids // ratio, part.head_slice, :, ids % ratio]


def ref_scatter_blocks(buffer: Tensor, kv: Tensor, block_ids: Tensor, part: Part) -> None:
    """The inverse; `buffer` already in the pool's dtype."""
    ids, ratio = block_ids.long(), kv.shape[4] // buffer.shape[4]
    _in_units(kv, buffer.shape[4])[part.layer_slice, ids // ratio, part.head_slice, :, ids % ratio] = buffer


def ref_convert(blocks: Tensor, dtype: torch.dtype, k_factor: float, v_factor: float) -> Tensor:
    """[..., 2, tokens, head_dim] in another dtype."""
    if blocks.dtype == dtype and k_factor == v_factor == 1:
        return blocks
    factors = torch.tensor([k_factor, v_factor], device=blocks.device)[:, None, None]
    limit = _fp8_max(dtype)
    wide = blocks.float() * factors
    return (wide.clamp(-limit, limit) if limit else wide).to(dtype)


def _in_units(kv: Tensor, unit: int) -> Tensor:
    """[num_layers, num_blocks, num_kv_heads, 2, block_size / unit, unit, head_dim]"""
    return kv.unflatten(4, (kv.shape[4] // unit, unit))


def _fp8_max(dtype: torch.dtype) -> float:
    """0 if it is not fp8."""
    return torch.finfo(dtype).max if dtype.is_floating_point and dtype.itemsize == 1 else 0.0


@triton.jit
def _place(ids, id_stride, index, start, block_stride, TILE: tl.constexpr, UNITS: tl.constexpr):
    """Where the chunk of unit `index` begins in the first layer, in elements: int64."""
    unit = index.to(tl.int64)
    if ids is not None:
        unit = tl.load(ids + unit * id_stride).to(tl.int64)
    return start + unit // UNITS * block_stride + unit % UNITS * TILE


@triton.jit
def _within(offset, TILE: tl.constexpr, TILE_STRIDE: tl.constexpr):
    """Where an offset into a chunk of tiles lies when they are `TILE_STRIDE` apart."""
    if TILE_STRIDE == TILE:
        return offset
    return offset // TILE * TILE_STRIDE + offset % TILE


# Ids may begin anywhere in one upload: specialised, the first transfer of some lengths would wait for a compiler.
@triton.jit(
    do_not_specialize=["num_jobs", "num_units", "layers_a_job"],
    do_not_specialize_on_alignment=["source_ids", "destination_ids"],
)
def _move_kernel(
    source,
    source_ids,
    source_id_stride,
    source_start,
    source_block_stride,
    source_layer_stride,
    destination,
    destination_ids,
    destination_id_stride,
    destination_start,
    destination_block_stride,
    destination_layer_stride,
    num_jobs,
    num_units,
    layers_a_job,
    k_factor,
    v_factor,
    NUM_LAYERS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    SOURCE_TILE_STRIDE: tl.constexpr,
    SOURCE_UNITS: tl.constexpr,
    DESTINATION_TILE_STRIDE: tl.constexpr,
    DESTINATION_UNITS: tl.constexpr,
    CONVERT: tl.constexpr,
    FP8_MAX: tl.constexpr,
    IS_ADDRESS: tl.constexpr,
    PIECE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    PIECES: tl.constexpr = (CHUNK + PIECE - 1) // PIECE
    if IS_ADDRESS:
        # A low one comes as an int32, which the interpreter makes no pointer of.
        target = tl.multiple_of(destination.to(tl.int64).to(source.dtype), 16)
    else:
        target = destination
    for job in tl.range(tl.program_id(0), num_jobs, tl.num_programs(0), num_stages=1):
        index = job % num_units
        layer = job // num_units * layers_a_job
        num_pieces = tl.minimum(layers_a_job, NUM_LAYERS - layer) * PIECES
        read = source + _place(
            source_ids, source_id_stride, index, source_start, source_block_stride, TILE, SOURCE_UNITS
        )
        write = target + _place(
            destination_ids,
            destination_id_stride,
            index,
            destination_start,
            destination_block_stride,
            TILE,
            DESTINATION_UNITS,
        )
        # Pipelined: the ids are known, so all addresses are.
        for piece in tl.range(0, num_pieces, num_stages=NUM_STAGES):
            at = (layer + piece // PIECES).to(tl.int64)
            offset = piece % PIECES * PIECE + tl.arange(0, PIECE)  # [PIECE]
            mask = offset < CHUNK
            value = tl.load(read + at * source_layer_stride + _within(offset, TILE, SOURCE_TILE_STRIDE), mask=mask)
            if CONVERT:
                factor = tl.where(offset // TILE % 2 == 0, k_factor, v_factor)
                value = value.to(tl.float32) * factor
                if FP8_MAX > 0:
                    value = tl.clamp(value, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
                value = value.to(target.dtype.element_ty)
            place = write + at * destination_layer_stride + _within(offset, TILE, DESTINATION_TILE_STRIDE)
            tl.store(place, value, mask=mask)


def gather_blocks(
    kv: Tensor,
    block_ids: Tensor,
    out: Tensor,
    *,
    first_head: int = 0,
    num_heads: int | None = None,
    first_layer: int = 0,
    num_layers: int | None = None,
    k_factor: float = 1.0,
    v_factor: float = 1.0,
    num_programs: int | None = None,
    config: MoveConfig = CONFIG,
) -> Tensor:
    """Pool to buffer: fills `out` and returns it; by default all heads and layers from the first on. Raises ValueError
    on shapes, strides or dtypes it does not take."""
    _check_pool(kv)
    part = _part(kv.shape, first_head, num_heads, first_layer, num_layers)
    _check_buffer(out, kv, block_ids, part)
    if not launches(kv):
        return out.copy_(
            ref_convert(ref_gather_blocks(kv, block_ids, part, out.shape[4]), out.dtype, k_factor, v_factor)
        )
    source = _pool_side(kv, kv.shape, block_ids, out.shape[4], part)
    _launch(source, _buffer_side(out), out.shape, (k_factor, v_factor), num_programs, config)
    return out


def scatter_blocks(
    buffer: Tensor,
    kv: Tensor,
    block_ids: Tensor,
    *,
    first_head: int = 0,
    num_heads: int | None = None,
    first_layer: int = 0,
    num_layers: int | None = None,
    k_factor: float = 1.0,
    v_factor: float = 1.0,
    num_programs: int | None = None,
    config: MoveConfig = CONFIG,
) -> None:
    """Buffer to pool, the inverse of `gather_blocks`; heads and layers default to as many as the buffer has. Raises
    ValueError on shapes, strides or dtypes it does not take."""
    _check_pool(kv)
    if buffer.dim() == 6:
        num_heads, num_layers = num_heads or buffer.shape[2], num_layers or buffer.shape[1]
    part = _part(kv.shape, first_head, num_heads, first_layer, num_layers)
    _check_buffer(buffer, kv, block_ids, part)
    if not launches(kv):
        return ref_scatter_blocks(ref_convert(buffer, kv.dtype, k_factor, v_factor), kv, block_ids, part)
    destination = _pool_side(kv, kv.shape, block_ids, buffer.shape[4], part)
    return _launch(_buffer_side(buffer), destination, buffer.shape, (k_factor, v_factor), num_programs, config)


def store_blocks_to_peer(
    kv: Tensor,
    block_ids: Tensor,
    peer_address: int,
    peer_block_ids: Tensor,
    *,
    peer_shape: Sequence[int],
    first_head: int = 0,
    num_heads: int | None = None,
    first_layer: int = 0,
    num_layers: int | None = None,
    peer_first_head: int = 0,
    peer_first_layer: int = 0,
    num_programs: int | None = None,
    config: MoveConfig = CONFIG,
) -> None:
    """Pool to a pool of `peer_shape` and the same dtype that begins at `peer_address` in this process (as CUDA IPC maps
    it, with access from this device enabled). Both ids are on kv's device. What is stored is there for the peer once
    this stream has passed the launch. Raises ValueError on shapes, strides or dtypes it does not take, and on an
    address that 16 does not divide."""
    _check_pool(kv)
    _check_peer(kv, block_ids, peer_address, peer_block_ids, peer_shape)
    part = _part(kv.shape, first_head, num_heads, first_layer, num_layers)
    num_layers, num_heads = len(part.layers), len(part.heads)
    peer_part = _part(peer_shape, peer_first_head, num_heads, peer_first_layer, num_layers)
    unit = min(kv.shape[4], peer_shape[4])
    if not launches(kv):
        peer = _at(peer_address, peer_shape, kv.dtype)
        return ref_scatter_blocks(ref_gather_blocks(kv, block_ids, part, unit), peer, peer_block_ids, peer_part)
    source = _pool_side(kv, kv.shape, block_ids, unit, part)
    destination = _pool_side(peer_address, peer_shape, peer_block_ids, unit, peer_part)
    shape = (len(block_ids), num_layers, num_heads, 2, unit, kv.shape[5])
    return _launch(source, destination, shape, (1.0, 1.0), num_programs, config)


def copy_blocks(kv: Tensor, pairs: Tensor, *, num_programs: int | None = None, config: MoveConfig = CONFIG) -> None:
    """Within a pool, whole blocks of all layers; `pairs` int32 or int64 [n, 2]: from, to. No block is both. Raises
    ValueError on shapes, strides or dtypes it does not take."""
    _check_pool(kv)
    if pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.dtype not in _ID_DTYPES:
        raise ValueError(f"pairs must be int32 or int64 [n, 2], not {pairs.dtype} {tuple(pairs.shape)}")
    sources, destinations = pairs.unbind(1)
    if not launches(kv):
        kv[:, destinations.long()] = kv[:, sources.long()]
        return
    everything = _part(kv.shape, 0, None, 0, None)
    source, destination = (_pool_side(kv, kv.shape, ids, kv.shape[4], everything) for ids in (sources, destinations))
    _launch(source, destination, (len(pairs), kv.shape[0], *kv.shape[2:]), (1.0, 1.0), num_programs, config)


def _part(
    shape: Sequence[int], first_head: int, num_heads: int | None, first_layer: int, num_layers: int | None
) -> Part:
    """Of a pool of `shape`; None: all from the first on. Raises ValueError if the pool has no such part."""
    num_heads = shape[2] - first_head if num_heads is None else num_heads
    num_layers = shape[0] - first_layer if num_layers is None else num_layers
    for kind, first, number, size in (
        ("head", first_head, num_heads, shape[2]),
        ("layer", first_layer, num_layers, shape[0]),
    ):
        if first < 0 or number < 1 or first + number > size:
            raise ValueError(f"no {number} {kind}s from {first} on in a pool of {size}")
    return Part(range(first_layer, first_layer + num_layers), range(first_head, first_head + num_heads))


def _pool_side(memory: Tensor | int, shape: Sequence[int], ids: Tensor, unit: int, part: Part) -> _Side:
    _, num_blocks, num_kv_heads, _, block_size, head_dim = shape
    block_stride = num_kv_heads * 2 * block_size * head_dim
    layer_stride = num_blocks * block_stride
    start = part.layers.start * layer_stride + part.heads.start * 2 * block_size * head_dim
    return _Side(memory, ids, start, block_stride, layer_stride, block_size * head_dim, block_size // unit)


def _buffer_side(buffer: Tensor) -> _Side:
    return _Side(buffer, None, 0, buffer.stride(0), buffer.stride(1), buffer.stride(3), 1)


def _launch(
    source: _Side,
    destination: _Side,
    shape: Sequence[int],
    factors: tuple[float, float],
    num_programs: int | None,
    config: MoveConfig,
) -> None:
    """`shape`: of the buffer that lies, or might lie, between."""
    assert isinstance(source.memory, Tensor)
    dtype, device, memory = source.memory.dtype, source.memory.device, destination.memory
    convert = isinstance(memory, Tensor) and (memory.dtype != dtype or factors != (1.0, 1.0))
    words = 1 if convert else 4 // dtype.itemsize  # elements that move as one: without conversion, 4 bytes
    num_units, num_layers, *_ = shape
    chunk, tile = math.prod(shape[2:]) // words, shape[4] * shape[5] // words
    if num_units == 0:
        return
    num_programs = num_programs or num_multiprocessors(device)
    layers_a_job = min(LAYERS_A_JOB, num_layers)
    num_jobs = num_units * triton.cdiv(num_layers, layers_a_job)
    _move_kernel[(min(num_programs, num_jobs),)](
        *_kernel_side(source, words, convert),
        *_kernel_side(destination, words, convert),
        num_jobs,
        num_units,
        layers_a_job,
        *factors,
        NUM_LAYERS=num_layers,
        CHUNK=chunk,
        TILE=tile,
        SOURCE_TILE_STRIDE=source.tile_stride // words,
        SOURCE_UNITS=source.units_a_block,
        DESTINATION_TILE_STRIDE=destination.tile_stride // words,
        DESTINATION_UNITS=destination.units_a_block,
        CONVERT=convert,
        FP8_MAX=_fp8_max(memory.dtype) if isinstance(memory, Tensor) else 0.0,
        IS_ADDRESS=isinstance(memory, int),
        PIECE=min(config.piece_bytes // (dtype.itemsize * words), triton.next_power_of_2(chunk)),
        NUM_STAGES=config.num_stages,
        num_warps=config.num_warps,
    )


def _kernel_side(side: _Side, words: int, convert: bool) -> tuple[object, ...]:
    """The kernel's arguments for it, counted in what moves as one."""
    memory = side.memory
    if isinstance(memory, Tensor) and not convert:
        memory = memory.view(torch.int32)
    id_stride = 0 if side.ids is None else side.ids.stride(0)
    return memory, side.ids, id_stride, side.start // words, side.block_stride // words, side.layer_stride // words


def _at(address: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The CPU memory at an address, as a tensor that does not own it."""
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


_ID_DTYPES = (torch.int32, torch.int64)


def _check_ids(ids: Tensor) -> None:
    if ids.dim() != 1 or ids.dtype not in _ID_DTYPES:
        raise ValueError(f"block ids must be int32 or int64 [n], not {ids.dtype} {tuple(ids.shape)}")


def _check_pool(kv: Tensor) -> None:
    if kv.dim() != 6 or kv.shape[3] != 2 or not kv.is_contiguous():
        raise ValueError(
            "kv must be contiguous [num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim], not "
            f"{tuple(kv.shape)}"
        )
    if kv.shape[5] * kv.element_size() % 16:
        raise ValueError(f"a token's {kv.shape[5]} numbers of {kv.dtype} must take a multiple of 16 bytes")


def _check_buffer(buffer: Tensor, kv: Tensor, block_ids: Tensor, part: Part) -> None:
    _check_ids(block_ids)
    unit = buffer.shape[4] if buffer.dim() == 6 else kv.shape[4]
    shape = (len(block_ids), len(part.layers), len(part.heads), 2, unit, kv.shape[5])
    if buffer.shape != shape or not buffer.is_contiguous():
        raise ValueError(f"the buffer must be contiguous {shape}, not {tuple(buffer.shape)}")
    _check_unit(unit, kv.shape[4])


def _check_peer(
    kv: Tensor, block_ids: Tensor, peer_address: int, peer_block_ids: Tensor, peer_shape: Sequence[int]
) -> None:
    _check_ids(block_ids)
    _check_ids(peer_block_ids)
    if peer_block_ids.shape != block_ids.shape:
        raise ValueError(f"{len(block_ids)} blocks for {len(peer_block_ids)} of the peer")
    if peer_address % 16:
        raise ValueError("16 must divide the peer's address")
    if len(peer_shape) != 6 or peer_shape[3] != 2 or peer_shape[5] != kv.shape[5]:
        raise ValueError(f"a pool of {tuple(peer_shape)} does not take blocks of {tuple(kv.shape)}")
    _check_unit(*sorted((kv.shape[4], peer_shape[4])))


def _check_unit(unit: int, block_size: int) -> None:
    ratio, rest = divmod(block_size, unit) if unit else (0, 1)
    if rest or ratio & (ratio - 1):
        raise ValueError(f"blocks of {block_size} tokens are not 2ⁿ units of {unit}")
