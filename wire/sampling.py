"""The table of sampling parameters: names, types, ranges, neutral values and help, in one place.

The struct *is* the table: a field's default is its neutral value (the one that changes nothing), its
`Meta` holds the range and the help text. Routers validate with it, the wire carries it (defaults are left out),
decode workers sample by it.
"""

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_LOGIT_BIAS = 100.0

ALIASES: dict[str, str] = {
    "rep_pen": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "sampler_seed": "seed",
    "ban_eos_token": "ignore_eos",
    "use_default_badwordsids": "ignore_eos",
}
"""Other clients' names for fields of `SamplingParams`."""

NOT_YET: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "dynatemp_min": (0,),
    "dynatemp_max": (0,),
    "dynatemp_range": (0,),
    "dynatemp_exponent": (1,),
    "smoothing_factor": (0,),
    "smoothing_curve": (1,),
    "top_a": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "typical": (1,),
    "typical_p": (1,),
    "typ_p": (1,),
    "eta_cutoff": (0,),
    "epsilon_cutoff": (0,),
    "eps_cutoff": (0,),
    "nsigma": (0,),
    "top_n_sigma": (0,),
    "xtc_probability": (0,),
    "skew": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "adaptive_target": (-1,),
    "dry_multiplier": (0,),
    "no_repeat_ngram_size": (0,),
    "repetition_penalty_range": (0,),
    "rep_pen_range": (0,),
    "repeat_last_n": (-1,),
    "repetition_penalty_slope": (1,),
    "rep_pen_slope": (1,),
    "temperature_last": (False,),
    "sampler_priority": ([],),
    "sampler_order": ([], [6, 0, 1, 3, 4, 2, 5]),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "custom_token_bans": ([], ""),
    "token_ban_ranges": ([],),
    "banned_strings": ([],),
    "banned_tokens": ([],),
    "guided_json": ("",),
    "guided_regex": ("",),
    "guided_grammar": ("",),
    "guided_choice": ([],),
    "grammar": ("",),
    "grammar_string": ("",),
    "guidance_scale": (1, 0),
    "negative_prompt": ("",),
}
"""Samplers that are known but not built: the values at which each changes nothing. `None` is always neutral."""

NO_EFFECT_WITHOUT: dict[str, str] = {
    "dynatemp_exponent": "dynatemp_range",
    "smoothing_curve": "smoothing_factor",
    "xtc_threshold": "xtc_probability",
    "mirostat_tau": "mirostat",
    "mirostat_eta": "mirostat",
    "adaptive_decay": "adaptive_target",
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_range": "dry_multiplier",
    "dry_penalty_last_n": "dry_multiplier",
    "dry_sequence_breakers": "dry_multiplier",
    "rep_pen_range": "repetition_penalty",
    "repetition_penalty_range": "repetition_penalty",
    "repeat_last_n": "repetition_penalty",
    "rep_pen_slope": "repetition_penalty",
    "repetition_penalty_slope": "repetition_penalty",
    "grammar_retain_state": "grammar",
}
"""Fields that only shape another one: accepted at any value while that other one is neutral."""


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
    if value is None:
        return True
    if isinstance(value, str) and value[:1] == "[":
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return any(type(value) in (bool, type(n), int, float) and value == n for n in NOT_YET[name])
