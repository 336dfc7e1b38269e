"""Who may ask the router for what: the keys, where they are needed, and what each may use."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from .accounts import Account, enter_account
from .api_keys import UNLIMITED, ApiKey, KeyRing, Limits
from .errors import ApiError
from .key_file import KeyFile

OPEN_PATHS = frozenset(
    ("/", "/ui", "/health", "/ping", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
)
"""They ask for no key: whether the router lives, and pages, which a browser opens without one. None shows data: what
the pages show they fetch from routes that ask."""
DOCS_FILES = "/docs/static"
OPEN_FOLDERS = ("/ui/", f"{DOCS_FILES}/")
ADMIN_FOLDER = "/admin/"
DATA_FOLDERS = ("/v1/", "/v2/", "/api/", ADMIN_FOLDER)
DATA_PATHS = frozenset(("/detokenize", "/load", "/metrics", "/props", "/rerank", "/score", "/tokenize"))
"""Outside of these folders."""
NOT_COUNTED = frozenset(
    (
        "abort",
        "check",
        "count_tokens",
        "detokenize",
        "input_tokens",
        "json_to_grammar",
        "last_logprobs",
        "props",
        "show",
        "tokencount",
        "tokenize",
    )
)
"""Last parts of the paths of POST routes that generate nothing: clients call them between, or during, those that do."""
ANONYMOUS = "anonymous"
REREAD_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class Access:
    """`keys` and those in `file` open all routes but those below /admin/, which take keys with `admin` alone. With
    neither a file nor a key without `admin` every other route is open; with `open_metrics` /metrics is in any case.

    `limits` are those of all who send no key, together. Raises ValueError if two keys are equal or have the same name.
    """

    def __init__(
        self,
        keys: Sequence[ApiKey] = (),
        *,
        file: KeyFile | None = None,
        limits: Limits = UNLIMITED,
        open_metrics: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.needs_key = file is not None or any(not key.admin for key in keys)
        self.num_unauthorized = 0
        self._given = tuple(keys)
        self._file = file
        self._limits = limits
        self._open = OPEN_PATHS | {"/metrics"} if open_metrics else OPEN_PATHS
        self.clock = clock
        self._accounts: dict[str, Account] = {}
        self._reread_due = clock() + REREAD_INTERVAL_S
        self._ring = self._make_ring()

    def __iter__(self) -> Iterator[Account]:
        """All accounts ever used, in order of first use."""
        return iter(self._accounts.values())

    def open_pages(self, paths: Iterable[str]) -> None:
        """These ask for no key either, unless they lie where data does."""
        self._open |= {path for path in paths if not path.startswith(DATA_FOLDERS) and path not in DATA_PATHS}

    def is_open(self, path: str) -> bool:
        return path in self._open or path.startswith(OPEN_FOLDERS)

    def asks_for_key(self, path: str) -> bool:
        return path.startswith(ADMIN_FOLDER) or (self.needs_key and not self.is_open(path))

    def enter(self, scope: Scope) -> Account:
        """The account of a request. Raises ApiError: 401 without a key that is known, 403 where it does not suffice."""
        now = self.clock()
        self._reread(now)
        path, key = scope["path"], self._find(Headers(scope=scope))
        if path.startswith(ADMIN_FOLDER):
            self._check_admin(key)
        elif self.needs_key and key is None:
            raise self._unauthorized()
        account = self._account(key, now)
        account.num_requests += 1
        enter_account(scope, account)
        return account

    def reload(self) -> int:
        """Reads the file of keys now; the number of keys there are. Raises OSError or ValueError."""
        if self._file is not None:
            self._file.read()
            self._take_over()
        return len(self._ring.keys)

    def _reread(self, now: float) -> None:
        if self._file is not None and now >= self._reread_due:
            self._reread_due = now + REREAD_INTERVAL_S
            if self._file.reread():
                try:
                    self._take_over()
                except ValueError as error:
                    log.error("API keys stay as they were: %s", error)

    def _take_over(self) -> None:
        self._ring = self._make_ring()

    def _make_ring(self) -> KeyRing:
        return KeyRing((*self._given, *(self._file.keys if self._file else ())))

    def _find(self, headers: Headers) -> ApiKey | None:
        found = [self._ring.find(candidate) for candidate in candidates(headers)]
        return next(filter(None, found), None)

    def _check_admin(self, key: ApiKey | None) -> None:
        if not any(key.admin for key in self._ring.keys):
            raise ApiError(403, "this router has no admin key, and so no admin routes")
        if key is None:
            raise self._unauthorized()
        if not key.admin:
            raise ApiError(403, "this needs an admin key", code="admin_key_required")

    def _unauthorized(self) -> ApiError:
        self.num_unauthorized += 1
        return ApiError(
            401,
            "send an API key of this server, as Authorization: Bearer KEY or X-API-Key: KEY",
            code="invalid_api_key",
        )

    def _account(self, key: ApiKey | None, now: float) -> Account:
        name = key.name if key else ANONYMOUS
        limits = key.limits if key else self._limits
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name, limits, now)
        else:
            account.limit(limits, now)
        return account


def candidates(headers: Headers) -> list[str]:
    """The keys that a request shows: some clients send one under both names."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    shown = [credentials.strip()] if scheme.lower() == "bearer" else []
    return [*shown, *filter(None, [headers.get("x-api-key")])]


def is_limited(method: str, path: str) -> bool:
    """Whether a request counts towards the limits of its key."""
    return (
        method == "POST"
        and not path.startswith(ADMIN_FOLDER)
        and path.rstrip("/").rpartition("/")[2] not in NOT_COUNTED
    )
