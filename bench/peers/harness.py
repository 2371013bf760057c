"""What a peer's program does: a role in its arguments, orders in JSON lines on its input, answers on its output.

It runs in the peer's own environment: the standard library and ``bench.loads`` are all that it needs. Roles:

- ``serve HOST`` says where it is (``at``) and serves until its input ends; ``dht`` does so within a DHT of eight;
- ``client`` takes orders (``Orders``), each ``{"do": NAME, ...}``;
- ``first AT`` connects, has one byte echoed, and says so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from bench import loads

TCP = b"T"  # first byte of a stream that leads to a TCP port
PERIOD_S = 0.01
NUMBER = 8
Handler = loads.Handler
Serving = AbstractAsyncContextManager[str]
Dial = Callable[[], Awaitable[Callable[[], None]]]  # connects again; returns what closes the connection


class NotOfferedError(Exception):
    """The peer has no such thing; the text says what is missing."""


def say(**what: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(what), flush=True)


class Asyncio:
    """The few things of an event loop that differ between asyncio and trio."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the program."""
        asyncio.run(main())

    async def line(self) -> str:
        """Return the next line of standard input, "" at its end."""
        return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    async def gather(self, *work: Coroutine[Any, Any, Any]) -> None:
        """Await them all."""
        await asyncio.gather(*work)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside the rest."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Peer:
    """A transport under measurement. What it does not have raises NotOfferedError."""

    loop: Any = Asyncio()
    halves = True  # a stream's writing side ends by itself
    target = 0  # a TCP port of the server's host, which forwards lead to

    def serve(self, host: str, handler: Handler) -> Serving:
        """Serve streams; the context is where clients find it."""
        raise NotImplementedError

    def client(self, at: str) -> AbstractAsyncContextManager[loads.Open]:
        """Connect; the context opens streams."""
        raise NotImplementedError

    def dialler(self, at: str) -> AbstractAsyncContextManager[Dial]:
        """Prepare to connect again and again, each time with a full handshake, both ends authenticated."""
        raise NotOfferedError("no handshake of its own")

    def dht(self, handler: Handler) -> Serving:
        """Serve within a DHT of eight."""
        raise NotOfferedError("no DHT that runs by itself")

    async def dial(self, at: str) -> tuple[float, float]:
        """Return the ms of a dial by key through the DHT of ``dht``, and of one more."""
        raise NotOfferedError("no DHT that runs by itself")

    @asynccontextmanager
    async def forward(self, at: str, port: int) -> AsyncIterator[int]:
        """Listen on a local TCP port for a TCP port of the server's; by default each connection is a stream."""
        async with self.client(at) as open_:

            async def accept(reader: Any, writer: Any) -> None:
                far_reader, far_writer = await open_()
                far_writer.write(TCP + port.to_bytes(2, "big"))
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            yield server.sockets[0].getsockname()[1]
            server.close()


class Pair:
    """A reader and writer with asyncio's semantics over any stream; subclasses send, receive and finish.

    What is written goes out when the program waits: in ``drain``, or for bytes that have not come yet.
    """

    def __init__(self) -> None:
        self._in = bytearray()
        self._out: list[bytes] = []
        self._ended = self._finishing = False

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        raise NotImplementedError

    async def receive(self) -> bytes:
        """Return what comes next, b"" at the end."""
        raise NotImplementedError

    async def finish(self) -> None:
        """End the writing side."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Take bytes to be sent."""
        self._out.append(data)

    async def drain(self) -> None:
        """Send what was written."""
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            await self.send(data)
        if self._finishing:
            self._finishing = False
            await self.finish()

    def can_write_eof(self) -> bool:
        """True: a stream has two directions."""
        return True

    def write_eof(self) -> None:
        """End the writing side at the next wait."""
        self._finishing = True

    def close(self) -> None:
        """Nothing: the stream ends with its object."""

    async def _more(self) -> bool:
        await self.drain()
        data = b"" if self._ended else await self.receive()
        self._ended = not data
        self._in += data
        return bool(data)

    async def readexactly(self, count: int) -> bytes:
        """Return so many bytes; raises EOFError when there are fewer."""
        while len(self._in) < count:
            if not await self._more():
                raise EOFError("the stream ended early")
        data = bytes(self._in[:count])
        del self._in[:count]
        return data

    async def read(self, limit: int) -> bytes:
        """Return at most ``limit`` bytes, b"" at the end; all that come with -1."""
        if limit < 0:
            while await self._more():
                pass
        elif not self._in:
            await self._more()
        data = bytes(self._in[:limit] if limit >= 0 else self._in)
        del self._in[: len(data)]
        return data


