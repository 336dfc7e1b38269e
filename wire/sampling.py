"""The table of sampling parameters: names, types, ranges, neutral values and help, in one place.

The struct *is* the table: a field's default is its neutral value (the one that changes nothing), `about` gives it its
group, help, range, other clients' names and what a slider should span. Routers validate with it, the wire carries it
(defaults are left out), decode workers sample by it; `sampling_table` reads it for clients and docs.
"""

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

MAX_LOGIT_BIAS = 100.0
MAX_INT = 2**31 - 1
MAX_BANNED_CHARS = 16_384
"""Of all of a request's banned_strings: workers look for them at once, with memory in proportion."""
MAX_SPECULATIVE_TOKENS = 16
"""Guessed at once for a sequence, at most."""

Group = Literal["temperature", "truncation", "draw", "repetition", "tokens", "order", "logprobs", "length", "speed"]
Slider = tuple[float, float, float]
"""(from, to, step): the part of a range that is worth a slider."""


def about(group: Group, help: str, *aliases: str, slider: Slider | None = None, **limits: Any) -> Meta:
    """A row of the table, but for the name, type and default. `aliases`: other clients' names; `limits` as in Meta."""
    return Meta(description=help, extra={"group": group, "aliases": aliases, "slider": slider}, **limits)


SHARE: dict[str, Any] = {"ge": 0, "le": 1, "slider": (0, 1, 0.01)}
CUTOFF: dict[str, Any] = {"ge": 0, "le": 1, "slider": (0, 0.01, 0.0001)}
FACTOR: dict[str, Any] = {"ge": 0, "le": 100, "slider": (0, 5, 0.01)}
PENALTY: dict[str, Any] = {"ge": -2, "le": 2, "slider": (-2, 2, 0.01)}
COUNT: dict[str, Any] = {"ge": 0, "le": MAX_INT}

Step = Literal[
    "dry",
    "penalties",
    "no_repeat_ngram",
    "temperature",
    "nsigma",
    "top_k",
    "top_p",
    "top_a",
    "min_p",
    "tfs",
    "eta_cutoff",
    "epsilon_cutoff",
    "typical_p",
    "quadratic",
    "xtc",
]
DEFAULT_ORDER: tuple[Step, ...] = get_args(Step)
"""Aphrodite's declared one."""

GuidanceKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "choice", "structural_tag", "composed"]


class Guidance(msgspec.Struct, frozen=True, array_like=True):
    """What the output must match. Clients send it under several names; see router/guidance_fields.py."""

    kind: GuidanceKind
    spec: str
    """The schema, expression or grammar; of `choice` a JSON list of strings; of `json_object` empty.
    `composed`: see text/composed.py."""


TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
Word = Annotated[str, Meta(min_length=1, max_length=1024)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
MAX_RANGE_BANS = 256
"""Tokens that all of token_ban_ranges may name."""


class BanRange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Aphrodite's: these tokens may not be output tokens `start` to `start + length - 1`, counted from 0."""

    tokens: tuple[TokenId, ...]
    start: Count
    length: Count


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the tokens of one request are drawn. Every default is neutral, except `max_tokens`' None: no limit
    but the context."""

    temperature: Annotated[float, about("temperature", "0 is greedy; logits are divided by it", **FACTOR)] = 1.0
    top_k: Annotated[
        int,
        about(
            "truncation",
            "keep the k largest logits, ties included; 0 and -1 are off",
            ge=-1,
            le=MAX_INT,
            slider=(0, 200, 1),
        ),
    ] = 0
    top_p: Annotated[
        float,
        about(
            "truncation",
            "keep the smallest set of tokens whose probability reaches top_p; 0 keeps the likeliest alone",
            **SHARE,
        ),
    ] = 1.0
    min_p: Annotated[
        float, about("truncation", "keep tokens with at least min_p times the largest probability", **SHARE)
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        about(
            "repetition",
            "divides positive and multiplies other logits of tokens seen so far",
            "rep_pen",
            "repeat_penalty",
            ge=0.01,
            le=100,
            slider=(1, 3, 0.01),
        ),
    ] = 1.0
    presence_penalty: Annotated[
        float, about("repetition", "subtracted once from tokens already in the output", **PENALTY)
    ] = 0.0
    frequency_penalty: Annotated[
        float, about("repetition", "subtracted once per occurrence in the output", **PENALTY)
    ] = 0.0
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
        about("tokens", "added to the logits of these token ids; -100 all but bans a token", max_length=1024),
    ] = {}
    dynatemp_min: Annotated[
        float, about("temperature", "lowest dynamic temperature; 0 and 0 are off", "dynatemp_low", "min_temp", **FACTOR)
    ] = 0.0
    dynatemp_max: Annotated[
        float, about("temperature", "highest dynamic temperature", "dynatemp_high", "max_temp", **FACTOR)
    ] = 0.0
    dynatemp_exponent: Annotated[
        float,
        about(
            "temperature",
            "shapes the way from dynatemp_min to dynatemp_max as entropy grows",
            gt=0,
            le=100,
            slider=(0.01, 10, 0.01),
        ),
    ] = 1.0
    smoothing_factor: Annotated[
        float,
        about(
            "temperature",
            "bends logits down quadratically below the largest; 0 is off",
            ge=0,
            le=100,
            slider=(0, 10, 0.01),
        ),
    ] = 0.0
    smoothing_curve: Annotated[
        float, about("temperature", "cubic part of smoothing; 1 has none", ge=1, le=100, slider=(1, 10, 0.01))
    ] = 1.0
    nsigma: Annotated[
        float,
        about(
            "truncation",
            "keep logits within so many standard deviations of the largest; 0 is off",
            "top_n_sigma",
            **FACTOR,
        ),
    ] = 0.0
    top_a: Annotated[
        float, about("truncation", "keep tokens with at least top_a times the largest probability squared", **SHARE)
    ] = 0.0
    tfs: Annotated[
        float,
        about(
            "truncation",
            "tail-free sampling: share of the curvature kept; 0 keeps the likeliest and what is in line with it",
            "tfs_z",
            **SHARE,
        ),
    ] = 1.0
    typical_p: Annotated[
        float,
        about(
            "truncation",
            "keep the most typical tokens whose probability reaches typical_p; 0 keeps the most typical alone",
            "typical",
            "typ_p",
            **SHARE,
        ),
    ] = 1.0
    eta_cutoff: Annotated[
        float, about("truncation", "drop tokens under an entropy-dependent probability", **CUTOFF)
    ] = 0.0
    epsilon_cutoff: Annotated[
        float, about("truncation", "drop tokens under this probability", "eps_cutoff", **CUTOFF)
    ] = 0.0
    xtc_threshold: Annotated[
        float,
        about(
            "truncation",
            "XTC removes all but the least likely of tokens at least this probable",
            ge=0,
            le=1,
            slider=(0, 0.5, 0.01),
        ),
    ] = 0.1
    xtc_probability: Annotated[float, about("truncation", "how often XTC acts; 0 is off", **SHARE)] = 0.0
    skew: Annotated[
        float,
        about(
            "draw",
            "above 0 favours less likely of the tokens kept, below 0 more likely ones",
            ge=-20,
            le=20,
            slider=(-5, 5, 0.01),
        ),
    ] = 0.0
    mirostat_mode: Annotated[
        int, about("draw", "1 and 2 replace truncation by Mirostat; 0 is off", "mirostat", ge=0, le=2, slider=(0, 2, 1))
    ] = 0
    mirostat_tau: Annotated[
        float, about("draw", "Mirostat's target surprise, in bits", ge=0, le=100, slider=(0, 20, 0.01))
    ] = 5.0
    mirostat_eta: Annotated[float, about("draw", "Mirostat's learning rate", ge=0, le=10, slider=(0, 1, 0.01))] = 0.1
    adaptive_target: Annotated[
        float, about("draw", "adaptive-p's target probability; below 0 is off", ge=-1, le=1, slider=(-0.01, 1, 0.01))
    ] = -1.0
    adaptive_decay: Annotated[
        float, about("draw", "how slowly adaptive-p's average forgets", ge=0, le=0.99, slider=(0, 0.99, 0.01))
    ] = 0.9
    repetition_penalty_range: Annotated[
        int,
        about(
            "repetition",
            "repetition_penalty looks at so many last tokens; 0 is all",
            "rep_pen_range",
            "repeat_last_n",
            **COUNT,
            slider=(0, 8192, 1),
        ),
    ] = 0
    repetition_penalty_slope: Annotated[
        float,
        about(
            "repetition",
            "how much of repetition_penalty acts in the older half of its range",
            "rep_pen_slope",
            ge=0,
            le=10,
            slider=(0, 10, 0.01),
        ),
    ] = 1.0
    no_repeat_ngram_size: Annotated[
        int, about("repetition", "no sequence of so many tokens comes twice; 0 is off", **COUNT, slider=(0, 20, 1))
    ] = 0
    dry_multiplier: Annotated[float, about("repetition", "DRY's strength; 0 is off", **FACTOR)] = 0.0
    dry_base: Annotated[
        float,
        about("repetition", "DRY's penalty grows by this with each token repeated", ge=1, le=100, slider=(1, 4, 0.01)),
    ] = 1.75
    dry_allowed_length: Annotated[
        int, about("repetition", "repeats shorter than this are not penalised by DRY", **COUNT, slider=(1, 20, 1))
    ] = 2
    dry_range: Annotated[
        int,
        about(
            "repetition",
            "DRY looks at so many last tokens; 0 and -1 are all",
            "dry_penalty_last_n",
            ge=-1,
            le=MAX_INT,
            slider=(0, 8192, 1),
        ),
    ] = 0
    dry_sequence_breakers: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=40)], ...],
        about("repetition", "strings that repeats are not followed across", max_length=64),
    ] = ("\n", ":", '"', "*")
    allowed_token_ids: Annotated[
        tuple[TokenId, ...], about("tokens", "only these tokens may come; none given allows all")
    ] = ()
    custom_token_bans: Annotated[tuple[TokenId, ...], about("tokens", "tokens that never come")] = ()
    token_ban_ranges: Annotated[
        tuple[BanRange, ...],
        about("tokens", "(token ids, start, length): not from output token `start` on, for `length`", max_length=64),
    ] = ()
    bad_words: Annotated[
        tuple[Word, ...], about("tokens", "words that never come, as sequences of tokens", max_length=1024)
    ] = ()
    banned_strings: Annotated[
        tuple[Word, ...],
        about(
            "tokens",
            "phrases that never come, in upper or lower case, however they are spelt in tokens",
            "banned_tokens",
            max_length=1024,
        ),
    ] = ()
    temperature_last: Annotated[bool, about("order", "temperature acts after all truncation")] = False
    sampler_priority: Annotated[
        tuple[Step, ...],
        about("order", "order of the samplers, each once; empty is the route's own", "sampler_order", "samplers"),
    ] = ()
    guidance: Guidance | None = None
    logprobs: Annotated[int, about("logprobs", "alternatives to give with each token", **COUNT)] | None = None
    logprobs_mode: Annotated[
        Literal["raw", "processed"], about("logprobs", "logprobs of the model, or of what the samplers left")
    ] = "raw"
    prompt_logprobs: (
        Annotated[int, about("logprobs", "alternatives to give with each of the prompt's tokens", **COUNT)] | None
    ) = None
    seed: Annotated[
        int,
        about(
            "draw",
            "fixes every draw; the server picks one where it is null or -1",
            "sampler_seed",
            ge=-(2**63),
            le=2**63 - 1,
        ),
    ] = -1
    ignore_eos: Annotated[
        bool, about("length", "do not stop at an end-of-sequence token", "ban_eos_token", "use_default_badwordsids")
    ] = False
    min_tokens: Annotated[int, about("length", "no end of sequence or stop token before this many tokens", **COUNT)] = 0
    max_tokens: (
        Annotated[int, about("length", "stop after this many tokens; 0 computes the prompt alone", **COUNT)] | None
    ) = None
    stop_token_ids: Annotated[
        tuple[TokenId, ...], about("length", "stop at any of these token ids", max_length=256)
    ] = ()
    num_speculative_tokens: (
        Annotated[
            int,
            about(
                "speed",
                "tokens guessed at once at most, where the server speculates; 0: none; null: as many as the server's "
                "flag allows. Never changes the output, only how soon it comes",
                ge=0,
                le=MAX_SPECULATIVE_TOKENS,
                slider=(0, MAX_SPECULATIVE_TOKENS, 1),
            ),
        ]
        | None
    ) = None


def resolve_seed(seed: int, fresh: int) -> int:
    """The seed a request runs with, as unsigned 64 bits: its own, or `fresh` where it gave none (-1)."""
    return (fresh if seed == -1 else seed) & 0xFFFF_FFFF_FFFF_FFFF
