"""The table of sampling parameters: names, types, ranges, neutral values and help, in one place.

The struct *is* the table: a field's default is its neutral value (the one that changes nothing), its
`Meta` holds the range and the help text. Routers validate with it, the wire carries it (defaults are left out),
decode workers sample by it.
"""

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

MAX_LOGIT_BIAS = 100.0
MAX_BANNED_CHARS = 16_384
"""Of all of a request's banned_strings: workers look for them at once, with memory in proportion."""

ALIASES: dict[str, str] = {
    "rep_pen": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "rep_pen_range": "repetition_penalty_range",
    "repeat_last_n": "repetition_penalty_range",
    "rep_pen_slope": "repetition_penalty_slope",
    "typical": "typical_p",
    "typ_p": "typical_p",
    "tfs_z": "tfs",
    "eps_cutoff": "epsilon_cutoff",
    "top_n_sigma": "nsigma",
    "mirostat": "mirostat_mode",
    "dry_penalty_last_n": "dry_range",
    "dynatemp_low": "dynatemp_min",
    "min_temp": "dynatemp_min",
    "dynatemp_high": "dynatemp_max",
    "max_temp": "dynatemp_max",
    "sampler_order": "sampler_priority",
    "samplers": "sampler_priority",
    "sampler_seed": "seed",
    "ban_eos_token": "ignore_eos",
    "use_default_badwordsids": "ignore_eos",
    "banned_tokens": "banned_strings",
}
"""Other clients' names for fields of `SamplingParams`."""

NOT_YET: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1, 0),
    "negative_prompt": ("",),
}
"""Samplers that are known but not built: the values at which each changes nothing. `None` is always neutral."""


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

GuidanceKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "choice", "structural_tag"]


class Guidance(msgspec.Struct, frozen=True, array_like=True):
    """What the output must match. Clients send it under several names; see router/guidance_fields.py."""

    kind: GuidanceKind
    spec: str
    """The schema, expression or grammar; of `choice` a JSON list of strings; of `json_object` empty."""


