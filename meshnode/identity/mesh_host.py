"""Host names of services: ``SERVICE.ID.mesh`` and ``SERVICE.NAME.mesh``, as URLs and proxies have them."""

from __future__ import annotations

from typing import NamedTuple

from meshnode.errors import InvalidId
from meshnode.identity.node_id import MESH_SUFFIX, NodeId, id_or_label, quoted

HOST_FORM = "a host is SERVICE.ID.mesh, SERVICE.NAME.mesh, ID.mesh or NAME.mesh"


class MeshHost(NamedTuple):
    """What a host name under ``.mesh`` means: a node, and a service of it; "" where the name has none."""

    service: str
    node: NodeId | str


def parse_host(host: str) -> MeshHost:
    """Return the service and the node of a host name; the last label before ``.mesh`` is the node.

    Case does not count, as in every host name, so a service whose name has capitals is not reached so.

    Raises InvalidId.
    """
    text = host.lower().removesuffix(".")
    if not text.endswith(MESH_SUFFIX):
        raise InvalidId(f"{quoted(host)} is no host of the mesh", hint=HOST_FORM)
    service, dot, node = text.removesuffix(MESH_SUFFIX).rpartition(".")
    if dot and (not service.isprintable() or not all(service.split("."))):
        raise InvalidId(f"{quoted(host)} has no name of a service before the node's", hint=HOST_FORM)
    return MeshHost(service, id_or_label(node))
