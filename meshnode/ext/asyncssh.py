"""asyncssh over the mesh: ``asyncssh.connect("ssh.laptop.mesh", tunnel=MeshTunnel(node))``.

It stands on asyncssh's tunnels. ssh's own keys and checks hold inside of it. Extra: ``meshnode[asyncssh]``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from meshnode.ext.protocols import create_connection, handler_of
from meshnode.ext.requirement import require
from meshnode.ext.urls import target
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import Service

require("asyncssh", "asyncssh", (2, 21), (3,))

SSH, SSH_PORT = "ssh", 22  # the service of a host that names none


class MeshTunnel:
    """The mesh as a tunnel of asyncssh, for ``connect`` and ``listen``.

    ``asyncssh.connect(host, tunnel=...)`` takes ``SERVICE.NAME.mesh``, ``SERVICE.ID.mesh``, or a node's ``NAME.mesh``
    alone for its service ``ssh``. ``asyncssh.listen(service, tunnel=..., server_host_keys=...)`` serves that service to
    the nodes in ``allow``; ``connection.get_extra_info("peername")`` is ``(ID, 0)`` there.

    Args:
        node: The node, which was started.
        allow: The nodes that may use what listens, as in ``node.serve``: none by default.
    """

    logger = logging.getLogger("meshnode.ext.asyncssh")

    def __init__(self, node: Node, allow: str | NodeId | Iterable[str | NodeId] | None = ()) -> None:
        self._node = node
        self._allow = allow

    async def create_connection(self, session_factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        """Open a stream, as asyncssh asks for it.

        Raises as ``node.open``.
        """
        peer, service = target(host, port)
        service = SSH if service == str(SSH_PORT) else service
        return await create_connection(self._node, session_factory, peer, service)

    async def create_server(self, session_factory: Callable[[str, int], Any], host: str, port: int) -> MeshListener:
        """Serve the name that stands for the host, as asyncssh asks for it.

        Raises as ``node.serve``.
        """
        handler = handler_of(lambda: session_factory(host, port))
        return MeshListener(self._node.serve(host or SSH, handler, self._allow))

    def close(self) -> None:
        """Do nothing: the node goes on."""

    async def wait_closed(self) -> None:
        """Do nothing: the node goes on."""


class MeshListener:
    """What ``asyncssh.listen`` listens on: a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def get_addresses(self) -> list[tuple[str, int]]:
        """Return the name of the service, with no port."""
        return [(self.service.name, 0)]

    def close(self) -> None:
        """Withdraw the service."""
        self.service.close()

    async def wait_closed(self) -> None:
        """Return at once."""
