"""Answers that are made of vectors. Like those of `sse`, they run inside the ASGI call, where a disconnect is seen."""

import asyncio
import logging

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .accounts import count_tokens
from .errors import from_job_error
from .job import Core, JobError
from .pooling_request import PoolingTask
from .request_id import request_id_of
from .sse import until_disconnect
from .vector_batch import VectorBatch

log = logging.getLogger(__name__)


class PoolingResponse(Response):
    """Runs the jobs of a task, and sends what it makes of their vectors. Raises ApiError before anything is sent."""

    def __init__(self, core: Core, task: PoolingTask):
        super().__init__()
        self._core = core
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            batch = VectorBatch(self._core, self._task.jobs)
        except JobError as error:
            raise from_job_error(error) from error
        watcher = asyncio.ensure_future(until_disconnect(receive))
        watcher.add_done_callback(lambda _: batch.cancel())
        try:
            vectors = await batch.vectors()
            if not watcher.done():
                body = await asyncio.to_thread(self._task.render, vectors)
                await Response(body, media_type="application/json")(scope, receive, send)
        except JobError as error:
            raise from_job_error(error) from error
        finally:
            outcome = "disconnected" if watcher.done() else "done"
            watcher.cancel()
            batch.cancel()
            self._account(scope, outcome)

    def _account(self, scope: Scope, outcome: str) -> None:
        num_tokens, num_prompts = self._task.num_prompt_tokens, len(self._task.jobs)
        count_tokens(scope, num_tokens, 0)
        log.info("%s: %d prompt tokens, %d vectors, %s", request_id_of(scope), num_tokens, num_prompts, outcome)
