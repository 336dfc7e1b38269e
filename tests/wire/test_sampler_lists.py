"""Orders of samplers as clients list them."""

import random

import pytest
from isthmus.wire.sampler_lists import APHRODITE, KOBOLD_ORDER, LLAMA_CPP, TEXTGEN, kobold_order, order
from isthmus.wire.sampling import DEFAULT_ORDER

APHRODITE_DEFAULT = [
    "dry", "penalties", "no_repeat_ngram", "temperature", "top_nsigma", "top_p_top_k", "top_a", "min_p", "tfs",
    "eta_cutoff", "epsilon_cutoff", "typical_p", "quadratic", "xtc",
]  # fmt: skip
LLAMA_CPP_DEFAULT = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
TEXTGEN_DEFAULT = [
    "repetition_penalty", "presence_penalty", "frequency_penalty", "dry", "top_n_sigma", "temperature",
    "dynamic_temperature", "quadratic_sampling", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "tfs",
    "top_a", "min_p", "mirostat", "xtc", "encoder_repetition_penalty", "no_repeat_ngram",
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ("", []),
        (5, 5),
        (list(DEFAULT_ORDER[::-1]), list(DEFAULT_ORDER[::-1])),
        (APHRODITE_DEFAULT, list(DEFAULT_ORDER)),
        (str(APHRODITE_DEFAULT).replace("'", '"').upper(), list(DEFAULT_ORDER)),
        ([7, 6, 8, 5, 9, 0, 1, 2, 3, 10, 11, 4, 12, 13], list(DEFAULT_ORDER)),
        (list(KOBOLD_ORDER), list(kobold_order(KOBOLD_ORDER))),
        (
            LLAMA_CPP_DEFAULT,
            [
                "penalties", "no_repeat_ngram", "dry", "nsigma", "top_k", "tfs", "typical_p", "eta_cutoff",
                "epsilon_cutoff", "top_p", "top_a", "min_p", "xtc", "temperature", "quadratic",
            ],
        ),
        (
            TEXTGEN_DEFAULT,
            [
                "penalties", "dry", "nsigma", "temperature", "quadratic", "top_k", "top_p", "typical_p",
                "epsilon_cutoff", "eta_cutoff", "tfs", "top_a", "min_p", "xtc", "no_repeat_ngram",
            ],
        ),
    ],
    ids=["empty", "empty text", "no list", "ours", "aphrodite", "json", "ids", "kobold", "llama.cpp", "textgen"],
)  # fmt: skip
def test_lists(given, expected):
    assert order(given) == expected


def test_letters_are_llama_cpps():
    assert order("edskypmxt") == order(LLAMA_CPP_DEFAULT)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([0, 1], "each of KoboldCpp's samplers once; missing: 2, 3, 4, 5, 6"),
        ([0, 1, 2, 3, 4, 5, 5], "has 5 more than once"),
        ([0, 1, 2, 3, 4, 5, 7], "7 is none of KoboldCpp's ids, 0 to 6"),
        ([*range(13)], "each of Aphrodite's samplers once; missing: 13"),
        ([*range(13), 99], "99 is none of Aphrodite's ids, 0 to 13"),
        (["dry", 5], "names of samplers, or their ids"),
        ([True], "names of samplers, or their ids"),
        (["dri"], "'dri' is no sampler"),
        ([*APHRODITE_DEFAULT, "top_k"], "has top_k more than once"),
        ([*APHRODITE_DEFAULT, "dry"], "has dry more than once"),
        (APHRODITE_DEFAULT[1:], "missing: dry"),
        (LLAMA_CPP_DEFAULT[1:], "missing: penalties, no_repeat_ngram"),
        ("[", "must be a list"),
        ("no letters", "must be a list"),
        ("kk", "has top_k more than once"),
    ],
)
def test_each_sampler_once(given, reason):
    with pytest.raises(ValueError, match=reason):
        order(given)


@pytest.mark.parametrize("names", [APHRODITE, LLAMA_CPP, TEXTGEN], ids=["aphrodite", "llama.cpp", "textgen"])
def test_every_servers_names_place_every_step_once(names):
    rng = random.Random(3)
    for _ in range(5):
        listed = rng.sample(list(names), len(names))
        assert sorted(order(listed)) == sorted(DEFAULT_ORDER)


def test_kobolds_order_puts_what_it_has_no_id_for_where_it_has_it():
    steps = kobold_order(KOBOLD_ORDER)
    assert sorted(steps) == sorted(DEFAULT_ORDER)
    assert steps[:4] == ("dry", "penalties", "no_repeat_ngram", "top_k")
    assert steps[-4:] == ("temperature", "quadratic", "nsigma", "xtc")
