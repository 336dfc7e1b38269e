"""Every control message, by direction. Plain fields only; token ids travel as raw little-endian int32.

    worker --Hello--> router --Welcome | HelloRefused--> worker --Ready--> router --Heartbeat--> …

A worker says Hello as soon as its process runs, loads the model it was given or that Welcome names, and says Ready;
until then it is placed nothing. A placement is one prompt sent to workers for one or more choices: its id is unique
over all routers and their restarts (`placement_base`), so a requeued request is a new placement, and late answers to an
old one are recognised and dropped.
"""

from typing import Literal

from msgspec import Struct

from .logprobs import TokenLogprobs
from .sampling import SamplingParams

PROTOCOL_VERSION = 5
MAX_CONTROL_BYTES = 64 << 20
"""Largest control message a peer may send; the largest is a Reserve or Prefill with its prompt."""

Role = Literal["prefill", "decode"]
WorkerState = Literal["loading", "ready", "draining"]
FinishReason = Literal["stop", "length"]
Pooling = Literal["last", "mean", "cls", "score"]
"""One vector of a whole prompt, of the model's last hidden states after its final norm: the last token's, the mean over
all tokens, the first token's; or the scores of a classification head."""


class CacheGroup(Struct, frozen=True):
    """Layers whose KV has one shape and lives by one rule."""

    layer_ids: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    dtype: str
    window_tokens: int | None = None


class Fingerprint(Struct, frozen=True):
    """What two workers must agree on before KV moves between them."""

    weights: str
    """Digest of the weights."""
    tokenizer: str
    """Digest of the tokenizer's vocabulary and rules."""
    rope: str
    """Canonical description of the rotary embedding."""
    num_layers: int
    vocab_size: int
    block_size: int
    """Tokens of a hash block."""
    layout: tuple[CacheGroup, ...] = ()


class Capacity(Struct, frozen=True):
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


def placement_base(router_epoch: int) -> int:
    """The number a router's placement ids count up from: 31 random bits above 32 for the count."""
    return (router_epoch & 0x7FFF_FFFF) << 32


# Both directions.


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """Sent by a thread of its own: silence is death, an old `step_age_s` with work to do is a hang."""

    state: WorkerState = "ready"
    step_age_s: float = 0.0
    """Seconds since the last finished step; 0 while there is nothing to do."""
    stats: "WorkerStats | None" = None
    held: tuple[str, ...] = ()
    """Transfer ids, each of which renews a lease. From prefill: of all it has taken on and not yet sent. To decode, as
    soon as prefill says so: of all that a prefill worker holds for it, and maybe others."""


class WorkerStats(Struct, frozen=True):
    num_blocks_used: int
    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    """Prompt tokens accepted and not yet computed."""
    prefill_tokens_per_s: float
    """Measured over recent steps that computed prompt tokens; 0 before the first."""
    decode_step_s: float
    """Measured over recent steps; 0 before the first."""
    num_preemptions: int = 0
    prefix_hit_tokens: int = 0
    """Prompt tokens found in the prefix cache since the worker started."""
    prefix_query_tokens: int = 0
    transfer_bytes: int = 0
    """Sent by prefill, received by decode, since the worker started."""
    transfer_s: float = 0.0
    """On prefill from the end of each computation to the end of its transfer, on decode storing what came."""
    num_expired_leases: int = 0
    """Reservations whose KV did not come, of which no prefill worker said any more that it would."""
    num_drafts: int = 0
    """Speculation since the worker started: how often tokens were guessed for a sequence."""
    num_draft_tokens: int = 0
    """Tokens guessed."""
    num_accepted_tokens: int = 0
    """Those of them that were right."""
    num_accepted_per_position: tuple[int, ...] = ()
    """Of the first token of each draft, the second, …: adds up to `num_accepted_tokens`."""


# Worker to router: registration.


class Hello(Struct, frozen=True, tag="hello"):
    protocol: int
    role: Role
    worker: str
    """Name for logs and metrics, unique among living workers."""
    epoch: int
    """Random, drawn when the process started."""
    fingerprint: Fingerprint | None = None
    """None if it waits for Welcome to name the model."""


class Ready(Struct, frozen=True, tag="ready"):
    fingerprint: Fingerprint
    capacity: Capacity
    data_endpoints: tuple[str, ...] = ()
    """Where KV can be sent, one a rank; decode workers only. Each lists its alternatives, the best first, separated by
    semicolons, as D-Bus addresses do: a sender takes the first that it can reach."""


class Goodbye(Struct, frozen=True, tag="goodbye"):
    reason: str


# Router to worker: registration.


class Welcome(Struct, frozen=True, tag="welcome"):
    router: str
    epoch: int
    model: str
    heartbeat_interval_s: float


class HelloRefused(Struct, frozen=True, tag="hello_refused"):
    """Final: the worker ends, saying why."""

    reason: str


class SayHello(Struct, frozen=True, tag="say_hello"):
    """To a worker this router does not know: it has restarted, or had given the worker up."""


# Router to worker: work.


class Choice(Struct, frozen=True, array_like=True):
    index: int
    output: bytes = b""
    """Tokens it has already produced, on a replay or after a preemption."""
    state: bytes = b""
    """As `TokenRow.state` of the last of them."""
    epoch: int = 0
    """As `TokenRow.epoch` of the last of them."""


