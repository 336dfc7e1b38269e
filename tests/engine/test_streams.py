"""Residual streams on their way through a model are those of transformers, and change nothing."""

from typing import Any

import pytest
import torch
from isthmus.engine.attention import PagedAttention
from isthmus.engine.kv_pool import KvPool
from isthmus.engine.models.llama import Llama
from isthmus.engine.plan import Row
from isthmus.engine.streams import NO_STREAMS, Streams
from isthmus.tests.engine import tiny
from torch import Tensor

CONFIG = tiny.llama(num_hidden_layers=4)
TOKENS = tiny.prompt(9)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Llama]:
    reference, folder = tiny.reference_model(CONFIG), tmp_path_factory.mktemp("model")
    return reference, tiny.tiny_model(CONFIG, tiny.save(reference, folder))


def run(model: Llama, wanted: list[int] | None, streams: Streams) -> tuple[Tensor, Tensor]:
    """What the head takes, and all KV."""
    pool = KvPool(num_layers=4, num_blocks=4, block_size=4, num_kv_heads=2, head_dim=16, dtype=torch.float32)
    pool.kv.zero_()
    row = Row(1, TOKENS, 0, (0, 1, 2))
    attention = PagedAttention(pool, [row], num_heads=4, windows=model.config.windows, rope=model.rope)
    x = model.embedding[torch.tensor(TOKENS)]
    with torch.inference_mode():
        hidden = model.hidden(x, None if wanted is None else torch.tensor(wanted), attention, streams)
    return hidden, pool.kv


@pytest.mark.parametrize("wanted", [[2, 8], [8], None])
@pytest.mark.parametrize("ids", [(0,), (1, 3), (2, 3, 4), (4,)], ids=str)
def test_streams(models: tuple[Any, Llama], ids: tuple[int, ...], wanted: list[int] | None) -> None:
    reference, model = models
    last: list[Tensor] = []
    hook = reference.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0][0]))
    with torch.no_grad():
        states = reference(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    hook.remove()
    streams = Streams(ids)
    hidden, kv = run(model, wanted, streams)
    expected = torch.cat([last[0] if index == 4 else states[index][0] for index in ids], -1)
    torch.testing.assert_close(streams.features, expected, rtol=1e-4, atol=1e-4)
    plain, plain_kv = run(model, wanted, NO_STREAMS)
    torch.testing.assert_close(hidden, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(kv, plain_kv)


def test_a_step_that_caught_nothing_has_no_features() -> None:
    with pytest.raises(AssertionError, match="streams of one step"):
        _ = Streams((2,)).features
