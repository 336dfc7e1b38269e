"""Log lines: one format for all processes, and the prefix that names a child."""

import logging
import sys


def set_up(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )
    if level == "info":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are ours to tell


def pass_on(name: str, line: str) -> None:
    """A line of a child's log, on ours."""
    print(f"{name:>9} | {line}", file=sys.stderr, flush=True)
