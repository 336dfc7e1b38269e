import pytest
from isthmus.engine.cuda.step_sizes import MAX_CHUNKS, NOTHING_CAPTURED, StepSize, make_ladder

LADDER = make_ladder(draws=True, max_num_seqs=100, max_num_batched_tokens=2048, num_weights=7_500_000_000)


@pytest.mark.parametrize(
    ("step", "size"),
    [
        ((1, 0, 0), StepSize(1, 0)),
        ((7, 0, 0), StepSize(8, 0)),
        ((100, 0, 0), StepSize(100, 0)),
        ((101, 0, 0), None),
        ((0, 1, 1), StepSize(0, 16)),
        ((0, 2048, 1), StepSize(0, 2048)),
        ((17, 500, MAX_CHUNKS), StepSize(64, 512)),
        ((17, 500, MAX_CHUNKS + 1), None),
        ((65, 16, 1), StepSize(100, 16)),
        ((0, 2049, 1), None),
    ],
)
def test_fit(step: tuple[int, int, int], size: StepSize | None) -> None:
    assert LADDER.fit(*step) == size


def test_every_size_fits_itself_and_little_is_wasted() -> None:
    assert all(LADDER.fit(size.num_single, size.num_chunk_tokens, 1) == size for size in LADDER.sizes)
    for num_rows in range(1, 101):
        size = LADDER.fit(num_rows, 0, 0)
        assert size is not None
        assert size.num_single <= max(num_rows + 1, num_rows * 1.25)


def test_without_draws_there_are_chunks_alone() -> None:
    ladder = make_ladder(draws=False, max_num_seqs=8, max_num_batched_tokens=512, num_weights=10**9)
    assert {size.num_single for size in ladder.sizes} == {0}
    assert ladder.fit(0, 300, 2) == StepSize(0, 320)


def test_steps_that_take_long_are_not_captured() -> None:
    big = make_ladder(draws=False, max_num_seqs=8, max_num_batched_tokens=8192, num_weights=70_000_000_000)
    assert big.fit(0, 257, 1) is None
    assert NOTHING_CAPTURED.fit(1, 0, 0) is None


@pytest.mark.parametrize(
    ("rows", "guesses", "size"),
    [
        (1, 1, StepSize(1, 0, 4)),
        (2, 1, StepSize(2, 0, 2)),
        (5, 3, StepSize(6, 0, 4)),
        (64, 16, StepSize(64, 0, 6)),
        (65, 1, None),
    ],
)
def test_steps_with_guesses(rows: int, guesses: int, size: StepSize | None) -> None:
    ladder = make_ladder(
        draws=True, max_num_seqs=100, max_num_batched_tokens=2048, num_weights=7_500_000_000, max_drafts=6
    )
    assert ladder.drafts == [2, 4, 6]
    assert ladder.fit_drafted(rows, guesses) == size
    assert size is None or size in ladder.sizes
    assert not any(one.num_drafts and one.num_tokens in (3, 4) for one in ladder.sizes)


def test_a_single_guess_is_captured_whatever_it_takes() -> None:
    ladder = make_ladder(draws=True, max_num_seqs=8, max_num_batched_tokens=64, num_weights=10**6, max_drafts=1)
    assert [size for size in ladder.sizes if size.num_drafts][:3] == [StepSize(n, 0, 1) for n in (1, 2, 3)]
    assert LADDER.fit_drafted(1, 1) is None


def test_steps_in_two_halves_are_few_and_hold_any_batch() -> None:
    for max_num_seqs in (1, 8, 100, 256):
        ladder = make_ladder(
            draws=True, max_num_seqs=max_num_seqs, max_num_batched_tokens=2048, num_weights=10**6, max_drafts=4
        )
        halved = [size for size in ladder.sizes if ladder.has_halves(size)]
        assert {size for size in halved if not size.num_drafts} == {StepSize(n, 0) for n in ladder.masked}
        assert {size for size in halved if size.num_drafts} == {size for size in ladder.sizes if size.num_drafts}
        assert len(ladder.masked) <= 2 + max_num_seqs.bit_length()
        for num_rows in range(1, max_num_seqs + 1):
            size = ladder.fit_masked(num_rows)
            assert size is not None
            assert num_rows <= size.num_single < 2 * num_rows
            assert size in halved
        assert ladder.fit_masked(max_num_seqs + 1) is None
    assert NOTHING_CAPTURED.fit_masked(1) is None


def test_graphs_have_a_branch_but_for_few_tokens_that_a_library_multiplies() -> None:
    sizes = [StepSize(1, 0), StepSize(4, 0), StepSize(0, 32), StepSize(1, 16), StepSize(4, 0, 4), StepSize(64, 512)]
    assert all(size.has_branch for size in sizes)
    assert not any(size.has_branch for size in (StepSize(5, 0), StepSize(16, 0), StepSize(0, 16), StepSize(2, 0, 4)))
