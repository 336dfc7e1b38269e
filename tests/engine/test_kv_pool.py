import pytest
import torch
from isthmus.engine.kv_pool import KvPool, bytes_per_block
from isthmus.engine.span import Span

SHAPE = {"num_layers": 3, "num_blocks": 6, "block_size": 4, "num_kv_heads": 2, "head_dim": 8}


def filled(dtype: torch.dtype = torch.float32) -> KvPool:
    pool = KvPool(**SHAPE, dtype=dtype)
    pool.kv.copy_(torch.randn(pool.kv.shape))
    return pool


def slots(pool: KvPool, start: int, end: int) -> torch.Tensor:
    return pool.kv[:, :, :, start:end]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_read_can_be_written_elsewhere(dtype: torch.dtype) -> None:
    source, target = filled(dtype), filled(dtype)
    untouched = slots(target, 0, 8).clone()
    payload = source.read([4, 1, 3])
    assert payload.nbytes == 3 * source.bytes_per_block
    target.write([2, 5, 4], memoryview(bytes(payload)))
    for there, here in ((4, 2), (1, 5), (3, 4)):
        assert torch.equal(slots(target, here * 4, here * 4 + 4), slots(source, there * 4, there * 4 + 4))
    assert torch.equal(slots(target, 0, 8), untouched)


def test_bytes_are_block_by_block_then_layer_by_layer() -> None:
    pool = filled()
    payload = torch.frombuffer(bytearray(pool.read([5, 0])), dtype=torch.float32)
    expected = torch.cat([slots(pool, 20, 24).flatten(), slots(pool, 0, 4).flatten()])
    assert torch.equal(payload, expected)


def test_a_read_is_a_copy() -> None:
    pool = filled()
    payload = pool.read([1])
    before = bytes(payload)
    pool.kv.zero_()
    assert bytes(payload) == before


def test_nothing_to_read_or_write() -> None:
    pool = filled()
    assert pool.read([]).nbytes == 0
    pool.write([], memoryview(b""))


@pytest.mark.parametrize("num_bytes", [0, 1, -1])
def test_a_payload_of_another_size_is_refused(num_bytes: int) -> None:
    pool = filled()
    size = num_bytes if num_bytes >= 0 else 2 * pool.bytes_per_block + 1
    with pytest.raises(ValueError, match="bytes given for 2 blocks"):
        pool.write([0, 1], memoryview(bytes(size)))


def test_bytes_per_block() -> None:
    assert (
        filled(torch.bfloat16).bytes_per_block == bytes_per_block(3, 4, 2, 8, torch.bfloat16) == 3 * 4 * 2 * 2 * 8 * 2
    )


def test_copies_happen_in_order() -> None:
    pool = filled()
    first = slots(pool, 0, 4).clone()
    pool.copy([(0, 1), (1, 2)])
    assert torch.equal(slots(pool, 8, 12), first)


@pytest.mark.parametrize("block_ids", [(1, 2), (4, 2)], ids=["run", "scattered"])
def test_positions_before_the_first_are_not_seen(block_ids: tuple[int, ...]) -> None:
    pool = KvPool(**SHAPE, dtype=torch.float32, first_position=1)
    pool.kv.copy_(torch.randn(pool.kv.shape))
    own = torch.cat([slots(pool, 4 * block, 4 * block + 4) for block in block_ids], 3)
    for start, window, first in ((6, None, 1), (6, 3, 4), (3, 3, 1), (1, None, 1)):
        span = Span(1, start, block_ids[: start // 4 + 1])
        keys, values = pool.history(span, [window] * 3)(2)
        assert torch.equal(keys[0], own[2, :, 0, first : start + 1])
        assert torch.equal(values[0], own[2, :, 1, first : start + 1])
