"""Addresses that stand for nodes and services, for programs that look names up before they ask the proxy. No I/O.

A node has the overlay address of its id. A service of a node has an address of its own, which is drawn with a secret of
this process: two services of a node at one port stay apart, and no other host can know the address in advance, as one
has to that answers for its own name with it (DNS rebinding).
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_PROXY_ADDRESSES
from meshnode.identity.mesh_host import MeshHost
from meshnode.identity.node_id import NodeId


class OverlayNames:
    """What the addresses mean that programs were told: the last ``MAX_PROXY_ADDRESSES``."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` are 32 random bytes."""
        self._secret = secret
        self._known: BoundedDict[IPv6Address, MeshHost] = BoundedDict(MAX_PROXY_ADDRESSES)

    def address_of(self, service: str, node: NodeId) -> IPv6Address:
        """Return the address of a service of a node, or of the node without one (""), and remember it."""
        address = node.overlay
        if service:
            text = bytes(node) + service.encode()
            digest = hashlib.blake2b(text, digest_size=15, key=self._secret, person=b"mesh-service").digest()
            address = IPv6Address(b"\xfd" + digest)
        self._known.put(address, MeshHost(service, node))
        return address

    def meaning(self, address: IPv6Address) -> MeshHost | None:
        """Return what an address stands for; None when it was told to no program."""
        return self._known.get(address)
