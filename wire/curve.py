"""CURVE keys of ZeroMQ sockets (ZMTP 3.0, rfc.zeromq.org/spec/26): both ends prove who they are, and all is encrypted.

A folder of keys has a pair for the router and one that all workers share, in ZeroMQ's certificate files. The router
needs `router.key_secret` and `worker.key`, a worker `worker.key_secret` and `router.key`. KV goes from one worker that
has the workers' pair to another that has it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate

ROUTER = "router"
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85, 40 characters each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """Of a socket that binds: its own, and the public ones of clients that may connect."""

    own: KeyPair
    clients: frozenset[bytes]

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Before it binds; `ZapAuthenticator` then decides about clients, and without one nobody is let in."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, b"isthmus")
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """Of a socket that connects: its own, and the public one of whom it connects to."""

    own: KeyPair
    server: bytes

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Before it connects."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    own: KeyPair
    router: bytes

    @property
    def to_router(self) -> ClientKeys:
        return ClientKeys(self.own, self.router)

    @property
    def to_workers(self) -> ClientKeys:
        return ClientKeys(self.own, self.own.public)

    @property
    def from_workers(self) -> ServerKeys:
        return ServerKeys(self.own, frozenset((self.own.public,)))


def make_keys(folder: Path) -> None:
    """Writes new pairs for the router and the workers; their user alone may enter the folder. Raises FileExistsError if
    there are some."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in (ROUTER, WORKER):
        if any(folder.glob(f"{name}.key*")):
            raise FileExistsError(f"there are keys in {folder} already")
    for name in (ROUTER, WORKER):
        create_certificates(folder, name)
        (folder / f"{name}.key_secret").chmod(0o600)


def load_router_keys(folder: Path) -> ServerKeys:
    """Raises OSError or ValueError."""
    return ServerKeys(_pair(folder, ROUTER), frozenset((_public(folder, WORKER),)))


def load_worker_keys(folder: Path) -> WorkerKeys:
    """Raises OSError or ValueError."""
    return WorkerKeys(_pair(folder, WORKER), _public(folder, ROUTER))


def _pair(folder: Path, name: str) -> KeyPair:
    path = folder / f"{name}.key_secret"
    public, secret = load_certificate(path)
    if secret is None:
        raise ValueError(f"{path} has no secret key")
    return KeyPair(public, secret)


def _public(folder: Path, name: str) -> bytes:
    return load_certificate(folder / f"{name}.key")[0]
