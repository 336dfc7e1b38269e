"""A decode worker: takes reservations and KV, runs the batch, streams tokens."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from ..engine.block_pool import BlockPool
from ..engine.plan import HeadedEngine, SequenceSeed
from ..engine.speculation_config import SpeculationConfig
from ..engine.worker import Limits, Load, Loaded, Worker, now
from ..kvtransfer.leased_receiver import LeasedReceiver
from ..kvtransfer.open import LEASE_S, TRANSPORTS, open_receiver, pool_of
from ..kvtransfer.transport import Done, Failed, PoolBlocks, Released
from ..wire.curve import WorkerKeys
from ..wire.messages import Cancel, FromRouter, FromWorker, Heartbeat, Reserve, WorkerStats
from ..wire.sampling import SamplingParams
from .effects import Receive
from .guidance import Guides, make_guides
from .ngram_proposer import NgramProposer
from .phrase_ban import make_phrase_bans
from .scheduler import DecodeScheduler
from .speculation import Speculation
from .speculator import EngineProposer


class DecodeLoop:
    """Carries messages, transfers and effects between the scheduler, the engine and the transport."""

    sending = False

    def __init__(
        self, scheduler: DecodeScheduler, loaded: Loaded, receiver: LeasedReceiver, guides: Guides | None = None
    ):
        self.scheduler = scheduler
        self._guides = guides
        self.engine = loaded.engine
        self.data_endpoints = (receiver.endpoint,)
        self._receiver = receiver
        self._last_blocks: dict[str, int] = {}
        """Of each transfer under way, the block that the prompt's last token is in."""
        self._transfer_bytes = 0
        self._transfer_s = 0.0

    def on_message(self, message: FromRouter, now: float) -> None:
        match message:
            case Reserve():
                self.scheduler.on_reserve(message, now)
            case Cancel():
                self.scheduler.on_cancel(message, now)
            case Heartbeat(held=held):
                self._receiver.renew(held)
            case _:
                raise AssertionError(f"not for a decode worker: {message}")

    def poll_transfers(self, now: float) -> None:
        for event in self._receiver.poll():
            match event:
                case Done():
                    self._on_done(event, now)
                case Failed():
                    self._last_blocks.pop(event.transfer_id, None)
                    self.scheduler.on_transfer_failed(event.transfer_id, event.error, now)
                case Released():
                    self.scheduler.on_released(event.transfer_id)

    def _on_done(self, event: Done, now: float) -> None:
        self._transfer_bytes += event.num_bytes
        logits = self.engine.unpack_logits(event.tail["logits"])
        last_block = self._last_blocks.pop(event.transfer_id, None)
        if "hidden" in event.tail and last_block is not None:
            assert isinstance(self.engine, HeadedEngine), "peers with a head are refused where there is none"
            self.engine.write_hidden(last_block, event.tail["hidden"])
        prompt_logprobs = bytes(event.tail.get("prompt_logprobs", b""))
        self.scheduler.on_received(event.transfer_id, logits, now, prompt_logprobs)

    def stats(self) -> WorkerStats:
        return replace(
            self.scheduler.stats(),
            transfer_bytes=self._transfer_bytes,
            transfer_s=self._transfer_s,
            num_expired_leases=self._receiver.num_expired,
        )

    def held(self) -> tuple[str, ...]:
        return ()

    def carry_out(self, send: Callable[[FromWorker], None]) -> None:
        """Messages go out before the engine is told anything, which it may have to draw for first."""
        effects = self.scheduler.take_effects()
        for transfer_id in effects.abandon:
            self._receiver.abandon(transfer_id)
            self._last_blocks.pop(transfer_id, None)
        for receive in effects.receive:
            self._register(receive)
        for message in effects.messages:
            send(message)
        self.engine.retire(*effects.retire)
        for seed in effects.admit:
            self._admit(seed)

    def _admit(self, seed: SequenceSeed) -> None:
        """One that the engine refuses is drawn for plainly by the plan that is under way, and fails."""
        try:
            self.engine.admit(seed)
        except ValueError as error:
            self.engine.admit(dataclasses.replace(seed, params=SamplingParams(), state=b"", stop_ids=frozenset()))
            self.scheduler.on_refused(seed.seq_id, str(error))

    def _register(self, receive: Receive) -> None:
        def store(first_block: int, num_blocks: int, payload: memoryview) -> None:
            start_s = now()
            self.scheduler.on_receiving(receive.transfer_id)
            self.engine.write_blocks(receive.block_ids[first_block : first_block + num_blocks], payload)
            self._transfer_s += now() - start_s

        def claim() -> bool:
            is_granted = self.scheduler.on_claim(receive.transfer_id)
            if is_granted and isinstance(self.engine, HeadedEngine):
                self.engine.lend_blocks(receive.block_ids)
            return is_granted

        transfer_id, scheduler = receive.transfer_id, self.scheduler
        self._last_blocks[transfer_id] = receive.block_ids[-1]
        landed = partial(scheduler.on_receiving, transfer_id)
        blocks = PoolBlocks(receive.block_ids, claim, landed)
        self._receiver.register(transfer_id, len(receive.block_ids), store, blocks)

    def restart(self, now: float) -> None:
        self.scheduler.on_welcome(now)

    def close(self) -> None:
        self._receiver.close()
        if self._guides is not None:
            self._guides.close()


