"""The demo model, greedy, against transformers with the same dequantized weights."""

import torch
from isthmus.engine.config import ModelConfig
from isthmus.engine.gguf_weights import GgufFile
from isthmus.engine.plan import IN_FLIGHT, Draw, Plan, Row
from isthmus.tests.engine import tiny
from isthmus.tests.helpers import demo_model_path
from isthmus.text.gguf_config import gguf_config
from isthmus.text.gguf_metadata import read_gguf
from transformers import LlamaConfig, LlamaForCausalLM

NUM_TOKENS = 64
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2]
NEAR_TIE = 1e-3


def test_greedy_tokens_equal_transformers() -> None:
    path = demo_model_path()
    config = gguf_config(read_gguf(path))
    engine = tiny.engine_of(config, path, block_size=16, num_blocks=8)
    table = range(8)
    row = Row(1, PROMPT, 0, table, (Draw(1, 0),))
    tokens: list[int] = []
    for step in range(NUM_TOKENS):
        tokens += engine.launch(Plan(step, (row,))).result().token_ids
        row = Row(1, (IN_FLIGHT,), len(PROMPT) + step, table, (Draw(1, step + 1),))
    expected = reference_logits(config, PROMPT + tokens)[len(PROMPT) - 1 : -1]
    largest, second = expected.topk(2).values.unbind(-1)
    differ = expected.argmax(-1) != torch.tensor(tokens)
    assert not (differ & (largest - second > NEAR_TIE)).any()
    assert differ.sum() <= 1
    assert len(set(tokens)) > 20


def reference_logits(config: dict[str, object], token_ids: list[int]) -> torch.Tensor:
    reference = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})).eval()
    file = GgufFile(demo_model_path(), ModelConfig.from_hf(config))
    left = reference.load_state_dict({name: file.load(name) for name in file.shapes}, strict=False)
    assert left.missing_keys == ["lm_head.weight"]
    assert not left.unexpected_keys
    return tiny.reference_logits(reference, token_ids)
