"""Two thousand random requests over HTTP to a router and a real engine with random weights, good and bad ones mixed:
none is a 500, none hangs, and a neighbour's answer is what it was."""

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import httpx
import pytest
from isthmus.engine.worker import Loaded
from isthmus.router.app import create_app
from isthmus.tests.local_cluster import LocalCluster
from isthmus.tests.oracle import make_tiny
from isthmus.tests.router.edge import served
from isthmus.tests.system.test_guidance import TOKENIZER
from isthmus.text.phrases import Phrases
from isthmus.wire.sampling_table import ALIASES, Parameter, parameters

NUM_REQUESTS, AT_ONCE, EVERY = 2000, 12, 100
NUM_GOOD = 500
"""Of those, with nothing amiss."""
LIMITED_BY_OTHERS = ("dynatemp_min", "dynatemp_max", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs")
ROUTES = (
    "/v1/completions",
    "/v1/completions",
    "/v1/chat/completions",
    "/api/v1/generate",
    "/api/extra/generate/stream",
)
WEIRD = (None, True, "", "x", -1, 0, 1, 2.5, 1e30, 2**70, [], [1], {}, {"a": 1}, "[1, 2]", "\ud7ff", -0.5)
OTHERS: dict[str, tuple[Any, ...]] = {
    "guided_regex": ("[ab]{1,3}", "(", "a*"),
    "guided_choice": (["x", "yy"], []),
    "guided_json": ({"type": "integer"}, "{", {"type": "nothing"}),
    "grammar": ('root ::= "a" | "b"', "root ::= x"),
    "response_format": ({"type": "json_object"}, {"type": "text"}, {"type": "?"}),
    "sampler_order": ([6, 0, 1, 3, 4, 2, 5], [0], "[6,0,1,3,4,2,5]"),
    "dynatemp_range": (0, 0.5, -1, "a"),
    "n": (1, 2, 0, 300),
    "stop": (["b"], "", [1]),
    "echo": (True, False),
    "stream": (True, False, 1),
    "nonsense": (1,),
}
NEIGHBOUR = {"prompt": "neighbour", "max_tokens": 12, "seed": 11, "temperature": 1.2, "top_p": 0.9, "logprobs": 2}


def value_of(one: Parameter, rng: random.Random) -> Any:
    """Mostly within its range."""
    if rng.random() < 0.1:
        return rng.choice(WEIRD)
    low = one.minimum if one.minimum is not None else one.exclusive_minimum
    if one.kind == "integer":
        return rng.choice((int(low or 0), 1, 3, rng.randrange(200)))
    if one.kind == "number":
        return rng.choice((low or 0.0, one.maximum or 1.0, rng.random(), rng.uniform(low or 0, one.maximum or 1)))
    if one.kind == "boolean":
        return rng.random() < 0.5
    if one.kind == "string":
        return rng.choice(("raw", "processed", "other"))
    if one.kind == "object":
        return {str(rng.randrange(400)): rng.uniform(-120, 120) for _ in range(rng.randrange(4))}
    if one.name in ("bad_words", "banned_strings", "dry_sequence_breakers"):
        return [rng.choice(("ab", "e", " the", "é", "")) for _ in range(rng.randrange(3))]
    if one.name == "token_ban_ranges":
        return [[[rng.randrange(400)], rng.randrange(-1, 4), rng.randrange(4)] for _ in range(rng.randrange(3))]
    return [rng.randrange(400) for _ in range(rng.randrange(4))]


def good_value(one: Parameter, rng: random.Random) -> Any:
    """Anywhere within its range, the ends too."""
    assert one.maximum is not None
    low = one.minimum if one.minimum is not None else one.maximum / 1000
    if one.kind == "integer":
        return rng.choice((int(low), int(one.maximum), rng.randrange(int(low), min(int(one.maximum), 50) + 1)))
    return rng.choice((low, one.maximum, rng.uniform(low, one.maximum), rng.uniform(low, min(one.maximum, 2))))


def good_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Numbers that no other field limits, under any of their names."""
    alone = [one for one in parameters() if one.maximum is not None and one.name not in LIMITED_BY_OTHERS]
    chosen = rng.sample(alone, rng.randrange(1, 9))
    body = {rng.choice((one.name, *one.aliases)): good_value(one, rng) for one in chosen}
    path = rng.choice(ROUTES)
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi there"}
    return path, {**prompt, "max_tokens": rng.randrange(1, 6), **body}


def request_of(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice(ROUTES)
    body: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi there"}
    )
    body["max_tokens"] = rng.randrange(1, 6)
    chosen = rng.sample(parameters(), rng.randrange(7))
    names = {one.name: [one.name, *(a for a, name in ALIASES.items() if name == one.name)] for one in chosen}
    body |= {rng.choice(names[one.name]): value_of(one, rng) for one in chosen}
    for name in rng.sample(sorted(OTHERS), rng.choice((0, 0, 1, 2))):
        body[name] = rng.choice(OTHERS[name])
    return path, body


def test_two_thousand_random_requests(tmp_path_factory: pytest.TempPathFactory) -> None:
    reference = make_tiny("qwen3", tmp_path_factory.mktemp("model"))
    phrases = Phrases(TOKENIZER)
    rng = random.Random(20)
    asked = [(*good_request(rng), True) for _ in range(NUM_GOOD)]
    asked += [(*request_of(rng), False) for _ in range(NUM_REQUESTS - NUM_GOOD)]
    rng.shuffle(asked)
    counts: dict[int, int] = {}

    async def run(cluster: LocalCluster) -> None:
        app = create_app(cluster.core, served(tokenizer=TOKENIZER, max_model_len=200))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            places, expected = asyncio.Semaphore(AT_ONCE), await neighbour(client)

            async def one(path: str, body: dict[str, Any], is_good: bool) -> None:
                async with places:
                    reply = await asyncio.wait_for(client.post(path, content=json.dumps(body)), 30)
                assert reply.status_code < 500, (path, body, reply.text)
                assert reply.status_code == 200 or not is_good, (path, body, reply.text)
                assert reply.status_code == 200 or "param" in reply.text or "message" in reply.text
                counts[reply.status_code] = counts.get(reply.status_code, 0) + 1

            for first in range(0, NUM_REQUESTS, EVERY):
                batch = [one(*each) for each in asked[first : first + EVERY]]
                _, again = await asyncio.gather(asyncio.gather(*batch), neighbour(client))
                assert again == expected

    async def neighbour(client: httpx.AsyncClient) -> list[Any]:
        reply = await client.post("/v1/completions", json=NEIGHBOUR)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        return [choice["text"], choice["logprobs"]["tokens"], choice["finish_reason"]]

    def load(model: str) -> Loaded:
        return replace(reference.load(model, phrases), tokenizer=TOKENIZER)

    with LocalCluster(load, num_prefill=0, max_num_seqs=32) as cluster:
        asyncio.run_coroutine_threadsafe(run(cluster), cluster.loop).result(280)
        assert set(cluster.used_blocks().values()) == {0}
    assert counts[200] > NUM_REQUESTS / 4, counts
    assert counts[400] > NUM_REQUESTS / 4, counts
