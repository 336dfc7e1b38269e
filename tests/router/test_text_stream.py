import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.router.fake_core import FakeCore
from isthmus.router.job import Job, JobError, NewTokens
from isthmus.router.text_stream import ChoiceText, Generation, Piece, TextOptions, TextStream
from isthmus.tests.router.edge import EOS, TOKENIZER, ids, run, say, saying
from isthmus.wire.sampling import SamplingParams


def job(prompt_index: int = 0, num_choices: int = 1, prompt: str = "p", **params) -> Job:
    return Job("r", prompt_index, ids(prompt), num_choices, SamplingParams(**params), (EOS,))


def choice(*stops: str, include_stop: bool = False, skip: bool = True, **params) -> ChoiceText:
    return ChoiceText(0, TOKENIZER, job(**params), TextOptions(stops, include_stop, skip))


def push_each(text: ChoiceText, token_ids: list[int]) -> list[str]:
    pieces = [text.push(NewTokens(0, [token_id])) for token_id in token_ids]
    return [piece.text for piece in pieces if piece is not None]


def test_a_character_is_never_split():
    text = choice()
    assert push_each(text, ids("aé€🎉b")) == ["a", "é", "€", "🎉", "b"]


def test_an_unfinished_character_comes_out_at_the_end():
    text = choice()
    assert text.push(NewTokens(0, ids("€")[:2])) is None
    assert text.push(NewTokens(0, [], "length")) == Piece(0, "\ufffd", "length")


def test_a_character_the_prompt_leaves_unfinished_is_finished():
    euro = ids("€")
    text = ChoiceText(0, TOKENIZER, Job("r", 0, euro[:1], 1, SamplingParams(), ()), TextOptions())
    assert push_each(text, euro[1:]) == ["€"]


def test_only_what_may_become_a_stop_is_held_back():
    text = choice("STOP")
    assert push_each(text, ids("aSTxSTOPz")[:8]) == ["a", "STx", ""]
    assert (text.finish_reason, text.stop_reason) == ("stop", "STOP")


@pytest.mark.parametrize(("include_stop", "expected"), [(False, "ab"), (True, "abEND")])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_stop_across_tokens_counts_tokens_up_to_the_stop(include_stop, expected, size):
    text, tokens = choice("END", include_stop=include_stop), ids("abENDcdef")
    for start in range(0, len(tokens), size):
        if text.finish_reason is None:
            text.push(NewTokens(0, tokens[start : start + size]))
    assert ("".join(text.parts), text.num_tokens, text.stop_reason) == (expected, 5, "END")


def test_end_of_sequence_counts_but_is_not_shown():
    text = choice(skip=False)
    piece = text.push(NewTokens(0, [*ids("hi"), EOS], "stop", EOS))
    assert piece == Piece(0, "hi", "stop", None)
    assert text.num_tokens == 3


@pytest.mark.parametrize("stops", [(), ("zz",)])
@pytest.mark.parametrize(("include_stop", "expected"), [(False, "h"), (True, "hi")])
def test_a_stop_token_is_named(stops, include_stop, expected):
    stop_id = ids("i")[0]
    text = choice(*stops, include_stop=include_stop, stop_token_ids=(stop_id,))
    piece = text.push(NewTokens(0, ids("hi"), "stop", stop_id))
    assert piece == Piece(0, expected, "stop", stop_id)
    assert text.num_tokens == 2


def test_text_held_back_comes_out_at_the_end():
    text = choice("STOP")
    assert text.push(NewTokens(0, ids("aST"), "length")) == Piece(0, "aST", "length")


