"""Writes minilm_vectors.safetensors: what sentence-transformers makes of tests.minilm's texts, each alone, on a CPU.

    python -m isthmus.tests.engine.make_minilm_vectors

Needs sentence-transformers, which Isthmus and its tests do not.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from isthmus.tests.minilm import PACKAGE, TEXTS, minilm_path
from safetensors.torch import save_file

PATH = Path(__file__).with_name("minilm_vectors.safetensors")


def main() -> None:
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    model = SentenceTransformer(str(minilm_path()), device="cpu")
    vectors = torch.stack([model.encode(text, convert_to_tensor=True) for text in TEXTS])
    programs = ("sentence-transformers", "transformers", "torch", "tokenizers")
    made_by = ", ".join(f"{name} {version(name)}" for name in programs)
    save_file({"vectors": vectors.float().contiguous()}, PATH, {"model": PACKAGE, "made_by": made_by})


if __name__ == "__main__":
    main()
