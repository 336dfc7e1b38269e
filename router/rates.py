"""How fast KV moves, learned from the transfers that were made."""

from collections.abc import Mapping

from .sequence import WorkerId

KEEP = 0.9
"""What an observation weighs when the next one is made."""


class Rate:
    """A ratio of two sums in which older observations fade: a large one weighs more than a small one."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._per = 0.0

    def record(self, amount: float, per: float) -> None:
        self._amount = KEEP * self._amount + amount
        self._per = KEEP * self._per + per

    @property
    def value(self) -> float:
        """0 before the first observation."""
        return self._amount / self._per if self._per > 0 else 0.0


class Link(Rate):
    """From one prefill to one decode worker: what went over it, and how fast lately."""

    def __init__(self) -> None:
        super().__init__()
        self.num_transfers = 0
        self.num_bytes = 0

    def record(self, amount: float, per: float) -> None:
        super().record(amount, per)
        self.num_transfers += 1
        self.num_bytes += int(amount)


class TransferRates:
    """Of all transfers, and of each pair of workers."""

    def __init__(self) -> None:
        self._bytes_per_token = Rate()
        self._pairs: dict[tuple[WorkerId, WorkerId], Link] = {}

    def record(
        self, prefill: WorkerId, decode: WorkerId, *, num_tokens: int, num_bytes: int, transfer_s: float
    ) -> None:
        """A transfer of the KV of `num_tokens` tokens is done; `transfer_s` as in `Prefilled`."""
        self._bytes_per_token.record(num_bytes, num_tokens)
        self._pairs.setdefault((prefill, decode), Link()).record(num_bytes, transfer_s)

    @property
    def links(self) -> Mapping[tuple[WorkerId, WorkerId], Link]:
        """By prefill and decode worker, of those that live."""
        return self._pairs

    def forget(self, worker: WorkerId) -> None:
        self._pairs = {pair: rate for pair, rate in self._pairs.items() if worker not in pair}

    @property
    def bytes_per_token(self) -> float:
        """0 before the first transfer."""
        return self._bytes_per_token.value

    def from_prefill(self, prefill: WorkerId) -> dict[WorkerId, float]:
        """Bytes/s to each decode worker it has sent to."""
        return {pair[1]: rate.value for pair, rate in self._pairs.items() if pair[0] == prefill and rate.value > 0}