async def pump(reader: Any, writer: Any) -> None:
    """Copy one direction of a connection, and its end."""
    with suppress(OSError, EOFError):
        while data := await reader.read(1 << 17):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        await writer.drain()


async def serve_stream(reader: Any, writer: Any) -> None:
    """Serve one stream as ``bench.loads`` does, or lead it to a TCP port of this host."""
    first = await reader.readexactly(1)
    if first != TCP:
        await loads.serve(reader, writer, first)
        await writer.drain()
        return
    port = int.from_bytes(await reader.readexactly(2), "big")
    near_reader, near_writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(pump(reader, near_writer), pump(near_reader, writer))


class Beat:
    """Numbers at 100 Hz, there and back, and the longest silence between answers."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._sent = self._back = 0
        self._error = ""
        self.reset()

    def reset(self) -> None:
        """Forget the silences."""
        self._gap, self._last = 0.0, time.monotonic()

    async def write(self, writer: Any) -> None:
        """Write a number each 10 ms."""
        writer.write(loads.ECHO)
        due = time.monotonic()
        try:
            while True:
                due += PERIOD_S
                await self._loop.sleep(max(0.0, due - time.monotonic()))
                writer.write(self._sent.to_bytes(NUMBER, "big"))
                self._sent += 1
                await writer.drain()
        except Exception as error:
            self._error = repr(error)

    async def read(self, reader: Any) -> None:
        """Watch the answers."""
        try:
            while True:
                await reader.readexactly(NUMBER)
                now = time.monotonic()
                self._back += 1
                self._gap, self._last = max(self._gap, now - self._last), now
        except Exception as error:
            self._error = repr(error)

    def report(self) -> dict[str, Any]:
        """Return the longest silence, one that goes on included."""
        silent = time.monotonic() - self._last
        return {"gap_ms": max(self._gap, silent) * 1000, "in_flight": self._sent - self._back, "error": self._error}


class Orders:
    """What a client can be told to do; each answer is a JSON object."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._kept = AsyncExitStack()
        self._open: Any = None
        self._beat = Beat(peer.loop)
        self._held: list[Callable[[], None]] = []

    async def connect(self, at: str) -> dict[str, Any]:
        """Connect; the next orders use it."""
        self._open = await self._kept.enter_async_context(self._peer.client(at))
        await loads.echo(self._open, 100)
        return {}

    async def through(self, at: str, port: int) -> dict[str, Any]:
        """Forward a TCP port; the next orders go through it."""
        near = await self._kept.enter_async_context(self._peer.forward(at, port))
        self._open = lambda: asyncio.open_connection("127.0.0.1", near)
        await loads.echo(self._open, 100)
        return {}

    async def echo(self, count: int) -> dict[str, Any]:
        """Echo one after another."""
        p50, p99 = await loads.echo(self._open, count)
        return {"p50": p50, "p99": p99, "done": count + loads.WARM_UP}

    async def up(self, megabytes: int) -> dict[str, Any]:
        """Send on one stream."""
        return {"MBps": await loads.bulk(self._open, megabytes)}

    async def down(self, megabytes: int) -> dict[str, Any]:
        """Receive on one stream."""
        return {"MBps": await loads.bulk_down(self._open, megabytes)}

    async def at_once(self, count: int) -> dict[str, Any]:
        """Keep 64 echoes under way on one stream."""
        return {"per_s": await loads.at_once(self._open, count)}

    async def each(self, count: int) -> dict[str, Any]:
        """Keep 64 requests under way, each on a stream of its own."""
        if not self._peer.halves:
            raise NotOfferedError("a stream ends at both sides at once")
        return {"per_s": await loads.a_stream_each(self._open, count, self._peer.loop.gather)}

    async def handshakes(self, at: str, count: int, at_once: int) -> dict[str, Any]:
        """Connect again and again, so many at once."""
        async with AsyncExitStack() as stack:
            dials = [await stack.enter_async_context(self._peer.dialler(at)) for _ in range(at_once)]

            async def some(dial: Dial, number: int) -> None:
                for _ in range(number):
                    (await dial())()
                    await self._peer.loop.sleep(0)

            await self._peer.loop.gather(*(some(dial, 2) for dial in dials))
            started = time.perf_counter()
            await self._peer.loop.gather(*(some(dial, count // at_once) for dial in dials))
            return {"per_s": count // at_once * at_once / (time.perf_counter() - started)}

    async def hold(self, at: str, count: int) -> dict[str, Any]:
        """Keep so many connections, idle."""
        while len(self._held) < count:
            dial = await self._kept.enter_async_context(self._peer.dialler(at))
            self._held.append(await dial())
        return {}

    async def peers(self, at: str, count: int) -> dict[str, Any]:
        """Be so many whole peers, each with an idle stream."""
        for _ in range(count):
            open_ = await self._kept.enter_async_context(self._peer.client(at))
            reader, writer = await open_()
            writer.write(loads.ECHO + b"x")
            await reader.readexactly(1)
            self._held.append(writer.close)
        return {}

    async def dial(self, at: str) -> dict[str, Any]:
        """Dial by key."""
        cold, known = await self._peer.dial(at)
        return {"cold": cold, "known": known}

    async def beat(self) -> dict[str, Any]:
        """Begin to send numbers, on the connection that there is."""
        reader, writer = await self._open()
        self._peer.loop.spawn(self._beat.write(writer))
        self._peer.loop.spawn(self._beat.read(reader))
        return {}

    async def reset(self) -> dict[str, Any]:
        """Forget the silences of the numbers."""
        self._beat.reset()
        return {}

    async def gap(self) -> dict[str, Any]:
        """Return the longest silence of the numbers."""
        return self._beat.report()


async def _client(peer: Peer) -> None:
    orders = Orders(peer)
    while line := await peer.loop.line():
        order = json.loads(line)
        try:
            say(**await getattr(orders, order.pop("do"))(**order))
        except NotOfferedError as error:
            say(missing=str(error))
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")


async def _first(peer: Peer, at: str) -> None:
    async with peer.client(at) as open_:
        reader, writer = await open_()
        writer.write(loads.ECHO + b"x")
        await reader.readexactly(1)
        say(echo=True)


async def _target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, EOFError):
        await loads.serve(reader, writer)
    writer.close()


async def _serve(peer: Peer, serving: Serving) -> None:
    if isinstance(peer.loop, Asyncio):
        peer.target = (await asyncio.start_server(_target, "127.0.0.1", 0)).sockets[0].getsockname()[1]
    async with serving as at:
        say(at=at, port=peer.target)
        await peer.loop.line()


def main(peer: Peer) -> None:
    """Run the program."""
    role, *rest = sys.argv[1:]

    async def run() -> None:
        try:
            if role == "serve":
                await _serve(peer, peer.serve(rest[0], serve_stream))
            elif role == "dht":
                await _serve(peer, peer.dht(serve_stream))
            elif role == "first":
                await _first(peer, rest[0])
            else:
                await _client(peer)
        except NotOfferedError as error:
            say(missing=str(error))

    peer.loop.run(run)
