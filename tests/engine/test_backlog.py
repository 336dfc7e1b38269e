"""What lags is left once the model is done: it is still there, as it was."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from isthmus.engine.attention import PagedAttention
from isthmus.engine.cuda import backlog
from isthmus.engine.cuda.backlog import Backlog, LaggingStreams
from isthmus.engine.cuda.inputs import FIELDS, TokenInputs
from isthmus.engine.cuda.runtime import HostRuntime
from isthmus.engine.kv_pool import KvPool
from isthmus.engine.models.llama import Llama
from isthmus.engine.plan import Row
from isthmus.engine.streams import Streams
from isthmus.kernels.stash_rows import MAX_STREAMS, stash_rows
from isthmus.tests.engine import tiny
from torch import Tensor

CONFIG = tiny.llama(num_hidden_layers=4)
TOKENS = tiny.prompt(9)
NUM_LAGGING = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    folder: Path = tmp_path_factory.mktemp("model")
    return tiny.tiny_model(CONFIG, tiny.save(tiny.reference_model(CONFIG), folder))


def run(model: Llama, wanted: list[int] | None, streams: Streams) -> Tensor:
    pool = KvPool(num_layers=4, num_blocks=4, block_size=4, num_kv_heads=2, head_dim=16, dtype=torch.float32)
    row = Row(1, TOKENS, 0, (0, 1, 2))
    attention = PagedAttention(pool, [row], num_heads=4, windows=model.config.windows, rope=model.rope)
    x = model.embedding[torch.tensor(TOKENS)]
    with torch.inference_mode():
        hidden = model.hidden(
            x, None if wanted is None else torch.tensor(wanted, dtype=torch.int64), attention, streams
        )
    if (stash := streams.leave()) is not None:
        stash_rows(stash)
    return hidden


@pytest.mark.parametrize("wanted", [[2, 8], [], None], ids=str)
@pytest.mark.parametrize("ids", [(0,), (1, 2), (0, 2, 3), (3, 4), (4,), (0, 1, 2, 3, 4)], ids=str)
def test_features_are_as_they_were_when_they_are_left(
    model: Llama, monkeypatch: pytest.MonkeyPatch, ids: tuple[int, ...], wanted: list[int] | None
) -> None:
    """The first tokens' are left, each of a slot of its own, the first streams with what keeps the step's logits; the
    others' are caught."""
    plain = Streams(ids)
    hidden = run(model, wanted, plain)
    stash = Mock(side_effect=stash_rows)
    monkeypatch.setattr(backlog, "stash_rows", stash)
    left = Backlog(HostRuntime(), NUM_LAGGING, plain.features.shape[1], model.dtype)
    numbers = torch.arange(len(TOKENS), dtype=torch.int32)
    inputs = TokenInputs(**dict.fromkeys(FIELDS, numbers))
    streams = LaggingStreams(ids, left, inputs, NUM_LAGGING, last_tokens=numbers)
    assert torch.equal(run(model, wanted, streams), hidden)
    assert stash.call_count == (len(ids) > MAX_STREAMS)
    assert torch.equal(streams.features, plain.features[NUM_LAGGING:])
    slots = numbers[:NUM_LAGGING]
    assert torch.equal(left.features[slots, slots], plain.features[:NUM_LAGGING])
    assert torch.equal(left.token_ids[slots, slots], slots)
    assert torch.equal(left.positions.amax(1)[:NUM_LAGGING], slots)


def test_a_step_that_caught_nothing_leaves_nothing() -> None:
    numbers = torch.arange(3, dtype=torch.int32)
    inputs = TokenInputs(**dict.fromkeys(FIELDS, numbers))
    streams = LaggingStreams((2,), Backlog(HostRuntime(), 3, 8, torch.float32), inputs, 3, last_tokens=numbers)
    with pytest.raises(AssertionError, match="streams of one step"):
        streams.leave()
