"""Measures how fast one GPU copies into another's memory; run as a process of its own, which frees the GPUs again.

python -m isthmus.launch.peer_copy FROM TO     prints {"gb_per_s": …}, by CUDA index
"""

import json
import sys

NUM_BYTES = 256 << 20
NUM_COPIES = 10


def measure(first: int, second: int) -> float:
    """GB/s of `copy_` from one GPU to the other, after two copies that warm up."""
    import torch

    source = torch.zeros(NUM_BYTES, dtype=torch.uint8, device=f"cuda:{first}")
    target = torch.empty_like(source, device=f"cuda:{second}")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(first):  # copies between GPUs run on the source's stream
        for _ in range(2):
            target.copy_(source, non_blocking=True)
        start.record()
        for _ in range(NUM_COPIES):
            target.copy_(source, non_blocking=True)
        end.record()
        end.synchronize()
    return NUM_COPIES * NUM_BYTES / (start.elapsed_time(end) * 1e-3) / 1e9


if __name__ == "__main__":
    print(json.dumps({"gb_per_s": measure(int(sys.argv[1]), int(sys.argv[2]))}))
