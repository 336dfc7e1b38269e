"""Reader of a GGUF file's header: metadata and tensor descriptions, no tensor data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Written here
because `gguf.GGUFReader` takes seconds for a vocabulary.
"""

import mmap
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
SCALARS = {value_type: Struct("<" + code) for value_type, code in FORMATS.items()}
UINT32, UINT64 = SCALARS[ValueType.UINT32], SCALARS[ValueType.UINT64]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """ggml's order: the dimension that is contiguous in memory comes first."""
    ggml_type: int
    offset: int
    """Bytes from the start of the data section."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    """Bytes from the start of the file to the data section."""

    def tensor(self, name: str) -> TensorInfo | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def read_gguf(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`. Raises ValueError, naming the file, if it is broken or not one."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with 'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Cursor(data).header()
            except ValueError as error:
                raise ValueError(f"{path} is a broken GGUF file: {error}") from None


class _Cursor:
    """A position in the file's bytes; every read checks that the bytes are there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = len(MAGIC)

    def header(self) -> GgufHeader:
        version = self.unpack(UINT32)
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not supported (2 and 3 are; big-endian files are not)")
        num_tensors, num_values = self.unpack(UINT64), self.unpack(UINT64)
        metadata = self.metadata(num_values)
        tensors = self.tensors(num_tensors)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"general.alignment is {alignment!r}")
        data_offset = -(-self.at // alignment) * alignment
        self.check_offsets(tensors, data_offset)
        return GgufHeader(version, metadata, tensors, data_offset)

    def metadata(self, count: int) -> dict[str, Any]:
        self.need_items(count, UINT64.size + UINT32.size)
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"the key {key!r} appears twice")
            metadata[key] = self.value(self.value_type(), MAX_NESTING)
        return metadata

    def tensors(self, count: int) -> tuple[TensorInfo, ...]:
        self.need_items(count, UINT64.size + 2 * UINT32.size + UINT64.size)
        tensors = tuple(self.tensor() for _ in range(count))
        if len({tensor.name for tensor in tensors}) != count:
            raise ValueError("two tensors have the same name")
        return tensors

    def tensor(self) -> TensorInfo:
        name, num_dims = self.string(), self.unpack(UINT32)
        if num_dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(self.unpack(UINT64) for _ in range(num_dims))
        return TensorInfo(name, shape, ggml_type=self.unpack(UINT32), offset=self.unpack(UINT64))

    def check_offsets(self, tensors: tuple[TensorInfo, ...], data_offset: int) -> None:
        for tensor in tensors:
            if prod(tensor.shape) and data_offset + tensor.offset >= len(self.data):
                raise ValueError(f"it ends before the data of tensor {tensor.name!r}")

    def value(self, value_type: ValueType, nesting: int) -> Any:
        if value_type is ValueType.STRING:
            return self.string()
        if value_type is ValueType.ARRAY:
            return self.array(nesting)
        return self.unpack(SCALARS[value_type])

    def array(self, nesting: int) -> list[Any]:
        if nesting == 0:
            raise ValueError(f"arrays are nested more than {MAX_NESTING} deep")
        item_type, count = self.value_type(), self.unpack(UINT64)
        if item_type in SCALARS:
            data = self.take(count * SCALARS[item_type].size)
            return list(Struct(f"<{count}{FORMATS[item_type]}").unpack(data))
        self.need_items(count, UINT64.size)
        if item_type is ValueType.STRING:
            return [self.string() for _ in range(count)]
        return [self.array(nesting - 1) for _ in range(count)]

    def value_type(self) -> ValueType:
        code = self.unpack(UINT32)
        try:
            return ValueType(code)
        except ValueError:
            raise ValueError(f"value type {code} at byte {self.at - UINT32.size} is unknown") from None

    def string(self) -> str:
        data = self.take(self.unpack(UINT64))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the string that ends at byte {self.at} is not UTF-8") from None

    def unpack(self, scalar: Struct) -> Any:
        return scalar.unpack(self.take(scalar.size))[0]

    def take(self, num_bytes: int) -> bytes:
        start, end = self.at, self.at + num_bytes
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, but {num_bytes} bytes are expected at {start}")
        self.at = end
        return self.data[start:end]

    def need_items(self, count: int, min_bytes: int) -> None:
        if count * min_bytes > len(self.data) - self.at:
            raise ValueError(f"it announces {count} items at byte {self.at}, more than it can hold")
