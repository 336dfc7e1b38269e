"""The load generator, against servers that send bytes as told."""

import asyncio
from collections.abc import Sequence

import pytest
from isthmus.bench.load import Answer, LoadError, ask_all, get, post

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-id: 0\r\n\r\n"
EVENTS = [
    b'data: {"n":1}\n\n',
    b'data: {"n":2}\n\ndata: {"n":3}\n\n',
    b'data: {"finish_reason":"length"}\n\ndata: [DONE]\n\n',
]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


STREAM = HEAD + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n"


def received(pieces: Sequence[bytes]) -> Answer:
    """An answer that got piece i at second i; whole with the last of them and not before."""
    answer = Answer(sent_at=-1.0)
    assert [answer.add(piece, float(second)) for second, piece in enumerate(pieces)] == [False] * (len(pieces) - 1) + [
        True
    ]
    return answer


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 58, len(STREAM)])
def test_a_stream_in_any_pieces(size: int) -> None:
    answer = received(cut(STREAM, size))
    answer.check_whole()
    assert answer.status == 200
    assert answer.num_events == 4
    assert answer.ttft_s == pytest.approx(1.0 + (STREAM.index(b"\ndata: ") + 6) // size)


def test_a_sized_answer() -> None:
    whole = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\nwrong"
    for size in (1, 10, len(whole)):
        answer = received(cut(whole, size))
        assert answer.status == 400
        with pytest.raises(LoadError, match="wrong"):
            answer.check_whole()
        with pytest.raises(LoadError, match="without an event"):
            _ = answer.ttft_s


@pytest.mark.parametrize("missing", [b"[DONE]", b'"finish_reason":"length"'])
def test_a_cut_stream_is_not_whole(missing: bytes) -> None:
    with pytest.raises(LoadError, match="not a whole stream"):
        received([STREAM.replace(missing, b"x")]).check_whole()


def test_gaps_count_from_and_to_the_window() -> None:
    answer = Answer(0.0, arrivals=[1.0, 2.0, 5.0, 6.0])
    assert answer.longest_gap_s(0.0, 6.5) == 3.0
    assert answer.longest_gap_s(2.5, 4.5) == 2.0
    assert answer.longest_gap_s(5.5, 10.0) == 4.0


def serve(reply: bytes, num_requests: int) -> list[Answer]:
    """What `ask_all` gets from a server that answers every request with `reply` and then closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"POST /x HTTP/1.1\r\n", b"GET /x HTTP/1.1\r\n"))
        writer.write(reply)
        await writer.drain()
        writer.close()

    async def run() -> list[Answer]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            requests = [post("/x", b"{}"), get("/x")] * (num_requests // 2)
            return await ask_all(server.sockets[0].getsockname()[1], requests)

    return asyncio.run(run())


def test_all_at_once() -> None:
    answers = serve(STREAM, 6)
    assert [answer.num_events for answer in answers] == [4] * 6
    assert all(answer.sent_at <= answer.arrivals[0] <= answer.ended_at for answer in answers)


def test_a_server_that_leaves_is_an_error() -> None:
    with pytest.raises(LoadError, match="closed the connection"):
        serve(STREAM[:-5], 2)
