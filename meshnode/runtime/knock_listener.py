"""Accepts TCP connections and lets those go on that knock; every other one is closed without a byte of answer.

The knock is the server name of the TLS ClientHello (``knock_of``), read with MSG_PEEK so that TLS finds the bytes
still in the socket. Work before the proof is bounded by the bytes that came: SO_RCVLOWAT lets the kernel wait for the
record's five header bytes and then for the whole record, which is parsed once. Places of connections that have not
knocked are shared by source network (``FairTable``), so silent connections push out each other and no member.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from meshnode.base.address import Addr
from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.limits import MAX_TUNNEL_PENDING, MAX_TUNNEL_WAKES, TUNNEL_KNOCK_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId
from meshnode.runtime.acceptor import Accepted, Acceptor, listen_tcp
from meshnode.runtime.client_hello import HEADER_LENGTH, record_length, server_name

log = logging.getLogger("meshnode.net.tunnel")

BAD_KNOCK = describe("tunnel_drop_knock", "TCP connections closed unanswered: no valid knock")
PENDING_FULL = describe("tunnel_drop_pending", "TCP connections closed unanswered: too many of their network at once")

Verify = Callable[[str, Addr], NodeId | None]
OnMember = Callable[[socket.socket, NodeId, Addr], None]


@state
class _Pending:
    """A connection that has not knocked yet."""

    needed: int  # bytes to be peeked next: the record's header, then the record
    wakes: int
    deadline: asyncio.TimerHandle
    source: Addr


class KnockListener:
    """One listening TCP socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        verify: Verify,
        on_member: OnMember,
        metrics: Metrics,
        accepted: Accepted,
    ) -> None:
        """Make a listener that is not bound yet.

        Args:
            loop: The running event loop.
            verify: Given the server name and the source, returns the member whose valid knock it is, else None.
            on_member: Takes over a connection whose knock is valid: the socket, unread, the member and the source.
            metrics: Counts what was dropped.
            accepted: The node's counter of accepted connections.
        """
        self._loop = loop
        self._verify = verify
        self._on_member = on_member
        self._metrics = metrics
        self._accepted = accepted
        self._acceptor: Acceptor | None = None
        self._pending: dict[socket.socket, _Pending] = {}
        self._places: FairTable[socket.socket] = FairTable(MAX_TUNNEL_PENDING)

    def listen(self, addr: Addr) -> bool:
        """Accept on this TCP address, and on no other any more.

        False (and a warning) when it cannot be had.
        """
        self.stop()
        try:
            sock = listen_tcp(addr.host, addr.port, MAX_TUNNEL_PENDING, both=True)
        except OSError as error:
            log.warning("no WebSocket tunnel on TCP %s: %s", addr, error.strerror)
            return False
        self._acceptor = Acceptor(self._loop, self._accepted, [sock], self._on_connection)
        return True

    def stop(self) -> None:
        """Accept no more, and drop the connections that have not knocked."""
        for sock in list(self._pending):
            self._drop(sock)
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None

    def _on_connection(self, sock: socket.socket, source: Addr) -> None:
        _wake_at(sock, HEADER_LENGTH)
        deadline = self._loop.call_later(TUNNEL_KNOCK_S, self._refuse, sock)
        self._pending[sock] = _Pending(HEADER_LENGTH, 0, deadline, source)
        pushed_out = self._places.add(sock, *source_shares(source.host))
        self._loop.add_reader(sock, self._readable, sock)
        if pushed_out is not None:
            self._metrics.count(PENDING_FULL)
            self._drop(pushed_out)

    def _readable(self, sock: socket.socket) -> None:
        """As many bytes as were asked for are here, or no more will come."""
        pending = self._pending[sock]
        try:
            data = sock.recv(pending.needed, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(sock)
            return
        if len(data) < pending.needed:
            pending.wakes += 1  # the peer has closed, or this kernel does not wait for SO_RCVLOWAT
            if not data or pending.wakes > MAX_TUNNEL_WAKES:
                self._refuse(sock)
        elif pending.needed == HEADER_LENGTH:
            length = record_length(data)
            if length is None:
                self._refuse(sock)
                return
            pending.needed = length
            _wake_at(sock, length)
        else:
            self._knocked(sock, pending, server_name(data))

    def _knocked(self, sock: socket.socket, pending: _Pending, name: str | None) -> None:
        member = self._verify(name, pending.source) if name else None
        if member is None:
            self._refuse(sock)
            return
        self._forget(sock)
        _wake_at(sock, 1)
        self._on_member(sock, member, pending.source)

    def _refuse(self, sock: socket.socket) -> None:
        self._metrics.count(BAD_KNOCK)
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._forget(sock)
        sock.close()

    def _forget(self, sock: socket.socket) -> None:
        self._pending.pop(sock).deadline.cancel()
        self._places.discard(sock)
        self._loop.remove_reader(sock)


def _wake_at(sock: socket.socket, size: int) -> None:
    """Be woken only for so many bytes, where the kernel can; some refuse all options of a connection that is over."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
