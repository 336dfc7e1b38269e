"""Hashes of full KV blocks, chained: equal hashes mean equal tokens from position 0, under one salt.

Router, prefill and decode must agree on them, so the function is pure and pinned by a golden test.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

HASH_BYTES = 16
SALT_BYTES = 32


def block_hashes(
    token_ids: Sequence[int], block_size: int, salt: bytes = b"", *, parent: bytes = b"", start: int = 0
) -> list[bytes]:
    """One 128-bit keyed BLAKE2b per full block of `token_ids[start:]`.

    `parent` is the hash of the block that ends at `start` (a multiple of `block_size`), empty at 0. `salt` (at most
    64 bytes) separates what must not share KV: adapters, image content, a user's cache salt.
    """
    assert start % block_size == 0
    pack = Struct(f"<{block_size}i").pack
    hashes = []
    for first in range(start, len(token_ids) - block_size + 1, block_size):
        digest = blake2b(parent, digest_size=HASH_BYTES, key=salt)
        digest.update(pack(*token_ids[first : first + block_size]))
        parent = digest.digest()
        hashes.append(parent)
    return hashes


def salt_of(secret: str) -> bytes:
    """A salt from a client's secret, which workers need not know; none from an empty one."""
    return blake2b(secret.encode(), digest_size=SALT_BYTES).digest() if secret else b""
