"""UDP through the mesh: a flow of datagrams for each source address, with an end when nothing passes.

A flow carries at most ``Datagrams.max_size`` bytes in one datagram. Larger ones are dropped and counted, never cut: UDP
has no way back to a sender but ICMP, which is not a program's to send.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from meshnode.base.address import Addr, canonical_host
from meshnode.base.fair_rate import FairRate, Rate
from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.log_lines import Logger, rated_logger
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, MeshError
from meshnode.runtime.acceptor import bind_at
from meshnode.runtime.descriptors import bound_again, unreserved, watch_on
from meshnode.runtime.host_names import look_up
from meshnode.sdk.datagrams import Datagrams
from meshnode.sdk.node import runtime_of
from meshnode.services.ends import End, parse_listen
from meshnode.services.forward import Forward
from meshnode.services.health import takes_datagrams
from meshnode.services.usage import Toll

if TYPE_CHECKING:
    from meshnode.runtime.asked_addresses import Mark

log = rated_logger("meshnode.services")

IDLE_S = 120.0  # without a datagram in either direction: twice what RFC 4787 section 4.3 wants of a NAT at the least
MAX_FLOWS = 1_024  # of one forward, as many as a peer grants; shared by the sources' networks and hosts
MAX_WAITING = 32  # datagrams of one source while its flow is opened
BEGIN_ALL, BEGIN_NETWORK, BEGIN_HOST = Rate(400, 2_048), Rate(200, 1_024), Rate(100, 512)  # flows; each costs 0.5 ms
BEGIN_LITTLE = Rate(10, 64)
RETRY_S = 1.0  # until a source whose flow could not be opened has another try: its datagrams are dropped meanwhile
BATCH = 64  # datagrams read at once, so that one flood does not hold the loop
BUFFER = 65_536
MARKS_SIZE = 128  # bytes of ancillary data
IN6_PKTINFO = 20  # bytes of an IPv6 mark: the address first, then the interface; of IPv4 it is the other way
WILDCARDS = ("0.0.0.0", "::")
RECEIVE = 1 << 20  # of a listening socket: bytes that the kernel keeps for a burst
Name = tuple[Any, ...]  # an address as the socket has it


class Passage:
    """What one flow lets through: within the size that fits, and the caller's rate."""

    def __init__(self, flow: Datagrams, toll: Toll, warn: Callable[[int, int], None]) -> None:
        self._flow, self._toll, self._warn = flow, toll, warn
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time()

    def send(self, data: bytes) -> None:
        """Send a datagram into the mesh, or drop and count it.

        Raises MeshError when the flow is over.
        """
        self._at = self._loop.time()
        if len(data) > self._flow.max_size:
            self._toll.drop(too_large=True)
            self._warn(len(data), self._flow.max_size)
        elif self._toll.out(len(data)) > 0 or not self._flow.send(data):
            self._toll.drop()

    async def receive(self) -> bytes:
        """Return the next datagram from the mesh that the rate lets through.

        Raises MeshError when the flow is over.
        """
        while True:
            data = await self._flow.receive()
            self._at = self._loop.time()
            if self._toll.into(len(data)) <= 0:
                return data
            self._toll.drop()

    async def end_when_idle(self) -> None:
        """Close the flow when nothing has passed for ``IDLE_S``."""
        left = IDLE_S
        while left > 0:
            await asyncio.sleep(left)
            left = self._at + IDLE_S - self._loop.time()
        self._flow.close()


