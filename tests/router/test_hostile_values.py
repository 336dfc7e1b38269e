"""Values that are refused at once, however large they are: no client may hold up the others with a long list."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask

MANY = 200_000
DEEP = 100_000
HUGE = 10**30

HOSTILE: list[tuple[str, Any]] = [
    ("sampler_priority", [0, 1] * (MANY // 2)),
    ("sampler_priority", ["dry"] * MANY),
    ("sampler_priority", [f"s{i}" for i in range(MANY)]),
    ("sampler_priority", str(list(range(14)) * (MANY // 14))),
    ("sampler_priority", "k" * MANY),
    ("sampler_priority", [HUGE]),
    ("sampler_priority", "[" * DEEP),
    ("token_ban_ranges", "[" * DEEP),
    ("dry_sequence_breakers", "[" * DEEP),
    ("banned_strings", '{"a":' * DEEP),
    ("bad_words", ["x"] * MANY),
    ("custom_token_bans", "9" * 10_000),
    ("custom_token_bans", ",".join(["70000"] * MANY)),
    ("custom_token_bans", [HUGE]),
    ("allowed_token_ids", [2**31]),
    ("token_ban_ranges", [[[0], 0, 2**63]]),
    ("token_ban_ranges", [[[HUGE], 0, 1]]),
    ("token_ban_ranges", [[[0], 0, 1]] * MANY),
    ("logit_bias", [[5, 1]] * MANY),
    ("logit_bias", {str(HUGE): 1}),
    ("logit_bias", {"70000": HUGE * 1.0}),
    ("top_k", 2**31),
    ("top_k", HUGE),
    ("dry_allowed_length", 2**63 - 1),
    ("dry_range", 2**31),
    ("repetition_penalty_range", -2),
    ("no_repeat_ngram_size", HUGE),
    ("min_tokens", HUGE),
    ("seed", HUGE),
    ("logprobs", HUGE),
    ("temperature", HUGE),
    ("dynatemp_range", HUGE),
    ("stop_token_ids", [HUGE]),
    ("eta_cutoff", HUGE),
    ("skew", -HUGE),
]


@pytest.fixture(scope="module")
def settled_heap() -> Iterator[None]:
    """As in a router that serves: the garbage collector does not look through all that pytest holds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("settled_heap")
@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=[f"{name}-{i}" for i, (name, _) in enumerate(HOSTILE)])
@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
def test_a_hostile_value_is_a_400_at_once(path: str, name: str, value: Any) -> None:
    core = FakeCore()
    began = time.process_time()  # this process's work alone: other tests run beside this one
    reply = ask(core, "POST", path, json={"prompt": "x", name: value})
    assert time.process_time() - began < 2
    assert reply.status_code == 400, reply.text
    assert name in reply.text
    assert len(reply.content) < 2500
    assert not core.streams
