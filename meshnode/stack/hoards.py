"""Bound on what peers make this node keep behind holes in streams, of one connection and of all.

It is kept until the hole is closed, so an attacker leaves it open, and in pieces of a byte it costs twelve times its
size (measured). A node receives at most some 100 MB a second and closes a hole in a round trip or two, so what all
honest peers have behind holes at once is a few MB. Ids are free, so of all connections it is the host with most that
loses its largest, in the network with most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from meshnode.base.fair_table import Groups
from meshnode.base.limits import MAX_BACKLOG, MAX_BACKLOGS, SMALL_BACKLOG
from meshnode.base.metrics import Metrics, describe
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import CloseCode

HOARDS = describe("hoards_ended", "connections ended: their peer sent too much behind holes in streams")


class Hoards:
    """The connections that have more than ``SMALL_BACKLOG`` behind holes, by estimate (``Engine.backlog``).

    Attributes:
        sizes: Bytes of each.
    """

    def __init__(self, groups_of: Callable[[NodeId], Groups], metrics: Metrics) -> None:
        self.sizes: dict[Connection, int] = {}
        self._total = 0
        self._groups_of = groups_of
        self._metrics = metrics

    def note(self, connection: Connection, size: int) -> None:
        """Enter what a connection has now; ends connections while one, or all together, have too much."""
        self.forget(connection)
        if size <= SMALL_BACKLOG:
            return
        self.sizes[connection] = size
        self._total += size
        if size > MAX_BACKLOG:
            self._end(connection)
        while self._total > MAX_BACKLOGS:
            self._end(heaviest(self.sizes, self._groups_of))

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is over."""
        self._total -= self.sizes.pop(connection, 0)

    def _end(self, connection: Connection) -> None:
        self.forget(connection)
        self._metrics.count(HOARDS)
        connection.close(CloseCode.PROTOCOL, "too much behind holes in streams")


def heaviest(sizes: Mapping[Connection, int], groups_of: Callable[[NodeId], Groups]) -> Connection:
    """Return the connection that is to go: of the group whose connections have most together, in that of the next one.

    Of the last it is the largest. Raises ValueError when there is none.
    """
    totals: Counter[Groups] = Counter()
    groups = {connection: groups_of(connection.peer) for connection in sizes}
    for connection, size in sizes.items():
        for end in range(len(groups[connection])):
            totals[groups[connection][: end + 1]] += size

    def order(one: Connection) -> tuple[int, ...]:
        return *(totals[groups[one][: end + 1]] for end in range(len(groups[one]))), sizes[one]

    return max(sizes, key=order)
