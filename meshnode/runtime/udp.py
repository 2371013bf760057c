"""One UDP port for everything: batched by GRO and GSO where the kernel has them, plain otherwise.

Bound to the wildcard IPv6 address it is dual-stack; without IPv6 it is IPv4 only. The Don't Fragment bit
is always set, because path MTU is found by probing. asyncio's own datagram transport is not used: it
allocates 256 KiB for each datagram (measured).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from itertools import islice

from meshnode.base.address import Addr, canonical_host
from meshnode.base.forks import close_in_child
from meshnode.base.metrics import Metrics
from meshnode.base.path import Path, ViaSocket
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, ConfigError

UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
GRO_SIZE = (socket.SOL_UDP, UDP_GRO)  # level and type of the ancillary data
IP_MTU_DISCOVER = 10  # linux/in.h
IPV6_MTU_DISCOVER = 23  # linux/in6.h
PMTUDISC_PROBE = 3
BUFFER = 4 << 20
BATCH = 64  # datagrams a wake-up, so that one busy peer cannot starve the timers
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of the oldest kernels with GSO
MAX_GSO = 65_000
MAX_BACKLOG = 512  # datagrams kept while the kernel's buffer is full; QUIC repeats what is dropped
MAX_ADDRESSES = 4096  # cached conversions
RETRY_ERRORS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)
OnBatch = Callable[[list[tuple[bytes, Path]]], None]


class UdpSocket:
    """UDP socket of a node. ``on_batch`` gets what arrived, at most 64 datagrams or so at a time.

    An extra one (``side``) marks the sources of what it receives; a ``buffer`` may be shared, for it is only used
    while reading.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_batch: OnBatch,
        metrics: Metrics,
        *,
        side: int | None = None,
        buffer: bytearray | None = None,
    ) -> None:
        self._loop = loop
        self._side = side
        self._on_batch = on_batch
        self._metrics = metrics
        self._socket: socket.socket | None = None
        self._v6 = False
        self._gso = True
        self._buffer = bytearray(65_536) if buffer is None else buffer
        self._view = memoryview(self._buffer)
        self._froms: dict[tuple[object, ...], Path] = {}
        self._tos: dict[Addr, tuple[str, int] | tuple[str, int, int, int] | None] = {}
        self._backlog: deque[tuple[Addr, bytes]] = deque()

    @property
    def local(self) -> Addr:
        """The bound address."""
        assert self._socket is not None
        name = self._socket.getsockname()
        return Addr(canonical_host(name[0]), name[1])

    def bind(self, listen: Addr) -> None:
        """Bind, or move to another local address: the new socket is ready before the old one closes.

        Raises AddressInUse or ConfigError.
        """
        try:
            fresh, v6 = _open(listen)
        except AddressInUse:
            if self._socket is not None and self._holds(listen):
                hint = "rebind without an address takes a new port"
                raise AddressInUse(f"this node itself listens on {self.local}", hint=hint) from None
            raise
        old, self._socket, self._v6 = self._socket, fresh, v6
        self._tos.clear()
        self._froms.clear()
        self._backlog.clear()
        self._loop.add_reader(fresh, self._readable, fresh)
        if old is not None:
            self._drop(old)

    def _holds(self, listen: Addr) -> bool:
        local = self.local
        return listen.port == local.port and (listen.host == local.host or "::" in (listen.host, local.host))

    def close(self) -> None:
        """Close the socket; nothing is received or sent any more."""
        if self._socket is not None:
            self._drop(self._socket)
            self._socket = None

    def _drop(self, old: socket.socket) -> None:
        self._loop.remove_reader(old)
        self._loop.remove_writer(old)
        old.close()

    # ---- receiving

    def _readable(self, sock: socket.socket) -> None:
        batch: list[tuple[bytes, Path]] = []
        buffer, view = self._buffer, self._view
        while len(batch) < BATCH:
            try:
                length, ancillary, _, name = sock.recvmsg_into([buffer], 64)
                source = self._froms.get(name) or self._learn(name)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # an ICMP error for an earlier datagram, or an interface that has gone
                self._metrics.count("udp_receive_errors")
                continue
            segment = length
            for level, kind, value in ancillary:
                if (level, kind) == GRO_SIZE:
                    (segment,) = struct.unpack_from("=i", value)
            if segment >= length:
                batch.append((bytes(view[:length]), source))
            else:
                for start in range(0, length, segment):
                    batch.append((bytes(view[start : min(start + segment, length)]), source))
        if batch:
            self._on_batch(batch)

    def _learn(self, name: tuple[object, ...]) -> Path:
        if len(self._froms) >= MAX_ADDRESSES:
            self._froms.clear()
        host = str(name[0])
        if len(name) == 4 and name[3] and "%" not in host:
            host = f"{host}%{socket.if_indextoname(int(str(name[3])))}"
        addr = Addr(canonical_host(host), int(str(name[1])))
        source = addr if self._side is None else ViaSocket(addr, self._side)
        self._froms[name] = source
        return source

    # ---- sending

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool:
        """Send datagrams to one address, in GSO runs where sizes allow.

        What the kernel's buffer has no room for waits in a backlog of ``MAX_BACKLOG`` datagrams; beyond it, and for
        datagrams over the path's MTU (EMSGSIZE), packets are dropped and counted. Returns False when there is no way
        there: the socket is closed, or the kernel has no such family, scope or route.
        """
        sock = self._socket
        if sock is None:
            return False
        to = self._tos.get(addr)
        if to is None:
            to = self._resolve(addr)
            if to is None:
                self._metrics.count("udp_no_family")
                return False
        if len(datagrams) == 1:
            return self._send_one(sock, addr, to, datagrams[0])
        sent = True
        start = 0
        while start < len(datagrams):
            count = _run(datagrams, start) if self._gso else 1
            if count == 1 or not self._send_run(sock, to, datagrams, start, count):
                for datagram in islice(datagrams, start, start + count):
                    sent &= self._send_one(sock, addr, to, datagram)
            start += count
        return sent

    def _send_one(self, sock: socket.socket, addr: Addr, to: object, datagram: bytes) -> bool:
        try:
            sock.sendto(datagram, to)  # type: ignore[call-overload]
        except OSError as error:
            if error.errno in RETRY_ERRORS:
                self._keep(sock, addr, datagram)
                return True
            self._metrics.count("udp_too_big" if error.errno == errno.EMSGSIZE else "udp_send_errors")
            return error.errno == errno.EMSGSIZE
        return True

    def _send_run(self, sock: socket.socket, to: object, datagrams: list[bytes], start: int, count: int) -> bool:
        size = struct.pack("=H", len(datagrams[start]))
        run = datagrams[start : start + count]
        try:
            sock.sendmsg(run, [(socket.SOL_UDP, UDP_SEGMENT, size)], 0, to)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                self._gso = False  # no GSO on this device: fall back for good
            return False
        return True

    def _keep(self, sock: socket.socket, addr: Addr, datagram: bytes) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self._metrics.count("udp_backlog_full")
            return
        self._backlog.append((addr, datagram))
        self._loop.add_writer(sock, self._writable, sock)

    def _writable(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock)
        waiting, self._backlog = self._backlog, deque()
        for addr, datagram in waiting:
            self.send(addr, [datagram])

    def _resolve(self, addr: Addr) -> tuple[str, int] | tuple[str, int, int, int] | None:
        if len(self._tos) >= MAX_ADDRESSES:
            self._tos.clear()
        host, _, scope = addr.host.partition("%")
        to: tuple[str, int] | tuple[str, int, int, int] | None
        if self._v6:
            mapped = host if ":" in host else f"::ffff:{host}"
            try:
                index = socket.if_nametoindex(scope) if scope else 0
            except OSError:
                return None
            to = (mapped, addr.port, 0, index)
        else:
            to = None if ":" in host else (host, addr.port)
        self._tos[addr] = to
        return to


