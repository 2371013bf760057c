"""What the host and port of a URL mean: a service of a node."""

from __future__ import annotations

from typing import NamedTuple

from meshnode.identity.mesh_host import parse_host
from meshnode.identity.node_id import NodeId

HTTP, HTTP_PORT = "http", 80


class Target(NamedTuple):
    """A node, and the name of a service of it."""

    node: NodeId | str
    service: str


def target(host: str, port: int = HTTP_PORT) -> Target:
    """Return the service that a host and a port mean.

    A host without a service means the service ``http``, and with a port other than 80 the service of that number. With
    a service the port means nothing.

    Raises InvalidId.
    """
    service, node = parse_host(host)
    return Target(node, service or (HTTP if port == HTTP_PORT else str(port)))
