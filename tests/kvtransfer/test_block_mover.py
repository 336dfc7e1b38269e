"""Which blocks are neighbours on both sides, and that they arrive by either way."""

import numpy as np
import pytest
import torch
from isthmus.kvtransfer import block_mover
from isthmus.kvtransfer.block_mover import BlockMover, Run, run_starts, runs_from
from isthmus.kvtransfer.device_pool import DevicePool

SHAPE = (3, 12, 2, 2, 4, 16)
PEER_SHAPE = (3, 20, 2, 2, 4, 16)


@pytest.mark.parametrize(
    ("sources", "targets", "runs"),
    [
        ([], [], []),
        ([4], [9], [Run(4, 9, 1)]),
        ([4, 5, 6], [1, 2, 3], [Run(4, 1, 3)]),
        ([4, 5, 6], [3, 2, 1], [Run(4, 3, 1), Run(5, 2, 1), Run(6, 1, 1)]),
        ([4, 5, 8, 9], [0, 1, 2, 3], [Run(4, 0, 2), Run(8, 2, 2)]),
        ([4, 5, 6, 7], [0, 1, 7, 8], [Run(4, 0, 2), Run(6, 7, 2)]),
    ],
)
def test_runs(sources: list[int], targets: list[int], runs: list[Run]) -> None:
    pairs = np.array([sources, targets], np.int32)
    assert runs_from(run_starts(pairs), pairs) == runs


@pytest.mark.parametrize("long_run_bytes", [0, 1 << 40], ids=["copied", "stored"])
@pytest.mark.parametrize(("sources", "targets"), [([2, 3, 4, 9], [17, 18, 19, 0]), ([7], [7]), ([0, 1, 2], [2, 1, 0])])
def test_blocks_arrive_in_a_peers_pool_and_nothing_beside_them(
    monkeypatch: pytest.MonkeyPatch, long_run_bytes: int, sources: list[int], targets: list[int]
) -> None:
    monkeypatch.setattr(block_mover, "LONG_RUN_BYTES", long_run_bytes)
    pool, peer = DevicePool(torch.randn(SHAPE)), torch.full(PEER_SHAPE, 7.0)
    expected = peer.clone()
    expected[:, targets] = pool.kv[:, sources]
    BlockMover(pool).store(sources, peer.data_ptr(), PEER_SHAPE, targets)
    assert torch.equal(peer, expected)


def test_gathered_and_scattered_is_the_same() -> None:
    pool, other = DevicePool(torch.randn(SHAPE)), DevicePool(torch.zeros(PEER_SHAPE))
    buffer = BlockMover(pool).buffer(5).fill_(7)
    BlockMover(pool).gather([3, 1, 8], buffer)
    BlockMover(other).scatter(buffer, [0, 19, 4])
    assert bool((buffer[3 * pool.bytes_per_block :] == 7).all())
    assert torch.equal(other.kv[:, [0, 19, 4]], pool.kv[:, [3, 1, 8]])
    assert int((other.kv.flatten(2) != 0).any(2).sum()) == 3 * SHAPE[0]


@pytest.mark.parametrize("shape", [(3, 12, 2, 4, 16), (3, 12, 2, 3, 4, 16)])
def test_other_tensors_are_no_pools(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no pool of blocks"):
        DevicePool(torch.zeros(shape))
