"""meshnode: a userspace mesh in which a program's address is its public key.

async with meshnode.Node(meshnode.Config(home="~/.meshnode")) as node:
    reader, writer = await node.open(peer_id, "echo")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.config import Config as Config
    from meshnode.errors import MeshError as MeshError
    from meshnode.identity.keys import Identity as Identity
    from meshnode.identity.node_id import NodeId as NodeId
    from meshnode.identity.record import EndpointRecord as EndpointRecord
    from meshnode.sdk.node import Node as Node

__version__ = "0.1.0"

_WHERE = {
    "Config": "meshnode.config",
    "Connection": "meshnode.sdk.connection",
    "EndpointRecord": "meshnode.identity.record",
    "Identity": "meshnode.identity.keys",
    "MeshError": "meshnode.errors",
    "Node": "meshnode.sdk.node",
    "NodeId": "meshnode.identity.node_id",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that ``import meshnode`` stays cheap."""
    if name not in _WHERE:
        raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
