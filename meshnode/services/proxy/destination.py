"""Hosts and ports of a proxy's clients as nodes and services of the mesh. No I/O.

``SERVICE.NODE.mesh`` is a service of a node, at any port; NODE is an id or a node's name. ``NODE.mesh`` leaves the
service to the port: the one that is named as the port's number, else by its usual name.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from meshnode.base.value import frozen
from meshnode.errors import ConfigError
from meshnode.identity.mesh_host import parse_host
from meshnode.identity.node_id import MESH_SUFFIX, NodeId, quoted
from meshnode.services.proxy.overlay import OverlayNames

MAX_HOST = 255  # characters: SOCKS5 and DNS have no longer names
HOST_HINT = "write SERVICE.NODE.mesh, as in web.laptop.mesh, or NODE.mesh"
PORT_SERVICES = {
    22: ("ssh",),
    53: ("dns",),
    80: ("http", "web"),
    443: ("https",),
    1883: ("mqtt",),
    3306: ("mysql",),
    5432: ("postgres", "postgresql"),
    6379: ("redis",),
}
# what the services behind these ports are usually called, in the order in which they are tried


class NotInMesh(ConfigError):
    """A host that is none of the mesh: a proxy leads nowhere else."""

    code = "not_in_mesh"


@frozen
class Destination:
    """A node, and the names that the wanted service may have there.

    Attributes:
        node: The id or the name of the node.
        services: At least one name; the first that the node serves is meant.
    """

    node: NodeId | str
    services: tuple[str, ...]


def is_mesh_host(host: str) -> bool:
    """Return whether a host is in ``.mesh``, whatever is in front of that."""
    return host.lower().removesuffix(".").endswith(MESH_SUFFIX)


def destination(host: str, port: int, overlay: OverlayNames) -> Destination:
    """Return what a client means by a host in ``.mesh``, or by an address that stands for one, and a port.

    Raises NotInMesh for any other host, InvalidId for one that means no node or no service.
    """
    address = address_of(host)
    if isinstance(address, IPv6Address) and (told := overlay.meaning(address)) is not None:
        return Destination(told.node, services_of(told.service, port))
    if len(host) > MAX_HOST or not host.isascii() or not is_mesh_host(host):
        raise NotInMesh(f"{quoted(host)} is no host of the mesh, and this proxy leads nowhere else", hint=HOST_HINT)
    service, node = parse_host(host)
    return Destination(node, services_of(service, port))


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def services_of(service: str, port: int) -> tuple[str, ...]:
    """Return the names to try for the service that a host names or, without one (""), that a port means."""
    return (service,) if service else (str(port), *PORT_SERVICES.get(port, ()))
