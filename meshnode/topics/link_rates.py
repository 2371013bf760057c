"""How many payloads of a topic each neighbour may bring: a few of its own, and what all share. Sans I/O.

Ids are free, so a rate for each origin bounds no liar, and what all origins share is used up by whichever is fastest.
Whatever ids a liar uses, its messages come over its links: there the others keep their own rate.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    TOPIC_LINK_BURST,
    TOPIC_LINK_MOST,
    TOPIC_LINK_MOST_BURST,
    TOPIC_LINK_RATE,
    TOPIC_MAX_LINKS,
    TOPIC_TOTAL_BURST,
    TOPIC_TOTAL_RATE,
)
from meshnode.base.token_bucket import TokenBucket
from meshnode.identity.node_id import NodeId


class LinkRates:
    """Rates of one topic's links. Of more than twice as many links as there may be, those unused longest go."""

    def __init__(self, now: float) -> None:
        self._shared = TokenBucket(TOPIC_TOTAL_RATE, TOPIC_TOTAL_BURST, now)
        self._own: BoundedDict[NodeId, TokenBucket] = BoundedDict(2 * TOPIC_MAX_LINKS)
        self._most: BoundedDict[NodeId, TokenBucket] = BoundedDict(2 * TOPIC_MAX_LINKS)

    def allows(self, peer: NodeId, now: float) -> bool:
        """Charge a payload that is new here, before it is verified, to its link and then to what all links share."""
        own = self._own.get(peer) or TokenBucket(TOPIC_LINK_RATE, TOPIC_LINK_BURST, now)
        self._own.put(peer, own)
        return own.take(1, now) or self._shared.take(1, now)

    def is_honest(self, peer: NodeId, count: int, now: float) -> bool:
        """Return False when a link brings more payloads than any node takes and passes on, known ones among them."""
        most = self._most.get(peer) or TokenBucket(TOPIC_LINK_MOST, TOPIC_LINK_MOST_BURST, now)
        self._most.put(peer, most)
        return most.take(count, now)
