"""How many threads a worker's arithmetic uses. Decided by the environment, before torch is imported.

Workers that each take every core wait for each other: two of them ran twenty times slower than with the cores divided.
GOMP_SPINCOUNT bounds how long an idle thread of one worker keeps a core busy that another could use.
"""

import os
from collections.abc import Mapping


def thread_environment(num_threads: int, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables to set; what the user has set already stays as it is."""
    wanted = {
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": given.get("OMP_NUM_THREADS", str(num_threads)),
        "GOMP_SPINCOUNT": "10000",
    }
    return {name: value for name, value in wanted.items() if name not in given}
