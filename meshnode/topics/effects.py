"""What topics want done, and what they count."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.base.metrics import describe
from meshnode.directory.services import Announce
from meshnode.gossip.effects import Send
from meshnode.identity.node_id import NodeId

RECEIVED = describe("topic_received", "topic messages that came and counted")
TWICE = describe("topic_received_twice", "topic messages that came and were here already")
STRANGER = describe("topic_drop_stranger", "topic messages dropped: of a topic not joined here, or from no neighbour")
REJECTED = describe("topic_drop_rejected", "topic messages dropped: not signed, not canonical, stale or of the future")
UNFIT = describe("topic_drop_unfit", "topic messages dropped: signed, but not a message of this topic")
FLOOD = describe("topic_drop_flood", "topic messages dropped: their origin, or all together, over the rate")
SLOW = describe("topic_drop_slow", "topic messages dropped, the oldest first: too many wait for a link")
FULL = describe("topic_links_full", "members of a topic turned away: we serve enough")
SUBSCRIBERS_FULL = describe("topic_subscribers_full", "subscriptions not remembered: too many")


@dataclass(frozen=True, slots=True)
class Dial:
    """A topic wants a connection to ``peer``; ``on_link`` or ``on_connect_failed`` answers."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """``peer`` handed us what no honest node passes on."""

    peer: NodeId


Effect = Send | Dial | Announce | Misbehaved
