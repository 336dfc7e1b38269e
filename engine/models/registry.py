"""Which class computes which family."""

from .llama import Llama
from .qwen3 import Qwen3

MODELS: dict[str, type[Llama]] = {"llama": Llama, "mistral": Llama, "qwen2": Llama, "qwen3": Qwen3}
