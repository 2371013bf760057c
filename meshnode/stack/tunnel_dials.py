"""TCP connections to hosts that members name as tunnels: few until the node named has answered there. Sans-IO.

A tunnel is dialled by TCP, which ``AddressCredit`` does not see, and a record can name any host: each attempt brings it
a connection and a first flight of TLS. So until a probe, a handshake or a request went round trip by a tunnel, attempts
have a rate of their host, whatever the peers, ports and connections; of the peer whose record names it, for it could
name ever new hosts; and of all together. Tunnels of configured seeds are the user's own choice and have none.
"""

from __future__ import annotations

from collections.abc import Hashable

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import FairTable, host_of, source_shares
from meshnode.base.limits import (
    MAX_PROVEN_TUNNELS,
    MAX_TUNNEL_HOSTS,
    TUNNEL_DIALS_BURST,
    TUNNEL_DIALS_PER_HOST,
    TUNNEL_DIALS_PER_HOST_S,
    TUNNEL_DIALS_PER_PEER,
    TUNNEL_DIALS_PER_PEER_S,
    TUNNEL_DIALS_PER_S,
)
from meshnode.base.path import ViaTunnel
from meshnode.base.token_bucket import TokenBucket


class TunnelDials:
    """Attempts that tunnels may make. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._proven: dict[ViaTunnel, None] = {}
        self._places: FairTable[ViaTunnel] = FairTable(MAX_PROVEN_TUNNELS)
        self._hosts: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_TUNNEL_HOSTS)
        self._peers: BoundedDict[Hashable, TokenBucket] = BoundedDict(MAX_TUNNEL_HOSTS)
        self._all = TokenBucket(TUNNEL_DIALS_PER_S, TUNNEL_DIALS_BURST, 0.0)

    def answered(self, tunnel: ViaTunnel) -> None:
        """Take note that the node named is there: what was sent by this tunnel was answered."""
        if tunnel in self._proven:
            self._places.touch(tunnel)
            return
        self._proven[tunnel] = None
        gone = self._places.add(tunnel, *source_shares(tunnel.host))
        if gone is not None:
            del self._proven[gone]

    def take(self, tunnel: ViaTunnel, now: float) -> bool:
        """Spend one attempt; False when there were too many."""
        if tunnel in self._proven:
            return True
        if self._all.wait(1, now) > 0:
            return False  # before a host is entered: refused attempts push out no bucket of another
        peer = _bucket(self._peers, tunnel.peer, TUNNEL_DIALS_PER_PEER_S, TUNNEL_DIALS_PER_PEER, now)
        if peer.wait(1, now) > 0:
            return False
        host = _bucket(self._hosts, host_of(tunnel.host), TUNNEL_DIALS_PER_HOST_S, TUNNEL_DIALS_PER_HOST, now)
        return host.take(1, now) and peer.take(1, now) and self._all.take(1, now)


def _bucket(
    buckets: BoundedDict[Hashable, TokenBucket], key: Hashable, rate: float, burst: float, now: float
) -> TokenBucket:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = TokenBucket(rate, burst, now)
    buckets.put(key, bucket)
    return bucket
