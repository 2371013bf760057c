"""Half-open handshakes of peers without a connection: how many, how often, and how much of that one network gets.

A first flight with a valid knock costs about 2 ms of TLS and 70 KB until the dialler has proven its key or
``HANDSHAKE_TIMEOUT_S`` is over (RFC 9000 section 21.2). Ids are free, so the shares are those of source networks. A
peer that has a connection takes no place and no token here: new ids cannot keep it out.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import FairTable, network_of
from meshnode.base.limits import (
    ACCEPTS_BURST,
    ACCEPTS_PER_NETWORK_BURST,
    ACCEPTS_PER_NETWORK_PER_S,
    ACCEPTS_PER_S,
    MAX_HALF_OPEN,
)
from meshnode.base.path import Path, ViaTunnel, udp_address
from meshnode.base.token_bucket import TokenBucket
from meshnode.quic.connection import Connection

MAX_NETWORKS = 1_024  # with a bucket; one that is forgotten had not been used for longest


class HalfOpen:
    """Tokens for first flights, and places for what they begin."""

    def __init__(self) -> None:
        self._places: FairTable[Connection] = FairTable(MAX_HALF_OPEN)
        self._all = TokenBucket(ACCEPTS_PER_S, ACCEPTS_BURST, 0.0)
        self._networks: BoundedDict[bytes, TokenBucket] = BoundedDict(MAX_NETWORKS)

    def take(self, source: Path, now: float) -> bool:
        """Spend a token of the network that a first flight came from; False when it is to be dropped.

        The dialler sends its flight again (RFC 9002 section 6.2), so one that is dropped comes later.
        """
        network = _network(source)
        bucket = self._networks.get(network)
        if bucket is None:
            bucket = TokenBucket(ACCEPTS_PER_NETWORK_PER_S, ACCEPTS_PER_NETWORK_BURST, now)
        self._networks.put(network, bucket)
        return bucket.take(1, now) and self._all.take(1, now)

    def add(self, connection: Connection, source: Path) -> Connection | None:
        """Give a half-open connection a place; returns the one that has to go: the oldest of the largest network."""
        return self._places.add(connection, _network(source))

    def discard(self, connection: Connection) -> None:
        """Free the place of a connection that is established or over; nothing happens when it has none."""
        self._places.discard(connection)


def _network(source: Path) -> bytes:
    addr = udp_address(source)
    if addr is not None:
        return network_of(addr.host)
    return (source.host if isinstance(source, ViaTunnel) else str(source)).encode()  # the member, the relay
