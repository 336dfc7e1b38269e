"""A decode worker: takes reservations and KV, runs the batch, streams tokens."""

from collections.abc import Callable

from ..engine.block_pool import BlockPool
from ..engine.worker import Limits, Load, Loaded, Worker
from ..kvtransfer.transport import Done
from ..kvtransfer.zmq_transport import ZmqReceiver
from ..wire.messages import Cancel, FromRouter, FromWorker, Reserve
from .effects import Receive
from .scheduler import DecodeScheduler


class DecodeLoop:
    """Carries messages, transfers and effects between the scheduler, the engine and the transport."""

    sending = False

    def __init__(self, scheduler: DecodeScheduler, loaded: Loaded, receiver: ZmqReceiver):
        self.scheduler = scheduler
        self.engine = loaded.engine
        self.data_endpoints = (receiver.endpoint,)
        self._receiver = receiver

    def on_message(self, message: FromRouter, now: float) -> None:
        match message:
            case Reserve():
                self.scheduler.on_reserve(message, now)
            case Cancel():
                self.scheduler.on_cancel(message, now)
            case _:
                raise AssertionError(f"not for a decode worker: {message}")

    def poll_transfers(self, now: float) -> None:
        for event in self._receiver.poll():
            if isinstance(event, Done):
                logits = self.engine.unpack_logits(event.tail["logits"])
                self.scheduler.on_received(event.transfer_id, logits, now)
            else:
                self.scheduler.on_transfer_failed(event.transfer_id, event.error, now)

    def carry_out(self, send: Callable[[FromWorker], None]) -> None:
        effects = self.scheduler.take_effects()
        for seq_id in effects.retire:
            self.engine.retire(seq_id)
        for seed in effects.admit:
            self.engine.admit(seed)
        for transfer_id in effects.abandon:
            self._receiver.abandon(transfer_id)
        for receive in effects.receive:
            self._register(receive)
        for message in effects.messages:
            send(message)

    def _register(self, receive: Receive) -> None:
        def store(first_block: int, num_blocks: int, payload: memoryview) -> None:
            self.scheduler.on_receiving(receive.transfer_id)
            self.engine.write_blocks(receive.block_ids[first_block : first_block + num_blocks], payload)

        self._receiver.register(receive.transfer_id, len(receive.block_ids), store)

    def restart(self, now: float) -> None:
        self.scheduler.on_welcome(now)

    def close(self) -> None:
        self._receiver.close()


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
    on_ready: Callable[[], None] = lambda: None,
) -> Worker:
    """A decode worker of the router at `router_address`; `load` is called with `model`, or with what Welcome names.

    KV arrives at `data_host`, on a port of the system's choice. No prompt chunk is longer than `max_chunk_tokens`
    (None: than a step's `max_num_batched_tokens`).
    """

    def make_role(loaded: Loaded, epoch: str, wake: Callable[[], None]) -> DecodeLoop:
        pool = BlockPool(loaded.engine.num_blocks, loaded.engine.block_size, enable_prefix_caching)
        scheduler = DecodeScheduler(
            pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_chunk_tokens=max_chunk_tokens,
            max_model_len=loaded.max_model_len,
            epoch=epoch,
        )
        return DecodeLoop(scheduler, loaded, ZmqReceiver(wake, data_host))

    return Worker(
        role="decode",
        name=name,
        router_address=router_address,
        model=model,
        load=load,
        make_role=make_role,
        limits=Limits(max_num_seqs, max_num_batched_tokens),
        on_ready=on_ready,
    )
