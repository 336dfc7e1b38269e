"""The header reader against the gguf package's writer, and against broken files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.text.gguf_metadata import GgufHeader, read_gguf

VALUES: dict[str, tuple[Any, Kind]] = {
    "u8": (255, Kind.UINT8),
    "i8": (-128, Kind.INT8),
    "u16": (65535, Kind.UINT16),
    "i16": (-32768, Kind.INT16),
    "u32": (2**32 - 1, Kind.UINT32),
    "i32": (-(2**31), Kind.INT32),
    "f32": (0.5, Kind.FLOAT32),
    "bool": (True, Kind.BOOL),
    "string": ("né 🙂", Kind.STRING),
    "u64": (2**64 - 1, Kind.UINT64),
    "i64": (-(2**63), Kind.INT64),
    "f64": (0.1, Kind.FLOAT64),
    "ints": ([1, 2, 3], Kind.ARRAY),
    "strings": (["a", "", "ç"], Kind.ARRAY),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
    writer.add_tensor("a.weight", np.zeros((3, 5), np.float32))
    writer.add_tensor("b.weight", np.zeros(7, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_value_type(written: Path) -> None:
    metadata = read_gguf(written).metadata
    assert {key: metadata[key] for key in VALUES} == {key: value for key, (value, _) in VALUES.items()}
    assert metadata["general.architecture"] == "llama"


def test_tensors_and_data_offset(written: Path) -> None:
    header = read_gguf(written)
    assert [(t.name, t.shape, t.ggml_type, t.offset) for t in header.tensors] == [
        ("a.weight", (5, 3), gguf.GGMLQuantizationType.F32, 0),
        ("b.weight", (7,), gguf.GGMLQuantizationType.F16, 64),
    ]
    assert header.data_offset == gguf.GGUFReader(written).data_offset
    assert header.tensor("b.weight") == header.tensors[1]
    assert header.tensor("c.weight") is None


def test_version_2_is_laid_out_the_same(written: Path, tmp_path: Path) -> None:
    older = tmp_path / "v2.gguf"
    older.write_bytes(b"GGUF" + (2).to_bytes(4, "little") + written.read_bytes()[8:])
    header = read_gguf(older)
    assert (header.version, header.tensors) == (2, read_gguf(written).tensors)


def nested_array(depth: int) -> bytes:
    def u32(value: int) -> bytes:
        return value.to_bytes(4, "little")

    def u64(value: int) -> bytes:
        return value.to_bytes(8, "little")

    arrays = b"".join(u32(9) + u64(1) for _ in range(depth)) + u32(4) + u64(2) + u32(7) + u32(8)
    return b"GGUF" + u32(3) + u64(0) + u64(1) + u64(1) + b"k" + u32(9) + arrays


@pytest.mark.parametrize("item_type", [0, 8, 9, 12])
def test_a_count_beyond_the_file(item_type: int, tmp_path: Path) -> None:
    path = tmp_path / "count.gguf"
    data = nested_array(0)[:-20]
    path.write_bytes(data + item_type.to_bytes(4, "little") + (2**63).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="broken GGUF file"):
        read_gguf(path)


def test_arrays_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "nested.gguf"
    path.write_bytes(nested_array(2))
    assert read_gguf(path).metadata == {"k": [[[7, 8]]]}
    path.write_bytes(nested_array(10_000))
    with pytest.raises(ValueError, match="nested more than"):
        read_gguf(path)


def test_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"x\.gguf is not a GGUF file"):
        read_gguf(path)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions(version: int, tmp_path: Path, written: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + written.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"version {version} is not supported"):
        read_gguf(path)


def test_a_file_cut_anywhere_in_the_header_is_an_error(written: Path, tmp_path: Path) -> None:
    data, path = written.read_bytes(), tmp_path / "cut.gguf"
    end = read_gguf(written).data_offset
    for length in range(end):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="GGUF"):
            read_gguf(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject, written: Path) -> None:
    original = bytearray(written.read_bytes())
    end = read_gguf(written).data_offset
    for _ in range(data.draw(st.integers(1, 4))):
        original[data.draw(st.integers(4, end - 1))] = data.draw(st.integers(0, 255))
    damaged = written.with_name("damaged.gguf")
    damaged.write_bytes(original)
    with suppress(ValueError):  # any other exception fails the test
        assert len(read_gguf(damaged).tensors) <= 2


def test_demo_model(demo_header: GgufHeader) -> None:
    assert len(demo_header.tensors) == 272
    assert len(demo_header.metadata["tokenizer.ggml.tokens"]) == 49152
    assert demo_header.metadata["tokenizer.ggml.pre"] == "smollm"
