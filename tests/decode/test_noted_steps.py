"""Which steps without guesses are noted: enough to know what they take, and none that takes more for another reason."""

from isthmus.decode.decoded_step import DecodedStep, Part
from isthmus.decode.speculation import MOST_CHANGES, MOST_LOOKED, MOST_UNNOTED, NOTED_S, Speculation
from isthmus.decode.speculator import EngineProposer

STEP_S = 0.001


def noted(speculation: Speculation, sizes: list[int], part: Part = Part.NONE) -> list[int]:
    """Of steps of so many rows each, of which the first is as the one before: how many each stands for, once it is
    recorded."""
    counts, last = [], sizes[0]
    for num_rows in sizes:
        speculation.begin_step(num_rows)
        counts.append(speculation.notes(part, has_changed=num_rows != last))
        last = num_rows
        if counts[-1]:
            speculation.record(DecodedStep(num_rows, STEP_S, part=part, num_steps=counts[-1]))
    return counts


def test_some_stand_for_all() -> None:
    speculation = Speculation(EngineProposer, 4)
    counts = noted(speculation, [8] * 200)
    assert sum(counts) >= 200 - MOST_UNNOTED
    assert max(counts) == min(MOST_UNNOTED, 1 + int(NOTED_S / STEP_S))


def test_not_the_first_after_somebody_came_or_went() -> None:
    """What takes longer then is not what a step of so many takes; the one after it is noted, if one is due."""
    speculation = Speculation(EngineProposer, 4)
    while noted(speculation, [8])[0] <= 1:
        pass
    due = min(MOST_UNNOTED, 1 + int(NOTED_S / STEP_S))
    assert noted(speculation, [8] * (due - 1) + [9, 9, 9]) == [0] * due + [due + 1, 0]


def test_all_until_what_plain_steps_take_is_known() -> None:
    speculation = Speculation(EngineProposer, 4)
    noted(speculation, [32] * 50)
    assert all(noted(speculation, [8] * 3))


def test_but_some_where_somebody_always_does() -> None:
    speculation = Speculation(EngineProposer, 4)
    counts = noted(speculation, [64, 63] * 200)
    assert MOST_CHANGES < max(counts) <= MOST_UNNOTED + MOST_CHANGES
    assert sum(counts) >= 400 - MOST_UNNOTED - MOST_CHANGES


def test_what_waited_is_recorded_by_itself_and_what_looked_counts_with_the_next() -> None:
    speculation = Speculation(EngineProposer, 4)
    num_untold = 50 - sum(noted(speculation, [8] * 50))
    noted(speculation, [8], Part.WAITED)
    assert noted(speculation, [8] * 3, Part.LOOKED) == [0, 0, 0]
    assert noted(speculation, [8]) == [num_untold + 4]
    assert noted(speculation, [8] * 3, Part.WAITED) == [1, 1, 1]


def test_where_every_step_looks_time_goes_on() -> None:
    """What is learnt of the time is else never learnt again: when to try, and what plain steps take."""
    speculation = Speculation(EngineProposer, 4)
    assert sum(noted(speculation, [8] * (4 * MOST_LOOKED), Part.LOOKED)) == 4 * MOST_LOOKED
