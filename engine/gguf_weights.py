"""Weights of a GGUF file, dequantized, by Hugging Face's names.

Names follow llama.cpp's converter. For the architecture llama it also reorders the rows of Q and K, from halves to
pairs, which is undone here; other architectures keep Hugging Face's order.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from ..text.gguf_metadata import TensorInfo, read_gguf
from .config import ModelConfig
from .weights import ROPE_FACTORS, Shape

GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": ROPE_FACTORS.removesuffix(".weight"),
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PERMUTED_FAMILIES = ("llama", "mistral")
"""What GGUF files call the architecture llama."""


class GgufFile:
    def __init__(self, path: Path, config: ModelConfig) -> None:
        """Raises ValueError if the file is broken or holds a type that the gguf package cannot dequantize."""
        header = read_gguf(path)
        self._tensors = {hf_name(tensor.name): tensor for tensor in header.tensors}
        mapped = np.memmap(path, np.uint8, mode="r", offset=header.data_offset)
        self._data = np.asarray(mapped)  # slices of a plain array cost far less, and there are many
        self._heads = _permuted_heads(config)
        self.shapes: Mapping[str, Shape] = {name: tensor.shape[::-1] for name, tensor in self._tensors.items()}
        _check_types(header.tensors)

    def load(self, name: str) -> Tensor:
        """fp32."""
        tensor = self._tensors[name]
        wide = torch.from_numpy(quants.dequantize(self._stored(tensor), GGMLQuantizationType(tensor.ggml_type)).copy())
        heads = self._heads.get(name.split(".")[-2])
        return unpermute(wide, heads) if heads else wide

    def _stored(self, tensor: TensorInfo) -> np.ndarray:
        """The bytes as the gguf package takes them: rows of whole quantization blocks."""
        kind = GGMLQuantizationType(tensor.ggml_type)
        shape = quants.quant_shape_to_byte_shape(tensor.shape[::-1], kind)
        data = self._data[tensor.offset : tensor.offset + prod(shape)]
        if len(data) != prod(shape):
            raise ValueError(f"the GGUF file ends within the tensor {tensor.name}")
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return data.view(np.float32 if kind is GGMLQuantizationType.F32 else np.float16).reshape(tensor.shape[::-1])
        return data.reshape(shape)


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; an unknown name stays, to be refused."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, part, kind = match.groups()
    if layer is None:
        return f"{GLOBAL_NAMES[part]}.{kind}" if part in GLOBAL_NAMES else name
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.{kind}" if part in BLOCK_NAMES else name


def unpermute(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from pairs (0, D/2, 1, D/2 + 1, …) back to halves."""
    half = rows.shape[0] // num_heads // 2
    return rows.view(num_heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _permuted_heads(config: ModelConfig) -> dict[str, int]:
    if config.family not in PERMUTED_FAMILIES:
        return {}
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}


def _check_types(tensors: Iterable[TensorInfo]) -> None:
    for ggml_type, name in {tensor.ggml_type: tensor.name for tensor in tensors}.items():
        try:
            kind = GGMLQuantizationType(ggml_type)
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (ValueError, NotImplementedError):
            raise ValueError(f"the tensor {name} has the GGML type {ggml_type}, which is not supported") from None
