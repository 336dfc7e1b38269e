"""Router, prefill and decode agree on block hashes only as long as these bytes stay."""

from isthmus.wire.block_hash import SALT_BYTES, block_hashes, salt_of

TOKENS = list(range(100, 140))
GOLDEN = ["370fb46b913ad658067cf47c4284d703", "5fe845b2a59fab98ec8772ea5d93c792"]
GOLDEN_SALTED = "9484d3b235c0e03715d1f0f8aec91c29"


def test_golden() -> None:
    assert [h.hex() for h in block_hashes(TOKENS, 16)] == GOLDEN
    assert block_hashes(TOKENS, 16, b"adapter")[0].hex() == GOLDEN_SALTED


def test_only_full_blocks() -> None:
    assert len(block_hashes(TOKENS, 16)) == 2
    assert block_hashes(TOKENS[:15], 16) == []


def test_a_hash_depends_on_all_tokens_before() -> None:
    other = [0, *TOKENS[1:]]
    assert block_hashes(other, 16)[1] != block_hashes(TOKENS, 16)[1]


def test_continues_a_chain() -> None:
    whole = block_hashes(TOKENS, 8)
    assert block_hashes(TOKENS, 8, parent=whole[1], start=16) == whole[2:]
    assert (
        block_hashes(TOKENS, 8, b"s", parent=block_hashes(TOKENS[:16], 8, b"s")[-1], start=16)
        == (block_hashes(TOKENS, 8, b"s")[2:])
    )


def test_secrets_become_salts() -> None:
    assert salt_of("") == b""
    assert len(salt_of("tenant a")) == SALT_BYTES
    salted = [block_hashes(TOKENS, 8, salt_of(secret)) for secret in ("", "tenant a", "tenant b")]
    assert len({digest for hashes in salted for digest in hashes}) == 15
