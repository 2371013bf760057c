"""Dask over the mesh: schedulers, workers and clients at addresses ``mesh://ID/SERVICE``.

It stands on the registry of backends in ``distributed.comm``. A Dask cluster runs code that its members send each
other, so each node that may use its services may run code there. Extra: ``meshnode[dask]``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

from meshnode.ext.requirement import require
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.service import Service

require("dask", "distributed", (2026, 1), (2027,))

from distributed.comm import registry  # noqa: E402
from distributed.comm.core import BaseListener, CommClosedError, Connector  # noqa: E402

from meshnode.ext.dask_comm import MeshComm  # noqa: E402

SCHEME = "mesh"


@contextmanager
def backend(node: Node, allow: str | NodeId | Iterable[str | NodeId] | None = ()) -> Iterator[str]:
    """Have Dask in this process use a node for addresses that begin with ``mesh://``.

    A scheduler listens by ``Scheduler(host="mesh://SERVICE")``; workers and clients take ``mesh://ID/SERVICE``. A
    worker listens at a service of a random name. All run on the node's loop (``asynchronous=True``), and the pages of
    Dask's dashboard need an address of their own, as ``dashboard_address="127.0.0.1:0"``.

    Args:
        node: The node, which was started.
        allow: The nodes of the cluster, which may use what listens here: none by default.

    Yields:
        The beginning of this node's addresses, ``mesh://ID/``.
    """
    registry.backends[SCHEME] = _Backend(node, allow)
    try:
        yield f"{SCHEME}://{node.id}/"
    finally:
        del registry.backends[SCHEME]


def service_of(loc: str) -> str:
    """Return the service that an address without its scheme means; Dask adds a port, which means nothing here."""
    return loc.rpartition("/")[2].partition(":")[0]


class _Listener(BaseListener):
    def __init__(self, backend: _Backend, loc: str, handler: Any, deserialize: bool) -> None:
        super().__init__()
        self._backend, self._name = backend, service_of(loc) or f"dask-{token_hex(8)}"
        self._handler, self._deserialize = handler, deserialize
        self._service: Service | None = None
        self.prefix: Any = SCHEME

    async def start(self) -> None:
        self._service = self._backend.node.serve(self._name, self.serve, self._backend.allow, announce=False)
        self._backend.listeners[self._name] = self

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeId) -> None:
        comm = MeshComm(reader, writer, self.contact_address, f"{SCHEME}://{peer}/", self._deserialize)
        try:
            await self.on_connection(comm)
        except CommClosedError:
            return
        await self._handler(comm)
        await comm.ended.wait()  # a handler may leave it to others

    def stop(self) -> None:
        if self._service is not None:
            self._service.close()
            self._backend.listeners.pop(self._name, None)

    @property
    def listen_address(self) -> str:
        return self.contact_address

    @property
    def contact_address(self) -> str:
        return f"{SCHEME}://{self._backend.node.id}/{self._name}"


class _Connector(Connector):
    def __init__(self, backend: _Backend) -> None:
        self._backend = backend

    async def connect(self, address: str, deserialize: bool = True, **_: Any) -> MeshComm:
        peer, service, node = address.partition("/")[0], service_of(address), self._backend.node
        reader: asyncio.StreamReader
        writer: asyncio.StreamWriter
        if peer == str(node.id) and service in self._backend.listeners:
            reader, writer = await self._to_itself(self._backend.listeners[service])
        else:
            reader, writer = await node.open(peer, service)
        return MeshComm(reader, writer, f"{SCHEME}://{node.id}/", f"{SCHEME}://{address}", deserialize)

    async def _to_itself(self, listener: _Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect within this process: no node dials itself."""
        near, far = socket.socketpair()
        runtime = runtime_of(self._backend.node)
        runtime.tasks.spawn(listener.serve(*await asyncio.open_connection(sock=far), self._backend.node.id))
        return await asyncio.open_connection(sock=near)


class _Backend(registry.Backend):
    def __init__(self, node: Node, allow: str | NodeId | Iterable[str | NodeId] | None) -> None:
        self.node, self.allow = node, allow
        self.listeners: dict[str, _Listener] = {}

    def get_connector(self) -> _Connector:
        return _Connector(self)

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **_: Any) -> _Listener:
        return _Listener(self, loc, handle_comm, deserialize)

    def get_address_host(self, loc: str) -> str:
        return loc.partition("/")[0]

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        return f"{self.node.id}/dask-{token_hex(8)}"
