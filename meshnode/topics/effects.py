"""Effects of topics, which the stack carries out, and their metrics."""

from __future__ import annotations

from meshnode.base.metrics import describe
from meshnode.base.value import value
from meshnode.directory.services import Announce
from meshnode.gossip.effects import Send
from meshnode.identity.node_id import NodeId

RECEIVED = describe("topic_received", "topic messages accepted")
TWICE = describe("topic_received_twice", "topic messages received that were here already")
STRANGER = describe(
    "topic_drop_stranger", "topic messages dropped: of a topic not joined here, or not from a neighbour"
)
REJECTED = describe(
    "topic_drop_rejected", "topic messages dropped: forged, not canonical, expired or issued in the future"
)
UNFIT = describe("topic_drop_unfit", "topic messages dropped: signed, but not of this topic or malformed")
FLOOD = describe("topic_drop_flood", "topic messages dropped: over the rate of their origin or of the topic")
DENIED = describe("topic_drop_denied", "topic messages dropped: the policy lets their sender or origin not take part")
SLOW = describe("topic_drop_slow", "topic messages dropped, the oldest first: a link's queue is full")
FULL = describe("topic_links_full", "links of topics refused: this node has the most it may")
SUBSCRIBERS_FULL = describe("topic_subscribers_full", "subscriptions not kept: there are too many")


@value
class Dial:
    """Connect to ``peer``; the result comes as ``on_link`` or ``on_connect_failed``."""

    peer: NodeId


@value
class Misbehaved:
    """Lower the reputation of ``peer``, which sent what no honest node passes on."""

    peer: NodeId


Effect = Send | Dial | Announce | Misbehaved
