"""`python -m isthmus.bench.disaggregation`: one prefill and one decode worker beside `--prefill 0`, on CPU.

One run measures all, the topologies in turns: what disaggregation adds to the time to first token, how much of a
transfer the computing hides, how long a running stream stands still while a long prompt is computed, and throughput.
"""

import argparse
import sys

from .disaggregation_report import markdown
from .disaggregation_run import QUICK, Engine, Sizes, measure


def main() -> int:
    parser = argparse.ArgumentParser("isthmus.bench.disaggregation", description=__doc__)
    parser.add_argument("--engine", choices=("torch", "fake"), default="torch", help="default: torch")
    parser.add_argument("--model", help="default: the demo model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--quick", action="store_true", help="shorter prompts, fewer of them: to see that it runs")
    given = parser.parse_args()
    sizes = QUICK if given.quick else Sizes()
    print(markdown(measure(sizes, Engine(given.engine, given.model, given.dtype))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
