"""How fast KV goes from one GPU to another by a transport, between two processes as workers are: JSON on stdout.

python -m isthmus.launch.transfer_rate cuda_ipc 0 1
"""

import json
import sys

NUM_TOKENS = 8192
"""Of a prompt, of Llama-3.1-8B's shape: 1 GiB."""
NUM_BLOCKS = 1024


def main(transport: str, first: int, second: int) -> None:
    from ..bench.transfer_gpu import measure

    case = NUM_TOKENS, "neighbours"
    measured = measure(transport, first, second, [case], NUM_BLOCKS)
    print(json.dumps({"gb_per_s": measured.gb_per_s(*case), "copy_gb_per_s": measured.copy_gb_per_s}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
