"""What clients write, and what it means."""

import pytest
from isthmus.wire.sampling import DEFAULT_ORDER
from isthmus.wire.sampling_values import KOBOLD_ORDER, READERS, kobold_order

APHRODITE = [
    "dry", "penalties", "no_repeat_ngram", "temperature", "top_nsigma", "top_p_top_k", "top_a", "min_p", "tfs",
    "eta_cutoff", "epsilon_cutoff", "typical_p", "quadratic", "xtc",
]  # fmt: skip
"""Aphrodite's 14 names, in its default order."""


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("eta_cutoff", 3, 3e-4),
        ("epsilon_cutoff", 0.02, 0.02),
        ("epsilon_cutoff", 1, 1),
        ("repetition_penalty_range", -1, 0),
        ("repetition_penalty_range", -2, -2),
        ("nsigma", -1, 0.0),
        ("custom_token_bans", "", []),
        ("custom_token_bans", " 5, 6,7", [5, 6, 7]),
        ("custom_token_bans", "[5,6]", [5, 6]),
        ("custom_token_bans", [5], [5]),
        ("token_ban_ranges", "[[[5, 6], 0, 2]]", [[[5, 6], 0, 2]]),
        ("dry_sequence_breakers", '["\\n", ":"]', ["\n", ":"]),
        ("dry_sequence_breakers", "", []),
        ("banned_strings", ["a"], ["a"]),
        ("sampler_priority", [], []),
        ("sampler_priority", 5, 5),
        ("sampler_priority", APHRODITE, list(DEFAULT_ORDER)),
        ("sampler_priority", [7, 6, 8, 5, 9, 0, 1, 2, 3, 10, 11, 4, 12, 13], list(DEFAULT_ORDER)),
        ("sampler_priority", list(KOBOLD_ORDER), list(kobold_order(KOBOLD_ORDER))),
        ("sampler_priority", str(APHRODITE).replace("'", '"').upper(), list(DEFAULT_ORDER)),
    ],
)
def test_spellings(field, given, expected):
    assert READERS[field](given) == expected


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        ("custom_token_bans", "1;2", "ids between commas"),
        ("dry_sequence_breakers", "\n", "must be a list"),
        ("dry_sequence_breakers", "[", "must be a list"),
        ("sampler_priority", [0, 1], "KoboldCpp's samplers 0 to 6 once"),
        ("sampler_priority", [*range(13), 12], "Aphrodite's samplers 0 to 13 once"),
        ("sampler_priority", ["dry", 5], "names of samplers, or their ids"),
        ("sampler_priority", ["dri"], "'dri' is no sampler"),
        ("sampler_priority", [*APHRODITE, "top_k"], "has top_k more than once"),
        ("sampler_priority", APHRODITE[1:], "missing: dry"),
    ],
)
def test_what_cannot_be_read_says_why(field, given, reason):
    with pytest.raises(ValueError, match=reason):
        READERS[field](given)


def test_kobolds_order_puts_what_it_has_no_id_for_where_it_has_it():
    order = kobold_order(KOBOLD_ORDER)
    assert sorted(order) == sorted(DEFAULT_ORDER)
    assert order[:4] == ("dry", "penalties", "no_repeat_ngram", "top_k")
    assert order[-4:] == ("temperature", "quadratic", "nsigma", "xtc")
