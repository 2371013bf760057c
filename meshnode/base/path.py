"""A path: the way by which this node's datagrams reach a peer.

A UDP address itself is the direct path, from the node's own socket; the other kinds are the classes below. Each kind is
a tuple of a shape of its own, so no two kinds compare equal, and hashing one costs what hashing a tuple does. Paths are
valid only inside this node: on the wire there are UDP addresses.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

from meshnode.base.address import Addr


class ViaSocket(NamedTuple):
    """To a UDP address from the extra socket with this number (``stack/port_search.py``, ``stack/uplinks.py``)."""

    addr: Addr
    socket: int

    def __str__(self) -> str:
        return str(Addr(f"{self.addr.host}%side{self.socket}", self.addr.port))


class ViaTunnel(NamedTuple):
    """As messages of a WebSocket to this node (its id as text) on this host, which is a name or an IP address.

    With an empty ``peer`` it is a WebSocket that the peer opened to this node: ``host`` is the IP address that it came
    from, and ``port`` only tells it from others.
    """

    peer: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"wss!{self.peer}@{self.host}:{self.port}" if self.peer else f"wss!{self.host}:{self.port}"


class ViaRelay(NamedTuple):
    """In frames through the relay with this id (as text)."""

    relay: str

    def __str__(self) -> str:
        return f"relay!{self.relay}"


Hop = Addr | ViaSocket | ViaTunnel  # what a socket of this node sends by: a relayed path begins with such a hop
Path = Hop | ViaRelay


def in_words(path: Path) -> str:
    """Return a path as messages for people name it; ``str(path)`` is its exact form, for JSON and programs."""
    match path:
        case Addr():
            return str(path)
        case ViaSocket(addr):
            return str(addr)
        case ViaTunnel():
            return f"WebSocket to {path.host}:{path.port}" if path.peer else "its WebSocket"
        case ViaRelay():
            return f"relay {path.relay[:8]}"
        case _:
            assert_never(path)


def udp_address(path: Path) -> Addr | None:
    """Return the UDP address that packets go to; None for a detour: by a relay or a tunnel."""
    match path:
        case Addr():
            return path
        case ViaSocket(addr):
            return addr
        case ViaTunnel() | ViaRelay():
            return None
        case _:
            assert_never(path)
