"""Accepts connections: one mechanism for every listener of a node (tunnels, forwards, the control socket).

Every accepted connection is in one counter (``Accepted``) until it is closed, by source network. When descriptors are
nearly used up, only the control socket is still served: the last ones are for it, for moves and for state files. A
listener that cannot accept pauses, because the connection that waits would wake the loop at once again. One that the
system has ended (SOCK_DESTROY, by ``ss -K`` or a VPN that begins) listens again where it did.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from meshnode.base.address import Addr, canonical_host
from meshnode.base.fair_table import Groups, source_shares
from meshnode.base.forks import close_in_child
from meshnode.base.limits import ACCEPT_PAUSE_S, MAX_ACCEPTED
from meshnode.base.metrics import Metrics, describe
from meshnode.runtime.descriptors import EXHAUSTED, is_reserved

ACCEPT_PAUSED = describe("accept_paused", "times that accepting paused because descriptors or memory ran out")
ACCEPT_ENDED = describe("accept_ended", "times that the system or another part of the program had ended a listener")
ACCEPT_REFUSED = describe("accept_refused", "connections closed at once: too many of their network are open")

OVER = (errno.EINVAL, errno.EBADF, errno.ENOTSOCK)  # of accept(2): it does not listen, or is none
LOCAL = (b"local", b"local")  # the groups of a client at a Unix socket

OnConnection = Callable[[socket.socket, Addr], None]
NOWHERE = Addr("", 0)  # the source of a client at a Unix socket


class CountedSocket(socket.socket):
    """An accepted connection; its counter is told when it is closed, by whichever part."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Close it."""
        super().close()
        self._tell()

    def detach(self) -> int:
        """Give its descriptor away: uvloop does so when it closes a transport."""
        descriptor = super().detach()
        self._tell()
        return descriptor

    def _tell(self) -> None:
        told, self.on_close = self.on_close, None
        if told is not None:
            told()


class Accepted:
    """The connections that a node's listeners have accepted and that are open, counted by source network."""

    def __init__(self, metrics: Metrics, bound: int = MAX_ACCEPTED) -> None:
        self.metrics = metrics
        self.bound = bound
        self._total = 0
        self._groups: Counter[Groups] = Counter()

    def __len__(self) -> int:
        return self._total

    def enter(self, sock: CountedSocket, groups: Groups) -> bool:
        """Count a connection until it is closed. False, counting nothing, when its network has its share.

        A network may hold as many as are free: the first half of all, the next one a quarter, and there is always room
        for one more network. All IPv6 networks of one allocation (``groups[0]``) may hold three times as many as are
        free, so not all.
        """
        free, allocation, network = self.bound - self._total, groups[:1], groups[:2]
        if self._groups[network] >= free or self._groups[allocation] >= 3 * free:
            self.metrics.count(ACCEPT_REFUSED)
            return False
        self._total += 1
        self._groups.update((allocation, network))
        sock.on_close = lambda: self._leave(allocation, network)
        return True

    def _leave(self, *groups: Groups) -> None:
        self._total -= 1
        for group in groups:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]


class Acceptor:
    """Accepts on listening sockets until it is closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        accepted: Accepted,
        listeners: list[socket.socket],
        on_connection: OnConnection,
        *,
        reserved: bool = False,
    ) -> None:
        """Begin to accept.

        Args:
            loop: The running event loop.
            accepted: The node's counter.
            listeners: Bound sockets that listen and do not block; they are closed with this.
            on_connection: Takes over a connection and its source (``NOWHERE`` at a Unix socket). The socket does not
                block, and is its to close.
            reserved: Go on accepting when only the reserved descriptors are left.
        """
        self._loop = loop
        self._accepted = accepted
        self._listeners = {listener: listener.getsockname() for listener in listeners}
        self._on_connection = on_connection
        self._reserved = reserved
        self._resume: asyncio.TimerHandle | None = None
        for listener in listeners:
            close_in_child(listener)
        try:
            self._listen()
        except BaseException:  # the loop can watch no more descriptors, say
            self.close()
            raise

    @property
    def bound(self) -> tuple[str, int]:
        """Host and port of the first listener."""
        name = next(iter(self._listeners.values()))
        return str(name[0]), int(name[1])

    def close(self) -> None:
        """Accept no more; what was accepted goes on."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners = {}

    def _listen(self) -> None:
        self._resume = None
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, name = listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._pause()
            elif error.errno in OVER:
                self._listen_again(listener)
            return  # any other is the fault of a connection that is gone again
        sock = CountedSocket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        sock.setblocking(False)
        source = NOWHERE if sock.family == socket.AF_UNIX else Addr(canonical_host(name[0]), name[1])
        if not self._reserved and is_reserved(sock):
            sock.close()
            self._pause()
        elif self._accepted.enter(sock, source_shares(source.host) if source.host else LOCAL):
            try:
                self._on_connection(sock, source)
            except BaseException:
                sock.close()  # which nothing else would
                raise
        else:
            sock.close()

    def _listen_again(self, listener: socket.socket) -> None:
        """Listen where it did before the system ended that; later when another program has the port, or no room is."""
        self._accepted.metrics.count(ACCEPT_ENDED)
        name = self._listeners[listener]
        try:
            fresh = _like(listener, name)  # what the old one accepted would be shut down
        except OSError:
            self._pause()
            return
        self._loop.remove_reader(listener)
        listener.close()
        del self._listeners[listener]
        self._listeners[fresh] = name
        close_in_child(fresh)
        self._loop.add_reader(fresh, self._accept, fresh)

    def _pause(self) -> None:
        """Accept again later: the waiting connection keeps the listener readable, and the loop would spin."""
        self._accepted.metrics.count(ACCEPT_PAUSED)
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._resume = self._loop.call_later(ACCEPT_PAUSE_S, self._listen)


def listen_tcp(host: str, port: int, backlog: int, *, both: bool = False) -> socket.socket:
    """Return a socket that listens at an IP address; IPv6 takes IPv4 as well with ``both``.

    Raises OSError.
    """
    family, kind, proto, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind(place)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _like(old: socket.socket, name: Any) -> socket.socket:
    """Return a socket that listens where another did. Raises OSError."""
    fresh = socket.socket(old.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if old.family == socket.AF_INET6:
            only = old.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        fresh.bind(name)
        fresh.listen(socket.SOMAXCONN)
    except OSError:
        fresh.close()
        raise
    return fresh


def listen_at(hosts: list[str], port: int, backlog: int) -> list[socket.socket]:
    """Return sockets that listen at those of several addresses of a name that this host has; port 0 is one for all.

    ``::`` takes IPv4 as well. Raises OSError.
    """
    return _at_each(hosts, port, lambda host, port: listen_tcp(host, port, backlog, both=host == "::"))


def bind_udp(host: str, port: int) -> socket.socket:
    """Return a UDP socket at an IP address.

    ``::`` takes IPv4 as well. Raises OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    close_in_child(sock)
    return sock


def bind_at(hosts: list[str], port: int) -> list[socket.socket]:
    """Return UDP sockets at those of several addresses of a name that this host has; port 0 is one for all.

    Raises OSError.
    """
    return _at_each(hosts, port, bind_udp)


def _at_each(hosts: list[str], port: int, made: Callable[[str, int], socket.socket]) -> list[socket.socket]:
    found: list[socket.socket] = []
    absent: OSError | None = None
    for host in hosts:
        try:
            found.append(made(host, port))
            port = int(found[0].getsockname()[1])
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for sock in found:
                    sock.close()
                raise
            absent = error
    if not found:
        raise absent if absent is not None else OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return found