TokenId = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
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

    temperature: Annotated[float, Meta(ge=0, le=100, description="0 is greedy; logits are divided by it")] = 1.0
    top_k: Annotated[int, Meta(ge=-1, description="keep the k largest logits, ties included; 0 and -1 are off")] = 0
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="keep the smallest set of tokens whose probability reaches top_p")
    ] = 1.0
    min_p: Annotated[
        float, Meta(ge=0, le=1, description="keep tokens with at least min_p times the largest probability")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Meta(ge=0.01, le=100, description="divides positive and multiplies other logits of tokens seen so far")
    ] = 1.0
    presence_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="subtracted once from tokens already in the output")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="subtracted once per occurrence in the output")
    ] = 0.0
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
        Meta(max_length=1024, description="added to the logits of these token ids; -100 all but bans a token"),
    ] = {}
    dynatemp_min: Annotated[float, Meta(ge=0, le=100, description="lowest dynamic temperature; 0 and 0 are off")] = 0.0
    dynatemp_max: Annotated[float, Meta(ge=0, le=100, description="highest dynamic temperature")] = 0.0
    dynatemp_exponent: Annotated[
        float, Meta(gt=0, le=100, description="shapes the way from dynatemp_min to dynatemp_max as entropy grows")
    ] = 1.0
    smoothing_factor: Annotated[
        float, Meta(ge=0, le=100, description="bends logits down quadratically below the largest; 0 is off")
    ] = 0.0
    smoothing_curve: Annotated[float, Meta(ge=1, le=100, description="cubic part of smoothing; 1 has none")] = 1.0
    nsigma: Annotated[
        float, Meta(ge=0, le=100, description="keep logits within so many standard deviations of the largest; 0 is off")
    ] = 0.0
    top_a: Annotated[
        float, Meta(ge=0, le=1, description="keep tokens with at least top_a times the largest probability squared")
    ] = 0.0
    tfs: Annotated[float, Meta(gt=0, le=1, description="tail-free sampling: share of the curvature kept")] = 1.0
    typical_p: Annotated[
        float, Meta(gt=0, le=1, description="keep the most typical tokens whose probability reaches typical_p")
    ] = 1.0
    eta_cutoff: Annotated[float, Meta(ge=0, le=1, description="drop tokens under an entropy-dependent probability")] = (
        0.0
    )
    epsilon_cutoff: Annotated[float, Meta(ge=0, le=1, description="drop tokens under this probability")] = 0.0
    xtc_threshold: Annotated[
        float, Meta(ge=0, le=1, description="XTC removes all but the least likely of tokens at least this probable")
    ] = 0.1
    xtc_probability: Annotated[float, Meta(ge=0, le=1, description="how often XTC acts; 0 is off")] = 0.0
    skew: Annotated[
        float,
        Meta(ge=-20, le=20, description="above 0 favours less likely of the tokens kept, below 0 more likely ones"),
    ] = 0.0
    mirostat_mode: Annotated[int, Meta(ge=0, le=2, description="1 and 2 replace truncation by Mirostat; 0 is off")] = 0
    mirostat_tau: Annotated[float, Meta(ge=0, le=100, description="Mirostat's target surprise, in bits")] = 5.0
    mirostat_eta: Annotated[float, Meta(ge=0, le=10, description="Mirostat's learning rate")] = 0.1
    adaptive_target: Annotated[
        float, Meta(ge=-1, le=1, description="adaptive-p's target probability; below 0 is off")
    ] = -1.0
    adaptive_decay: Annotated[float, Meta(ge=0, le=0.99, description="how slowly adaptive-p's average forgets")] = 0.9
    repetition_penalty_range: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="repetition_penalty looks at so many last tokens; 0 is all")
    ] = 0
    repetition_penalty_slope: Annotated[
        float, Meta(ge=0, le=10, description="how much of repetition_penalty acts in the older half of its range")
    ] = 1.0
    no_repeat_ngram_size: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="no sequence of so many tokens comes twice; 0 is off")
    ] = 0
    dry_multiplier: Annotated[float, Meta(ge=0, le=100, description="DRY's strength; 0 is off")] = 0.0
    dry_base: Annotated[
        float, Meta(ge=1, le=100, description="DRY's penalty grows by this with each token repeated")
    ] = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=0, description="repeats shorter than this are not penalised by DRY")] = 2
    dry_range: Annotated[
        int, Meta(ge=-1, le=2**31 - 1, description="DRY looks at so many last tokens; 0 and -1 are all")
    ] = 0
    dry_sequence_breakers: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=40)], ...],
        Meta(max_length=64, description="strings that repeats are not followed across"),
    ] = ("\n", ":", '"', "*")
    allowed_token_ids: Annotated[
        tuple[TokenId, ...], Meta(description="only these tokens may come; none given allows all")
    ] = ()
    custom_token_bans: Annotated[tuple[TokenId, ...], Meta(description="tokens that never come")] = ()
    token_ban_ranges: Annotated[
        tuple[BanRange, ...],
        Meta(
            max_length=64, description="(token ids, start, length): banned from output token `start` on, for `length`"
        ),
    ] = ()
    bad_words: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...],
        Meta(max_length=1024, description="words that never come, as sequences of tokens"),
    ] = ()
    banned_strings: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...],
        Meta(
            max_length=1024,
            description="phrases that never come, in upper or lower case, however they are spelt in tokens",
        ),
    ] = ()
    temperature_last: Annotated[bool, Meta(description="temperature acts after all truncation")] = False
    sampler_priority: Annotated[
        tuple[Step, ...], Meta(description="order of the samplers, each once; empty is the default order")
    ] = ()
    guidance: Guidance | None = None
    logprobs: Annotated[int, Meta(ge=0, description="alternatives to give with each token")] | None = None
    logprobs_mode: Annotated[
        Literal["raw", "processed"], Meta(description="logprobs of the model, or of what the samplers left")
    ] = "raw"
    prompt_logprobs: Annotated[int, Meta(ge=0, description="the same for the prompt's tokens")] | None = None
    seed: Annotated[
        int,
        Meta(ge=-(2**63), le=2**63 - 1, description="fixes every draw; the server picks one where it is null or -1"),
    ] = -1
    ignore_eos: Annotated[bool, Meta(description="do not stop at an end-of-sequence token")] = False
    min_tokens: Annotated[int, Meta(ge=0, description="no end of sequence or stop token before this many tokens")] = 0
    max_tokens: (
        Annotated[int, Meta(ge=0, description="stop after this many tokens; 0 computes the prompt alone")] | None
    ) = None
    stop_token_ids: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(max_length=256, description="stop at any of these token ids"),
    ] = ()


def resolve_seed(seed: int, fresh: int) -> int:
    """The seed a request runs with, as unsigned 64 bits: its own, or `fresh` where it gave none (-1)."""
    return (fresh if seed == -1 else seed) & 0xFFFF_FFFF_FFFF_FFFF


def is_neutral(name: str, value: Any) -> bool:
    """Whether a known but unbuilt sampler field asks for nothing."""
    return value is None or any(type(value) in (type(n), int, float) and value == n for n in NOT_YET[name])
