"""Tiny random encoders, as transformers makes and computes them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

VOCAB_SIZE = 90
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
    "initializer_range": 0.5,
}
KINDS: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, {}),
    "bert below a head": (BertForMaskedLM, BertConfig, {"hidden_act": "gelu_new"}),
    "roberta": (RobertaModel, RobertaConfig, {"type_vocab_size": 1}),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, {"type_vocab_size": 1, "hidden_act": "relu"}),
    "bert reranker": (BertForSequenceClassification, BertConfig, {"num_labels": 1}),
    "roberta reranker": (RobertaForSequenceClassification, RobertaConfig, {"num_labels": 1, "type_vocab_size": 1}),
}


def make_encoder(kind: str, folder: Path) -> PreTrainedModel:
    """The model, saved to `folder`."""
    model_type, config_type, options = KINDS[kind]
    torch.manual_seed(sorted(KINDS).index(kind))
    model = model_type(config_type(**SIZES, **options)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "LayerNorm.weight")):  # which are all 0, or all 1
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def last_states(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """[T, hidden_size]"""
    states: torch.Tensor = model.base_model(torch.tensor([prompt])).last_hidden_state[0]
    return states
