"""Tunnels where UDP is blocked: datagrams as binary messages of a WebSocket over TLS, by ``HTTPS_PROXY`` when set.

Each message is one datagram as it would travel by UDP, so the other end proves its key inside, and the TLS certificate
proves nothing and may be self-signed. Strangers get no byte: the first flight's server name is a
knock (``sealing``), read before TLS begins; without a valid one the connection is closed unanswered.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from meshnode.base.address import Addr
from meshnode.base.limits import (
    MAX_DATAGRAM,
    MAX_TUNNEL_BACKLOG,
    MAX_TUNNEL_BUFFER,
    MAX_TUNNELS_OUT,
    TUNNEL_EMPTY_BURST,
    TUNNEL_EMPTY_PER_S,
    TUNNEL_IDLE_S,
    TUNNEL_KNOCK_S,
    TUNNEL_RETRY_S,
)
from meshnode.base.log_lines import rated_logger
from meshnode.base.metrics import describe
from meshnode.base.path import ViaTunnel
from meshnode.base.refusals import refusal
from meshnode.base.token_bucket import TokenBucket
from meshnode.errors import InvalidId
from meshnode.identity.node_id import NodeId
from meshnode.runtime.acceptor import Accepted
from meshnode.runtime.host_names import connect_tcp
from meshnode.runtime.knock_listener import KnockListener
from meshnode.runtime.tunnel_places import TunnelPlaces

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from websockets.server import ServerProtocol

    from meshnode.runtime.tunnel_tls import TlsEnd

log = rated_logger("meshnode.net.tunnel")
PURPOSE = b"tunnel"
SUFFIX = ".mesh"
SLICE = 4_096  # bytes that are parsed at once: 10 ms of the smallest frames
LABEL = 63  # RFC 1035 section 2.3.4

OPENED = describe("tunnels_opened", "WebSockets to relays that were opened")
FAILED = describe("tunnel_failures", "WebSockets to relays that could not be opened")
ACCEPTED = describe("tunnels_accepted", "WebSockets of members that were accepted")
CLIENTS_FULL = describe("tunnel_drop_clients", "connections of members closed: too many of their network at once")
JUNK = describe("tunnel_drop_junk", "connections of members closed: their datagrams prove nothing")
SILENT = describe("tunnel_drop_silent", "connections of members closed: no WebSocket in time, or silent for long")
UNEARNED = describe("tunnel_not_earned", "datagrams dropped: too many dials of a host where no node has answered")
BACKLOG_FULL = describe("tunnel_drop_backlog", "datagrams dropped: the WebSocket is slower than its sender")

Knock = Callable[[NodeId, bytes], bytes]
Check = Callable[[bytes, bytes, Addr], NodeId | None]
OnDatagram = Callable[[bytes, ViaTunnel], None]


def knock_name(token: bytes) -> str:
    """Return the server name that carries a knock.

    It is the token in lower-case base32, in labels of at most 63 characters (RFC 1035 section 2.3.4), under ``.mesh``.
    """
    text = base64.b32encode(token).decode().rstrip("=").lower()
    return ".".join(text[i : i + LABEL] for i in range(0, len(text), LABEL)) + SUFFIX


def knock_of(name: str) -> bytes | None:
    """Return the token in a server name, the inverse of ``knock_name``.

    None when the name does not end in ``.mesh`` or is no base32. The token is not verified here.
    """
    if not name.endswith(SUFFIX):
        return None
    text = name[: -len(SUFFIX)].replace(".", "").upper()
    try:
        return base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        return None


class WebSockets:
    """All WebSockets of a node: those it opens to relays and, when it is a relay, those that members open."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        knock: Knock,
        check: Check,
        on_datagram: OnDatagram,
        accepted: Accepted,
    ) -> None:
        self.loop = loop
        self._knock = knock
        self._check = check
        self._on_datagram = on_datagram
        self._metrics = accepted.metrics
        self.refused: Container[object] = ()  # tunnels of members that send junk: they are closed
        self.may_dial: Callable[[ViaTunnel], bool] = lambda path: True  # asked before each attempt; set by the runtime
        self._outgoing: dict[ViaTunnel, _Outgoing] = {}
        self._incoming: dict[ViaTunnel, _Incoming] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._knocks = KnockListener(loop, self._verify, self._on_member, accepted.metrics, accepted)
        self._places: TunnelPlaces[_Incoming] = TunnelPlaces()
        self._new_end: Callable[[], TlsEnd] | None = None  # since it listened first
        self._count = 0

    def send(self, path: ViaTunnel, datagrams: list[bytes]) -> bool:
        """Send datagrams over that WebSocket, opening it when this node is the one that dials.

        While it opens, ``MAX_TUNNEL_BACKLOG`` datagrams wait; the rest is dropped and counted. After a failure the next
        attempt comes ``TUNNEL_RETRY_S`` later; datagrams before it are dropped. False for a member's WebSocket that is
        closed.
        """
        incoming = self._incoming.get(path)
        if incoming is not None:
            incoming.send(datagrams)
            return True
        outgoing = self._outgoing.get(path)
        if outgoing is None:
            if not path.peer:
                return False  # a member's, and gone
            if not self._has_room():
                self._metrics.count(BACKLOG_FULL, len(datagrams))
                return True
            outgoing = self._outgoing[path] = _Outgoing(self, path)
        outgoing.send(datagrams)
        return True

    def _has_room(self) -> bool:
        """True when one more tunnel may be opened; those that are over are forgotten: records name ever new ones."""
        if len(self._outgoing) >= MAX_TUNNELS_OUT:
            self._outgoing = {path: one for path, one in self._outgoing.items() if one.is_running}
        return len(self._outgoing) < MAX_TUNNELS_OUT

    def spawn(self, work: object) -> None:
        """Run a coroutine that ``close`` will end."""
        task: asyncio.Task[None] = self.loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave(self, hosts: Container[str]) -> None:
        """Give up what was opened from these addresses, which this host has no longer: TCP would try for 15 minutes."""
        for outgoing in self._outgoing.values():
            outgoing.leave(hosts)

    async def close(self) -> None:
        """Close everything."""
        self.stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for incoming in self._places.all():
            incoming.close()

    # ---- opening

    def open_name(self, peer: str) -> str:
        """Return a fresh server name for one attempt.

        Raises InvalidId.
        """
        return knock_name(self._knock(NodeId.parse(peer), PURPOSE))

    def deliver(self, datagram: bytes, path: ViaTunnel) -> None:
        """Hand a received message to the node, unless it is empty or longer than ``MAX_DATAGRAM``."""
        if 0 < len(datagram) <= MAX_DATAGRAM:
            self._on_datagram(datagram, path)

    def opened(self, failed: bool) -> None:
        """Count the outcome of an attempt."""
        self._metrics.count(FAILED if failed else OPENED)

    def overflow(self) -> None:
        """Count a datagram that was dropped."""
        self._metrics.count(BACKLOG_FULL)

    def unearned(self, count: int) -> None:
        """Count datagrams that were dropped because their tunnel may not be dialled now."""
        self._metrics.count(UNEARNED, count)

    def silent(self) -> None:
        """Count a member's connection that is closed because nothing came."""
        self._metrics.count(SILENT)

    def junk(self) -> None:
        """Count a member's connection that is closed because it brings junk."""
        self._metrics.count(JUNK)

    # ---- accepting

    def listen(self, addr: Addr, certificate: Path) -> bool:
        """Accept members on this TCP address.

        Args:
            addr: The address of the node's UDP socket; TCP takes the same port.
            certificate: A PEM file with key and certificate, made when it does not exist. It proves nothing.

        Returns:
            False when the port or the file cannot be had; UDP goes on without tunnels.
        """
        if not self._knocks.listen(addr):
            return False
        from meshnode.runtime.tunnel_tls import TlsEnd, server_context  # few nodes have tunnels

        try:
            self._new_end = self._new_end or partial(TlsEnd, server_context(certificate))
        except OSError as error:
            log.warning("no WebSocket tunnel: %s: %s", certificate, refusal(error, certificate)[0])
            self._knocks.stop()
            return False
        return True

    def stop_listening(self) -> None:
        """Accept no more."""
        self._knocks.stop()

    def _verify(self, name: str, source: Addr) -> NodeId | None:
        token = knock_of(name)
        try:
            return self._check(token, PURPOSE, source) if token is not None else None
        except InvalidId:
            return None

    def _on_member(self, sock: socket.socket, member: NodeId, source: Addr) -> None:
        """A TCP connection has shown a valid knock: it is in the tables from here until it is closed."""
        self._count += 1
        assert self._new_end is not None, "it listens"
        incoming = _Incoming(self, ViaTunnel("", source.host, self._count), member, self._new_end())
        oldest, pushed_out = self._places.add(incoming, member, source.host)
        if oldest is not None:
            oldest.close()
        if pushed_out is not None:
            self._metrics.count(CLIENTS_FULL)
            self.left(pushed_out)
            pushed_out.close()
        incoming.task = self.loop.create_task(self._begin(sock, incoming))
        self._tasks.add(incoming.task)
        incoming.task.add_done_callback(partial(self._begun, sock, incoming))

    async def _begin(self, sock: socket.socket, incoming: _Incoming) -> None:
        """Let it speak: TLS, and the WebSocket inside."""
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(lambda: incoming, sock)

    def _begun(self, sock: socket.socket, incoming: _Incoming, task: asyncio.Task[None]) -> None:
        """Free the place of one that has come to nothing, also where it was pushed out before its first step."""
        self._tasks.discard(task)
        if not incoming.is_open:
            sock.close()
            self.left(incoming)

    def joined(self, incoming: _Incoming) -> None:
        """Register a member's WebSocket that has opened."""
        self._metrics.count(ACCEPTED)
        self._incoming[incoming.path] = incoming

    def left(self, incoming: _Incoming) -> None:
        """Forget a member's connection that is closed, in whatever stage it was."""
        self._incoming.pop(incoming.path, None)
        self._places.discard(incoming, incoming.member)


