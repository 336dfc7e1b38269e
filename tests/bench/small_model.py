"""A small random model with a tokenizer of bytes, as benchmarks take one: in a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from isthmus.tests.engine import tiny
from isthmus.tests.router.edge import byte_tokenizer
from transformers import PreTrainedTokenizerFast

CONFIG = tiny.llama(num_hidden_layers=4, max_position_embeddings=8192)


def save_small_model(folder: Path, config: Mapping[str, Any] = CONFIG, *, idle_layers: bool = False) -> Path:
    """Where `idle_layers` add nothing, what follows depends on the last token alone: greedy texts are soon loops."""
    model = tiny.reference_model(config)
    if idle_layers:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()
    backend = byte_tokenizer()._backend
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)
    return tiny.save(model, folder)
