"""The commands that list services: what they carry, what their callers may have, and which of the mesh's are closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshnode import Node
from meshnode.daemon.context import Daemon
from meshnode.daemon.describe import describe_exposes, describe_forwards
from meshnode.daemon.requests.services import Exposes, Forwards, Services
from meshnode.errors import ServiceUnavailable
from meshnode.runtime.status import describe_services
from meshnode.sdk.node import runtime_of
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from meshnode.trust.policy import parse_policy
from tests.conftest import MakeNode
from tests.given_time import wait_for, within
from tests.live.http_program import tell
from tests.live.http_program import way as http_way

DEADLINE_S = 10.0


class Way:
    def __init__(self, there: Node, here: Node) -> None:
        self.there, self.here = there, here
        self.books = ServiceBook(there), ServiceBook(here)
        self.port = 0

    async def echoed(self, size: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(bytes(size))
        writer.write_eof()
        try:
            return await wait_for(reader.read(), DEADLINE_S)
        finally:
            writer.close()


@asynccontextmanager
async def way(make_node: MakeNode, *rate: str) -> AsyncIterator[Way]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    there = await make_node()
    found = Way(there, await make_node(seed=there))
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    await found.books[0].expose("x", port, ("any",), rate=rate)
    found.port = int((await found.books[1].forward("127.0.0.1:0", f"{there.id}/x"))["listen"].rpartition(":")[2])
    try:
        yield found
    finally:
        for book in found.books:
            await book.close()
        server.close()


async def test_what_a_service_carries_is_told_at_both_ends(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        assert len(await through.echoed(300_000)) == 300_000
        (exposed,), (forwarded,) = describe_exposes(through.books[0]), describe_forwards(through.books[1])
        for told in (exposed["usage"], forwarded["usage"]):
            assert (told["opened"], told["bytes_in"], told["bytes_out"]) == (1, 300_000, 300_000)
            assert told["rate_in"] > 10_000
        assert through.there.status()["counters"]["services_bytes_in"] == 300_000
        for request, node, book in ((Exposes(), through.there, 0), (Forwards(), through.here, 1)):
            (item,) = [item async for item in request.answer(Daemon(node, through.books[book], ProxyBook(node)))]
            assert json.loads(json.dumps(item))["usage"]["bytes_in"] == 300_000


async def test_a_caller_over_its_rate_gets_no_connection(make_node: MakeNode) -> None:
    async with way(make_node, "2") as through:
        assert [len(await through.echoed(10)) for _ in range(2)] == [10, 10]
        with pytest.raises(ServiceUnavailable):
            await through.here.open(through.there.id, "x")
        other = await make_node(seed=through.there)
        async with await other.open(through.there.id, "x") as (reader, writer):
            writer.write_eof()
            assert await wait_for(reader.read(), DEADLINE_S) == b""
        assert describe_exposes(through.books[0])[0]["usage"]["refused"] == 1


async def test_a_caller_is_as_fast_as_its_bytes_may_be(make_node: MakeNode) -> None:
    async with way(make_node, "1MB") as through:
        began = asyncio.get_running_loop().time()
        assert len(await through.echoed(2_500_000)) == 2_500_000
        assert asyncio.get_running_loop().time() - began > 1.4, "a second's worth at once, the rest at the rate"


async def test_requests_over_a_callers_rate_are_told_so(make_node: MakeNode) -> None:
    async with http_way(make_node, tell, rate=("3",)) as through:
        asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = await through.raw(asked * 5, end=True)
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"200", b"429"]
        (told,) = describe_exposes(through.books[0])
        assert (told["usage"]["opened"], told["usage"]["refused"]) == (3, 1)
        assert told["usage"]["bytes_in"] >= 5 * len(asked)


ONLY_OPEN = b'[[allow]]\nfrom = "any"\nservices = "open"\n'


async def test_services_that_the_meshs_policy_closes_are_shown_as_refused(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("open", lambda *_: asyncio.sleep(0), allow="any")
    there.serve("closed", lambda *_: asyncio.sleep(0), allow="any")
    there.serve("listed", lambda *_: asyncio.sleep(0), allow=[there.id], announce=True)
    here.serve("own", lambda *_: asyncio.sleep(0), allow="any")
    runtime = runtime_of(here)
    async with within(DEADLINE_S):
        while len(describe_services(runtime)) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def told() -> dict[str, tuple[str, object]]:
        return {item["service"]: (item["state"], item["allowed"]) for item in describe_services(runtime)}

    assert told() == {"closed": ("up", True), "listed": ("up", None), "open": ("up", True), "own": ("up", True)}
    runtime.guard.set_mesh(parse_policy(ONLY_OPEN))
    assert told() == {
        "closed": ("refused", False),
        "listed": ("refused", False),
        "open": ("up", True),
        "own": ("up", True),
    }
    runtime.guard.set_mesh(parse_policy(b'mode = "observe"\n' + ONLY_OPEN))
    assert told()["closed"] == ("up", True)
    items = [item async for item in Services("closed").answer(Daemon(here, ServiceBook(here), ProxyBook(here)))]
    assert [item["allowed"] for item in items] == [True]
