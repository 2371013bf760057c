"""HTTP services: the target is told which node calls, whatever that writes; bodies, streams and WebSockets pass."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import h11
import httpx
import pytest
import websockets
from websockets.asyncio.server import serve

from meshnode import MeshReader, MeshWriter
from meshnode.errors import ConnectionLost
from meshnode.services.ends import End
from meshnode.services.http import relay
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import HANG_S, wait_for
from tests.live.http_program import DEADLINE_S, Exchange, tell, way

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


async def test_the_target_is_told_which_node_calls_and_a_forged_one_is_not_heard(make_node: MakeNode) -> None:
    async with way(make_node) as through, httpx.AsyncClient() as client:
        for _ in range(100):
            forged = {
                "Meshnode-Id": "me",
                "meshnode_id": "me",
                "MESHNODE-ROLES": "admin",
                "X-Forwarded-For": "127.0.0.1",
            }
            told = (await client.get(through.url + "/a?b=c", headers=forged)).json()
            if "meshnode-name" in told["headers"]:
                break
            await asyncio.sleep(0.1)
        assert told["target"] == "/a?b=c"
        said = {name: text for name, text in told["headers"].items() if "mesh" in name or "forward" in name}
        assert said == {
            "meshnode-id": str(through.here.id),
            "meshnode-name": "laptop",
            "x-forwarded-for": through.here.address,
        }
        assert through.program.connections <= 2, "connections are kept alive"


async def test_bodies_of_every_kind_pass_and_large_ones_whole(make_node: MakeNode) -> None:
    data = os.urandom(5_000_000)

    async def parts() -> AsyncIterator[bytes]:
        for first in range(0, len(data), 70_000):
            yield data[first : first + 70_000]

    async def back(exchange: Exchange) -> None:
        body = await exchange.body()
        if exchange.request.target == b"/length":
            await exchange.answer(body)
            return
        await exchange.send(h11.Response(status_code=200, headers=[]))  # chunked
        for first in range(0, len(body), 100_000):
            await exchange.send(h11.Data(data=body[first : first + 100_000]))
        await exchange.send(h11.EndOfMessage(headers=[("X-Trailer", "1")]))

    async with way(make_node, back) as through, httpx.AsyncClient(timeout=HANG_S) as client:
        for path in ("/length", "/chunked"):
            for content in (data, parts()):
                answer = await client.post(through.url + path, content=content)
                assert (answer.status_code, answer.content == data) == (200, True)
        assert (await client.head(through.url + "/length")).headers["content-length"] == "0"
        assert (await client.get(through.url + "/length")).content == b""


async def test_a_body_of_old_that_ends_with_the_connection_is_whole_or_an_error(make_node: MakeNode) -> None:
    async def old(exchange: Exchange) -> None:
        await exchange.body()
        exchange.writer.write(b"HTTP/1.0 200 OK\r\n\r\nold")
        await exchange.writer.drain()
        exchange.writer.close()

    async def short(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await exchange.writer.drain()
        exchange.writer.close()

    async with way(make_node, old) as through, httpx.AsyncClient() as client:
        assert [(await client.get(through.url)).content for _ in range(3)] == [b"old"] * 3
        through.program.handle = short
        with pytest.raises(httpx.HTTPError):
            await client.get(through.url)
        with pytest.raises(ConnectionLost):
            await through.raw(GET + b"\r\n")


async def test_what_a_target_streams_comes_as_it_is_written(make_node: MakeNode) -> None:
    go_on = asyncio.Event()

    async def events(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(h11.Response(status_code=200, headers=[("Content-Type", "text/event-stream")]))
        for number in range(3):
            await exchange.send(h11.Data(data=b"data: %d\n\n" % number))
            await go_on.wait()
            go_on.clear()
        await exchange.send(h11.EndOfMessage())

    async with (
        way(make_node, events) as through,
        httpx.AsyncClient() as client,
        client.stream("GET", through.url) as stream,
    ):
        lines = [line async for line in _through(stream.aiter_lines(), go_on)]
        assert lines == ["data: 0", "", "data: 1", "", "data: 2", ""]


async def _through(lines: AsyncIterator[str], go_on: asyncio.Event) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if not line:
            go_on.set()  # the next one is written only then


async def test_a_caller_waits_for_100_continue_and_gets_it(make_node: MakeNode) -> None:
    async def willing(exchange: Exchange) -> None:
        if exchange.request.target == b"/no":
            await exchange.answer(b"too large", 413)
            return
        assert exchange.h11.they_are_waiting_for_100_continue
        await exchange.send(h11.InformationalResponse(status_code=100, headers=[]))
        await tell(exchange)

    async with way(make_node, willing) as through:
        head = b"POST /%s HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        reader, writer = await through.here.open(through.there.id, "api")
        writer.write(head % b"yes")
        assert await wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S) == b"HTTP/1.1 100 \r\n\r\n"
        writer.write(b"12345")
        answer = await wait_for(reader.read(), DEADLINE_S)
        assert hashlib.sha256(b"12345").hexdigest().encode() in answer
        writer.close()
        assert (await through.raw(head % b"no")).startswith(b"HTTP/1.1 413")


async def test_a_websocket_passes_in_both_directions_until_its_end(make_node: MakeNode) -> None:
    async def ws(connection: websockets.asyncio.server.ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(connection.request.headers["Meshnode-Id"])
        async for message in connection:
            await connection.send(message)

    there = await make_node()
    here = await make_node(seed=there)
    async with serve(ws, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        books = ServiceBook(there), ServiceBook(here)
        await books[0].expose("ws", f"http://127.0.0.1:{port}", ("any",))
        listen = (await books[1].forward("127.0.0.1:0", f"{there.id}/ws"))["listen"]
        async with websockets.connect(f"ws://{listen}/", max_size=None) as client:
            assert await client.recv() == str(here.id)
            for message in ("text", os.urandom(300_000), b""):
                await client.send(message)
                assert await client.recv() == message
        assert client.close_code == 1000
        for book in books:
            await book.close()


async def test_a_websocket_that_speaks_at_once_loses_nothing(make_node: MakeNode) -> None:
    async def change(exchange: Exchange) -> None:
        await exchange.event()  # the end of the request
        change = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        early, _ = exchange.h11.trailing_data
        await exchange.send(h11.InformationalResponse(status_code=101, headers=change))
        exchange.writer.write((early or await exchange.reader.read(100)) + b", answered")
        await exchange.writer.drain()
        exchange.writer.close()

    async with way(make_node, change) as through:
        asked = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        for texts in ([asked + b"early"], [asked, b"early"]):
            answer = await through.raw(*texts)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert answer.endswith(b"\r\n\r\nearly, answered")


async def test_a_caller_of_old_gets_no_response_before_the_response(make_node: MakeNode) -> None:
    async def hint(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await tell(exchange)

    async with way(make_node, hint) as through:
        assert (await through.raw(GET + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 103 ")
        assert (await through.raw(b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
WRONG = {
    "both lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\n",
    "folded": GET + b"X: a\r\n Content-Length: 36\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": GET + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "a bad chunk": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk too long": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("case", WRONG)
async def test_no_request_hides_behind_a_wrong_one(make_node: MakeNode, case: str) -> None:
    async with way(make_node) as through:
        answer = await through.raw(GET + b"\r\n" + WRONG[case] + SMUGGLED, SMUGGLED)
        first, *rest = answer.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"200")
        assert [each[:3] for each in rest] == [b"505" if case == "HTTP/2" else b"400"]
        assert b"/smuggled" not in [request.target for request in through.program.met]


async def test_a_length_that_the_wsgi_world_would_read_is_left_out(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        answer = await through.raw(GET + b"Content_Length: 5\r\nConnection: close\r\n\r\n")
        assert b"content_length" not in answer.lower()
        assert answer.startswith(b"HTTP/1.1 200")


async def test_requests_in_a_row_are_answered_in_order_on_one_connection(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        several = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(20))
        answer = await through.raw(several, end=True)
        assert [b'"/%d"' % n in part for n, part in enumerate(answer.split(b"HTTP/1.1 200")[1:])] == [True] * 20
        assert through.program.connections == 1


async def test_a_request_that_waits_for_its_rate_while_a_response_ends_is_not_lost(make_node: MakeNode) -> None:
    whole, read = asyncio.Event(), asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.request.method == b"POST":
            whole.set()
            await wait_for(read.wait(), DEADLINE_S)
        await exchange.answer(b"")

    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65300\r\n\r\n"
    async with way(make_node, late, rate=("2kB",)) as through:  # 65,536 bytes at once
        reader, writer = await through.here.open(through.there.id, "api")
        writer.write(head + bytes(65_300))
        await wait_for(whole.wait(), DEADLINE_S)
        writer.write(b"GET /next HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4_000 + b"\r\n\r\n")
        while writer.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for the node to read it
        read.set()
        for _ in range(2):
            assert (await wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_h2c_is_no_way_past_the_headers(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        asked = GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        answer = await through.raw(asked, end=True)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"h2c" not in answer


async def test_a_head_that_comes_too_slowly_is_told_so_and_others_are_served(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HEAD_S", 1.0)
    async with way(make_node, limit=4) as through, httpx.AsyncClient(timeout=DEADLINE_S) as client:
        slow = [await through.here.open(through.there.id, "api") for _ in range(3)]

        async def drip(opened: tuple[MeshReader, MeshWriter]) -> bytes:
            for letter in GET + b"X: " + b"a" * 1000:
                if opened[0].at_eof() or opened[1].is_closing():
                    break
                opened[1].write(bytes([letter]))
                await asyncio.sleep(0.02)
                if opened[0]._stream.unread:
                    break
            return await wait_for(opened[0].read(), DEADLINE_S)

        dripping = [asyncio.ensure_future(drip(opened)) for opened in slow]
        assert (await client.get(through.url)).status_code == 200
        assert [each.split(b"\r\n")[0] for each in await asyncio.gather(*dripping)] == [
            b"HTTP/1.1 408 Request Timeout"
        ] * 3
        assert (await through.raw(b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000)).startswith(b"HTTP/1.1 431")
        for _, writer in slow:
            writer.close()


async def test_a_stream_without_requests_ends_by_itself(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "IDLE_S", 0.2)
    async with way(make_node) as through:
        assert await through.raw() == b""
        assert (await through.raw(GET + b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_target_that_hangs_is_told_as_such(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ANSWER_S", 0.2)
    left = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reader.read()
        left.set()

    async with way(make_node, hang) as through, httpx.AsyncClient() as client:
        assert (await client.get(through.url)).status_code == 504
        await wait_for(left.wait(), DEADLINE_S)


async def test_a_body_that_is_long_on_its_way_is_no_late_answer(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ANSWER_S", 1.5)
    took = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        while isinstance(await exchange.event(), h11.Data):
            took.set()
        await exchange.answer(b"taken")

    async def parts() -> AsyncIterator[bytes]:
        ends = asyncio.get_running_loop().time() + 2 * relay.ANSWER_S
        while asyncio.get_running_loop().time() < ends:
            took.clear()
            yield b"part"
            await wait_for(took.wait(), DEADLINE_S)
            await asyncio.sleep(0.05)

    async with way(make_node, slow) as through, httpx.AsyncClient(timeout=HANG_S) as client:
        answer = await client.post(through.url, content=parts())
        assert (answer.status_code, answer.content) == (200, b"taken")


async def test_a_caller_that_goes_ends_what_its_request_began(make_node: MakeNode) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await exchange.body()
        begun.set()
        await exchange.reader.read()
        left.set()

    async with way(make_node, hang) as through:
        _, writer = await through.here.open(through.there.id, "api")
        writer.write(GET + b"\r\n")
        await wait_for(begun.wait(), DEADLINE_S)
        writer.reset()
        await wait_for(left.wait(), DEADLINE_S)
        pool = through.books[0].exposes["api"].pool
        for _ in range(200):
            await asyncio.sleep(0.01 * bool(pool.members[0].users))
        assert pool.members[0].users == 0


async def test_a_target_that_ended_the_connection_meanwhile_is_connected_to_again(make_node: MakeNode) -> None:
    async with way(make_node) as through, httpx.AsyncClient() as client:
        for _ in range(3):
            assert (await client.get(through.url)).status_code == 200
            through.program.drop()
            assert (await client.get(through.url)).status_code == 200, "at once: sent again"
            through.program.drop()
            await asyncio.sleep(0.1)
            assert (await client.post(through.url, content=b"x")).status_code == 200, "seen in time"


async def test_what_a_target_says_between_two_requests_answers_none(make_node: MakeNode) -> None:
    async def short(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.answer(b"")

    async with way(make_node, short) as through:
        reader, writer = await through.here.open(through.there.id, "api")
        writer.write(GET + b"\r\n")
        assert (await wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200")
        through.program.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert (await wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200")
        assert through.program.connections == 2
        writer.close()


async def test_a_question_that_meets_the_end_of_a_connection_is_asked_again(make_node: MakeNode) -> None:
    async def once(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.request.target == b"/last":
            through.program.handle = tell
            await asyncio.sleep(0.3)  # the next one is here by then
            exchange.writer.transport.abort()
        else:
            await exchange.answer(b"")

    async with way(make_node, once) as through:
        first, last, after = (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name for name in (b"first", b"last", b"next"))
        answer = await through.raw(first + last, after, end=True)
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert [r.target for r in through.program.met] == [b"/first", b"/last", b"/last", b"/next"]


async def test_a_request_that_may_have_been_done_is_not_sent_again(make_node: MakeNode) -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.request.method == b"POST":
            exchange.writer.transport.abort()
        else:
            await exchange.answer(b"")

    async with way(make_node, die) as through, httpx.AsyncClient() as client:
        assert (await client.get(through.url)).status_code == 200
        assert (await client.post(through.url, content=b"x")).status_code == 502
        assert [request.method for request in through.program.met] == [b"GET", b"POST"]


async def test_a_target_that_is_gone_is_a_503_on_a_stream_that_is_open(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        reader, writer = await through.here.open(through.there.id, "api")
        writer.write(GET + b"\r\n")
        assert (await wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200")
        through.books[0].exposes["api"].pool.members[0].end = End("127.0.0.1", 1, http=True)
        through.program.drop()
        await asyncio.sleep(0.2)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert b"HTTP/1.1 503 " in await wait_for(reader.read(), DEADLINE_S)
        writer.close()


async def test_a_target_learns_the_caller_by_the_proxy_protocol_too(make_node: MakeNode) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(16)
        rest = await reader.readexactly(int.from_bytes(head[14:], "big"))
        await heard.put(head + rest + await reader.read())
        writer.close()

    there = await make_node()
    here = await make_node(seed=there)
    server = await asyncio.start_server(take, "127.0.0.1", 0)
    book = ServiceBook(there)
    await book.expose("x", str(server.sockets[0].getsockname()[1]), ("any",), proxy_protocol=True)
    _, writer = await here.open(there.id, "x")
    writer.write(b"hello")
    writer.write_eof()
    found = await wait_for(heard.get(), DEADLINE_S)
    assert found[12:14] == b"\x21\x21"
    assert found[16:48] == here.id.overlay.packed + there.id.overlay.packed
    assert b"\xe0\x00\x34" + str(here.id).encode() in found
    assert found.endswith(b"hello")
    writer.close()
    await book.close()
    server.close()
