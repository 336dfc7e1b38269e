"""A prefill worker: computes prompts in chunks and sends their KV to decode workers."""

from collections.abc import Callable

from ..engine.block_pool import BlockPool
from ..engine.plan import HeadedEngine
from ..engine.worker import Limits, Load, Loaded, Worker
from ..kvtransfer.open import open_sender, pool_of
from ..kvtransfer.transport import Done, Piece, Sender
from ..wire.curve import WorkerKeys
from ..wire.messages import Cancel, FromRouter, FromWorker, Prefill, WorkerStats
from .budget import split_budget, split_whole
from .effects import Send
from .scheduler import PrefillScheduler


class PrefillLoop:
    """Carries messages, transfers and effects between the scheduler, the engine and the transport."""

    data_endpoints = ()

    def __init__(self, scheduler: PrefillScheduler, loaded: Loaded, sender: Sender):
        self.scheduler = scheduler
        self.engine = loaded.engine
        self._sender = sender
        self._transfer_ids: dict[int, str] = {}
        """By placement; those that have ended are left out by `held`."""

    def on_message(self, message: FromRouter, now: float) -> None:
        match message:
            case Prefill():
                self._transfer_ids[message.placement] = message.transfer_id
                self.scheduler.on_prefill(message, now)
                if message.data_endpoint and message.placement in self.scheduler.placements():
                    self._sender.prepare(message.transfer_id, message.data_endpoint)
            case Cancel():
                self.scheduler.on_cancel(message, now)
            case _:
                raise AssertionError(f"not for a prefill worker: {message}")

    def poll_transfers(self, now: float) -> None:
        for event in self._sender.poll():
            if isinstance(event, Done):
                self.scheduler.on_sent(event.transfer_id, event.num_bytes, now)
            else:
                self.scheduler.on_send_failed(event.transfer_id, event.error, now)

    def stats(self) -> WorkerStats:
        return self.scheduler.stats()

    def held(self) -> tuple[str, ...]:
        self._transfer_ids = {placement: self._transfer_ids[placement] for placement in self.scheduler.placements()}
        return tuple(filter(None, self._transfer_ids.values()))  # some prompts are not sent anywhere

    @property
    def sending(self) -> bool:
        return not self._sender.idle

    def carry_out(self, send: Callable[[FromWorker], None]) -> None:
        effects = self.scheduler.take_effects()
        for transfer_id in effects.abandon:
            self._sender.abandon(transfer_id)
        for part in effects.send:
            self._sender.send(part.transfer_id, part.data_endpoint, self._piece(part))
        for message in effects.messages:
            send(message)

    def _piece(self, part: Send) -> Piece:
        """Read when there is room for it: the blocks stay as they are until the transfer has ended."""

        def read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
            first = first_block - part.first_block
            return self.engine.read_blocks(part.block_ids[first : first + num_blocks], out)

        tail = {"logits": self.engine.pack_logits(part.logits)} if part.last else {}
        if part.prompt_logprobs:
            tail["prompt_logprobs"] = memoryview(part.prompt_logprobs)
        hidden = self._hidden(part)
        if hidden is not None:
            tail["hidden"] = hidden
        num_blocks, bytes_per_block = len(part.block_ids), self.engine.bytes_per_block
        return Piece(part.first_block, num_blocks, bytes_per_block, read, part.last, tail, part.block_ids)

    def _hidden(self, part: Send) -> memoryview | None:
        """With the last piece, what a head needs to guess on from the prompt's last position, if there is a head."""
        if not part.last or not isinstance(self.engine, HeadedEngine):
            return None
        return self.engine.read_hidden(part.block_ids[-1])

    def restart(self, now: float) -> None:
        self.scheduler.on_welcome(now)

    def close(self) -> None:
        self._sender.close()


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
    make_sender: Callable[[], Sender] | None = None,
    keys: WorkerKeys | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> Worker:
    """A prefill worker of the router at `router_address`; see `decode.worker.make_worker`.

    KV leaves through what `make_sender` gives; if None, over every transport there is. `keys`: those of router and
    decode workers.
    """

    def make_role(loaded: Loaded, epoch: str, wake: Callable[[], None]) -> PrefillLoop:
        caches = enable_prefix_caching and not loaded.whole_prompts
        pool = BlockPool(loaded.engine.num_blocks, loaded.engine.block_size, caches)
        scheduler = PrefillScheduler(
            pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_chunk_tokens=loaded.max_model_len if loaded.whole_prompts else max_chunk_tokens,
            max_model_len=loaded.max_model_len,
            split=split_whole if loaded.whole_prompts else split_budget,
        )
        sender = (
            make_sender() if make_sender else open_sender(pool_of(loaded.engine), keys.to_workers if keys else None)
        )
        return PrefillLoop(scheduler, loaded, sender)

    return Worker(
        role="prefill",
        name=name,
        router_address=router_address,
        model=model,
        load=load,
        make_role=make_role,
        limits=Limits(max_num_seqs, max_num_batched_tokens),
        on_ready=on_ready,
        keys=keys.to_router if keys else None,
    )
