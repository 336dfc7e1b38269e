"""What requests ask for: which samplers, grammars and other features are worth their keep."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import get_args

from prometheus_client.core import Metric

from ..wire.sampling import DEFAULT_ORDER, GuidanceKind, SamplingParams
from ..wire.sampling_table import parameters
from .histogram import Histogram
from .kobold_request import SAMPLING_DEFAULTS
from .metrics import COUNT_BOUNDS, TOKEN_BOUNDS
from .page import DEFAULT_PREFIX, Page, rows
from .text_stream import Generation

GROUPS = ("temperature", "truncation", "draw", "repetition", "tokens", "order")
SETTINGS = frozenset(
    [
        "dynatemp_min",
        "dynatemp_exponent",
        "smoothing_curve",
        "xtc_threshold",
        "mirostat_tau",
        "mirostat_eta",
        "adaptive_decay",
        "repetition_penalty_range",
        "repetition_penalty_slope",
        "dry_base",
        "dry_allowed_length",
        "dry_range",
        "dry_sequence_breakers",
        "seed",
    ]
)
"""They do nothing by themselves: another parameter switches on the sampler that they are of."""
SAMPLERS = tuple(p.name for p in parameters() if p.group in GROUPS and p.name not in SETTINGS)
OFF_BELOW_ZERO = frozenset(["top_k", "adaptive_target"])
DEFAULT_ORDERS = (DEFAULT_ORDER, SAMPLING_DEFAULTS["sampler_priority"])
"""Of the routes, which nobody asked for."""

_values = attrgetter(*SAMPLERS)
_NEUTRAL: tuple[object, ...] = _values(SamplingParams())

FEATURES: dict[str, Callable[[Generation], bool]] = {
    "n": lambda g: g.jobs[0].num_choices > 1,
    "several_prompts": lambda g: len(g.jobs) > 1,
    "echo": lambda g: bool(g.echoes),
    "stop": lambda g: bool(g.options.stops),
    "stop_token_ids": lambda g: bool(g.jobs[0].params.stop_token_ids),
    "min_tokens": lambda g: g.jobs[0].params.min_tokens > 0,
    "ignore_eos": lambda g: g.jobs[0].params.ignore_eos,
    "logprobs": lambda g: g.num_logprobs is not None,
    "prompt_logprobs": lambda g: g.num_prompt_logprobs is not None,
    "no_speculation": lambda g: g.jobs[0].params.num_speculative_tokens == 0,
}
"""By the name of the field that asks for it, or of what it amounts to."""


def samplers_in_use(params: SamplingParams) -> list[str]:
    """Names of the parameters that change how tokens are drawn."""
    named = zip(SAMPLERS, _values(params), _NEUTRAL, strict=True)
    return [name for name, value, neutral in named if value != neutral and not is_off(name, value)]


def is_off(name: str, value: object) -> bool:
    """Of a value that is not the neutral one."""
    if name in OFF_BELOW_ZERO:
        assert isinstance(value, int | float)
        return value < 0
    return name == "sampler_priority" and value in DEFAULT_ORDERS


class RequestUsage:
    """Counts requests whose generation began; all prompts and choices of one are one."""

    def __init__(self) -> None:
        self.by_sampler = dict.fromkeys(SAMPLERS, 0)
        self.by_guidance: dict[str, int] = dict.fromkeys(get_args(GuidanceKind), 0)
        self.by_feature = dict.fromkeys(("stream", *FEATURES), 0)
        self.num_choices = Histogram(COUNT_BOUNDS)
        self.max_tokens = Histogram(TOKEN_BOUNDS)

    def count(self, generation: Generation, *, stream: bool) -> None:
        job = generation.jobs[0]
        for name in samplers_in_use(job.params):
            self.by_sampler[name] += 1
        if job.params.guidance is not None:
            self.by_guidance[job.params.guidance.kind] += 1
        self.by_feature["stream"] += stream
        for name, wanted in FEATURES.items():
            self.by_feature[name] += wanted(generation)
        self.num_choices.observe(job.num_choices)
        if job.params.max_tokens is not None:
            self.max_tokens.observe(job.params.max_tokens)


class RequestUsagePage(Page):
    """Renders `RequestUsage`."""

    def __init__(self, usage: RequestUsage, *, model: str, prefix: str = DEFAULT_PREFIX):
        self._usage = usage
        super().__init__(prefix, {"model_name": model})

    def collect(self) -> Iterator[Metric]:
        usage = self._usage
        for name, help_text, label, counts in (
            ("sampler_requests", "Requests with this sampling parameter in use.", "sampler", usage.by_sampler),
            ("guided_requests", "Requests whose output has to match something.", "kind", usage.by_guidance),
            ("feature_requests", "Requests that use this part of the APIs.", "feature", usage.by_feature),
        ):
            yield self.counters(name, help_text, [label], rows(counts.items()))
        yield self.histogram("request_params_n", "Choices for each prompt.", usage.num_choices)
        yield self.histogram("request_params_max_tokens", "Longest answer, as far as fits.", usage.max_tokens)
