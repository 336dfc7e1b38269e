"""What clients write, and what it means."""

import pytest
from isthmus.wire.sampling_table import TABLE
from isthmus.wire.sampling_values import OTHER_FORMS, READERS


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("eta_cutoff", 3, 3e-4),
        ("eta_cutoff", 10_000, 1),
        ("epsilon_cutoff", 0.02, 0.02),
        ("epsilon_cutoff", 1, 1),
        ("epsilon_cutoff", "x", "x"),
        ("epsilon_cutoff", True, True),
        ("repetition_penalty_range", -1, 0),
        ("repetition_penalty_range", -2, -2),
        ("dry_range", -1, 0),
        ("nsigma", -1, 0.0),
        ("nsigma", -2, -2),
        ("logit_bias", {"5": 1}, {"5": 1}),
        ("logit_bias", [[5, 1.5], [7, -100]], {5: 1.5, 7: -100}),
        ("logit_bias", [], {}),
        ("custom_token_bans", "", []),
        ("custom_token_bans", " 5, 6,7", [5, 6, 7]),
        ("custom_token_bans", "[5,6]", [5, 6]),
        ("custom_token_bans", [5], [5]),
        ("token_ban_ranges", "[[[5, 6], 0, 2]]", [[[5, 6], 0, 2]]),
        ("dry_sequence_breakers", '["\\n", ":"]', ["\n", ":"]),
        ("dry_sequence_breakers", "", []),
        ("dry_sequence_breakers", "\n, ;", ["\n", ";"]),
        ("dry_sequence_breakers", '"\\n", ","', ["\n", ","]),
        ("banned_strings", ["a"], ["a"]),
        ("logprobs_mode", "raw_logprobs", "raw"),
        ("logprobs_mode", "processed_logprobs", "processed"),
        ("logprobs_mode", "processed", "processed"),
        ("logprobs_mode", "raw_logits", "raw_logits"),
        ("logprobs_mode", ["raw"], ["raw"]),
    ],
)
def test_spellings(field, given, expected):
    found = READERS[field](given)
    assert found == expected
    assert isinstance(found, bool) == isinstance(expected, bool)


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        ("eta_cutoff", 10_001, "from 0 to 1, or"),
        ("custom_token_bans", "1;2", "ids between commas"),
        ("dry_sequence_breakers", "[", "must be a list"),
        ("logit_bias", [[5, 1], [5, 2]], "more than once"),
        ("logit_bias", [["a", 1]], "or a list of"),
        ("logit_bias", [5], "or a list of"),
        ("token_ban_ranges", "[[5", "must be a list"),
    ],
)
def test_what_cannot_be_read_says_why(field, given, reason):
    with pytest.raises(ValueError, match=reason):
        READERS[field](given)


def test_readers_are_of_parameters():
    assert READERS.keys() <= TABLE.keys()
    assert OTHER_FORMS.keys() <= READERS.keys()
