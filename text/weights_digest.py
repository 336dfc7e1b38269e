"""A name for a model's weights by what they are: equal digests mean the same weights, whatever the path or date.

Cheap enough for every start: the description of all tensors, the files' sizes, and samples of their bytes.
"""

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .gguf_metadata import read_gguf

DIGEST_BYTES = 16
SAMPLE_BYTES = 64 * 1024
MAX_SAMPLES = 64
MAX_SAFETENSORS_HEADER_BYTES = 100 * 1024 * 1024


def weights_digest(weights: Path) -> str:
    """Hex digest of the .gguf file or of the folder's .safetensors files. Raises ValueError if there are none."""
    if weights.is_file():
        return digest_gguf(weights)
    files = sorted(weights.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{weights} holds no .safetensors files")
    digest = blake2b(digest_size=DIGEST_BYTES)
    for file in files:
        header, data_offset = read_safetensors_header(file)
        update(digest, {name: header[name] for name in sorted(header)})
        sample(digest, file, data_offset)
    return digest.hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """Hex digest that stands for the weights of a model that is run with random ones."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    update(digest, config)
    return digest.hexdigest()


def digest_gguf(path: Path) -> str:
    header = read_gguf(path)
    digest = blake2b(digest_size=DIGEST_BYTES)
    update(digest, [[t.name, t.shape, t.ggml_type, t.offset] for t in sorted(header.tensors, key=lambda t: t.name)])
    sample(digest, path, header.data_offset)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Hex digest of a file of which nothing else is known."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    sample(digest, path, 0)
    return digest.hexdigest()


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """(tensor descriptions by name, offset of the data). Raises ValueError on a broken file."""
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if not 0 < num_bytes <= MAX_SAFETENSORS_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file: its header would have {num_bytes} bytes")
        try:
            header = json.loads(file.read(num_bytes))
        except ValueError:
            raise ValueError(f"{path} is not a safetensors file: its header is not JSON") from None
    header.pop("__metadata__", None)
    return header, 8 + num_bytes


def update(digest: blake2b, value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sample(digest: blake2b, path: Path, start: int) -> None:
    """Add the size of the data from `start` on, and samples spread evenly over it, first and last bytes included."""
    num_bytes = path.stat().st_size - start
    update(digest, num_bytes)
    with path.open("rb") as file:
        for offset in sample_offsets(num_bytes):
            file.seek(start + offset)
            digest.update(file.read(SAMPLE_BYTES))


def sample_offsets(num_bytes: int) -> Iterable[int]:
    if num_bytes <= MAX_SAMPLES * SAMPLE_BYTES:
        return range(0, num_bytes, SAMPLE_BYTES)
    last = num_bytes - SAMPLE_BYTES
    return [last * i // (MAX_SAMPLES - 1) for i in range(MAX_SAMPLES)]
