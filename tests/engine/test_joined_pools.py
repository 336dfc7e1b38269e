import pytest
import torch
from isthmus.engine.joined_pools import JoinedPools
from isthmus.engine.kv_pool import KvPool

SHAPES = ((3, 2, 8, torch.float32), (1, 1, 16, torch.bfloat16))
"""Layers, heads and their size."""


def filled(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KvPool:
    pool = KvPool(
        num_layers=num_layers, num_blocks=6, block_size=4, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype
    )
    pool.kv.copy_(torch.randn(pool.kv.shape))
    return pool


def two() -> tuple[KvPool, KvPool, JoinedPools]:
    first, second = (filled(*shape) for shape in SHAPES)
    return first, second, JoinedPools(first, second)


def test_a_block_is_that_of_the_first_pool_then_that_of_the_second() -> None:
    first, second, joined = two()
    expected = b"".join(bytes(pool.read([block])) for block in (4, 1, 3) for pool in (first, second))
    assert joined.bytes_per_block == first.bytes_per_block + second.bytes_per_block
    assert bytes(joined.read([4, 1, 3])) == expected


def test_what_is_read_can_be_written_elsewhere() -> None:
    _, _, source = two()
    _, _, target = two()
    untouched = bytes(target.read([0, 3]))
    given = memoryview(bytearray(3 * source.bytes_per_block))
    source.read([4, 1, 3], given)
    target.write([2, 5, 4], given.toreadonly())
    assert bytes(target.read([2, 5, 4])) == bytes(source.read([4, 1, 3]))
    assert bytes(target.read([0, 3])) == untouched


def test_blocks_are_copied_in_all_pools() -> None:
    _, _, joined = two()
    before = bytes(joined.read([1]))
    joined.copy([(1, 2), (2, 5)])
    assert bytes(joined.read([2])) == bytes(joined.read([5])) == before


def test_wrong_sizes_are_refused_and_none_is_none() -> None:
    first, _, joined = two()
    with pytest.raises(ValueError, match=f"{first.bytes_per_block} bytes given for 1 blocks, which take"):
        joined.write([1], first.read([1]))
    assert joined.read([]).nbytes == 0
    joined.write([], memoryview(b""))
