"""Keys of the traffic between processes, and addresses that nobody may listen on without."""

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from ..wire.curve import ServerKeys, WorkerKeys, load_router_keys, load_worker_keys, make_keys
from .config import CurveOptions, KeysConfig
from .resolve import ConfigError

Keys = TypeVar("Keys")


def new_keys(config: KeysConfig) -> int:
    """`isthmus keys`. Raises ConfigError."""
    folder = Path(config.keys.folder)
    try:
        make_keys(folder)
    except OSError as error:
        raise ConfigError(str(error)) from error
    print(
        f"""\
New keys are in {folder}. On the router's host it needs router.key_secret and worker.key, on every host with a worker
worker.key_secret, worker.key and router.key. Copy them over a connection you trust, and start all processes with

  --zmq-keys {folder}"""
    )
    return 0


def router_keys(options: CurveOptions) -> ServerKeys | None:
    """Raises ConfigError."""
    return _load(options, load_router_keys)


def worker_keys(options: CurveOptions) -> WorkerKeys | None:
    """Raises ConfigError."""
    return _load(options, load_worker_keys)


def _load(options: CurveOptions, read: Callable[[Path], Keys]) -> Keys | None:
    if options.zmq_keys is None:
        return None
    try:
        return read(Path(options.zmq_keys))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--zmq-keys: {error}; `isthmus keys DIR` makes some") from error


def refuse_exposed(flag: str, host: str, curve: CurveOptions, *, insecure: bool) -> None:
    """Raises ConfigError if other hosts could reach `host` of this machine, nothing would ask for keys, and nobody said
    that they may."""
    if curve.zmq_keys is None and not insecure and not is_loopback(host):
        raise ConfigError(
            f"{flag}: other machines may reach {host}, and would be let in without a key; give --zmq-keys "
            "(`isthmus keys DIR` makes some), or --insecure-zmq if you trust every machine on that network"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: an address, a name, or that of a network interface."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def host_of(address: str) -> str:
    """Of a ZeroMQ address to bind; other transports than TCP never leave the machine, which is what 127.0.0.1 says."""
    scheme, _, rest = address.partition("://")
    return rest.rpartition(":")[0] if scheme == "tcp" else "127.0.0.1"
