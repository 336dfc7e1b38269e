"""Things several tests need."""

import os
from pathlib import Path

from isthmus.launch.demo_model import ensure_demo_model


def demo_model_path() -> Path:
    """The demo model's .gguf, fetched into the cache if it is not there. ISTHMUS_DEMO_MODEL names another copy."""
    given = os.environ.get("ISTHMUS_DEMO_MODEL")
    return Path(given) if given else ensure_demo_model()