class _Outgoing:
    """A WebSocket to a relay: opened by the first datagram, again after failures, with a bounded queue."""

    def __init__(self, tunnels: WebSockets, path: ViaTunnel) -> None:
        self._tunnels = tunnels
        self._path = path
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_TUNNEL_BACKLOG)
        self.is_running = False
        self._websocket: ClientConnection | None = None  # while it is open
        self._wait_s = TUNNEL_RETRY_S
        self._retry_at = 0.0
        self._used_at = 0.0
        self._loop = asyncio.get_running_loop()

    def send(self, datagrams: list[bytes]) -> None:
        self._used_at = self._loop.time()
        if not self.is_running:
            if self._loop.time() < self._retry_at:
                return
            if not self._tunnels.may_dial(self._path):
                self._tunnels.unearned(len(datagrams))
                self._retry_at = self._loop.time() + TUNNEL_RETRY_S
                return
            self.is_running = True
            self._tunnels.spawn(self._run())
        for datagram in datagrams:
            try:
                self._queue.put_nowait(datagram)
            except asyncio.QueueFull:
                self._tunnels.overflow()

    async def _run(self) -> None:
        from websockets.exceptions import WebSocketException

        from meshnode.runtime.tunnel_client import TunnelConnect, TunnelConnection, limit_silence
        from meshnode.runtime.tunnel_tls import client_context

        peer, host, port = self._path
        try:
            name = self._tunnels.open_name(peer)
            bracketed = f"[{host}]" if ":" in host else host
            async with TunnelConnect(
                f"wss://{bracketed}:{port}/",
                sock=await _connected(host, port),
                ssl=client_context(),
                server_hostname=name,
                compression=None,
                max_size=MAX_DATAGRAM,
                create_connection=TunnelConnection,
                open_timeout=TUNNEL_KNOCK_S,
                close_timeout=0.5,
                ping_interval=None,  # the path's own probes tell whether it lives
                user_agent_header=None,
            ) as websocket:
                self._tunnels.opened(failed=False)
                self._websocket = websocket
                limit_silence(websocket)
                beside = [asyncio.create_task(work(websocket)) for work in (self._write, self._end_when_idle)]
                try:
                    async for message in websocket:
                        if isinstance(message, bytes):
                            self._tunnels.deliver(message, self._path)
                finally:
                    for task in beside:
                        task.cancel()
                    await asyncio.gather(*beside, return_exceptions=True)
        except (OSError, TimeoutError, WebSocketException, InvalidId, ValueError, EOFError) as error:
            self._tunnels.opened(failed=True)
            log.debug("tunnel %s: %s", self._path, error)
        except ImportError as error:  # of what the proxy in the environment needs, as one of SOCKS does
            self._tunnels.opened(failed=True)
            log.warning("no WebSocket tunnel: %s", error)
        finally:
            self.is_running, self._websocket = False, None
            self._retry_at, self._wait_s = self._loop.time() + self._wait_s, TUNNEL_RETRY_S
            while not self._queue.empty():
                self._queue.get_nowait()

    def leave(self, hosts: Container[str]) -> None:
        """Give it up when it was opened from one of these addresses; the next datagram opens another at once."""
        websocket = self._websocket
        if websocket is not None and str(websocket.local_address[0]) in hosts:
            self._wait_s = 0.0
            websocket.transport.abort()

    async def _write(self, websocket: ClientConnection) -> None:
        while True:
            await websocket.send(await self._queue.get())

    async def _end_when_idle(self, websocket: ClientConnection) -> None:
        """Another path is in use: the one that is carries a keepalive every 15 s."""
        while (left := self._used_at + TUNNEL_IDLE_S - self._loop.time()) > 0:  # noqa: ASYNC110 - each datagram moves it
            await asyncio.sleep(left)
        await websocket.close()


