"""All there is to measure on GPUs, one part after another, each a process of its own: `make bench BENCH=gpu`.

What needs a second GPU is left out where there is one.
"""

import subprocess
import sys

import torch

PARTS = (
    (1, "gpu_engine", "--shape", "llama-8b"),
    (1, "gpu_engine", "--shape", "smollm-135m"),
    (1, "kernels"),
    (2, "transfer_gpu"),
    (2, "gpu_disaggregation"),
)
"""GPUs that a part needs, its module and arguments."""


def main() -> int:
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU", file=sys.stderr)
        return 2
    failed = 0
    for num_gpus, module, *arguments in PARTS:
        if torch.cuda.device_count() < num_gpus:
            continue
        command = [sys.executable, "-m", f"isthmus.bench.{module}", *arguments]
        print(f"\n## `{' '.join(['python', *command[1:]])}`\n", flush=True)
        failed |= subprocess.run(command, check=False).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
