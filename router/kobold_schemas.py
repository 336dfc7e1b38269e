"""What Kobold's routes answer, for OpenAPI's page."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from .error_schemas import KoboldDetail
from .openai_schemas import ContentLogprob

KoboldFinish = Literal["stop", "length"]


class KoboldLogprobs(Struct):
    """Both of OpenAI's shapes."""

    content: list[ContentLogprob]
    """As in chats: a token each, with five others at most."""
    tokens: list[str]
    """Their texts. This list and the others have an item for each token, too, as in completions."""
    token_logprobs: list[float]
    """Natural logarithms of their probabilities; -9999 where there was no chance."""
    top_logprobs: list[dict[str, float]]
    """By text: the likeliest tokens in its place, five at most."""
    text_offset: list[int]
    """Characters before the token."""


class KoboldResult(Struct):
    text: str
    """What the model wrote."""
    tool_calls: list[Any]
    """Always empty: /v1/chat/completions has tools."""
    finish_reason: KoboldFinish
    """stop: it came to its own end or to one of stop_sequence; length: to max_length, to the end of the context, or
    to an abort."""
    logprobs: KoboldLogprobs | None
    """Of the tokens of the text; null without `logprobs`."""
    prompt_tokens: int
    """Of the prompt, those found in a cache included."""
    completion_tokens: int
    """Of this text, the one that stopped it included."""


class KoboldAnswer(Struct):
    """Texts that go on from the prompt."""

    results: list[KoboldResult]
    """`n` texts, one where the request says nothing."""


class KoboldEvent(Struct):
    """A part of the text; the event's name is `message`."""

    token: str
    """To be added to the text before; it may be empty, or several tokens."""
    finish_reason: KoboldFinish | Literal["error"] | None
    """As in a whole answer, or error; null in all events but the last."""
    detail: KoboldDetail | UnsetType = UNSET
    """What is wrong, where finish_reason is error."""


class TextSoFar(Struct):
    text: str
    """All that has been made of its first choice."""


class Checked(Struct):
    """The text of the newest generation with this key; empty if there is none."""

    results: list[TextSoFar]
    """Always one."""


class AbortTold(Struct):
    """What the abort did, as strings."""

    success: Literal["true", "false"]
    """Whether there was something to end."""
    done: Literal["true", "false"]
    """false: nothing was running yet; what is arriving ends as soon as it begins."""


class LastLogprobs(Struct):
    """Those of the newest generation with this key."""

    logprobs: KoboldLogprobs | None
    """Of its tokens so far; null where it asked for none, or there is no such generation."""


class Perf(Struct):
    """Figures of the request that ended last, 0 where none has, and of the queue."""

    last_process: float
    """Milliseconds a token of the prompt that was computed; those found in a cache do not count."""
    last_eval: float
    """Milliseconds a token of the output, without the first, which comes with the prompt."""
    last_token_count: int
    """Tokens of its output."""
    last_input_count: int
    """Tokens of its prompt, those found in a cache included."""
    last_process_time: float
    """Seconds from its placement on workers to its first token."""
    last_eval_time: float
    """Seconds from its first token to its last."""
    last_process_speed: float
    """Tokens of the prompt that were computed, a second."""
    last_eval_speed: float
    """Tokens of the output a second, without the first."""
    last_seed: int
    """That its tokens were drawn from; -1: none has ended."""
    last_draft_success: int | None
    """Tokens of it that were guessed right: 0 where workers guess none; null where they do, since they do not count
    them by request."""
    last_draft_failed: int | None
    """Tokens of it that were guessed wrong: 0 or null, as last_draft_success."""
    total_gens: int
    """Prompts that have ended since the start, whatever became of them."""
    stop_reason: int
    """-1: none yet, -2: failed, 0: its length, 1: an end of sequence, 2: a stop string."""
    total_img_gens: int
    """Images made: always 0."""
    total_tts_gens: int
    """Texts spoken: always 0."""
    total_transcribe_gens: int
    """Recordings written down: always 0."""
    queue: int
    """Sequences that wait for a worker."""
    idle: int
    """1 while nothing runs or waits, else 0."""
    hordeexitcounter: int
    """Failures of a worker for AI Horde: always 0, there is none in here."""
    uptime: float
    """Of the router, seconds."""
    idletime: float
    """Seconds since a request came; since the start, where none has."""
    quiet: bool
    """Whether prompts and answers are kept out of the log: always true."""


class Modalities(Struct):
    vision: bool
    """Whether it takes images: always false."""
    audio: bool
    """Whether it takes sound: always false."""


class DefaultSettings(Struct):
    n_ctx: int
    """Tokens, prompt and output together."""


class Props(Struct):
    """llama.cpp's description of the server."""

    chat_template: str
    """In Jinja; empty where the model has none."""
    total_slots: int
    """Sequences that run at once, on all decode workers together."""
    modalities: Modalities
    """What the model takes besides text."""
    model_path: str
    """The model's name; files are not told of."""
    n_ctx: int
    """Tokens, prompt and output together."""
    default_generation_settings: DefaultSettings
    """As far as clients read them."""


class TokensCounted(Struct):
    """A text's tokens."""

    value: int
    """How many."""
    ids: list[int]
    """The tokens, in order."""
    prompt: str
    """What was counted: of a conversation, what the chat template makes of it."""


class NothingCounted(Struct):
    value: Literal[-1]
    """All that KoboldCpp says of a refusal."""


class Detokenized(Struct):
    """The text of tokens."""

    result: str
    """The text, with special tokens unless `special` is false."""
    success: Literal[True]
    """Always true: a refusal has another status."""


class Nothing(Struct):
    """Nothing to say."""
