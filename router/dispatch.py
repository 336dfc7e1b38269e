"""Which queued requests go where now: first come, first served, with bounded overtaking.

A request that finds no room lets younger ones pass. Once it has been passed over for `max_bypass_s` it holds one decode
worker, which takes nothing younger until the request fits somewhere. One that skips decode neither passes nor holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from .placement import Placement, Request, Snapshot, charged, place
from .sequence import WorkerId

MAX_SCANNED = 32
"""Requests looked at in one pass that find no room."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued request; `ticket` is the caller's name for it."""

    ticket: int
    request: Request
    passed_since: float | None = None
    held: WorkerId | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    placed: list[tuple[int, Placement]]
    passed: list[int]
    """Tickets that a younger request has overtaken in this pass."""
    held: dict[int, WorkerId]
    """Decode workers held, by the ticket that holds each."""


def decide(
    waiting: Iterable[Waiting], snapshot: Snapshot, *, now: float, max_bypass_s: float, prompt_only: bool = False
) -> Decisions:
    """Pure. `waiting` is in the order of the queue; nothing is placed beyond the credits in the snapshot.
    `prompt_only`: some request wants no token, so that room on prefill workers alone is worth a look."""
    placed: list[tuple[int, Placement]] = []
    unplaced: list[int] = []
    num_passed = 0
    held: dict[int, WorkerId] = {}
    for item in waiting:
        if len(unplaced) >= MAX_SCANNED or not has_room(snapshot, prompt_only=prompt_only):
            break
        found = place(snapshot, item.request)
        if found is not None:
            placed.append((item.ticket, found))
            snapshot = charged(snapshot, item.request, found)
            num_passed = num_passed if found.decode is None else len(unplaced)
            continue
        unplaced.append(item.ticket)
        overdue = item.passed_since is not None and now - item.passed_since >= max_bypass_s
        if overdue and snapshot.decode and not item.request.skips_decode(snapshot):
            held[item.ticket] = worker = worker_to_hold(item, snapshot)
            snapshot = without(snapshot, worker)
    return Decisions(placed, list(islice(unplaced, num_passed)), held)


def has_room(snapshot: Snapshot, *, prompt_only: bool) -> bool:
    if any(d.idle or d.available_blocks > 0 for d in snapshot.decode):
        return True
    return prompt_only and any(p.available_tokens > 0 for p in snapshot.prefill)


def worker_to_hold(item: Waiting, snapshot: Snapshot) -> WorkerId:
    """The one it holds already, else the one nearest to having room."""
    if any(d.worker == item.held for d in snapshot.decode):
        assert item.held is not None
        return item.held
    return max(snapshot.decode, key=lambda d: (d.available_blocks, d.worker)).worker


def without(snapshot: Snapshot, worker: WorkerId) -> Snapshot:
    return replace(snapshot, decode=tuple(d for d in snapshot.decode if d.worker != worker))
