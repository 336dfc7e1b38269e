"""The router as a process: its addresses, and how it ends."""

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import zmq
from isthmus.router.server import bound
from isthmus.tests.router.edge import TOKENIZER
from isthmus.tests.router.peers import Peer
from isthmus.wire.messages import Cancel, Reserve


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    TOKENIZER._backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258]}))
    return folder


@dataclass
class Running:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    peer: Peer

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    async def status(self):
        return await asyncio.wait_for(self.process.wait(), 10)


@asynccontextmanager
async def router(folder, drain_s):
    command = (sys.executable, "-m", "isthmus.tests.router.server_process", str(folder), str(drain_s))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    where = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    context = zmq.Context()
    peer = Peer(context, where["worker_address"])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{where['port']}", trust_env=False) as http:
            yield Running(process, http, peer)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
        peer.close()
        context.term()


async def begin_stream(running, lines):
    """A stream with one token, its placement, and the task that reads on into `lines`."""
    body = {"model": "tiny", "prompt": "hello", "stream": True, "max_tokens": 10}
    first = asyncio.Event()

    async def read():
        async with running.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                lines.append(line)
                first.set()

    reading = asyncio.create_task(read())
    placement = (await running.peer.reserve()).placement
    running.peer.emit(placement, 0, 65)
    await asyncio.wait_for(first.wait(), 5)
    return placement, reading


async def refused(url):
    try:
        async with httpx.AsyncClient(trust_env=False) as stranger:
            await stranger.get(f"{url}/ping")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False  # accepted, and closed unanswered
    return False


async def until_refused(url):
    for _ in range(200):
        if await refused(url):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("still accepts connections")


def test_health_follows_the_workers_and_sigterm_lets_streams_finish(text_folder):
    async def play():
        async with router(text_folder, 10) as running:
            assert (await running.http.get("/health")).status_code == 503
            await running.peer.register()
            placement, reading = await begin_stream(running, lines := [])
            assert (await running.http.get("/health")).status_code == 200
            running.terminate()
            await until_refused(running.http.base_url)
            running.peer.emit(placement, 1, 66, finish="length")
            await reading
            assert lines[-2:] == ["data: [DONE]", ""]
            assert await running.status() == 0

    asyncio.run(play())


def test_past_the_drain_deadline_streams_end_with_an_error(text_folder):
    async def play():
        async with router(text_folder, 0.1) as running:
            await running.peer.register()
            placement, reading = await begin_stream(running, lines := [])
            running.terminate()
            await reading
            events = [line for line in lines if line.startswith("data:")]
            assert "the server is shutting down" in json.loads(events[-1].removeprefix("data:"))["error"]["message"]
            assert await running.status() == 0
            assert running.peer.received(Cancel) == [Cancel(placement)]
            assert running.peer.received(Reserve) == []

    asyncio.run(play())


def test_a_taken_port_is_an_oserror():
    with bound("127.0.0.1", 0) as http:
        http.listen()
        port = http.getsockname()[1]
        with pytest.raises(OSError), bound("127.0.0.1", port) as other:
            other.listen()
