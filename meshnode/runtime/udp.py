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
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable
from typing import TYPE_CHECKING

from meshnode.base.address import Addr, canonical_host, is_dialable
from meshnode.base.forks import close_in_child
from meshnode.base.limits import MAX_QUEUED_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path, ViaSocket
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, ConfigError
from meshnode.runtime.socket_filter import RECEIVED_AT, TIMESPEC, FloodFilter, kernel_ahead
from meshnode.stack.reception import Run

if TYPE_CHECKING:
    from meshnode.nat.translation import Translation
    from meshnode.runtime.asked_addresses import AskedAddresses, Mark

UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
GRO_SIZE = (socket.SOL_UDP, UDP_GRO)  # level and type of the ancillary data
IP_MTU_DISCOVER = 10  # linux/in.h
IPV6_MTU_DISCOVER = 23  # linux/in6.h
PMTUDISC_PROBE = 3
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
BUFFER = 4 << 20
BATCH = 128  # datagrams of connections a wake-up, so that one busy peer cannot starve the timers
CONTENDED = 1_024  # while some wait for their peer's turn: those of others are behind them in the kernel
READS = 256  # of all kinds: what is dropped costs a tenth, and would else wait for as long in the kernel as it comes
LONG_HEADER, SHORT_HEADER = 0xC0, 0x40  # RFC 9000 section 17: the first two bits of QUIC's packets
ALONE = 16  # wake-ups in a row with one reception each, after which twice as many take one without asking for another
LOOKS = 4  # wake-ups in a row after those that ask again
NEXT_ALONE = (*range(1, 3 * ALONE), ALONE - LOOKS)
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of the oldest kernels with GSO
MAX_GSO = 65_000
GSO_AGAIN_S = 10.0  # after a refusal: of the kernel, or of a device, an MTU or an address that is in use just now
COMPARE_S = 1.0  # between two looks at the kernel's clock, each of which opens two sockets
READS_AT_END = 4  # wake-ups' worth that is read of a socket when another one takes its place
MAX_BACKLOG = 512  # datagrams kept while the kernel's buffer is full; QUIC repeats what is dropped
MAX_ADDRESSES = 4096  # cached conversions
RETRY_ERRORS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)
STALE = describe("drop_waited", "datagrams of no connection dropped unread: they waited in the kernel for 2 s or more")
ENDED = describe("udp_ended", "UDP sockets that the kernel or another part of the program has ended")
OVER = (errno.ECONNABORTED, errno.EBADF, errno.ENOTSOCK)  # destroyed (SOCK_DESTROY, as `ss -K`), or closed by others
REFUSED = describe("drop_refused", "receptions dropped unread: their source sent much junk within the second")
OnBatch = Callable[[list[Run]], bool | None]


class _Host:
    """What this host is like now: its translator, and its addresses that peers ask; and what is told of the end."""

    __slots__ = ("ahead", "asked", "compared_at", "on_end", "translation")

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.ahead = 0.0  # of the kernel's clock before that of this process
        self.compared_at = float("-inf")  # when these two were
        self.translation: Translation | None = None
        self.asked: AskedAddresses | None = None
        self.on_end = on_end


class _Wakes:
    """How many datagrams a wake-up may take, and how many wake-ups in a row had one reception at most."""

    __slots__ = ("alone", "most")

    def __init__(self) -> None:
        self.most = BATCH
        self.alone = 0


