import msgspec
from isthmus.wire.fingerprint import digest, mismatch
from isthmus.wire.messages import CacheGroup, Fingerprint

MINE = Fingerprint("aa", "bb", "default", 2, 64, 16, (CacheGroup((0, 1), 3, 64, "float32"),))


def test_equal_fingerprints_agree() -> None:
    assert mismatch(MINE, msgspec.structs.replace(MINE)) is None


def test_each_field_is_compared_and_named() -> None:
    others = {
        "weights": "cc",
        "tokenizer": "cc",
        "rope": "yarn",
        "num_layers": 3,
        "vocab_size": 65,
        "block_size": 32,
        "layout": (),
    }
    assert set(others) == set(Fingerprint.__struct_fields__)
    for field, value in others.items():
        sentence = mismatch(MINE, msgspec.structs.replace(MINE, **{field: value}))
        assert sentence is not None
        assert sentence.startswith("the worker has another model: ")
        if field != "layout":
            assert f"{value} where this router serves {getattr(MINE, field)}" in sentence


def test_digest_knows_where_parts_end() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