class _Incoming(asyncio.Protocol):
    """A member's WebSocket in TLS, on websockets' sans-IO protocol and OpenSSL's."""

    def __init__(self, tunnels: WebSockets, path: ViaTunnel, member: NodeId, tls: TlsEnd) -> None:
        from websockets.protocol import State
        from websockets.server import ServerProtocol

        self.path = path
        self.member = member
        self.task: asyncio.Task[None] | None = None
        self._tunnels = tunnels
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._websocket: ServerProtocol = ServerProtocol(max_size=MAX_DATAGRAM)
        self._open_state = State.OPEN
        self._heard_at = 0.0
        self._empty = TokenBucket(TUNNEL_EMPTY_PER_S, TUNNEL_EMPTY_BURST, tunnels.loop.time())
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """True until the connection is closed."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._watch = self._tunnels.loop.call_later(TUNNEL_KNOCK_S, self._expect_websocket)

    def _expect_websocket(self) -> None:
        if self._websocket.state is not self._open_state:
            self._tunnels.silent()
            self.close()
        else:
            self._expect_datagram()

    def _expect_datagram(self) -> None:
        """The client gives up an idle tunnel after ``TUNNEL_IDLE_S``; one that does not is closed after twice that."""
        left = self._heard_at + 2 * TUNNEL_IDLE_S - self._tunnels.loop.time()
        if left <= 0:
            self._tunnels.silent()
            self.close()
        else:
            self._watch = self._tunnels.loop.call_later(left, self._expect_datagram)

    def data_received(self, data: bytes) -> None:
        try:
            plain = self._tls.receive(data)
        except ssl.SSLError:
            self.close()
            return
        for start in range(0, len(plain), SLICE):  # frames without a datagram cost 15 us each, and 6 bytes
            if self._transport is None or not self._take(plain[start : start + SLICE]):
                return
        self._flush()

    def _take(self, data: bytes) -> bool:
        """Parse some bytes and deliver the datagrams in them; False when the connection was closed for them."""
        from websockets.frames import Frame, Opcode
        from websockets.http11 import Request

        websocket, now = self._websocket, self._tunnels.loop.time()
        websocket.receive_data(data)
        for event in websocket.events_received():
            if isinstance(event, Request):
                websocket.send_response(websocket.accept(event))
                self._heard_at = now
                self._tunnels.joined(self)
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY and event.fin and event.data:
                self._heard_at = now
                self._tunnels.deliver(bytes(event.data), self.path)
                if self.path in self._tunnels.refused:
                    return self._end()
            elif not self._empty.take(1, now):
                return self._end()
        return True

    def _end(self) -> bool:
        self._tunnels.junk()
        self.close()
        return False

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._transport = None
        self._tunnels.left(self)

    def send(self, datagrams: list[bytes]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._websocket.state is not self._open_state:
            return
        if transport.get_write_buffer_size() > MAX_TUNNEL_BUFFER:
            for _ in datagrams:
                self._tunnels.overflow()
            return
        for datagram in datagrams:
            self._websocket.send_binary(datagram)
        self._flush()

    def close(self) -> None:
        """Close it in whatever stage it is; at the very beginning there is a task and no transport yet."""
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def _flush(self) -> None:
        if self._transport is None:
            return
        pieces = self._websocket.data_to_send()
        if data := self._tls.send(b"".join(pieces)):  # one system call for a batch of datagrams
            self._transport.write(data)
        if b"" in pieces:  # the protocol's sign for the end
            self._transport.write(self._tls.end())
            self._transport.close()


async def _connected(host: str, port: int) -> socket.socket | None:
    """Connect to a relay; None where the environment names proxies, which the WebSocket library goes through."""
    from urllib.request import getproxies

    if getproxies():
        return None
    async with asyncio.timeout(TUNNEL_KNOCK_S):
        return await connect_tcp(host, port)
