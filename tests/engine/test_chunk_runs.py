"""Where the chunks of a step lie that is launched kernel by kernel, and what is wanted of them."""

from isthmus.engine.cuda.chunk_runs import chunk_runs, describe, wanted_tokens
from isthmus.engine.cuda.runtime import HostRuntime
from isthmus.engine.plan import Draw, Row, Scoring
from isthmus.kernels.vendor_attention import Run

DRAWN = Row(0, (1, 2, 3), 4, (0, 1), (Draw(0, 0), Draw(1, 0)))
INNER = Row(1, (1, 2), 0, (2,))
SHIPPED = Row(2, (1, 2, 3, 4), 1, (3,), keep_logits=True, prompt_logprobs=Scoring((5, 6), 1), pooling="last")


def test_runs_follow_one_another() -> None:
    runs = chunk_runs([DRAWN, INNER, SHIPPED])
    assert runs == [Run(0, 3, 4), Run(3, 2, 0), Run(5, 4, 1)]
    chunks = describe(HostRuntime(), runs)
    assert (chunks.starts.tolist(), chunks.max_tokens, chunks.max_context) == ([0, 3, 5, 9], 4, 7)


def test_what_is_told_of_prompts_is_wanted_after_what_has_logits() -> None:
    rows = [DRAWN, INNER, SHIPPED]
    assert wanted_tokens(2, rows, chunk_runs(rows)) == ([0, 1, 4, 10, 7, 8, 10], 4)


def test_of_the_middle_of_a_prompt_nothing_is_wanted() -> None:
    assert wanted_tokens(0, [INNER], chunk_runs([INNER])) == ([], 0)
