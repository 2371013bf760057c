"""Unix sockets that lead to a service of another node, for libraries that take a path and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from meshnode.base.files import short_folder
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.services.forward import Forward

NAME = "socket"


@asynccontextmanager
async def unix_socket(node: Node, peer: NodeId | str, service: str, name: str = NAME) -> AsyncIterator[str]:
    """Listen on a Unix socket, in a new folder that only this user may enter; each connection becomes a stream.

    PostgreSQL's clients take the folder as ``host`` when the name is ``.s.PGSQL.5432``; Redis's take the path. A
    connection whose service cannot be reached is reset.

    Args:
        node: This node, which was started.
        peer: The service's node: an id, ``ID.mesh``, or a name.
        service: The name of the service.
        name: The name of the socket in its folder.

    Yields:
        The path of the socket. At the end its connections are reset and it is removed.

    Example:

        async with unix_socket(node, "laptop", "redis") as path:
            client = redis.asyncio.Redis(unix_socket_path=path)
    """
    with tempfile.TemporaryDirectory(prefix="meshnode-", dir=short_folder()) as folder:
        path = str(Path(folder) / name)
        forward = Forward(node, f"unix:{path}", peer, service)
        await forward.start()
        try:
            yield path
        finally:
            await forward.close()
