"""The requests of one caller's stream, passed on to a target one after another (RFC 9112), bodies as they come.

Each request is read and written again by h11, each by a connection of its own, so what reaches the target is framed as
this node has read it. A connection to a target has one caller, and is opened again when it ends between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h11

from meshnode.base.log_lines import rated_logger
from meshnode.errors import ConnectionLost, MeshError
from meshnode.services.http.heads import (
    MAX_HEAD,
    Caller,
    RequestRefused,
    check_head,
    for_caller,
    for_target,
    head_end,
)
from meshnode.services.local import Local, detached
from meshnode.services.splice import Before, Mesh, paid, splice
from meshnode.services.usage import Toll

log = rated_logger("meshnode.services")

CHUNK = 1 << 16
IDLE_S = 75.0  # a caller's stream without a request
HEAD_S = 10.0  # from the first byte of a head to its last one
ANSWER_S = 300.0  # from the last of a request that the target took to the head of the response
LINGER_S, LINGER_BYTES = 2.0, 1 << 20  # what is still read of a body that was refused: to close at once resets
MAX_ANSWER_HEAD = 65_536
SAFE = frozenset([b"GET", b"HEAD", b"OPTIONS"])  # may be sent again on a new connection where the old one has ended
BODY = frozenset([b"content-length", b"transfer-encoding"])
REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


class Upstream:
    """One connection to a target, for one caller; ``release`` is called at its end."""

    def __init__(self, local: Local, release: Callable[[], None]) -> None:
        self.reader, self.writer = local
        self.client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_HEAD)
        self.is_used = False
        self._release: Callable[[], None] | None = release

    def is_ready(self) -> bool:
        """Return whether it takes another request; one on which the target has said more, or its end, does not."""
        client = self.client
        if client.our_state is h11.DONE and client.their_state is h11.DONE and not client.trailing_data[0]:
            client.start_next_cycle()
            self.is_used = True
        return client.our_state is h11.IDLE and self.reader.is_quiet() and not self.writer.is_closing()

    async def send(self, event: h11.Event) -> None:
        """Write a part of a request."""
        data = self.client.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()

    async def event(self) -> h11.Event:
        """Return the next part of the response.

        Raises h11.RemoteProtocolError, OSError.
        """
        while True:
            event = self.client.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise ConnectionResetError("the target answers out of turn")
            self.client.receive_data(await self.reader.read(CHUNK))

    def close(self) -> None:
        """End it."""
        self.writer.transport.abort()
        self.leave()

    def leave(self) -> None:
        """Count it no more."""
        release, self._release = self._release, None
        if release is not None:
            release()


Dial = Callable[[], Awaitable[Upstream | None]]


class Requests:
    """The requests of one stream."""

    def __init__(self, mesh: Mesh, caller: Caller, host: str, dial: Dial, toll: Toll) -> None:
        """Take a stream that was accepted.

        Args:
            mesh: The stream.
            caller: The node at its other end.
            host: The host of requests that name none, as HTTP/1.0 may.
            dial: Opens a connection to a target; None when none accepts.
            toll: Counts requests and bytes, and holds them to the caller's rates.
        """
        self._reader, self._writer = mesh
        self._caller, self._host, self._dial, self._toll = caller, host.encode(), dial, toll
        self._owed = 0  # bytes that were read and are not paid for
        self._buffer = b""
        self._upstream: Upstream | None = None
        self._waits: asyncio.Timeout | None = None  # for the head of a response
        self._server = h11.Connection(h11.SERVER)

    async def serve(self, upstream: Upstream) -> None:
        """Pass requests on until the caller ends its stream, beginning with a connection."""
        self._upstream = upstream
        try:
            await self._serve()
        except (h11.ProtocolError, MeshError, OSError) as error:
            log.debug("a request of %s ended: %s", self._caller.id, error)
            self._writer.reset()
        finally:
            if self._upstream is not None:
                self._upstream.close()

    async def _serve(self) -> None:
        try:
            while await self._has_request() and await self._pass_on():
                pass
        except RequestRefused as error:
            log.debug("a request of %s is refused: %s", self._caller.id, error)
            await self._refuse(error.status)

    async def _has_request(self) -> bool:
        """Wait for the head of a request; False when the caller sends no more. Raises RequestRefused."""
        if not self._buffer:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    self._buffer = await self._read()
        if not self._buffer:
            return False
        try:
            async with asyncio.timeout(HEAD_S):
                while not head_end(self._buffer):
                    data = await self._read()
                    if not data:
                        raise RequestRefused(400, "it ends within its head")
                    self._buffer += data
        except TimeoutError:
            raise RequestRefused(408, "its head came too slowly") from None
        check_head(self._buffer[: head_end(self._buffer)])
        if not self._toll.begin():
            raise RequestRefused(429, "its caller sends too many")
        return True

    def _parse(self) -> h11.Request:
        self._server = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._server.receive_data(self._buffer)
        try:
            request = self._server.next_event()
        except h11.RemoteProtocolError as error:
            raise RequestRefused(400, str(error)) from error
        assert isinstance(request, h11.Request)
        return request

    async def _pass_on(self) -> bool:
        """Have a target answer the request in the buffer; False when the caller's stream is over with it."""
        request = self._parse()
        while True:
            upstream = await self._connected()
            try:
                return await self._exchange(request, upstream)
            except _Unanswered as error:
                if not (upstream.is_used and _may_repeat(request)):
                    raise RequestRefused(error.status, str(error)) from error
                upstream.close()
                self._upstream, request = None, self._parse()

    async def _connected(self) -> Upstream:
        if self._upstream is None or not self._upstream.is_ready():
            if self._upstream is not None:
                self._upstream.close()
            self._upstream = await self._dial()
        if self._upstream is None:
            raise RequestRefused(503, "no target answers")
        return self._upstream

    async def _exchange(self, request: h11.Request, upstream: Upstream) -> bool:
        raw = list(request.headers.raw_items())
        headers = for_target(raw, self._caller, self._host)
        up = asyncio.create_task(
            self._send_request(h11.Request(method=request.method, target=request.target, headers=headers), upstream)
        )
        down = asyncio.create_task(self._send_response(request, upstream))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                _check_callers(up)
            switched = await down
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        if switched:
            await self._splice(upstream)
            return False
        return await self._is_next()

    async def _is_next(self) -> bool:
        """Return whether another request may follow: the last one and its response are whole, and neither says no."""
        server = self._server
        if server.our_state is h11.DONE and server.their_state is h11.DONE:
            self._buffer, _ = server.trailing_data
            self._server = h11.Connection(h11.SERVER)
            return True
        if server.their_state is h11.SEND_BODY:
            await self._linger()
        return False

    # ---- the request

    async def _read(self) -> bytes:
        """Read on once what was read before is paid for; one that is cancelled loses nothing."""
        if self._owed:
            await paid(self._toll.into, self._owed)
            self._owed = 0
        data = await self._reader.read(CHUNK)
        self._owed = len(data)
        return data

    async def _send_request(self, request: h11.Request, upstream: Upstream) -> None:
        """Pass on a request; then wait for what follows it, so that a caller that goes is noticed."""
        await self._pass_up(request, upstream)
        while not isinstance(event := await self._request_event(), h11.EndOfMessage):
            await self._pass_up(event, upstream)
        await self._pass_up(h11.EndOfMessage(), upstream)  # without trailers: an application may take them for headers
        data = await self._read()
        self._buffer += data
        self._server.receive_data(data)

    async def _pass_up(self, event: h11.Event, upstream: Upstream) -> None:
        """Pass on a part of a request; a target that takes a long body is not late with its response."""
        await upstream.send(event)
        if self._waits is not None and not self._waits.expired():
            self._waits.reschedule(asyncio.get_running_loop().time() + ANSWER_S)

    async def _request_event(self) -> h11.Event:
        server = self._server
        while (event := server.next_event()) is h11.NEED_DATA:
            server.receive_data(await self._read())
        assert isinstance(event, h11.Data | h11.EndOfMessage)
        return event

    # ---- the response

    async def _send_response(self, request: h11.Request, upstream: Upstream) -> bool:
        """Pass on a response; True when the connection has become a WebSocket."""
        head = await self._answer_head(request, upstream)
        if isinstance(head, h11.InformationalResponse):
            await self._reply(head)
            return True
        response = h11.Response(
            status_code=head.status_code, headers=for_caller(list(head.headers.raw_items())), reason=head.reason
        )
        await self._reply(response)
        try:
            while not isinstance(event := await upstream.event(), h11.EndOfMessage):
                assert isinstance(event, h11.Data)
                await self._reply(event)
        except (h11.RemoteProtocolError, OSError) as error:
            if isinstance(error, MeshError):
                raise
            raise ConnectionLost("the target broke its response off") from error
        await self._reply(h11.EndOfMessage())
        return False

    async def _answer_head(self, request: h11.Request, upstream: Upstream) -> h11.Response | h11.InformationalResponse:
        """Return the head of the response, or of the change to a WebSocket; pass on those that precede it."""
        try:
            async with asyncio.timeout(ANSWER_S) as self._waits:
                while not isinstance(event := await upstream.event(), h11.Response):
                    if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                        return event
                    if not isinstance(event, h11.InformationalResponse):
                        raise _Unanswered(502, "the target answers out of turn")
                    if request.http_version >= b"1.1":
                        await self._reply(event)
                return event
        except TimeoutError:
            raise _Unanswered(504, "the target does not answer in time") from None
        except (h11.RemoteProtocolError, OSError) as error:
            if isinstance(error, MeshError):
                raise
            raise _Unanswered(502, f"the target gave no answer: {error}") from error
        finally:
            self._waits = None

    async def _reply(self, event: h11.Event) -> None:
        data = self._server.send(event)
        if data:
            await paid(self._toll.out, len(data))
            self._writer.write(data)
            await self._writer.drain()

    # ---- ends

    async def _splice(self, upstream: Upstream) -> None:
        """Carry the bytes of a WebSocket, beginning with those that came behind the heads."""
        self._upstream = None
        try:
            sock, unread = await detached((upstream.reader, upstream.writer))
            before = Before(self._server.trailing_data[0], upstream.client.trailing_data[0] + unread)
            await splice(sock, (self._reader, self._writer), self._toll, before)
        finally:
            upstream.leave()

    async def _refuse(self, status: int) -> None:
        """Say why a request is not passed on. Raises ConnectionLost where a response has begun."""
        if self._server.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise ConnectionLost("a response cannot be finished")
        head = b"HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (status, REASONS[status])
        self._writer.write(head)
        await self._linger()

    async def _linger(self) -> None:
        """End this direction, and read what is still under way: the caller's TCP would lose the response to a reset."""
        self._writer.write_eof()
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0 and (data := await self._reader.read(CHUNK)):
                    left -= len(data)


class _Unanswered(Exception):
    """A target that gave no response; ``status`` is what the caller is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _may_repeat(request: h11.Request) -> bool:
    """Return whether a request may be sent again: it changes nothing, and none of a body was passed on."""
    return request.method in SAFE and not {name for name, _ in request.headers} & BODY


def _check_callers(up: asyncio.Task[None]) -> None:
    """Raise where a request failed by its caller's fault; where its target did not take it, that may have answered."""
    error = up.exception()
    if isinstance(error, h11.RemoteProtocolError):
        raise RequestRefused(400, str(error)) from error
    if isinstance(error, MeshError):
        raise error
