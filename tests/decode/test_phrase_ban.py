"""What is held back, released and taken back, against a search through the whole text after every token."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from isthmus.decode.phrase_ban import PhraseBan, PhraseBans
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import MAX_BANS, Draw, SequenceSeed
from isthmus.tests.decode.phrase_search import Search
from isthmus.tests.decode.toy_text import text_of, toy_tokenizer
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

SPECIAL = 0
TOKENS = [
    *(b"<s>", b"a", b"b", b"A", b"ab", b"aba", b" ", b" a", b"c\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xc3\x89"),
    *(b"\xe2\x82", b"", b"bab", b"\xc3\x9f", b"s", b"\xff"),
]
ALPHABET = "ab é€ssß\ufffd"


def begin(phrases: Sequence[str], prompt: Sequence[int] = (), output: Sequence[int] = ()) -> PhraseBan:
    return PhraseBans(toy_tokenizer(TOKENS, [SPECIAL])).begin(phrases, prompt, output)


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token.encode()) for token in tokens]


def push_all(ban: PhraseBan, token_ids: Sequence[int]) -> list[list[int] | None]:
    """What each token released; None where it was taken back."""
    found = [ban.push(token_id) for token_id in token_ids]
    return [None if held is None else [one.token_id for one in held] for held in found]


# By example.


def test_tokens_are_held_back_while_they_may_become_a_phrase() -> None:
    ban = begin(["abc"])
    assert push_all(ban, ids("b", "a", "b", "s")) == [ids("b"), [], [], ids("a", "b", "s")]


def test_a_phrase_is_taken_back_to_the_token_it_begins_in() -> None:
    ban = begin(["abab"])
    a, b, ab, aba = ids("a", "b", "ab", "aba")
    assert push_all(ban, [a, b, aba]) == [[], [], None]
    assert (ban.num_tokens, ban.bans, ban.epoch) == (0, (a,), 1)
    assert push_all(ban, [b, ab]) == [[b], []]
    assert push_all(ban, [ab]) == [None]
    assert (ban.num_tokens, ban.bans, ban.epoch) == (1, (ab,), 2)
    assert push_all(ban, [aba]) == [[]]
    assert push_all(ban, [b]) == [None]
    assert (ban.num_tokens, ban.bans, ban.epoch) == (1, (ab, aba), 3)


def test_going_back_forgets_bans_after() -> None:
    ban = begin(["aab", "bb"])
    a, b = ids("a", "b")
    assert push_all(ban, [a, a]) == [[], []]
    assert push_all(ban, [b]) == [None]  # aab
    assert (ban.num_tokens, ban.bans) == (0, (a,))
    assert push_all(ban, [b, b]) == [[], None]
    assert (ban.num_tokens, ban.bans) == (0, (a, b))


def test_bans_before_the_place_stay() -> None:
    ban = begin(["aaaa", "ab"])
    a, b, space_a = ids("a", "b", " a")
    assert push_all(ban, [a, a, b]) == [[], [], None]
    assert (ban.num_tokens, ban.bans) == (1, (a,))
    assert push_all(ban, ids("A")) == [[]]
    assert push_all(ban, ids("aba")) == [None]
    assert (ban.num_tokens, ban.bans) == (2, tuple(ids("aba")))
    assert push_all(ban, [b]) == [None]
    assert (ban.num_tokens, ban.bans) == (1, (a, ids("A")[0]))
    assert push_all(ban, [space_a]) == [[a]]
    assert ban.released_epoch == 0
    assert ban.epoch == 3


def test_case_is_folded() -> None:
    assert push_all(begin(["AbA"]), ids("a", "b", "a")) == [[], [], None]
    assert push_all(begin(["É"]), [TOKENS.index(b"\xc3"[:1] + b"\x89")]) == [None]
    assert push_all(begin(["STRASSE", "ss"]), ids("ß")) == [None]


def test_characters_in_pieces() -> None:
    c_, rest, e, two, three = (TOKENS.index(token) for token in (b"c\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac"))
    ban = begin(["é"])
    assert push_all(ban, [c_, rest]) == [[], None]
    assert (ban.num_tokens, ban.bans) == (0, (c_,))
    ban = begin(["€"])
    assert push_all(ban, [e, two, three]) == [[], [], None]
    assert (ban.num_tokens, ban.bans) == (0, (e,))
    assert push_all(begin(["x"]), [e, two, three]) == [[], [], [e, two, three]]


def test_the_end_lets_go_what_is_held_unless_it_is_a_phrase() -> None:
    a, b = ids("a", "b")
    ban = begin(["abc"])
    assert push_all(ban, [a]) == [[]]
    held = ban.push(b, ends=True)
    assert held is not None
    assert [one.token_id for one in held] == [a, b]
    ban = begin(["ab"])
    ban.push(a)
    assert ban.push(b, ends=True) is None
    assert ban.bans == (a,)
    unfinished = TOKENS.index(b"\xe2")
    ban = begin(["a\ufffd"])
    ban.push(a)
    assert ban.push(unfinished, ends=True) is None
    assert ban.bans == (a,)


def test_a_phrase_may_begin_in_the_prompt() -> None:
    assert push_all(begin(["ab"], prompt=ids("a")), ids("b")) == [ids("b")]
    started, rest = (TOKENS.index(token) for token in (b"c\xc3", b"\xa9"))
    assert push_all(begin(["é"], prompt=[started]), [rest]) == [None]  # the character is the output's


def test_what_was_released_is_not_taken_back() -> None:
    """A replay whose logits are a little different may find a phrase that begins before it."""
    ban = begin(["ab"], output=ids("a"))
    assert push_all(ban, ids("b")) == [None]
    assert (ban.num_tokens, ban.bans) == (1, tuple(ids("b")))


def test_what_comes_instead_of_a_token_taken_back() -> None:
    """A phrase may then begin in a token that was released while something harmless came after it."""
    ban = begin(["aa", "bab"])
    a, b, s = ids("a", "b", "s")
    assert push_all(ban, [a, b]) == [[], [a]]
    assert push_all(ban, ids("ab")) == [None]
    assert (ban.num_tokens, ban.bans) == (1, (b,))
    assert push_all(ban, [a]) == [None]
    assert (ban.num_tokens, ban.bans) == (1, (b, a))
    assert push_all(ban, [s]) == [[s]]


def test_a_banned_token_that_comes_nevertheless_is_an_error() -> None:
    ban = begin(["a"])
    (a,) = ids("a")
    assert push_all(ban, [a]) == [None]
    assert ban.error is None
    assert push_all(ban, [a]) == [None]
    assert "banned_strings leave no token" in str(ban.error)


def test_attempts_are_limited() -> None:
    tokens = [b"a" * (1 + i) for i in range(MAX_BANS + 1)]
    ban = PhraseBans(toy_tokenizer(tokens)).begin(["a"], [])
    for token_id in range(MAX_BANS + 1):
        assert ban.error is None
        assert len(ban.bans) <= MAX_BANS
        assert ban.push(token_id) is None
    assert "banned_strings" in str(ban.error)


# By search.


@given(
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, len(TOKENS) - 1), max_size=30),
)
def test_as_a_search_through_the_whole_text(phrases: list[str], drawn: list[int]) -> None:
    ban, search = begin(phrases), Search(TOKENS, phrases, [SPECIAL])
    kept: list[int] = []
    bans: dict[int, set[int]] = {}
    released: list[int] = []
    for number, token in enumerate(drawn):
        assert set(ban.bans) == bans.get(len(kept), set())
        if token in ban.bans:
            continue
        ends = number == len(drawn) - 1
        held = ban.push(token, ends=ends)
        at = search.find([*kept, token], at_end=ends)
        assert (held is None) == (at is not None)
        kept.append(token)
        if at is not None:
            at = max(at, len(released))
            bans = {place: ids for place, ids in bans.items() if place <= at}
            bans.setdefault(at, set()).add(kept[at])
            del kept[at:]
        else:
            num_released = len(released)
            released += [one.token_id for one in held or ()]
            settled = len(kept) if ends else max(num_released, search.num_settled(kept))
            assert len(released) == settled
        assert ban.num_tokens == len(kept)
        assert released == kept[: len(released)]
        assert not any(phrase.casefold() in search.read(kept)[0] for phrase in phrases)


@given(
    st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 2**32),
)
def test_a_replay_goes_on_as_the_first_time(phrases: list[str], seed: int) -> None:
    """From every row: its tokens, epoch and state are all that a second run needs to give the same rows."""
    rows = run(begin(phrases), seed, 12)
    position = 0
    for token_ids, epoch in rows:
        position += len(token_ids)
        output = [token for row, _ in rows for token in row][:position]
        again = PhraseBans(toy_tokenizer(TOKENS, [SPECIAL])).begin(phrases, [], output, epoch)
        assert [t for row, _ in run(again, seed, 12) for t in row] == [t for row, _ in rows for t in row][position:]


def run(ban: PhraseBan, seed: int, num_tokens: int) -> list[tuple[list[int], int]]:
    """Rows of tokens that are functions of position, epoch and bans; each with its epoch."""
    rows = []
    while ban.num_tokens < num_tokens:
        left = [token for token in range(len(TOKENS)) if token not in ban.bans]
        token = random.Random(f"{seed} {ban.num_tokens} {ban.epoch}").choice(left)
        held = ban.push(token, ends=ban.num_tokens == num_tokens - 1)
        if held:
            rows.append(([one.token_id for one in held], ban.released_epoch))
        assert ban.error is None
    return rows


# The law: draws are independent, so each path through the scheme has the product of its draws' probabilities.

LETTERS = [b"a", b"b", b"c", b"d"]
LENGTH = 3


def exact_law(phrases: Sequence[str]) -> dict[str, Fraction]:
    law: defaultdict[str, Fraction] = defaultdict(Fraction)

    def num_settled(text: str) -> int:
        opened = (i for i in range(len(text)) if any(phrase.startswith(text[i:]) for phrase in phrases))
        return next(opened, len(text))

    def draw(output: str, bans: tuple[str, ...], released: int, probability: Fraction) -> None:
        """`bans[i]`: what may not come at place i any more. The first `released` letters stay."""
        if len(output) == LENGTH:
            law[output] += probability
            return
        allowed = [letter for letter in "abcd" if letter not in bans[len(output)]]
        for letter in allowed:
            text = output + letter
            start = max((len(text) - len(phrase) for phrase in phrases if text.endswith(phrase)), default=None)
            if start is None:
                draw(text, (*bans, ""), max(released, num_settled(text)), probability / len(allowed))
            else:
                start = max(start, released)
                again = (*bans[:start], bans[start] + text[start])
                draw(text[:start], again, released, probability / len(allowed))

    draw("", ("",), 0, Fraction(1))
    assert sum(law.values()) == 1
    return dict(law)


def sampled_law(phrases: Sequence[str], num_seeds: int, *, raise_epoch: bool = True) -> Counter[str]:
    """The same by the real sampler, from equal logits. Uniform numbers of each seed are its own."""
    bans = PhraseBans(toy_tokenizer(LETTERS))
    params = SamplingParams(banned_strings=tuple(phrases))
    sampler = Sampler(len(LETTERS))
    seeds = [SequenceSeed(i, params, philox_key(i, 0, 0), [0], [], frozenset()) for i in range(num_seeds)]
    running = {i: (bans.begin(phrases, [0]), list[int]()) for i in range(num_seeds)}
    for seed in seeds:
        sampler.admit(seed)
    outputs: Counter[str] = Counter()
    while running:
        draws = [Draw(i, len(out), ban.epoch * raise_epoch, None, ban.bans) for i, (ban, out) in running.items()]
        tokens = sampler.sample(torch.zeros(len(draws), len(LETTERS)), draws).token_ids.tolist()
        for draw, token in zip(draws, tokens, strict=True):
            ban, output = running[draw.seq_id]
            output.append(token)
            if ban.push(token, ends=len(output) == LENGTH) is None:
                assert ban.error is None
                del output[ban.num_tokens :]
                sampler.retire(draw.seq_id)
                seed = seeds[draw.seq_id]
                sampler.admit(SequenceSeed(seed.seq_id, params, seed.key, [0], list(output), frozenset()))
            elif len(output) == LENGTH:
                outputs[text_of(LETTERS, output)] += 1
                del running[draw.seq_id]
    return outputs


def chi_square(observed: Counter[str], law: dict[str, Fraction]) -> float:
    """In standard deviations above what it is on average."""
    total = sum(observed.values())
    assert observed.keys() <= law.keys()
    statistic = sum((observed[text] - total * float(p)) ** 2 / (total * float(p)) for text, p in law.items())
    freedom = len(law) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


PHRASES = [("ab",), ("abc", "b"), ("aa", "bc"), ("ab", "ba"), ("A", "bcb")]


@pytest.mark.parametrize("phrases", PHRASES, ids="+".join)
def test_outputs_have_the_law_of_the_scheme(phrases: tuple[str, ...]) -> None:
    law = exact_law([phrase.lower() for phrase in phrases])
    assert len(law) == sum(
        not any(phrase.lower() in "".join(text) for phrase in phrases) for text in product("abcd", repeat=LENGTH)
    )
    assert chi_square(sampled_law(phrases, 4000), law) < 5


def test_without_a_new_epoch_the_law_is_another() -> None:
    """The place after the phrase's first token keeps the noise that made the phrase: what it favoured comes again."""
    law = exact_law(["ab"])
    assert chi_square(sampled_law(["ab"], 10_000, raise_epoch=False), law) > 15
