"""Opens streams for the proxy's clients: from a host and a port to the service that they mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from meshnode.errors import ConfigError, PolicyDenied, ServiceNotFound
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.services.proxy.destination import HOST_HINT, destination
from meshnode.services.proxy.overlay import OverlayNames

T = TypeVar("T")


async def open_for(
    node: Node, overlay: OverlayNames, to: tuple[str, int], opened: Callable[[NodeId, str], Awaitable[T]]
) -> T:
    """Open what a client means by a host and a port, by ``node.open`` or ``node.datagrams``.

    Several names may be meant; the first that the node there serves is. Raises what ``destination`` and ``opened``
    raise, and ConfigError for a service of this node itself.
    """
    host, port = to
    wanted = destination(host, port, overlay)
    id = await node.identify(wanted.node)
    if id == node.id:
        raise ConfigError(f"{host} is this node itself", hint="use what it exposes without the proxy")
    refused: ServiceNotFound | PolicyDenied | None = None
    for service in wanted.services:
        try:
            return await opened(id, service)
        except ServiceNotFound as error:
            refused = refused or error
        except PolicyDenied as error:
            refused = error  # it may be there: a node does not tell
    if isinstance(refused, PolicyDenied):
        raise refused
    names = " or ".join(wanted.services)
    raise ServiceNotFound(f"{host} has no service {names} (port {port})", hint=HOST_HINT) from refused
