"""Streams, events, pinned memory and graphs of one GPU; and the same for a CPU, where everything has happened when
the call returns. The engine is one for both, so that all of it but the kernels is tested without a GPU.

Compute runs on torch's current stream. Transfers from and to the host that belong to no step run aside.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Run = Callable[[], None]
T = TypeVar("T")


class Runtime(Protocol):
    device: torch.device

    def pinned(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Uninitialised host memory that is copied to and from the device without waiting."""

    def mark(self) -> Run:
        """Call it to wait until compute has come to where it was at the time of `mark`."""

    def capture(self, run: Run, *, has_branch: bool = False) -> Run:
        """What repeats the device's part of `run`, which allocates no memory that outlives it and never waits. `run`
        has been called before, so that its kernels are compiled. `has_branch`: beside the run, of one node that
        computes nothing, so that the graph is not one chain."""

    def capture_in_two(
        self, first: Callable[[], T], then: Callable[[T], None], *, has_branch: bool = False
    ) -> tuple[Run, Run]:
        """As `capture`, of a run in two parts, of which the second takes what the first gives. They are repeated one
        right after the other: nothing else that was captured comes in between."""

    def aside(self) -> AbstractContextManager[object]:
        """Device work within goes beside compute, and belongs to no step."""

    def finish_aside(self) -> None:
        """Waits for what was told aside."""

    def join_aside(self) -> None:
        """Compute goes on after what was told aside; the host does not wait."""

    def hold_aside(self) -> None:
        """What is told aside from now on begins after what compute has been told; the host does not wait."""


class CudaRuntime:
    def __init__(self, device_index: int) -> None:
        self.device = torch.device("cuda", device_index)
        torch.cuda.set_device(self.device)
        self._aside, self._capture_stream = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self._graph_pool = torch.cuda.graph_pool_handle()
        self._branch, self._branch_end = torch.cuda.Stream(self.device), torch.cuda.Event(external=True)

    def pinned(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def mark(self) -> Run:
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def capture(self, run: Run, *, has_branch: bool = False) -> Run:
        return self._capture(run, has_branch)[0]

    def capture_in_two(
        self, first: Callable[[], T], then: Callable[[T], None], *, has_branch: bool = False
    ) -> tuple[Run, Run]:
        replay_first, made = self._capture(first, has_branch)
        replay_then, _ = self._capture(partial(then, made), has_branch)
        return replay_first, replay_then

    def _capture(self, run: Callable[[], T], has_branch: bool) -> tuple[Run, T]:
        graph, stream = torch.cuda.CUDAGraph(), self._capture_stream
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._graph_pool, stream=stream):
            if has_branch:
                self._branch.wait_stream(stream)
                self._branch_end.record(self._branch)
            made = run()
            if has_branch:
                stream.wait_stream(self._branch)
        return graph.replay, made

    def aside(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._aside)

    def finish_aside(self) -> None:
        self._aside.synchronize()

    def join_aside(self) -> None:
        torch.cuda.current_stream().wait_stream(self._aside)

    def hold_aside(self) -> None:
        self._aside.wait_stream(torch.cuda.current_stream())


class HostRuntime:
    device = torch.device("cpu")

    def pinned(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def mark(self) -> Run:
        return lambda: None

    def capture(self, run: Run, *, has_branch: bool = False) -> Run:
        return run

    def capture_in_two(
        self, first: Callable[[], T], then: Callable[[T], None], *, has_branch: bool = False
    ) -> tuple[Run, Run]:
        made: list[T] = []
        return lambda: made.append(first()), lambda: then(made.pop())

    def aside(self) -> AbstractContextManager[object]:
        return nullcontext()

    def finish_aside(self) -> None: ...

    def join_aside(self) -> None: ...

    def hold_aside(self) -> None: ...
