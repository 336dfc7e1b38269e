"""The bytes of every message are pinned: a change of the schema shows up here as a changed line."""

import re
from pathlib import Path
from typing import get_args

import msgpack
import pytest
from isthmus.wire import messages as m
from isthmus.wire.codec import (
    Decoder,
    ProtocolError,
    decode_from_router,
    decode_from_worker,
    decode_kv_header,
    encode,
    pack_ids,
    unpack_ids,
)
from isthmus.wire.logprobs import TokenLogprobs, pack_logprobs
from isthmus.wire.sampling import SamplingParams

GOLDEN = Path(__file__).with_name("golden_messages.txt")

FINGERPRINT = m.Fingerprint("w", "t", "r", 2, 64, 16, (m.CacheGroup((0, 1), 3, 64, "float32"),))
STATS = m.WorkerStats(1, 2, 3, 4, 5.5, 0.25, 6, 7, 8, 9, 0.5, 10, 11, 12, 13, (9, 4))
PARAMS = SamplingParams(
    temperature=0.5, top_k=40, logit_bias={7: -1.5}, seed=9, max_tokens=5, stop_token_ids=(3,), num_speculative_tokens=0
)
IDS = pack_ids([1, 2, 70000])
LOGPROBS = TokenLogprobs(-1.5, ((7, -0.5),), 2)

EXAMPLES: list = [
    m.Heartbeat("loading", 1.5, STATS, ("d0/5",)),
    m.Hello(1, "decode", "d0", 2**62, FINGERPRINT),
    m.Ready(FINGERPRINT, m.Capacity(10, 4, 512, 8192), ("tcp://127.0.0.1:1",)),
    m.Goodbye("told to stop"),
    m.Welcome("r", 3, "model.gguf", 1.0),
    m.HelloRefused("no"),
    m.SayHello(),
    m.Reserve(5, "cmpl-1", IDS, (m.Choice(0), m.Choice(1, IDS, b"\x02", 4)), PARAMS, 0, 2, True, (2,), "last", b"s"),
    m.Prefill(5, "cmpl-1", IDS, 16, "tcp://127.0.0.1:1", "d0/5", 3, 2, 4, "mean", b"s"),
    m.Cancel(5, 1),
    m.Drain(),
    m.Reserved(5, 16, "d0/5"),
    m.Declined(5, "full", 1, True),
    m.Tokens((m.TokenRow(5, 0, 3, (8, 9), "stop", 9, b"\x01", (LOGPROBS, LOGPROBS), 4),)),
    m.PromptLogprobs(5, 1, 2, pack_logprobs([LOGPROBS], 2)),
    m.Pooled(5, b"\x00\x00\x80?"),
    m.Prefilled(5, 16, 0.5, 1024, 0.25),
    m.Credit(2, 7),
    m.Failed(5, "broken", True),
    m.Cancelled(5, None),
    m.KvPiece("d0/5", 1, 2, 3, ("logits",)),
]


def decoder_for(message: object) -> Decoder:
    if isinstance(message, m.KvPiece):
        return decode_kv_header
    return decode_from_worker if type(message) in get_args(m.FromWorker) else decode_from_router


def golden_lines() -> list[str]:
    return [f"{type(message).__name__} {encode(message).hex()}" for message in EXAMPLES]


def test_bytes_are_the_golden_ones() -> None:
    assert golden_lines() == GOLDEN.read_text().splitlines()


def test_every_message_has_an_example() -> None:
    known = {*get_args(m.FromWorker), *get_args(m.FromRouter), m.KvPiece}
    assert {type(message) for message in EXAMPLES} == known


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_round_trip(message: object) -> None:
    assert decoder_for(message)(encode(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_an_independent_decoder_reads_our_bytes(message: object) -> None:
    plain = msgpack.unpackb(encode(message), strict_map_key=False)
    assert plain.pop("type") == type(message).__struct_config__.tag  # type: ignore[attr-defined]
    assert set(plain) <= set(message.__struct_fields__)  # type: ignore[attr-defined]


def test_an_independent_encoder_writes_what_we_read() -> None:
    payload = msgpack.packb({"type": "credit", "seen": 2, "free": 7})
    assert decode_from_worker(payload) == m.Credit(2, 7)


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (encode(m.Credit(1, 2)) + b"x", "trailing"),
        (msgpack.packb({"type": "zork"}), "zork"),
        (msgpack.packb({"type": "credit", "seen": "2", "free": 7}), "Expected `int`"),
        (msgpack.packb({"type": "credit", "seen": 2}), "missing required field `free`"),
        (msgpack.packb([1, 2, 3]), "Expected"),
        (encode(m.Welcome("r", 3, "model", 1.0)), "welcome"),
        (b"\x91" * 5000, "undecodable"),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        decode_from_worker(payload)


def test_size_limit() -> None:
    decode: Decoder[object] = Decoder(m.FromWorker, max_bytes=10)
    with pytest.raises(ProtocolError, match="the limit is 10"):
        decode(encode(m.Goodbye("a long goodbye")))


def test_token_ids() -> None:
    assert bytes.fromhex("010000000200000070110100") == IDS
    assert unpack_ids(IDS) == [1, 2, 70000]
    with pytest.raises(ProtocolError, match="5 bytes"):
        unpack_ids(b"12345")


def test_placement_ids_of_two_routers_never_meet() -> None:
    first, second = m.placement_base(2**63 - 1), m.placement_base(5)
    assert first >> 32 != second >> 32
    assert first + 2**32 - 1 < 2**63
