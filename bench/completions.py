"""Requests for greedy streams of a set length, after prompts that no cache knows, and what their answers tell."""

import asyncio
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..text.tokenizer import Tokenizer
from .load import Answer, Connection, LoadError, post
from .prompts import SENTENCE

ANSWER_TIMEOUT_S = 120.0
MAX_QUEUE_S = 0.2


class Prompts:
    """Each is made once: it differs from all others from its first block on."""

    def __init__(self, folder: Path, max_tokens: int):
        """`folder`: a resolved model's. `max_tokens`: of the longest."""
        self._tokenizer = Tokenizer.from_folder(folder)
        sentence = self._tokenizer.encode(SENTENCE, add_special_tokens=False)
        self._text = (sentence * -(-max_tokens // len(sentence)))[:max_tokens]
        self._num_made = 0

    def take(self, num_tokens: int) -> list[int]:
        """Token ids of a text: exactly so many."""
        assert num_tokens <= len(self._text)
        self._num_made += 1
        return (self._tokenizer.encode(f"{self._num_made}.") + self._text)[:num_tokens]


def completion(prompt: Sequence[int], num_tokens: int) -> bytes:
    """A request for a stream of exactly `num_tokens` tokens, with the usage at its end."""
    body = {
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return post("/v1/completions", json.dumps(body).encode())


async def ask(connection: Connection, request: bytes) -> Answer:
    """The whole answer. Raises LoadError if it is not one, TimeoutError after ANSWER_TIMEOUT_S."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        answer = await connection.ask(request)
    answer.check_whole()
    return answer


async def ask_once(connection: Connection, request: bytes) -> Answer:
    """As `ask`, where there is room. Raises LoadError if the request waited, or was placed a second time: then its time
    is not that of one prefill."""
    answer = await ask(connection, request)
    if stage_s(answer, "queue") > MAX_QUEUE_S:
        raise LoadError(f"a request waited in the queue, or was placed again: {answer.text[-500:]!r}")
    return answer


def stage_s(answer: Answer, stage: str) -> float:
    """Seconds of a stage (`queue`, `prefill`, `transfer`, `decode`) as the router counted them, from the usage."""
    told = re.search(rb'"%b_s":([0-9.e+-]+)' % stage.encode(), answer.text)
    if told is None:
        raise LoadError(f"the usage tells no {stage} time: {answer.text[-500:]!r}")
    return float(told[1])


def gaps_s(answer: Answer, begin: float, end: float) -> list[float]:
    """Times between arrivals, of all gaps that touch [begin, end]; the first and last reach out of it."""
    return [later - earlier for earlier, later in pairwise(answer.arrivals) if later > begin and earlier < end]