def test_stop_strings_wait_for_min_tokens():
    text = choice("a", min_tokens=2)
    assert push_each(text, ids("aaba")) == ["a", "a", "b", ""]
    assert text.stop_reason == "a"
    assert text.num_tokens == 4


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_text_and_count_do_not_depend_on_how_tokens_arrive(said, stops, data):
    whole, parts = choice(*stops), choice(*stops)
    tokens = ids(said)
    whole.push(NewTokens(0, tokens, "length"))
    while tokens and parts.finish_reason is None:
        size = data.draw(st.integers(1, len(tokens)))
        parts.push(NewTokens(0, tokens[:size], "length" if size == len(tokens) else None))
        tokens = tokens[size:]
    if not said:
        parts.push(NewTokens(0, [], "length"))
    for name in ("num_tokens", "finish_reason", "stop_reason"):
        assert getattr(whole, name) == getattr(parts, name)
    assert "".join(whole.parts) == "".join(parts.parts)


def generation(*jobs: Job, **options) -> Generation:
    return Generation(jobs, TextOptions(**options))


async def drain(text: TextStream) -> list[Piece]:
    pieces: list[Piece] = []
    while (arrived := await text.next()) is not None:
        pieces += arrived
    return pieces


def test_choices_of_several_prompts_are_numbered_by_prompt_then_choice():
    core = FakeCore()
    jobs = [job(i, 2, prompt, max_tokens=2) for i, prompt in enumerate(("ab", "xy", "mn"))]

    async def collect() -> list[str]:
        text = TextStream(core, generation(*jobs), TOKENIZER)
        await drain(text)
        return ["".join(c.parts) for c in text.choices]

    assert run(collect()) == ["ab", "ba", "xy", "yx", "mn", "nm"]
    assert core.num_running == 0


def test_a_stop_string_ends_that_choice_on_the_worker():
    core = saying("a.b", "cde")

    async def collect() -> TextStream:
        text = TextStream(core, generation(job(num_choices=2), stops=(".",)), TOKENIZER)
        await drain(text)
        return text

    text = run(collect())
    assert ["".join(c.parts) for c in text.choices] == ["a", "cde"]
    assert core.streams[0].stopped == [0]
    assert text.num_output_tokens == 2 + 4


def test_pieces_of_a_choice_that_arrive_together_are_one():
    class Twice(FakeCore):
        def submit(self, job):
            stream = super().submit(job)
            step = stream.next

            async def next_two():
                return [*await step(), *await step()]

            stream.next = next_two  # type: ignore[method-assign]
            return stream

    async def first() -> list[Piece] | None:
        return await TextStream(Twice(say("abcd")), generation(job()), TOKENIZER).next()

    assert run(first()) == [Piece(0, "ab")]


def test_one_refused_job_cancels_the_others():
    class Full(FakeCore):
        def submit(self, job):
            if len(self.streams) == 2:
                raise JobError(503, "full")
            return super().submit(job)

    core = Full()

    async def submit() -> None:
        TextStream(core, generation(*(job(i) for i in range(3))), TOKENIZER)

    with pytest.raises(JobError, match="full"):
        run(submit())
    assert [stream.cancelled.is_set() for stream in core.streams] == [True, True]


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_cancel_wakes_the_reader(num_prompts):
    core = FakeCore(step_s=60)

    async def cancelled() -> list[Piece] | None:
        text = TextStream(core, generation(*(job(i) for i in range(num_prompts))), TOKENIZER)
        reader = asyncio.ensure_future(text.next())
        await asyncio.sleep(0)
        text.cancel()
        return await asyncio.wait_for(reader, 5)

    assert run(cancelled()) is None


def test_an_error_of_one_of_several_jobs_is_the_requests():
    def fail_second(job: Job, choice: int):
        if job.prompt_index == 1:
            raise JobError(500, "lost")
        yield from ids("abc")

    async def collect() -> None:
        text = TextStream(FakeCore(lazily(fail_second)), generation(job(0), job(1)), TOKENIZER)
        try:
            await drain(text)
        finally:
            text.cancel()

    with pytest.raises(JobError, match="lost"):
        run(collect())


def lazily(script):
    return lambda job, choice: (token for token in script(job, choice))
