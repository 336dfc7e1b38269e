"""What came of a step of a decode worker, as speculation sees it."""

from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """That speculation had in how a step was planned."""

    NONE = 0
    LOOKED = 1
    """For guesses, no more."""
    WAITED = 2
    """It was not planned ahead, for guesses of its own or of the step before."""


@dataclass(slots=True)
class DecodedStep:
    """What came of a step without prompts."""

    num_rows: int
    elapsed_s: float
    num_drafts: int = 0
    """Guesses that were made."""
    num_tried: int = 0
    """Of those, by the engine."""
    num_right: float = 0
    part: Part = Part.NONE
    has_grammar: bool = False
    """Some row has."""
    num_steps: int = 1
    """So many like it: of plain steps only some are told of."""
