import math

import pytest
from isthmus.wire.codec import encode
from isthmus.wire.logprobs import TokenLogprobs, pack_logprobs, unpack_logprobs
from msgspec import msgpack

ROWS = [
    TokenLogprobs(-1.5, ((7, -0.5), (3, -1.5)), 2),
    TokenLogprobs(-math.inf, ((1, -0.25),), 9),
    TokenLogprobs(-2.0, (), 70000),
]


@pytest.mark.parametrize("num_top", [2, 3, 20])
def test_packed_rows_come_back(num_top: int) -> None:
    assert unpack_logprobs(pack_logprobs(ROWS, num_top), num_top) == ROWS


def test_without_alternatives() -> None:
    rows = [TokenLogprobs(-0.5, (), 1), TokenLogprobs(-4.0, (), 30)]
    assert unpack_logprobs(pack_logprobs(rows, 0), 0) == rows
    assert unpack_logprobs(b"", 0) == []


def test_joined_bytes_are_joined_rows() -> None:
    assert unpack_logprobs(pack_logprobs(ROWS[:1], 2) + pack_logprobs(ROWS[1:], 2), 2) == ROWS


def test_bytes_are_the_golden_ones() -> None:
    assert pack_logprobs(ROWS[:1], 2).hex() == "0000c0bf020000000700000003000000000000bf0000c0bf"


def test_a_cut_row_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer size"):
        unpack_logprobs(pack_logprobs(ROWS, 2)[:-1], 2)


def test_on_the_wire_a_row_is_an_array() -> None:
    assert msgpack.decode(encode(ROWS[0])) == [-1.5, [[7, -0.5], [3, -1.5]], 2]
