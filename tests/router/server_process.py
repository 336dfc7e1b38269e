"""A router process for tests: `python -m isthmus.tests.router.server_process TEXT_FOLDER DRAIN_S` says where it is."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from isthmus.router.server import run

if __name__ == "__main__":
    folder, drain_timeout_s = sys.argv[1:]
    status = run(
        host="127.0.0.1",
        port=0,
        worker_address="tcp://127.0.0.1:*",
        model="tiny.gguf",
        text_folder=Path(folder),
        served_model_names=("tiny",),
        max_model_len=1024,
        drain_timeout_s=float(drain_timeout_s),
        on_ready=lambda addresses: print(json.dumps(asdict(addresses)), flush=True),
    )
    sys.exit(status)