class Reserve(Struct, frozen=True, tag="reserve"):
    """To decode: make room for a prompt (and earlier output), then wait for its KV or compute it."""

    placement: int
    request_id: str
    prompt: bytes
    choices: tuple[Choice, ...]
    """More than one only while none has output."""
    params: SamplingParams
    """With the seed resolved."""
    prompt_index: int
    cost_blocks: int
    """What the router charged against this worker's credit."""
    remote: bool
    """True: a prefill worker will send the KV. False: compute it here."""
    eos_ids: tuple[int, ...] = ()
    pooling: Pooling | None = None
    """Of a prompt after which nothing is drawn: answer with a `Pooled`."""
    salt: bytes = b""
    """Of the prompt's block hashes."""


class Prefill(Struct, frozen=True, tag="prefill"):
    """To prefill: compute these tokens and send their KV, from `first_token` on, and the last logits. Without an
    endpoint nothing is sent: the KV stays in the prefix cache."""

    placement: int
    request_id: str
    token_ids: bytes
    """Prompt and earlier output."""
    first_token: int
    """Decode holds the KV of all tokens before this one (a multiple of the block size)."""
    data_endpoint: str
    """As decode's Ready gave it."""
    transfer_id: str
    cost_tokens: int
    prompt_len: int = 0
    """Tokens of the prompt alone, where `prompt_logprobs` asks for theirs."""
    prompt_logprobs: int | None = None
    """Likeliest tokens to name beside each token of the prompt, all of which is then computed. They are sent with the
    KV, or to the router where nothing is sent."""
    pooling: Pooling | None = None
    """Of a prompt whose KV is not sent: answer with a `Pooled`."""
    salt: bytes = b""
    """Of the prompt's block hashes."""


class Cancel(Struct, frozen=True, tag="cancel"):
    placement: int
    choice: int | None = None
    """None: all of them."""


class Drain(Struct, frozen=True, tag="drain"):
    """Take no new placements; say Goodbye when the last one has ended."""


# Decode to router.


class Reserved(Struct, frozen=True, tag="reserved"):
    placement: int
    num_cached_tokens: int
    transfer_id: str
    """Names the reservation to the sender of its KV; empty for a local prefill."""


class Declined(Struct, frozen=True, tag="declined"):
    """A placement (or with `choice` one choice of it) goes back to the queue: no room, revoked, preempted."""

    placement: int
    reason: str
    choice: int | None = None
    preempted: bool = False
    """It had begun: it goes to the front of the queue."""


class TokenRow(Struct, frozen=True, array_like=True):
    placement: int
    choice: int
    position: int
    """Output position of the first of `token_ids`: counts the request's whole life."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended it, which is the last of `token_ids`."""
    state: bytes = b""
    """Sampler state after the last token, where tokens alone do not determine it."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each token, where the request asks."""
    epoch: int = 0
    """How often the request had been rewound when the last token was drawn."""


class Tokens(Struct, frozen=True, tag="tokens"):
    """All that one step produced for this router."""

    rows: tuple[TokenRow, ...]


# Whoever computes a prompt, to router.


class PromptLogprobs(Struct, frozen=True, tag="prompt_logprobs"):
    """How likely the prompt's tokens were; nothing is known of the first. In pieces, in order, and all before the
    first token drawn after the prompt, or the end of a placement that draws none."""

    placement: int
    position: int
    """In the prompt, of the token of the first row."""
    num_top: int
    rows: bytes
    """As `logprobs.pack_logprobs` packs them."""


class Pooled(Struct, frozen=True, tag="pooled"):
    """What `pooling` asked for, as it left the model: neither scaled nor shortened. Before the end of the placement."""

    placement: int
    values: bytes
    """Little-endian float32: [hidden size], of "score" [number of labels]."""


# Prefill to router.


class Prefilled(Struct, frozen=True, tag="prefilled"):
    """The last KV of a placement has been handed to the transport; or it is computed, where nothing is to be sent."""

    placement: int
    num_cached_tokens: int
    compute_s: float
    transfer_bytes: int
    transfer_s: float = 0.0
    """Since the last token was computed: the part of the transfer that no computation hid."""


# Either worker to router.


class Credit(Struct, frozen=True, tag="credit"):
    """What this router may still send. `free` was counted after the placements received so far, whose costs add up to
    `seen`, so that available = free - (costs sent - seen). Blocks on decode, tokens on prefill."""

    seen: int
    free: int


class Failed(Struct, frozen=True, tag="failed"):
    """A placement cannot go on: the transport or the engine failed."""

    placement: int
    error: str
    retriable: bool


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """Answer to every Cancel, in any state, known placement or not."""

    placement: int
    choice: int | None = None


FromWorker = (
    Hello
    | Ready
    | Goodbye
    | Heartbeat
    | Reserved
    | Declined
    | Tokens
    | PromptLogprobs
    | Pooled
    | Prefilled
    | Credit
    | Failed
    | Cancelled
)
FromRouter = Welcome | HelloRefused | SayHello | Heartbeat | Reserve | Prefill | Cancel | Drain


# Prefill to decode: the header of a data message; the payload is a frame of its own.


class KvPiece(Struct, frozen=True, tag="kv"):
    """Whole blocks of one transfer."""

    transfer_id: str
    first_block: int
    """Index within the blocks to be sent, not a pool id."""
    num_blocks: int
    num_pieces: int | None = None
    """On the last message of a transfer: how many there were."""
    tail: tuple[str, ...] = ()
    """Names of the tail tensors that follow, a frame each."""
