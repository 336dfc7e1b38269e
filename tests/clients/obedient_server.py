"""The router before an obedient model, in a process of its own: prints its URL once it listens, serves until it ends.
With --keyless everyone may use it.

The model says what stands after the last `Say: ` of its prompt; `Say: A || B` makes choice 0 say A, and 1 B.
"""

import asyncio
import sys
from collections.abc import Iterator

from isthmus.router.access import Access
from isthmus.router.api_keys import Limits, make_key
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import Job
from isthmus.router.server import HttpServer, bound
from isthmus.tests.router.edge import EOS, TOKENIZER, ids, served
from isthmus.text.tool_calls.formats import FORMATS

KEYS = (
    make_key("sk-good", "good"),
    make_key("sk-spent", "spent", Limits(max_requests_per_minute=1)),
)


def obey(job: Job, choice: int) -> Iterator[int]:
    prompt = TOKENIZER.decode(job.prompt_ids, skip_special_tokens=False)
    said = prompt.rpartition("Say: ")[2].partition("<|im_end|>")[0].split(" || ")
    return iter([*ids(said[min(choice, len(said) - 1)]), EOS])


async def main(access: Access) -> None:
    settings = served(max_model_len=4000, call_format=FORMATS["hermes"])
    with bound("127.0.0.1", 0) as http:
        server = HttpServer(create_app(FakeCore(obey), settings, access))
        serving = asyncio.create_task(server.serve(sockets=[http]))
        await server.listening(serving)
        print(f"http://127.0.0.1:{http.getsockname()[1]}", flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main(Access(() if "--keyless" in sys.argv else KEYS)))
