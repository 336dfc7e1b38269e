"""`python -m isthmus.bench.router`: the router alone, with the fake engine, beside a bare Starlette SSE app.

One run measures all, the two servers in turns: streamed tokens a second, CPU a token, what the router adds to the time
to first token, and how long streams stand still while a very long prompt arrives.
"""

import argparse
import json
import sys
from dataclasses import asdict

from .router_report import report
from .router_run import Sizes, measure


def main() -> int:
    parser = argparse.ArgumentParser("isthmus.bench.router", description=__doc__)
    for name, default in asdict(Sizes()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, help=f"default: {default}")
    parser.add_argument("--model", help="whose tokenizer is used; default: the demo model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = vars(parser.parse_args())
    as_json, model = arguments.pop("json"), arguments.pop("model")
    measured = measure(Sizes(**arguments), model)
    found = report(measured)
    print(json.dumps({**found.as_dict(), "measured": asdict(measured)}, indent=2) if as_json else found.markdown())
    return 0 if all(row.met is not False for row in found.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
