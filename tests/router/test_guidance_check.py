"""Deadlines of compiling, with a compiler that waits to be told."""

import asyncio
import threading

import pytest
from isthmus.router.errors import ApiError
from isthmus.router.guidance_check import check_guidance
from isthmus.text.grammar import GrammarError
from isthmus.text.grammar_cache import GrammarCache
from isthmus.wire.sampling import Guidance


class Stuck:
    def __init__(self) -> None:
        self.release = threading.Event()
        self.num_compiled = 0

    def compile(self, guidance: Guidance) -> str:
        assert self.release.wait(20)
        self.num_compiled += 1
        if guidance.spec == "bad":
            raise GrammarError("is bad")
        return guidance.spec


def check(cache: GrammarCache, spec: str, deadline_s: float = 0.05) -> None:
    asyncio.run(check_guidance(Guidance("regex", spec), "guided_regex", cache, deadline_s))


def test_what_takes_too_long_is_a_400_and_what_waits_behind_it_a_503() -> None:
    compiler = Stuck()
    cache = GrammarCache(compiler, num_threads=1)
    with pytest.raises(ApiError, match=r"takes more than 0\.05 s") as slow:
        check(cache, "slow")
    with pytest.raises(ApiError, match="other requests") as behind:
        check(cache, "behind")
    assert (slow.value.status, slow.value.param) == (400, "guided_regex")
    assert (behind.value.status, behind.value.retry_after_s) == (503, 0.05)
    compiler.release.set()
    check(cache, "behind", 20)  # it was compiled after all, for whoever comes next
    with pytest.raises(ApiError, match="guided_regex: is bad"):
        check(cache, "bad", 20)
    cache.close()


def test_the_cache_keeps_the_last_used() -> None:
    compiler = Stuck()
    compiler.release.set()
    cache = GrammarCache(compiler, max_grammars=2)
    for spec in ("a", "b", "a", "c", "a", "b"):
        cache.get(Guidance("regex", spec)).result(20)
    assert compiler.num_compiled == 4  # only b was forgotten
    cache.close()