async def carry(sock: socket.socket, passage: Passage, dropped: Callable[[], None]) -> None:
    """Carry datagrams between a flow and the connected socket of a target, until either is over; closes the socket.

    Raises MeshError of the flow, OSError of the target: it refuses.
    """
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        try:
            for _ in range(BATCH):
                passage.send(sock.recv(BUFFER))
        except BlockingIOError:
            pass
        except (OSError, MeshError) as error:
            loop.remove_reader(sock)
            if not failed.done():
                failed.set_exception(error)

    async def write() -> None:
        while True:
            data = await passage.receive()
            try:
                sock.send(data)
            except BlockingIOError:
                dropped()

    loop.add_reader(sock, read)
    tasks = [asyncio.ensure_future(each) for each in (write(), passage.end_when_idle(), failed)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        loop.remove_reader(sock)
        sock.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connected(end: End) -> socket.socket:
    """Return a UDP socket that is connected to a target: it takes datagrams of that alone.

    Where a program listens at one of several addresses of a name, or at ::1 for 127.0.0.1, it is to that one. Raises
    OSError.
    """
    host = takes_datagrams(await look_up(end.host), end.port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = unreserved(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    try:
        sock.connect((host, end.port))
    except OSError:
        sock.close()
        raise
    return sock


class _Source:
    """One source of a forward, with its flow or the datagrams that wait for it."""

    def __init__(self, name: Name, sock: socket.socket) -> None:
        self.name = name  # for answers: a socket of both families has IPv4 in IPv6, and link-local ones with an index
        self.sock = sock
        self.marks: list[Mark] = []  # the address of this host that it has asked last, from which it is answered
        self.waiting: deque[bytes] = deque()
        self.passage: Passage | None = None
        self.task: asyncio.Task[None] | None = None

    def send(self, data: bytes) -> None:
        """Send it a datagram. Raises OSError."""
        try:
            self.sock.sendmsg([data], self.marks, 0, self.name)
        except BlockingIOError:
            raise
        except OSError:  # from an address that this host has no longer, or a group's
            self.sock.sendto(data, self.name)


def _any_interface(mark: Mark) -> Mark:
    """Return the address that a datagram came to as the one from which the answer goes, by whichever interface."""
    level, kind, value = mark
    return level, kind, value[:16] + bytes(4) if len(value) == IN6_PKTINFO else bytes(4) + value[4:]


class UdpForward(Forward):
    """A local UDP socket whose sources have a flow each to a service of one node, or without ``peer`` of trusted ones.

    A source whose flow has ended, because its instance fell silent say, has another one with its next datagram.
    """

    _sockets: Sequence[socket.socket] = ()  # one for each address of a name

    async def start(self) -> str:
        """Listen, and return where, as ``udp://HOST:PORT``.

        Port 0 is replaced by the kernel's choice. Raises AddressInUse and ConfigError.
        """
        end = parse_listen(self.listen)
        self._sources: dict[Addr, _Source] = {}
        self._shares: FairTable[Addr] = FairTable(MAX_FLOWS)
        self._begin = FairRate(total=BEGIN_ALL, network=BEGIN_NETWORK, address=BEGIN_HOST, little=BEGIN_LITTLE)
        try:
            self._sockets = bind_at(await look_up(end.host), end.port)
        except OSError as error:
            reason, hint = listen_refusal(error, end.port)
            raise AddressInUse(f"cannot listen on {end}: {reason}", hint=hint) from error
        try:
            for sock in self._sockets:
                self._listen(sock)
        except BaseException:
            self._close_sockets()
            raise
        return self._told(end, self._sockets)

    def _listen(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)
        if sys.platform == "linux" and sock.getsockname()[0] in WILDCARDS:
            from meshnode.runtime.asked_addresses import tell_destinations  # few forwards are at all addresses

            tell_destinations(sock, True)  # a client that has connected hears that address alone
        asyncio.get_running_loop().add_reader(sock, self._read, sock, sock.getsockname())

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = ()

    @property
    def connections(self) -> int:
        """How many flows it has now."""
        return len(self._sources) if self._sockets else 0

    def _read(self, sock: socket.socket, bound: Name) -> None:
        for _ in range(BATCH):
            try:
                data, marks, _, name = sock.recvmsg(BUFFER, MARKS_SIZE)
            except BlockingIOError:
                return
            except OSError as error:  # a refusal of an earlier answer, or the system has ended it
                loop = asyncio.get_running_loop()
                bound_again(loop, sock, bound, error, runtime_of(self._node).metrics)
                watch_on(loop, sock, self._read, sock, bound)
                return
            self._on_datagram(data, name, sock, marks)

    def _on_datagram(self, data: bytes, name: Name, sock: socket.socket, marks: list[Mark]) -> None:
        addr = Addr(canonical_host(name[0]), name[1])
        source = self._sources.get(addr)
        if source is None:
            shares, now = source_shares(addr.host), asyncio.get_running_loop().time()
            if not self._begin.take_of(shares, shares[1], now):  # a source is one datagram, and may be forged
                self.tolls.of().drop()
                return
            source = self._sources[addr] = _Source(name, sock)
            gone = self._shares.add(addr, *shares)
            if gone is not None:
                self._end(gone)
            source.task = asyncio.get_running_loop().create_task(self._carry_source(addr, source))
        else:
            self._shares.touch(addr)
        source.marks = [_any_interface(mark) for mark in marks]
        if source.passage is not None:
            with suppress(MeshError):  # it is over, and its task is about to say so
                source.passage.send(data)
        elif len(source.waiting) < MAX_WAITING:
            source.waiting.append(data)
        else:
            self.tolls.of().drop()

    def _end(self, addr: Addr) -> None:
        """Forget a source: it has ended, or another network has fewer of the flows."""
        self._shares.discard(addr)
        source = self._sources.pop(addr)
        if source.task is not None:
            source.task.cancel()

    async def _carry_source(self, addr: Addr, source: _Source) -> None:
        try:
            async with await self._open() as flow:
                self.failed = None
                toll = self.tolls.of()
                toll.begin()
                source.passage = passage = Passage(flow, toll, self._warn)
                while source.waiting:
                    passage.send(source.waiting.popleft())
                await self._answers(source, passage)
        except MeshError as error:
            if source.passage is None:
                self._log.warning("forward %s to %s: %s (%s) %s", self.listen, self.to, error, error.code, error.hint)
                self.failed = error, asyncio.get_running_loop().time()
                await asyncio.sleep(RETRY_S)
        finally:
            if self._sources.get(addr) is source:
                source.task = None
                self._end(addr)

    async def _open(self) -> Datagrams:
        if self.peer is not None:
            return await self._node.datagrams(self.peer, self.service)
        return await self._node.datagrams_any(self.service, trusted=self.trusted or None, sticky=self.sticky)

    async def _answers(self, source: _Source, passage: Passage) -> None:
        idle = asyncio.ensure_future(passage.end_when_idle())
        try:
            while self._sockets:
                data = await passage.receive()
                try:
                    source.send(data)
                except OSError:  # its buffer is full, or the source is gone
                    self.tolls.of().drop()
        finally:
            idle.cancel()

    @property
    def _log(self) -> Logger:
        return runtime_of(self._node).journal.rate.of_node(log)

    def _warn(self, size: int, most: int) -> None:
        self._log.warning("forward %s: a datagram of %d bytes is dropped; at most %d fit", self.listen, size, most)

    async def close(self) -> None:
        """Stop listening, and close its flows."""
        if self._sockets:
            self._close_sockets()
            tasks = [source.task for source in self._sources.values() if source.task is not None]
            for addr in list(self._sources):
                self._end(addr)
            await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()
