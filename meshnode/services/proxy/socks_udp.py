"""UDP ASSOCIATE of SOCKS5 (RFC 1928, section 7): a client's datagrams to services of the mesh, as long as it stays.

Each destination of a client is a flow of datagrams, which ends when nothing passes for ``UDP_IDLE_S``. What is too long
for a flow is dropped whole, as what a client sends in fragments is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_UDP_DESTINATIONS, MAX_UDP_WAITING, UDP_IDLE_S
from meshnode.base.log_lines import rated_logger
from meshnode.base.metrics import Metrics
from meshnode.errors import MeshError
from meshnode.runtime.descriptors import bound_again, watch_on
from meshnode.sdk.datagrams import Datagrams
from meshnode.services.proxy.socks5 import IPV4, IPV6, NAME, host_of

log = rated_logger("meshnode.proxy")

READS = 64  # datagrams in one turn of the loop
LONGEST = 65_536
RETRY_S = 1.0  # until a destination whose flow could not be opened has another try: its datagrams are dropped meanwhile
Open = Callable[[str, int], Awaitable[Datagrams]]


def unwrap(data: bytes) -> tuple[bytes, str, int, bytes] | None:
    """Return the header, the host, the port and the payload of a client's datagram; None for one that is dropped.

    A fragment is dropped, as a proxy may that does not put them together, and so is what has no whole header.
    """
    if len(data) < 5 or data[:3] != b"\0\0\0":
        return None
    kind = data[3]
    begin, length = (5, data[4]) if kind == NAME else (4, {IPV4: 4, IPV6: 16}.get(kind, 0))
    end = begin + length + 2
    if not length or len(data) < end:
        return None
    host = host_of(kind, data[begin : end - 2])
    return None if host is None else (data[:end], host, int.from_bytes(data[end - 2 : end], "big"), data[end:])


def bound(host: str, port: int) -> bytes:
    """Return an address as an answer of SOCKS5 has it."""
    address = ipaddress.ip_address(host)
    return bytes([IPV4 if address.version == 4 else IPV6]) + address.packed + port.to_bytes(2, "big")


class _Destination:
    """One destination of a client: what waits while its flow is opened, and when something passed."""

    __slots__ = ("at", "flow", "task", "waiting")

    def __init__(self, task: asyncio.Task[None], now: float) -> None:
        self.task = task
        self.at = now
        self.flow: Datagrams | None = None
        self.waiting: deque[bytes] = deque(maxlen=MAX_UDP_WAITING)


class Association:
    """The UDP socket of one client. Datagrams of other sources than the client's are dropped."""

    def __init__(self, host: str, client: tuple[str, int], open_flow: Open, metrics: Metrics) -> None:
        """Bind a socket at ``host``. ``client`` is where datagrams come from; port 0: the first one says it."""
        self._client = client
        self._open = open_flow
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._destinations: BoundedDict[bytes, _Destination] = BoundedDict(MAX_UDP_DESTINATIONS)
        self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            self._sock.bind((host, 0))
        except OSError:
            self._sock.close()
            raise
        self._name = self._sock.getsockname()
        self._loop.add_reader(self._sock, self._on_readable)

    @property
    def bound(self) -> bytes:
        """Where the client is to send to, as the answer to its request has it."""
        return bound(*self._name[:2])

    def _on_readable(self) -> None:
        for _ in range(READS):
            try:
                data, source = self._sock.recvfrom(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                bound_again(self._loop, self._sock, self._name, error, self._metrics)
                watch_on(self._loop, self._sock, self._on_readable)
                return
            host, port = self._client
            if source[0] != host or port not in (0, source[1]):
                continue
            found = unwrap(data)
            if found is not None:
                self._client = host, source[1]
                self._send(*found)

    def _send(self, header: bytes, host: str, port: int, payload: bytes) -> None:
        """Send a datagram on; the first to a destination opens its flow."""
        known = self._destinations.get(header)
        if known is None:
            task = self._loop.create_task(self._carry(header, host, port))
            known = _Destination(task, self._loop.time())
            pushed_out = self._destinations.put(header, known)
            if pushed_out is not None:
                pushed_out[1].task.cancel()
        self._destinations.move_to_end(header)
        known.at = self._loop.time()
        if known.flow is None:
            known.waiting.append(payload)
        else:
            _pass_on(known.flow, payload)

    async def _carry(self, header: bytes, host: str, port: int) -> None:
        """Open a flow, and carry what comes back until it is over or idle."""
        mine = self._destinations[header]
        flow: Datagrams | None = None
        try:
            flow = mine.flow = await self._open(host, port)
            while mine.waiting:
                _pass_on(flow, mine.waiting.popleft())
            while (left := mine.at + UDP_IDLE_S - self._loop.time()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        payload = await flow.receive()
                        mine.at = self._loop.time()
                        with suppress(OSError):  # a full buffer is a lost datagram
                            self._sock.sendto(header + payload, self._client)
        except MeshError as error:
            log.debug("datagrams to %s: %s", host, error)
            if flow is None:
                await asyncio.sleep(RETRY_S)
        finally:
            if flow is not None:
                flow.close()
            if self._destinations.get(header) is mine:
                del self._destinations[header]

    async def close(self) -> None:
        """End all flows, and close the socket."""
        self._loop.remove_reader(self._sock)
        tasks = [each.task for each in self._destinations.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()


def _pass_on(flow: Datagrams, payload: bytes) -> None:
    """Send a datagram, or drop one that is too long or that a flow takes no more."""
    if len(payload) <= flow.max_size:
        with suppress(MeshError):
            flow.send(payload)
