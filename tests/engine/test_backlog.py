"""What lags is read beside the step: at the latest moment it is still there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

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
from isthmus.kernels.stash_rows import stash_rows
from isthmus.tests.engine import tiny
from torch import Tensor

CONFIG = tiny.llama(num_hidden_layers=4)
TOKENS = tiny.prompt(9)
NUM_LAGGING = 5


class LateRuntime(HostRuntime):
    """What is told beside a step happens when the step joins it, and not before."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self._is_beside = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._is_beside = True
        yield
        self._is_beside = False

    def run(self, *args: Tensor | int) -> None:
        """`stash_rows`."""
        assert self._is_beside
        self.waiting.append(partial(stash_rows, *args))

    def join_beside(self) -> None:
        assert self.waiting, "a captured step cannot wait for a stream that it never told anything"
        while self.waiting:
            self.waiting.pop(0)()


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
    streams.join()
    return hidden


@pytest.mark.parametrize("wanted", [[2, 8], [], None], ids=str)
@pytest.mark.parametrize("ids", [(0,), (1, 2), (0, 2, 3), (3, 4), (4,)], ids=str)
def test_features_are_as_they_were_when_they_are_read(
    model: Llama, monkeypatch: pytest.MonkeyPatch, ids: tuple[int, ...], wanted: list[int] | None
) -> None:
    """The first tokens' are left, each of a slot of its own; the others' are caught."""
    plain, runtime = Streams(ids), LateRuntime()
    hidden = run(model, wanted, plain)
    monkeypatch.setattr(backlog, "stash_rows", runtime.run)
    left = Backlog(runtime, NUM_LAGGING, plain.features.shape[1], model.dtype)
    numbers = torch.arange(len(TOKENS), dtype=torch.int32)
    inputs = TokenInputs(**dict.fromkeys(FIELDS, numbers))
    streams = LaggingStreams(ids, left, inputs, NUM_LAGGING, last_tokens=numbers)
    assert torch.equal(run(model, wanted, streams), hidden)
    assert not runtime.waiting, "memory is used anew once the model is done"
    assert torch.equal(streams.features, plain.features[NUM_LAGGING:])
    slots = numbers[:NUM_LAGGING]
    assert torch.equal(left.features[slots, slots], plain.features[:NUM_LAGGING])
    assert torch.equal(left.positions.amax(1)[:NUM_LAGGING], slots)
