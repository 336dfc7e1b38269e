"""What blocks of the GPU's engine hold, where a head has its layer in them."""

import pytest
import torch
from isthmus.engine.cuda.pools import PoolLayout, Pools
from isthmus.engine.cuda.runtime import HostRuntime

NUM_BLOCKS = 5
MODEL = PoolLayout(3, 4, 2, 16, torch.float32)
ALIKE, OTHER = PoolLayout(1, 4, 2, 16, torch.float32), PoolLayout(1, 4, 3, 8, torch.float32)


def pools_of(head: PoolLayout, seed: int) -> Pools:
    num_bytes = NUM_BLOCKS * (MODEL.bytes_per_block + head.bytes_per_block)
    memory = torch.empty(num_bytes, dtype=torch.uint8)
    pools = Pools.headed(HostRuntime(), memory, NUM_BLOCKS, model=MODEL, head=head)
    generator = torch.Generator().manual_seed(seed)
    assert pools.head is not None
    for pool in (pools.model, pools.head):
        pool.kv.copy_(torch.randn(pool.kv.shape, generator=generator))
    return pools


def test_layers_alike_are_one_tensor() -> None:
    pools = pools_of(ALIKE, 1)
    assert pools.head is not None
    assert pools.kv is not None
    assert torch.equal(pools.kv, torch.cat((pools.model.kv, pools.head.kv)))
    pools.kv[3, 2] = 7.0
    assert (pools.head.kv[0, 2] == 7).all()


def test_others_travel_through_the_host() -> None:
    assert pools_of(OTHER, 1).kv is None


@pytest.mark.parametrize("head", [ALIKE, OTHER], ids=["alike", "other"])
def test_a_block_is_the_model_s_and_the_head_s(head: PoolLayout) -> None:
    pools, others = pools_of(head, 1), pools_of(head, 2)
    assert pools.blocks.bytes_per_block == MODEL.bytes_per_block + head.bytes_per_block
    others.blocks.write([4, 0], pools.blocks.read([1, 3]))
    others.blocks.copy([(4, 2)])
    for mine, theirs in ((pools.model, others.model), (pools.head, others.head)):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(theirs.kv[:, [4, 0, 2]], mine.kv[:, [1, 3, 1]])
        assert not torch.equal(theirs.kv[:, 1], mine.kv[:, 1])