class UdpSocket:
    """UDP socket of a node. ``on_batch`` gets what arrived: at most 256 datagrams or so, 64 of connections.

    An extra one (``side``) marks the sources of what it receives; a ``buffer`` may be shared, for it is only used
    while reading. ``on_end`` is called when the kernel has ended the socket; it is closed then, until ``bind``.

    Attributes:
        refused: Sources of which nothing is handed on now (``stack/junk.py``).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_batch: OnBatch,
        metrics: Metrics,
        *,
        side: int | None = None,
        buffer: bytearray | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._side = side
        self._on_batch = on_batch
        self._metrics = metrics
        self.refused: Collection[Path] = ()
        self._filter = FloodFilter(loop, metrics)
        self._socket: socket.socket | None = None
        self._host = _Host(on_end)
        self._gso = True
        self._wakes = _Wakes()
        self._view = memoryview(bytearray(65_536) if buffer is None else buffer)
        self._froms: dict[tuple[object, ...], Path] = {}
        self._tos: dict[Addr, tuple[str, int] | tuple[str, int, int, int] | None] = {}
        self._backlog: deque[tuple[Addr, bytes]] = deque()

    def favour(self, sources: Callable[[], Iterable[object]]) -> None:
        """Let these sources through when there is no room for all; it is asked at most every ``LOOK_S`` of a flood."""
        self._filter.favoured = sources

    @property
    def local(self) -> Addr:
        """The bound address."""
        assert self._socket is not None
        name = self._socket.getsockname()
        return Addr(canonical_host(name[0]), name[1])

    def bind(self, listen: Addr, *, read_out: bool = False) -> None:
        """Bind, or move to another local address: the new socket is ready before the old one closes.

        With ``read_out`` what waits in that is handed on. Raises AddressInUse or ConfigError.
        """
        try:
            fresh = _open(listen)
        except AddressInUse:
            if self._socket is not None and self._holds(listen):
                hint = "rebind without an address takes a new port"
                raise AddressInUse(f"this node itself listens on {self.local}", hint=hint) from None
            raise
        old, self._socket = self._socket, fresh
        self._tos.clear()
        self._froms.clear()
        self._backlog.clear()
        if self._host.asked is not None:
            self._host.asked.begin(fresh)
        self._filter = self._filter.for_new_socket()  # the one before has its own
        self._loop.add_reader(fresh, self._readable, fresh)
        if old is not None:
            self._wakes.alone = 0
            try:
                for _ in range(READS_AT_END if read_out else 0):
                    if not self._readable(old):
                        break
            finally:
                self._drop(old)

    def translate(self, translation: Translation | None) -> None:
        """Reach IPv4 hosts by a translator from now on, or no longer (None)."""
        if translation != self._host.translation:
            self._host.translation = translation
            self._tos.clear()
            self._froms.clear()

    def answer_from(self, hosts: Iterable[str], proven: Container[Path]) -> None:
        """Answer what comes to one of these addresses from it: a NAT at the peer drops what comes from another one.

        For sources that are ``proven`` nothing changes, whatever comes.
        """
        others = [*hosts]
        if self._host.asked is None and others:
            from meshnode.runtime.asked_addresses import AskedAddresses  # few hosts have several addresses

            self._host.asked = AskedAddresses()
        if self._host.asked is not None:
            self._host.asked.set_others(others, proven, self._socket)
            if not others:
                self._host.asked = None

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

    def _is_over(self, sock: socket.socket, error: OSError) -> bool:
        """Return whether an error means that the socket is over, and close it then."""
        if error.errno not in OVER:
            return False
        if sock is self._socket:
            self._metrics.count(ENDED)
            self._socket = None
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            if error.errno != errno.ECONNABORTED:
                sock.detach()  # the number may be another file's by now
            sock.close()
            self._host.on_end()
        return True

    # ---- receiving

    def _readable(self, sock: socket.socket) -> bool:
        batch: list[Run] = []
        view, refused, asked = self._view, self.refused, self._host.asked
        dropped = of_connections = stale = 0
        too_old = int(time.time() + self._host.ahead - MAX_QUEUED_S)
        wakes = self._wakes
        most, alone = wakes.most, int(wakes.alone >= ALONE)
        for _ in range(READS):
            try:
                length, ancillary, _, name = sock.recvmsg_into([view], 128)
                source = self._froms.get(name) or self._learn(name)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:  # an ICMP error for an earlier datagram, or an interface that has gone
                self._metrics.count("udp_receive_errors")
                self._is_over(sock, error)
                break
            if refused and source in refused:
                dropped += 1
                continue
            segment, since = _told(ancillary, length, too_old)
            if since < too_old and not view[0] & SHORT_HEADER:
                stale += 1
                continue
            if asked is not None:
                asked.note(source, ancillary)
            data = bytes(view[:length])
            datagrams = [data] if segment >= length else [data[i : i + segment] for i in range(0, length, segment)]
            batch.append((datagrams, source))
            if len(datagrams) <= alone:  # to look for another costs as much as to read it; this is called again
                break
            if view[0] & LONG_HEADER == SHORT_HEADER:
                of_connections += len(datagrams)
                if of_connections >= most:
                    self._filter.on_more(sock)
                    break
        else:
            self._filter.on_more(sock)
        wakes.alone = NEXT_ALONE[wakes.alone] if len(batch) < 2 else 0
        if stale + dropped:
            self._note_unread(sock, stale, dropped)
        if batch:
            wakes.most = CONTENDED if self._on_batch(batch) else BATCH
        return bool(batch)

    def _note_unread(self, sock: socket.socket, stale: int, dropped: int) -> None:
        if stale:
            self._metrics.count(STALE, stale)
            host, now = self._host, self._loop.time()
            if now - host.compared_at >= COMPARE_S:
                host.compared_at, host.ahead = now, kernel_ahead()
        if dropped:
            self._metrics.count(REFUSED, dropped)
            self._filter.on_refused(sock, dropped, self.refused)

    def _learn(self, name: tuple[object, ...]) -> Path:
        if len(self._froms) >= MAX_ADDRESSES:
            self._froms.clear()
        host = str(name[0])
        if len(name) == 4 and name[3] and "%" not in host:
            host = f"{host}%{socket.if_indextoname(int(str(name[3])))}"
        addr = Addr(canonical_host(host), int(str(name[1])))
        if self._host.translation is not None and addr not in self._tos:  # was it sent to as an IPv4 host?
            addr = Addr(self._host.translation.to_ipv4(addr.host) or addr.host, addr.port)
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
            to = self._resolve(sock, addr)
            if to is None:
                self._metrics.count("udp_no_family")
                return False
        asked = self._host.asked
        if asked is not None and (known := asked.marks.get(addr)) is not None:
            by_both = asked.may_be_cut_off(addr)
            refused = self._send_from(sock, addr, to, datagrams, known[0])
            if not by_both:
                if not refused:
                    return True
                datagrams = refused
        if len(datagrams) == 1:
            try:
                sock.sendto(datagrams[0], to)
            except OSError as error:
                return self._not_sent(sock, addr, datagrams[0], error)
            return True
        sent = True
        sizes = [*map(len, datagrams)]
        start = 0
        while start < len(datagrams):
            run = datagrams[start : start + (_run(sizes, start) if self._gso else 1)]
            if len(run) == 1 or not self._send_run(sock, to, run):
                for datagram in run:
                    sent &= self._send_one(sock, addr, to, datagram)
            start += len(run)
        return sent

    def _send_from(
        self, sock: socket.socket, addr: Addr, to: object, datagrams: list[bytes], mark: Mark
    ) -> list[bytes]:
        """Send from the address that the peer asks; return what is left where that has no route to it."""
        sizes = [*map(len, datagrams)]
        start = 0
        while start < len(datagrams):
            run = datagrams[start : start + (_run(sizes, start) if self._gso else 1)]
            size = (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(run[0])))
            try:
                sock.sendmsg(run, [mark, size] if len(run) > 1 else [mark], 0, to)  # type: ignore[arg-type]
            except OSError as error:
                if len(run) > 1 and self._refuses_runs(error):
                    continue
                if self._is_over(sock, error):
                    return []
                if error.errno not in (errno.EMSGSIZE, *RETRY_ERRORS):
                    return datagrams[start:]
                for datagram in run:
                    self._not_sent(sock, addr, datagram, error)
            start += len(run)
        return []

    def _send_one(self, sock: socket.socket, addr: Addr, to: object, datagram: bytes) -> bool:
        try:
            sock.sendto(datagram, to)  # type: ignore[call-overload]
        except OSError as error:
            return self._not_sent(sock, addr, datagram, error)
        return True

    def _not_sent(self, sock: socket.socket, addr: Addr, datagram: bytes, error: OSError) -> bool:
        if error.errno in RETRY_ERRORS:
            self._keep(sock, addr, datagram)
            return True
        if error.errno == errno.EMSGSIZE:
            self._metrics.count("udp_too_big")
            return True
        self._is_over(sock, error)
        self._tos.pop(addr, None)  # the interface in its scope may have been made again, with another index
        self._metrics.count("udp_send_errors")
        return False

    def _send_run(self, sock: socket.socket, to: object, run: list[bytes]) -> bool:
        size = struct.pack("=H", len(run[0]))
        try:
            sock.sendmsg(run, [(socket.SOL_UDP, UDP_SEGMENT, size)], 0, to)  # type: ignore[arg-type]
        except OSError as error:
            self._is_over(sock, error)
            self._refuses_runs(error)
            return False
        return True

    def _refuses_runs(self, error: OSError) -> bool:
        """Return whether a run was refused for being one; then each datagram goes alone for a while."""
        if error.errno not in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            return False
        self._gso = False
        self._loop.call_later(GSO_AGAIN_S, setattr, self, "_gso", True)
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

    def _resolve(self, sock: socket.socket, addr: Addr) -> tuple[str, int] | tuple[str, int, int, int] | None:
        if len(self._tos) >= MAX_ADDRESSES:
            self._tos.clear()
        host, _, scope = addr.host.partition("%")
        to: tuple[str, int] | tuple[str, int, int, int] | None
        if sock.family == socket.AF_INET6:
            by = self._host.translation.to_ipv6(addr) if self._host.translation is not None else None
            mapped = by or (host if ":" in host else f"::ffff:{host}")
            try:
                index = socket.if_nametoindex(scope) if scope else 0
            except OSError:
                self._froms.clear()  # the interface may have another name now, by which its peers are to be known
                return None
            to = (mapped, addr.port, 0, index)
        else:
            to = None if ":" in host else (host, addr.port)
        self._tos[addr] = to
        return to


def _told(ancillary: list[tuple[int, int, bytes]], length: int, default: int) -> tuple[int, int]:
    """Return the size of each datagram of a reception, and the Unix second in which the kernel took it."""
    segment, since = length, default
    for level, kind, value in ancillary:
        if (level, kind) == RECEIVED_AT:
            since = TIMESPEC.unpack(value)[0]
        elif (level, kind) == GRO_SIZE:
            (segment,) = struct.unpack_from("=i", value)
    return segment, since


def _run(sizes: list[int], start: int) -> int:
    """Return how many datagrams from ``start`` make one GSO send: equal sizes, the last may be shorter."""
    size = sizes[start]
    most = max(1, min(MAX_SEGMENTS, MAX_GSO // (size or 1)))
    ahead = sizes[start : start + most]
    equal = len(ahead)
    if ahead.count(size) < equal:
        equal = next(at for at, other in enumerate(ahead) if other != size)
        equal += ahead[equal] < size
    return equal


def _open(listen: Addr) -> socket.socket:
    wildcard = listen.host == "::"
    if not wildcard and listen.host != "0.0.0.0" and not is_dialable(Addr(listen.host, listen.port or 1)):
        hint = "use an address of this host (ip address shows them), or [::] for all of them"
        raise ConfigError(f"cannot listen on {listen}: that is no address of one host", hint=hint)
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
            return sock
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
        (*RECEIVED_AT, 1),
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE),
    ]
    if family == socket.AF_INET6:
        wanted.append((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE))
    if (
        sys.platform == "linux"
    ):  # past the limit of net.core.rmem_max, which is 208 kB by default, where that is allowed
        wanted.insert(1, (socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER))
    for level, option, value in wanted:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            continue  # an optimisation that this kernel lacks
