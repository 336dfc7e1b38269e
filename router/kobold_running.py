"""The generations that Kobold's routes can look at and abort by genkey."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from .accounts import account_name
from .text_stream import TextStream
from .token_logprobs import ScoredToken

GenKey = tuple[str, str]
"""Client address and its genkey: Lite's are "KCPP" and four digits, so two users may well have the same. Empty where
the client sends none, as SillyTavern's abort does."""

MAX_ENDED = 64
"""Generations whose text and logprobs are kept after their end, for clients that ask then."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """What an abort did, as KoboldCpp tells it."""

    success: bool
    done: bool
    """False: nothing was running yet."""


@dataclass(frozen=True, slots=True)
class EndedText:
    text: str
    logprobs: Sequence[ScoredToken]


class RunningGenerations:
    def __init__(self) -> None:
        self._by_key: dict[GenKey, list[TextStream]] = defaultdict(list)
        self._ended: dict[GenKey, EndedText] = {}
        """The newest last."""
        self._arriving: Counter[str] = Counter()
        """Requests that are being read, by client address."""
        self._aborted: set[GenKey] = set()
        """Keys of arriving requests that are to end as soon as they begin."""

    @contextmanager
    def arriving(self, address: str) -> Iterator[None]:
        """While a request is read and understood, when its key is not known: an abort may overtake it."""
        if not self._arriving[address]:
            self._aborted -= {key for key in self._aborted if key[0] == address}  # whose requests never came
        self._arriving[address] += 1
        try:
            yield
        except BaseException:
            self._aborted -= {key for key in self._aborted if key[0] == address}
            raise
        finally:
            self._arriving[address] -= 1
            if not self._arriving[address]:
                del self._arriving[address]

    def under(self, key: GenKey) -> Callable[[TextStream], AbstractContextManager[object]]:
        """What registers a generation of a route where most clients give no genkey: those cannot be looked at."""
        return partial(self.registered, key) if key[1] else nullcontext

    @contextmanager
    def registered(self, key: GenKey, text: TextStream) -> Iterator[None]:
        self._by_key[key].append(text)
        if key in self._aborted:
            self._aborted.remove(key)
            text.cancel()
        try:
            yield
        finally:
            self._by_key[key].remove(text)
            self._remember(key, text)
            if not self._by_key[key]:
                del self._by_key[key]

    def text_so_far(self, key: GenKey) -> str:
        """Of the newest generation with this key, running or just ended; empty if there is none."""
        if key in self._by_key:
            return "".join(self._by_key[key][-1].choices[0].parts)
        return self._ended[key].text if key in self._ended else ""

    def last_logprobs(self, key: GenKey) -> Sequence[ScoredToken]:
        """Of that generation; empty where it asked for none."""
        if key in self._by_key:
            return self._by_key[key][-1].choices[0].logprobs
        return self._ended[key].logprobs if key in self._ended else ()

    def abort(self, key: GenKey) -> Aborted:
        """Ends all generations with this key. Without one: those without, else the only one of this client."""
        streams = self._by_key.get(key) or ([] if key[1] else self._only_one_of(key[0]))
        for text in streams:
            text.cancel()
        if streams or not key[1]:
            return Aborted(bool(streams), done=True)
        if self._arriving[key[0]]:
            self._aborted.add(key)
            return Aborted(True, done=False)
        return Aborted(False, done=False)

    def _only_one_of(self, address: str) -> list[TextStream]:
        streams = [text for key, streams in self._by_key.items() if key[0] == address for text in streams]
        return streams if len(streams) == 1 else []

    def _remember(self, key: GenKey, text: TextStream) -> None:
        self._ended.pop(key, None)
        self._ended[key] = EndedText("".join(text.choices[0].parts), text.choices[0].logprobs)
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def __len__(self) -> int:
        return sum(len(streams) for streams in self._by_key.values())


def client_address(request: Request) -> str:
    """With the name of its key, if it sent one: behind a proxy all clients have one address."""
    address = request.client.host if request.client else ""
    return f"{account_name(request.scope)}@{address}"