def _run(datagrams: list[bytes], start: int) -> int:
    """Return how many datagrams from ``start`` make one GSO send: equal sizes, the last may be shorter."""
    size = len(datagrams[start])
    total, count = size, 1
    for datagram in islice(datagrams, start + 1, start + MAX_SEGMENTS):
        if len(datagram) > size or total + len(datagram) > MAX_GSO:
            break
        total += len(datagram)
        count += 1
        if len(datagram) < size:
            break
    return count


def _open(listen: Addr) -> tuple[socket.socket, bool]:
    wildcard = listen.host == "::"
    families = [socket.AF_INET6, socket.AF_INET] if wildcard else [_family(listen.host)]
    problem: OSError | None = None
    for family in families:
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            problem = error
            continue
        try:
            _options(sock, family)
            host = "0.0.0.0" if wildcard and family == socket.AF_INET else listen.host
            sock.bind((host, listen.port))
            close_in_child(sock)
            return sock, family == socket.AF_INET6
        except OSError as error:
            sock.close()
            problem = error
            if error.errno == errno.EADDRINUSE:
                break
    assert problem is not None
    reason, hint = listen_refusal(problem, listen.port)
    if problem.errno == errno.EADDRINUSE:
        raise AddressInUse(f"{listen} is taken: {reason}", hint=hint)
    raise ConfigError(f"cannot listen on {listen}: {reason}", hint=hint)


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _options(sock: socket.socket, family: int) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    wanted = [
        (socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER),
        (socket.SOL_UDP, UDP_GRO, 1),
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE),
    ]
    if family == socket.AF_INET6:
        wanted.append((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE))
    for level, option, value in wanted:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            continue  # an optimisation that this kernel lacks
