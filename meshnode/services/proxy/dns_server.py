"""The UDP socket of the zone ``mesh``, on loopback alone."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import replace

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_DNS_PENDING
from meshnode.base.refusals import listen_refusal
from meshnode.errors import AddressInUse, ConfigError, MeshError
from meshnode.runtime.acceptor import bind_at
from meshnode.runtime.descriptors import bound_again, watch_on
from meshnode.runtime.host_names import look_up
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.ends import bound_end, parse_listen
from meshnode.services.forward import is_loopback
from meshnode.services.proxy.dns import MAX_QUERY, Query, answer_with, answer_without, read_query
from meshnode.services.proxy.overlay import OverlayNames

READS = 32  # datagrams in one turn of the loop
Source = tuple[socket.socket, tuple[str, int]]  # where a query came to, and where from


class DnsServer:
    """Answers for names of the mesh with addresses that the proxy knows.

    Attributes:
        listen: Where it listens, or shall.
    """

    def __init__(self, node: Node, listen: str, overlay: OverlayNames) -> None:
        self.listen = listen
        self._node = node
        self._overlay = overlay
        self._sockets: list[socket.socket] = []
        self._pending: BoundedDict[tuple[Source, bytes], asyncio.Task[None]] = BoundedDict(MAX_DNS_PENDING)

    async def start(self) -> None:
        """Listen. Raises ConfigError: it is no port on loopback; AddressInUse."""
        end = replace(parse_listen(self.listen), udp=False)
        try:
            hosts = await look_up(end.host) if not end.path else []
            if not hosts or not all(map(is_loopback, hosts)):
                raise ConfigError(f"{end} is no port on loopback", hint="write 127.0.0.1:53")
            self._sockets = bind_at(hosts, end.port)
        except OSError as error:
            reason, hint = listen_refusal(error, end.port)
            raise AddressInUse(f"cannot answer DNS on {end}: {reason}", hint=hint) from error
        self.listen = str(bound_end(end, self._sockets[0]))
        for sock in self._sockets:
            asyncio.get_running_loop().add_reader(sock, self._on_readable, sock, sock.getsockname())

    def _on_readable(self, sock: socket.socket, bound: object) -> None:
        for _ in range(READS):
            try:
                data, name = sock.recvfrom(MAX_QUERY + 1)
            except BlockingIOError:
                return
            except OSError as error:
                loop = asyncio.get_running_loop()
                bound_again(loop, sock, bound, error, runtime_of(self._node).metrics)
                watch_on(loop, sock, self._on_readable, sock, bound)
                return
            if is_loopback(name[0]):
                self._on_datagram(data, (sock, name))

    def _on_datagram(self, data: bytes, source: Source) -> None:
        """Answer, or look the name up first. A query that is sent again waits for the one lookup."""
        query = read_query(data)
        if isinstance(query, bytes):
            self._send(query, source)
        elif query is not None and (source, data) not in self._pending:
            task = asyncio.get_running_loop().create_task(self._look_up(query, source))
            pushed_out = self._pending.put((source, data), task)
            if pushed_out is not None:
                pushed_out[1].cancel()
            task.add_done_callback(lambda _: self._forget((source, data), task))

    def _forget(self, key: tuple[Source, bytes], task: asyncio.Task[None]) -> None:
        if self._pending.get(key) is task:
            del self._pending[key]

    async def _look_up(self, query: Query, source: Source) -> None:
        try:
            address = None
            if query.host is not None:
                node = await self._node.identify(query.host.node)
                address = self._overlay.address_of(query.host.service, node)
            self._send(answer_with(query, address), source)
        except MeshError as error:
            self._send(answer_without(query, error), source)

    def _send(self, data: bytes, source: Source) -> None:
        sock, name = source
        with suppress(OSError):  # a full buffer is a lost datagram, or it is closed
            sock.sendto(data, name)

    async def close(self) -> None:
        """Stop."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = []
        tasks = list(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
