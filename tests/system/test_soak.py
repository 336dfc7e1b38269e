"""Hundreds of mixed requests over HTTP against a whole server with the fake engine: whoever leaves, whatever dies."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from isthmus.tests.serving import Serve, serving

NUM_REQUESTS = 500
AT_ONCE = 24


def random_body(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body; answers are short, and the seed makes them repeatable."""
    words = " ".join(
        rng.choice(("once", "upon", "a", "time", "there", "was")) for _ in range(rng.choice((1, 9, 90, 600)))
    )
    seed, length = rng.randrange(2**40), rng.randint(1, 40)
    kind = rng.choice(("completion", "completions", "chat", "kobold"))
    if kind == "completion":
        return "/v1/completions", {"prompt": words, "max_tokens": length, "seed": seed, "n": rng.choice((1, 1, 3))}
    if kind == "completions":
        return "/v1/completions", {
            "prompt": [words, "and " + words],
            "max_tokens": length,
            "seed": seed,
            "stop": "dog,",
        }
    if kind == "chat":
        messages = [{"role": "user", "content": words}]
        return "/v1/chat/completions", {"messages": messages, "max_completion_tokens": length, "seed": seed}
    return "/api/v1/generate", {"prompt": words, "max_length": length, "sampler_seed": seed}


def streaming(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return ("/api/extra/generate/stream", body) if path.startswith("/api") else (path, {**body, "stream": True})


def whole_texts(path: str, answer: dict[str, Any]) -> dict[int, str]:
    if path.startswith("/api"):
        return {0: answer["results"][0]["text"]}
    return {choice["index"]: choice.get("text") or choice["message"]["content"] for choice in answer["choices"]}


def streamed_texts(path: str, lines: list[str]) -> dict[int, str]:
    texts: dict[int, str] = {}
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for event in events:
        assert "error" not in event, event
        if path.startswith("/api"):
            texts[0] = texts.get(0, "") + event["token"]
            continue
        for choice in event["choices"]:
            part = choice.get("text") or choice.get("delta", {}).get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + part
    return texts


class Clients:
    """Sends the requests; keeps what each got."""

    def __init__(self, url: str, num_requests: int):
        self.rng = random.Random(8)
        self.client = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=AT_ONCE))
        self.requests = [random_body(self.rng) for _ in range(num_requests)]
        self.running: set[int] = set()
        self.answers: dict[int, dict[int, str]] = {}
        self.num_left = 0

    async def all(self, leave: float) -> None:
        """Each request once; a share of them, `leave`, goes away before the end."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(index: int) -> None:
            async with gate:
                self.running.add(index)
                await self._one(index, self.rng.random() < leave)
                self.running.discard(index)

        await asyncio.gather(*(one(index) for index in range(len(self.requests))))

    async def _one(self, index: int, leaves: bool) -> None:
        path, body = self.requests[index]
        if leaves:
            try:
                await asyncio.wait_for(self._ask(path, body, self.rng.random() < 0.5), self.rng.uniform(0, 0.1))
            except TimeoutError:
                self.num_left += 1
        else:
            self.answers[index] = await self._ask(path, body, self.rng.random() < 0.5)

    async def _ask(self, path: str, body: dict[str, Any], stream: bool) -> dict[int, str]:
        if not stream:
            response = await self.client.post(path, json=body)
            assert response.status_code == 200, response.text
            return whole_texts(path, response.json())
        path, body = streaming(path, body)
        async with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, await response.aread()
            return streamed_texts(path, [line async for line in response.aiter_lines()])

    async def repeat(self, indices: list[int]) -> dict[int, dict[int, str]]:
        return {index: await self._ask(*self.requests[index], False) for index in indices}


def blocks_in_use(serve: Serve) -> float:
    usage = re.findall(r"^isthmus:kv_cache_usage_perc\{.*\} (\S+)$", serve.metrics().decode(), re.MULTILINE)
    assert usage
    return sum(map(float, usage))


def settled(serve: Serve) -> bool:
    page = serve.metrics().decode()
    waiting = re.findall(r"^isthmus:num_requests_(?:running|waiting)\{.*\} (\S+)$", page, re.MULTILINE)
    return len(waiting) == 2 and not any(map(float, waiting)) and blocks_in_use(serve) == 0


@pytest.fixture(scope="module")
def stack() -> Iterator[Serve]:
    arguments = "--prefill 1 --decode 2 --fake-step-s 0.002 --num-blocks 256 --max-model-len 2048 --max-num-seqs 16"
    with serving("--engine", "fake", *arguments.split(), "--max-num-batched-tokens", "64") as serve:
        yield serve


def test_clients_that_leave_leave_nothing_behind(stack: Serve) -> None:
    async def run() -> Clients:
        clients = Clients(stack.url, NUM_REQUESTS)
        async with clients.client:
            await clients.all(leave=0.3)
        return clients

    clients = asyncio.run(run())
    assert clients.num_left > 50
    assert len(clients.answers) > 300
    stack.wait(lambda: settled(stack))


def test_killed_workers_change_no_answer(stack: Serve) -> None:
    """Prefill and decode workers are killed one after the other while requests run: every answer is the one that an
    undisturbed server gives, every stream goes on, and no block stays behind. No request meets two deaths, which would
    end it."""

    async def kill(clients: Clients) -> None:
        for name in ("decode-0", "prefill-0", "decode-1", "prefill-0", "decode-0"):
            await asyncio.sleep(0.5)
            child = stack.child(name)
            if child is not None:
                child.kill()
                killed.append(name)
            met_it = set(clients.running)
            while met_it & clients.running:
                await asyncio.sleep(0.02)

    killed: list[str] = []

    async def run() -> tuple[Clients, dict[int, dict[int, str]]]:
        clients = Clients(stack.url, NUM_REQUESTS)
        async with clients.client:
            await asyncio.gather(clients.all(leave=0.2), kill(clients))
            stack.wait(stack.healthy)
            calm = await clients.repeat(sorted(clients.answers)[::5])
        return clients, calm

    clients, calm = asyncio.run(run())
    assert len(killed) >= 4
    assert len(clients.answers) > 350
    assert {index: clients.answers[index] for index in calm} == calm
    stack.wait(lambda: settled(stack))
