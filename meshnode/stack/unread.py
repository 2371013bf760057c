"""Bound on what all connections together hold for applications that do not read.

One connection may hold a window, 4 to 10 MB; many would hold gigabytes. Each engine knows its sum, so that nothing is
counted for a datagram. While the sum of all is over ``MAX_UNREAD``, the network that holds most loses its largest
connection: those whose applications read hold next to nothing, and a peer with many ids is one.
"""

from __future__ import annotations

from meshnode.base.limits import MAX_UNREAD, OPEN_STREAM, UNREAD_LOOK_S
from meshnode.base.metrics import describe
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import CloseCode
from meshnode.stack.context import Context
from meshnode.stack.hoards import heaviest

UNREAD_FULL = describe("unread_full", "connections ended because all together held too much that was not read")


class UnreadBytes:
    """Looks at each tick of the stack, once in ``UNREAD_LOOK_S``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next = 0.0

    def look(self, now: float) -> None:
        """End the connections that hold most, while all hold too much."""
        if now < self._next:
            return
        self._next = now + UNREAD_LOOK_S
        held = {connection: _held_of(connection) for connection in self._context.peers.session_of}
        total = sum(held.values())
        if total <= MAX_UNREAD:
            return
        while held and total > MAX_UNREAD:
            connection = heaviest(held, self._context.peers.groups_of)
            self._context.metrics.count(UNREAD_FULL)
            early = connection.state is not State.READY
            connection.close(CloseCode.PROTOCOL, "too much before the Hello" if early else "too much that is not read")
            self._context.links.touch(connection)
            total -= held.pop(connection)


def _held_of(connection: Connection) -> int:
    """Return what a connection holds: a stream costs memory too, though nothing came on it but its first byte."""
    streams = connection.streams
    return connection.engine.unread() + streams.flows.held + OPEN_STREAM * len(streams)
