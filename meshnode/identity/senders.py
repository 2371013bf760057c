"""Senders of sealed datagrams: how much each kind of them may have opened.

- A peer with a connection: as much as it sends, for it can be cut off.
- A *known* one, which has answered this node (a contact of the DHT), or is configured (a seed): a budget that
  strangers have no part in. It is charged once the sender is proven, so no stranger spends it in a contact's name; the
  pairwise keys of these peers are kept apart, so their proof costs no X25519. An id becomes a contact cheaply, so each
  has a rate, and so has the network where it answered; sources of datagrams, which can be forged, count for nothing.
- Strangers: a rate of the source's address, of its network and of all (``FairRate``), charged before the proof. While
  the process has CPU to spare, the last is no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_rate import FairRate, Rate
from meshnode.base.limits import (
    KNOWN_BURST,
    KNOWN_EACH_BURST,
    KNOWN_EACH_PER_S,
    KNOWN_LITTLE_BURST,
    KNOWN_LITTLE_PER_S,
    KNOWN_PER_NETWORK_BURST,
    KNOWN_PER_NETWORK_PER_S,
    KNOWN_PER_S,
    MAX_SEED_RATES,
    NEW_SENDER_COST,
    SEED_BURST,
    SEED_PER_S,
    UNCONNECTED_BURST,
    UNCONNECTED_LITTLE_BURST,
    UNCONNECTED_LITTLE_PER_S,
    UNCONNECTED_PER_ADDRESS_BURST,
    UNCONNECTED_PER_ADDRESS_PER_S,
    UNCONNECTED_PER_NETWORK_BURST,
    UNCONNECTED_PER_NETWORK_PER_S,
    UNCONNECTED_PER_S,
)
from meshnode.base.path import Path
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId


class Senders:
    """The rates. The stack sets what it knows of peers, and the runtime whether there is CPU to spare.

    Attributes:
        is_linked: Tells whether a peer has a connection with this node.
        home_of: Returns the network where a contact answered, for a seed its id, and None for all others.
    """

    def __init__(self) -> None:
        self.is_linked: Callable[[NodeId], bool] = lambda peer: False
        self.home_of: Callable[[NodeId], Hashable | None] = lambda peer: None
        self.strangers = FairRate(
            total=Rate(UNCONNECTED_PER_S, UNCONNECTED_BURST),
            network=Rate(UNCONNECTED_PER_NETWORK_PER_S, UNCONNECTED_PER_NETWORK_BURST),
            address=Rate(UNCONNECTED_PER_ADDRESS_PER_S, UNCONNECTED_PER_ADDRESS_BURST),
            little=Rate(UNCONNECTED_LITTLE_PER_S, UNCONNECTED_LITTLE_BURST),
        )
        self._contacts = FairRate(
            total=Rate(KNOWN_PER_S, KNOWN_BURST),
            network=Rate(KNOWN_PER_NETWORK_PER_S, KNOWN_PER_NETWORK_BURST),
            address=Rate(KNOWN_EACH_PER_S, KNOWN_EACH_BURST),
            little=Rate(KNOWN_LITTLE_PER_S, KNOWN_LITTLE_BURST),
        )
        self._seeds: BoundedDict[NodeId, TokenBucket] = BoundedDict(MAX_SEED_RATES)

    def standing(self, peer: NodeId) -> tuple[bool, Hashable | None]:
        """Return whether a peer has a connection, and if not its ``home_of``."""
        return (True, None) if self.is_linked(peer) else (False, self.home_of(peer))

    def take_known(self, sender: NodeId, home: Hashable, now: float) -> bool:
        """Charge a datagram of a contact or seed, which has proven that it is the sender."""
        if home != sender:
            return self._contacts.take_of(sender, home, now)
        bucket = self._seeds.get(sender)
        if bucket is None:
            bucket = self._seeds[sender] = TokenBucket(SEED_PER_S, SEED_BURST, now)
        return bucket.take(1, now)

    def take_stranger(self, source: Path | None, has_key: bool, now: float) -> bool:
        """Charge a datagram that has proven nothing to where it came from.

        One whose key is not cached costs more.
        """
        return self.strangers.take(source, now, 1 if has_key else NEW_SENDER_COST)
