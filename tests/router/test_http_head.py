"""Heads that do not come, or are too large, on real ports; answers that outlast the limits."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from isthmus.router import http_head
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.router.http_head import HeadLimits
from isthmus.router.server import HttpServer, bound
from isthmus.router.tls import Tls
from isthmus.tests.certificates import make_certificate
from isthmus.tests.router.edge import served

SHORT = HeadLimits(timeout_s=0.1)
NARROW = HeadLimits(max_bytes=200)
GET = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """A client's, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    def send(self, raw: bytes) -> None:
        self._writer.write(raw)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """(status, head, body) of an answer that tells its length."""
        head = await self._within(self._reader.readuntil(b"\r\n\r\n"))
        length = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        return int(head[9:12]), head, await self._within(self._reader.readexactly(length))

    async def rest(self) -> bytes:
        """All until the server closes."""
        return await self._within(self._reader.read())

    async def _within(self, reading):
        return await asyncio.wait_for(reading, 5)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(
    limits: HeadLimits, core: FakeCore | None = None, tls: Tls | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    with bound("127.0.0.1", 0) as http:
        server = HttpServer(create_app(core or FakeCore(), served()), tls, limits)
        running = asyncio.create_task(server.serve(sockets=[http]))
        await server.listening(running)
        connection = Connection(*await asyncio.open_connection(*http.getsockname(), ssl=context))
        try:
            yield connection
        finally:
            connection.close()
            server.should_exit = True
            await running


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
@pytest.mark.parametrize("raw", [b"P", b"POST / HTTP/1.1\r\nHost: x\r\n", b"\r\n"], ids=["byte", "line", "no line"])
def test_a_head_that_is_never_whole_is_a_408(before, raw):
    async def play():
        async with connected(SHORT) as connection:
            connection.send(before)
            if before:
                assert (await connection.answer())[0] == 200
            connection.send(raw)
            status, head, body = await connection.answer()
            assert (status, json.loads(body)["error"]["message"]) == (
                408,
                "the request's headers did not come within 0.1 s",
            )
            assert b"connection: close" in head
            assert await connection.rest() == b""

    asyncio.run(play())


def test_a_connection_that_sends_nothing_is_closed_without_a_word():
    async def play():
        async with connected(SHORT) as connection:
            assert await connection.rest() == b""

    asyncio.run(play())


def test_a_head_that_trickles_gets_no_more_time():
    async def play():
        async with connected(SHORT) as connection:
            connection.send(b"GET / HTTP/1.1\r\nX: ")

            async def trickle():
                while True:
                    connection.send(b"a")
                    await asyncio.sleep(0.01)

            trickling = asyncio.create_task(trickle())
            assert (await connection.answer())[0] == 408
            trickling.cancel()

    asyncio.run(play())


def test_a_head_over_tls_is_limited_too(tmp_path: Path):
    certificate = make_certificate(tmp_path, "server")
    tls, context = Tls(certificate.cert, certificate.key), ssl.create_default_context(cafile=certificate.cert)

    async def play():
        async with connected(SHORT, tls=tls, context=context) as connection:
            connection.send(GET[:-2])
            assert (await connection.answer())[0] == 408

    asyncio.run(play())


@pytest.mark.parametrize("stream", [True, False])
def test_answers_may_take_longer_than_heads_whatever_is_sent_meanwhile(stream):
    body = json.dumps({"prompt": "hello", "max_tokens": 30, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def play():
        async with connected(SHORT, FakeCore(step_s=0.01)) as connection:
            connection.send(head + body)
            await asyncio.sleep(0.02)
            connection.send(GET[:10])  # of the next request
            began = asyncio.get_running_loop().time()
            if stream:
                answer = await connection._within(connection._reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n"))
                assert answer.count(b"data: ") > 20
            else:
                assert (await connection.answer())[0] == 200
            assert asyncio.get_running_loop().time() - began > SHORT.timeout_s
            connection.send(GET[10:])
            assert (await connection.answer())[0] == 200

    asyncio.run(play())


def test_an_idle_connection_outlives_the_limit():
    async def play():
        async with connected(SHORT) as connection:
            for pause_s in (0.2, 0.0):
                connection.send(GET)
                assert (await connection.answer())[0] == 200
                await asyncio.sleep(pause_s)

    asyncio.run(play())


def test_a_body_that_goes_on_after_its_answer_gets_no_more_than_a_bodys_time(monkeypatch):
    monkeypatch.setattr(http_head, "BODY_TIMEOUT_S", 0.05)

    async def play():
        async with connected(HeadLimits()) as connection:
            connection.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            assert (await connection.answer())[0] == 413
            connection.send(b"x")
            assert await connection.rest() == b""

    asyncio.run(play())


def head_of(size: int) -> bytes:
    start = b"GET /api/v1/model HTTP/1.1\r\nHost: x\r\nX-A: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("cuts", [[], [1], [199], [200], [100, 150, 201]], ids=str)
@pytest.mark.parametrize(("size", "status"), [(200, 200), (201, 431), (100_000, 431)])
def test_a_heads_size_is_limited_to_the_byte(size, status, cuts):
    raw = head_of(size)

    async def play():
        async with connected(NARROW) as connection:
            for start, end in zip([0, *cuts], [*cuts, size], strict=True):
                connection.send(raw[start:end])
                await asyncio.sleep(0.005)
            found, head, body = await connection.answer()
            assert found == status
            if status == 431:
                assert json.loads(body)["detail"]["msg"] == "the request's headers are larger than 200 bytes"
                assert b"connection: close" in head

    asyncio.run(play())


def test_bodies_do_not_count_and_each_head_counts_alone():
    body = json.dumps({"prompt": "hello " * 20, "max_tokens": 2}).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def play():
        async with connected(NARROW) as connection:
            for _ in range(3):
                connection.send(post + body)
                assert (await connection.answer())[0] == 200
            connection.send(GET * 5)
            for _ in range(5):
                assert (await connection.answer())[0] == 200

    asyncio.run(play())


def test_a_large_head_does_not_write_into_a_running_answer():
    body = json.dumps({"prompt": "hello", "max_tokens": 100, "stream": True}).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def play():
        core = FakeCore(step_s=0.01)
        async with connected(NARROW, core) as connection:
            connection.send(post + body)
            await connection._within(connection._reader.readuntil(b"data: "))
            connection.send(head_of(1000))
            assert b"HTTP/1.1" not in await connection.rest()

    asyncio.run(play())
