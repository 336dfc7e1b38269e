import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import Core, Job, JobError, NewTokens
from isthmus.tests.router.edge import run
from isthmus.wire.sampling import SamplingParams


def job(prompt: list[int], num_choices: int = 1, **params) -> Job:
    return Job("r", 0, prompt, num_choices, SamplingParams(**params), (9,))


async def rows(core: Core, asked: Job) -> list[NewTokens]:
    stream, all_rows = core.submit(asked), []
    while arrived := await stream.next():
        all_rows += arrived
    return all_rows


def test_it_repeats_the_prompt_up_to_max_tokens():
    assert run(rows(FakeCore(tokens_per_step=2), job([1, 2], max_tokens=3))) == [
        NewTokens(0, [1, 2]),
        NewTokens(0, [1], "length"),
    ]


def test_choices_begin_at_different_tokens():
    core = FakeCore(tokens_per_step=3)
    assert [row.token_ids for row in run(rows(core, job([1, 2, 3], 2, max_tokens=3)))] == [[1, 2, 3], [2, 3, 1]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, NewTokens(0, [1, 9], "stop", 9)),
        ({"ignore_eos": True}, NewTokens(0, [1, 9, 2, 1], "length")),
        ({"min_tokens": 3}, NewTokens(0, [1, 9, 2, 1], "length")),
        ({"stop_token_ids": (1,)}, NewTokens(0, [1], "stop", 1)),
    ],
)
def test_it_ends_as_a_decode_worker_does(params, expected):
    assert run(rows(FakeCore(tokens_per_step=4), job([1, 9, 2], max_tokens=4, **params))) == [expected]


def test_nothing_is_made_where_no_token_is_wanted():
    assert run(rows(FakeCore(), job([1, 2], 2, max_tokens=0))) == [
        NewTokens(0, (), "length"),
        NewTokens(1, (), "length"),
    ]


def test_a_script_that_ends_ends_the_choice():
    assert run(rows(FakeCore(lambda job, choice: iter([4])), job([1]))) == [
        NewTokens(0, [4]),
        NewTokens(0, [], "stop"),
    ]


def test_stop_and_cancel_end_choices_and_are_recorded():
    core = FakeCore()

    async def go() -> tuple[list[NewTokens], list[NewTokens]]:
        stream = core.submit(job([1, 2], 2))
        stream.stop(0)
        rest = list(await stream.next())
        stream.cancel()
        stream.cancel()
        return rest, list(await stream.next())

    assert run(go()) == ([NewTokens(1, [2])], [])
    assert core.streams[0].stopped == [0]
    assert core.num_running == 0


def test_a_refusal_is_raised_on_submission():
    core = FakeCore()
    core.refusal = JobError(503, "full")
    with pytest.raises(JobError, match="full"):
        core.submit(job([1]))
