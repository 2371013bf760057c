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
    from meshnode.identity import Identity as Identity
    from meshnode.identity import NodeId as NodeId
    from meshnode.node import Node as Node
    from meshnode.record import EndpointRecord as EndpointRecord

__version__ = "0.1.0"

_WHERE = {
    "Config": "meshnode.config",
    "Connection": "meshnode.handles",
    "EndpointRecord": "meshnode.record",
    "Identity": "meshnode.identity",
    "MeshError": "meshnode.errors",
    "Node": "meshnode.node",
    "NodeId": "meshnode.identity",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that ``import meshnode`` stays cheap."""
    if name not in _WHERE:
        raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
