"""How long a reservation waits for KV that nobody says is still coming."""

from collections.abc import Iterable


class Leases:
    """Each granted for `duration_s`, and again whenever it is renewed. Pure: the time is passed in, in seconds."""

    def __init__(self, duration_s: float):
        self.num_expired = 0
        """Since the beginning."""
        self._duration_s = duration_s
        self._expires_at: dict[str, float] = {}

    def __contains__(self, transfer_id: str) -> bool:
        return transfer_id in self._expires_at

    def grant(self, transfer_id: str, now: float) -> None:
        assert transfer_id not in self._expires_at
        self._expires_at[transfer_id] = now + self._duration_s

    def renew(self, transfer_ids: Iterable[str], now: float) -> None:
        """Those of them that have not ended."""
        for transfer_id in transfer_ids:
            if transfer_id in self._expires_at:
                self._expires_at[transfer_id] = now + self._duration_s

    def end(self, transfer_id: str) -> None:
        """Known or not."""
        self._expires_at.pop(transfer_id, None)

    def expire(self, now: float) -> list[str]:
        """Those whose time is over; they end."""
        expired = [transfer_id for transfer_id, at in self._expires_at.items() if at <= now]
        for transfer_id in expired:
            del self._expires_at[transfer_id]
        self.num_expired += len(expired)
        return expired
