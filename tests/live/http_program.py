"""An HTTP program for tests, exposed by one node and called by another."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11

from meshnode import Node
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for

DEADLINE_S = 15.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handle = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request at the target: what came, and what is answered, by h11 and so read by the rules."""

    def __init__(
        self,
        connection: h11.Connection,
        request: h11.Request,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.h11, self.request = connection, request
        self.reader, self.writer = streams
        self.headers = {name.decode(): text.decode() for name, text in request.headers}

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self.h11.next_event()) is h11.NEED_DATA:
            self.h11.receive_data(await self.reader.read(65_536))
        return event  # type: ignore[return-value]

    async def body(self) -> bytes:
        parts = []
        while isinstance(event := await self.event(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def send(self, event: h11.Event) -> None:
        self.writer.write(self.h11.send(event) or b"")
        await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        length = ("Content-Length", str(len(body)))
        await self.send(h11.Response(status_code=status, headers=[length, *headers]))
        if self.request.method != b"HEAD":
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


class Program:
    """An HTTP server for one test; ``met`` are its requests, ``connections`` how many it had."""

    def __init__(self, handle: Handle) -> None:
        self.handle, self.met, self.connections, self.port = handle, [], 0, 0  # type: ignore[var-annotated]
        self.keep = True
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                while (event := connection.next_event()) is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65_536))
                if not isinstance(event, h11.Request):
                    break
                self.met.append(event)
                await self.handle(Exchange(connection, event, (reader, writer)))
                if not self.keep or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break
                connection.start_next_cycle()
        except (ConnectionError, h11.ProtocolError):
            pass
        writer.close()

    def say(self, last: bytes) -> None:
        """Say something unasked on all connections, and end them."""
        for writer in self._writers:
            writer.write(last)
            writer.close()

    def drop(self) -> None:
        """End all connections, as a restart does."""
        for writer in self._writers:
            writer.transport.abort()


async def tell(exchange: Exchange) -> None:
    """Answer what came."""
    body = await exchange.body()
    told = {
        "headers": exchange.headers,
        "target": exchange.request.target.decode(),
        "body": hashlib.sha256(body).hexdigest(),
    }
    await exchange.answer(json.dumps(told).encode())


class Way:
    """A node that exposes an HTTP program, and another one that calls it, by a forward and by streams."""

    def __init__(self, there: Node, here: Node, program: Program) -> None:
        self.there, self.here, self.program = there, here, program
        self.books = ServiceBook(there), ServiceBook(here)
        self.url = ""

    async def begin(self, **settings: object) -> None:
        target = f"http://127.0.0.1:{self.program.port}"
        assert (await self.books[0].expose("api", target, ("any",), **settings))["target"] == target  # type: ignore[arg-type]
        self.url = "http://" + (await self.books[1].forward("127.0.0.1:0", f"{self.there.id}/api"))["listen"]

    async def raw(self, *texts: bytes, end: bool = False) -> bytes:
        """Write to a stream of its own, and return all that comes until its end."""
        reader, writer = await self.here.open(self.there.id, "api")
        for text in texts:
            writer.write(text)
            await asyncio.sleep(0.05)
        if end:
            writer.write_eof()
        answer = await wait_for(reader.read(), DEADLINE_S)
        writer.close()
        return answer


@asynccontextmanager
async def way(make_node: MakeNode, handle: Handle = tell, **settings: object) -> AsyncIterator[Way]:
    there = await make_node(name="server")
    here = await make_node(seed=there, name="laptop")
    program = Program(handle)
    server = await program.start()
    found = Way(there, here, program)
    await found.begin(**settings)
    try:
        yield found
    finally:
        for book in found.books:
            await book.close()
        program.drop()
        server.close()
