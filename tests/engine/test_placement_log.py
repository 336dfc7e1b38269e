"""What a worker logs about placements."""

import logging

import pytest
from isthmus.engine.placement_log import NUM_KEPT, PlacementLog
from isthmus.wire.messages import Declined, Failed, FromWorker, Prefill, Prefilled, Reserve, Reserved, Tokens
from isthmus.wire.sampling import SamplingParams


def reserve(placement: int, request_id: str) -> Reserve:
    return Reserve(placement, request_id, b"", (), SamplingParams(), 0, 1, remote=False)


@pytest.mark.parametrize(
    ("message", "level", "words"),
    [
        (Reserved(5, 32, "t"), "DEBUG", "reserved, 32 tokens cached"),
        (Declined(5, "no free blocks"), "DEBUG", "declined: no free blocks"),
        (Failed(5, "lease expired", retriable=True), "WARNING", "failed: lease expired"),
        (Failed(5, "too long", retriable=False), "INFO", "failed: too long"),
    ],
)
def test_each_line_names_the_request(
    message: FromWorker, level: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "isthmus.engine")
    placements = PlacementLog()
    placements.received(reserve(5, "mine"))
    placements.received(reserve(6, "another"))
    placements.sent(message)
    last = caplog.records[-1]
    assert (last.levelname, last.getMessage()) == (level, f"request mine: {words}")
    assert vars(last)["request_id"] == "mine"


def test_a_prefill_workers_line_tells_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "isthmus.engine")
    placements = PlacementLog()
    placements.received(Prefill(5, "mine", b"", 0, "", "t", 1))
    placements.sent(Prefilled(5, 16, 0.25, 4096, 0.5))
    assert [record.getMessage() for record in caplog.records] == [
        "request mine: Prefill of placement 5",
        "request mine: computed in 0.250 s, 16 tokens cached; 4096 bytes of KV sent, 0.500 s after that",
    ]


def test_tokens_are_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "isthmus.engine")
    PlacementLog().sent(Tokens(()))
    assert caplog.records == []


def test_old_placements_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    placements = PlacementLog()
    for placement in range(NUM_KEPT + 1):
        placements.received(reserve(placement, f"r{placement}"))
    placements.sent(Failed(0, "x", retriable=True))
    placements.sent(Failed(1, "x", retriable=True))
    assert [record.getMessage() for record in caplog.records] == ["request ?: failed: x", "request r1: failed: x"]
