"""docs/samplers.md, made from the table:  python -m isthmus.wire.sampling_page > docs/samplers.md"""

from collections.abc import Iterable
from textwrap import fill
from typing import get_args

import msgspec

from .sampler_lists import KOBOLD, KOBOLD_ORDER, NAMES
from .sampling import DEFAULT_ORDER, MAX_INT, Group
from .sampling_table import Parameter, parameters

WIDTH = 120
SERVERS = {"aphrodite": "Aphrodite", "llama.cpp": "llama.cpp", "textgen": "text-generation-webui"}
INTRODUCTION = """# Sampling parameters

Every route that generates takes them. A value out of its range is a 400 that names the field and the range; so are an
unknown field, and two names of one field with different values. `null` is as good as left out. `GET /v1/samplers` has
these tables as JSON, with the defaults of each API and what sliders should span. Made by
`python -m isthmus.wire.sampling_page`.

A request's tokens depend on its own prompt, parameters and seed alone, never on what else is in the batch.
"""
DEFINITIONS = """## Definitions

l are logits, p probabilities, H the entropy of p in nats. Where systems differ, this is what holds here. Tokens already
removed count in no statistic. Of equal logits, greedy and the draw take the lowest id, top-k and min-p keep all at the
threshold, and samplers that sort go by (value descending, id ascending).

- **Repetition penalty**: l / r if l > 0, else l · r, for tokens of prompt and output, once. In the older half of
  `repetition_penalty_range` r counts as 1 + (r − 1) · slope. Presence and frequency penalties see the output alone.
- **DRY**: for each earlier occurrence of how the text ends, L tokens long, the token after it loses multiplier ·
  base^(L − allowed length) if L reaches the allowed length; the longest occurrence counts. No caps. A repeat ends at a
  breaker, which may span tokens, or be part of one.
- **No repeat n-gram**: bans each token that followed an earlier copy of the last n − 1 tokens.
- **Dynamic temperature**: min + (max − min) · (H / ln number of tokens left)^exponent, in place of `temperature`.
- **Smoothing**: with d = l − max l: max l − k d² + s d³, k = factor (3 − curve) / 2, s = factor (curve − 1) / 2.
- **Top-nσ**: keeps l ≥ max l − nsigma · σ, σ the standard deviation of the finite logits.
- **Top-k, top-p, min-p, top-a**: top-p keeps the token that crosses it; top-a keeps p ≥ top_a · (max p)².
- **Tail-free**: by the normalised second differences of the sorted p; ranks up to the one that crosses tfs.
- **Epsilon, eta**: keep p ≥ epsilon; keep p ≥ min(eta, √eta · e^−H). The likeliest token always stays.
- **Typical**: in order of |−ln p − H|, keeps tokens until their p reaches typical_p, with the one that crosses it.
- **XTC**: with xtc_probability, of at least two tokens with p ≥ threshold all but the least likely go. Its coin has a
  noise stream of its own, which the seed fixes too.
- **Mirostat** (1 and 2): one state for each choice; the surprise is that of the renormalised truncated distribution.
  Truncation, XTC and top-nσ are left out; penalties, DRY, n-grams, temperature and smoothing come before it.
- **Adaptive-p**: prefers tokens whose p is near a target that makes up for those before; its average begins in
  equilibrium. Mirostat wins where both are on.
- **Skew**: over the descending order, the cumulative p becomes its power e^skew.
- **Greedy** (temperature 0) takes the largest logit after masks, biases, penalties, DRY and n-grams.
- **Banned strings** are never in the text, in upper or lower case: on a match the output goes back to where it began.
"""
SPELLINGS = """## Other spellings

- `eta_cutoff` and `epsilon_cutoff` above 1 count ten thousandths.
- `dynatemp_range` r stands for `dynatemp_min` and `dynatemp_max` at temperature ± r; 0, or `dynamic_temperature` false,
  switches them off. Both at 0 are off too.
- Lists of strings may come as JSON in a string, `custom_token_bans` and `allowed_token_ids` as ids between commas,
  `logit_bias` also as a list of [id, bias], `dry_sequence_breakers` also between commas; empty breakers are left out.
- `logprobs_mode` may be `raw_logprobs` or `processed_logprobs`.
- −1 is the whole context in `dry_range` and `repetition_penalty_range`, and off in `nsigma`.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *map(_table, get_args(Group)), _orders(), DEFINITIONS, SPELLINGS])


def _table(group: Group) -> str:
    rows = [_row(one) for one in parameters() if one.group == group]
    head = ["| parameter | type | range | neutral | other names | |", "|---|---|---|---|---|---|"]
    return "\n".join([f"## {group.capitalize()}\n", *head, *rows, ""])


def _row(one: Parameter) -> str:
    neutral = msgspec.json.encode(one.neutral).decode().replace("|", "\\|")
    return f"| `{one.name}` | {one.kind} | {_range(one)} | `{neutral}` | {_code(one.aliases)} | {one.help} |"


def _range(one: Parameter) -> str:
    if one.maximum is None or one.maximum > MAX_INT:
        return ""
    low = f"> {one.exclusive_minimum}" if one.minimum is None else f"≥ {one.minimum}"
    return low if one.maximum == MAX_INT else f"{low}, ≤ {one.maximum}"


def _orders() -> str:
    kobold = ", ".join(f"{number} {' + '.join(steps)}" for number, steps in enumerate(KOBOLD))
    parts = [
        f"By default: {_code(DEFAULT_ORDER)}. `temperature_last` puts temperature after XTC. Masks, bans, `min_tokens` "
        "and biases come before all; Mirostat, adaptive-p, skew and the draw after.",
        "`sampler_priority` is an order of the request's own, with each sampler once: by the names above, or by "
        "another server's. What that server has no name for acts beside a similar sampler.",
        *(f"{SERVERS[whose]}: {_code(names)}." for whose, names in NAMES.items() if whose in SERVERS),
        "Aphrodite's ids 0 to 13 are its names in this order; llama.cpp's letters are taken too.",
        f"KoboldCpp's ids: {kobold}; DRY comes first and XTC last. Kobold's routes begin with its default, "
        f"{list(KOBOLD_ORDER)}.",
    ]
    return "\n\n".join(["## Order", *(fill(part, WIDTH, break_on_hyphens=False) for part in parts), ""])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
