"""HTTPS on a real port: the passphrase of its key, and clients with and without certificates."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.server import HttpServer, bound
from isthmus.router.tls import Tls
from isthmus.tests.certificates import Certificate, make_certificate
from isthmus.tests.router.edge import served


@asynccontextmanager
async def serving(tls: Tls) -> AsyncIterator[str]:
    with bound("127.0.0.1", 0) as http:
        server = HttpServer(create_app(FakeCore(), served()), tls)
        running = asyncio.create_task(server.serve(sockets=[http]))
        await server.listening(running)
        try:
            yield f"https://127.0.0.1:{http.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def server_certificate(folder: Path) -> Certificate:
    return make_certificate(folder, "server")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Certificate:
    """Who signs clients' certificates."""
    return make_certificate(folder, "authority")


@pytest.fixture(scope="module")
def clients(folder: Path, authority: Certificate) -> dict[str, Certificate | None]:
    stranger = make_certificate(folder, "stranger")
    return {
        "none": None,
        "good": make_certificate(folder, "good", signed_by=authority),
        "bad": make_certificate(folder, "bad", signed_by=stranger),
    }


async def is_answered(url: str, trusted: str, shown: Certificate | None) -> bool:
    context = ssl.create_default_context(cafile=trusted)
    if shown is not None:
        context.load_cert_chain(shown.cert, shown.key)
    async with httpx.AsyncClient(verify=context) as client:
        try:
            return (await client.get(f"{url}/v1/models")).status_code == 200
        except httpx.TransportError:
            return False


@pytest.mark.parametrize(
    ("cert_reqs", "answered"), [(0, {"none", "good", "bad"}), (1, {"none", "good"}), (2, {"good"})]
)
def test_which_clients_are_answered(
    cert_reqs: int,
    answered: set[str],
    server_certificate: Certificate,
    authority: Certificate,
    clients: dict[str, Certificate | None],
) -> None:
    ca_certs = authority.cert if cert_reqs else None
    tls = Tls(server_certificate.cert, server_certificate.key, ca_certs, cert_reqs)
    tls.check()

    async def run() -> set[str]:
        async with serving(tls) as url:
            return {name for name, shown in clients.items() if await is_answered(url, server_certificate.cert, shown)}

    assert asyncio.run(run()) == answered


def test_a_key_with_a_passphrase(folder: Path) -> None:
    locked = make_certificate(folder, "locked", password="open sesame")
    with pytest.raises(ValueError, match="give --ssl-keyfile-password"):
        Tls(locked.cert, locked.key).check()
    with pytest.raises(ValueError, match="cannot be used"):
        Tls(locked.cert, locked.key, keyfile_password="wrong").check()
    tls = Tls(locked.cert, locked.key, keyfile_password="open sesame")
    tls.check()
    assert "sesame" not in repr(tls)

    async def run() -> bool:
        async with serving(tls) as url:
            return await is_answered(url, locked.cert, None)

    assert asyncio.run(run())