def make_worker(
    *,
    name: str,
    router_address: str,
    model: str | None,
    load: Load,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_chunk_tokens: int | None = None,
    enable_prefix_caching: bool = True,
    data_host: str = "127.0.0.1",
    transports: Sequence[str] = TRANSPORTS,
    lease_s: float = LEASE_S,
    speculation: SpeculationConfig | None = None,
    keys: WorkerKeys | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> Worker:
    """A decode worker of the router at `router_address`; `load` is called with `model`, or with what Welcome names.

    KV arrives over the first of `transports` that a prefill worker can use; over TCP at `data_host`, on a port of the
    system's choice. A reservation whose KV no prefill worker has announced for `lease_s` fails. No prompt chunk is
    longer than `max_chunk_tokens` (None: than a step's `max_num_batched_tokens`). `speculation`: what guesses tokens;
    the loaded engine does it for all methods but ngram. With `keys` the router, and who sends KV over ZeroMQ, must have
    theirs.
    """

    def make_role(loaded: Loaded, epoch: str, wake: Callable[[], None]) -> DecodeLoop:
        pool = BlockPool(loaded.engine.num_blocks, loaded.engine.block_size, enable_prefix_caching)
        guides = make_guides(loaded.tokenizer, loaded.engine.vocab_size)
        scheduler = DecodeScheduler(
            pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_chunk_tokens=max_chunk_tokens,
            max_model_len=loaded.max_model_len,
            epoch=epoch,
            guides=guides,
            phrase_bans=make_phrase_bans(loaded.tokenizer),
            speculation=_speculation(speculation or SpeculationConfig()),
        )
        kv = pool_of(loaded.engine)
        receiver = open_receiver(
            wake,
            host=data_host,
            transports=transports,
            lease_s=lease_s,
            pool=kv,
            keys=keys.from_workers if keys else None,
        )
        return DecodeLoop(scheduler, loaded, receiver, guides)

    return Worker(
        role="decode",
        name=name,
        router_address=router_address,
        model=model,
        load=load,
        make_role=make_role,
        limits=Limits(max_num_seqs, max_num_batched_tokens),
        on_ready=on_ready,
        keys=keys.to_router if keys else None,
    )


def _speculation(config: SpeculationConfig) -> Speculation:
    if config.method == "off":
        return Speculation.none()
    return Speculation(NgramProposer if config.method == "ngram" else EngineProposer, config.num_tokens)
