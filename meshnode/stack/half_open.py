"""Half-open handshakes of peers without a connection: how many, how often, and how much of that one network gets.

A first flight with a valid knock costs about 2 ms of TLS and 70 KB until the dialler has proven its key or
``HANDSHAKE_TIMEOUT_S`` is over (RFC 9000 section 21.2). Ids are free, so the shares are those of sources. A
peer that has a connection takes no place and no token here: new ids cannot keep it out. Contacts and seeds have tokens
of their own (``Senders``).
"""

from __future__ import annotations

from collections.abc import Hashable

from meshnode.base.fair_rate import FairRate, Rate, path_shares
from meshnode.base.fair_table import FairTable
from meshnode.base.limits import (
    ACCEPTS_BURST,
    ACCEPTS_KNOWN_BURST,
    ACCEPTS_KNOWN_EACH_BURST,
    ACCEPTS_KNOWN_EACH_PER_S,
    ACCEPTS_KNOWN_PER_S,
    ACCEPTS_LITTLE_BURST,
    ACCEPTS_LITTLE_PER_S,
    ACCEPTS_PER_ADDRESS_BURST,
    ACCEPTS_PER_ADDRESS_PER_S,
    ACCEPTS_PER_NETWORK_BURST,
    ACCEPTS_PER_NETWORK_PER_S,
    ACCEPTS_PER_S,
    MAX_HALF_OPEN,
)
from meshnode.base.path import Path
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection


class HalfOpen:
    """Tokens for first flights, and places for what they begin."""

    def __init__(self) -> None:
        self._places: FairTable[Connection] = FairTable(MAX_HALF_OPEN)
        self._rate = FairRate(
            total=Rate(ACCEPTS_PER_S, ACCEPTS_BURST),
            network=Rate(ACCEPTS_PER_NETWORK_PER_S, ACCEPTS_PER_NETWORK_BURST),
            address=Rate(ACCEPTS_PER_ADDRESS_PER_S, ACCEPTS_PER_ADDRESS_BURST),
            little=Rate(ACCEPTS_LITTLE_PER_S, ACCEPTS_LITTLE_BURST),
        )
        each = Rate(ACCEPTS_KNOWN_EACH_PER_S, ACCEPTS_KNOWN_EACH_BURST)
        network = Rate(4 * each.each_s, 4 * each.burst)
        self._known = FairRate(
            total=Rate(ACCEPTS_KNOWN_PER_S, ACCEPTS_KNOWN_BURST), network=network, address=each, little=each
        )

    def has_token(self, source: Path, now: float) -> bool:
        """True when ``take`` would be granted: asked before the proof is looked at, which costs more."""
        return self._rate.has(source, now)

    def take(self, source: Path, peer: NodeId, home: Hashable | None, now: float) -> bool:
        """Spend a token of a contact (``Senders.home_of``), else of where a first flight came from.

        False when it is to be dropped. The dialler sends it again (RFC 9002 section 6.2), so it comes later.
        """
        return (home is not None and self._known.take_of(peer, home, now)) or self._rate.take(source, now)

    def add(self, connection: Connection, source: Path) -> Connection | None:
        """Give a half-open connection a place.

        Returns the one that has to go: the oldest of the largest network.
        """
        return self._places.add(connection, *path_shares(source))

    def discard(self, connection: Connection) -> None:
        """Free the place of a connection that is established or over.

        Nothing happens when it has none.
        """
        self._places.discard(connection)
