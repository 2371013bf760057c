"""State of one topic that this node has joined, and the values of a topic's entries. Sans I/O."""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass, field

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    TOPIC_BURST,
    TOPIC_BYTES,
    TOPIC_BYTES_BURST,
    TOPIC_MAX_DATA,
    TOPIC_MAX_ORIGINS,
    TOPIC_PUBLISH_BURST,
    TOPIC_PUBLISH_BYTES,
    TOPIC_PUBLISH_RATE,
    TOPIC_RATE,
    TOPIC_TOTAL_BURST,
    TOPIC_TOTAL_RATE,
)
from meshnode.base.timers import Timer, Timers
from meshnode.base.token_bucket import RateLimit, TokenBucket
from meshnode.base.wire import WireError, decode
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.node_id import NodeId
from meshnode.topics.back_pressure import BackPressure
from meshnode.topics.inbox import Inbox
from meshnode.topics.overlay import Latest, Overlay, scope_of
from meshnode.topics.topic_plumtree import TopicPlumtree


@dataclass(slots=True)
class Past:
    """What a late joiner collects before it gets the first message."""

    count: int
    until: float
    wanted: dict[bytes, None] = field(default_factory=dict)
    old: list[Entry] = field(default_factory=list)
    fresh: list[Entry] = field(default_factory=list)


class JoinedTopic:
    """All state of one joined topic."""

    def __init__(
        self,
        own: NodeId,
        name: str,
        rng: random.Random,
        timers: Timers,
        busy: Container[NodeId],
        now: float,
        wall: float,
    ) -> None:
        self.name = name
        self.scope = scope_of(name)
        self.overlay = Overlay(own, self.scope)
        self.latest = Latest()
        self.tree = TopicPlumtree(rng, timers, now, self.scope, busy=busy, find=self.latest.get)
        self.pressure = BackPressure(self.tree.plumtree.eager)
        self.inbox = Inbox()
        self.joined = now
        self.epoch = int(wall * 1000)
        self.count = 0
        self.past: Past | None = None
        self.wanted: dict[NodeId, None] = {}
        self.greeted: dict[NodeId, float] = {}  # neighbours, and when they last said that they want the link
        self.origins: BoundedDict[NodeId, RateLimit] = BoundedDict(TOPIC_MAX_ORIGINS)
        self.total = TokenBucket(TOPIC_TOTAL_RATE, TOPIC_TOTAL_BURST, now)
        self.own = RateLimit(
            TokenBucket(TOPIC_PUBLISH_RATE, TOPIC_PUBLISH_BURST, now),
            TokenBucket(TOPIC_PUBLISH_BYTES, TOPIC_PUBLISH_BYTES, now),
        )
        self.published = float("-inf")
        self.flushed = float("-inf")
        self.flushing: Timer | None = None
        self.holding: Timer | None = None
        self.choosing: Timer | None = None
        self._timers = timers
        self._expiring: Timer | None = None

    def deliver(self, entry: Entry, now: float) -> None:
        """Put a verified message into the inbox."""
        parsed = parse_message(entry, self.name)
        if parsed is not None:
            self.inbox.on_message(entry.origin, parsed[0], entry.seq - parsed[0], parsed[1], now)
        if self._expiring is None or not self._expiring.live:
            self._expire(now)

    def _expire(self, now: float) -> None:
        again = self.inbox.expire(now)
        if again is not None:
            self._expiring = self._timers.at(again, self._expire)

    def end_past(self, now: float) -> None:
        """A late joiner has waited for the past: it gets the latest of it in order, and then what came meanwhile."""
        past = self.past
        if past is None or now < past.until:
            return
        self.past = None
        past.old.sort(key=lambda entry: (entry.issued, entry.seq, entry.origin))
        for entry in (*past.old[-past.count :], *past.fresh):
            self.deliver(entry, now)

    def allows(self, origin: NodeId, size: int, now: float) -> bool:
        """Charge a verified message to its origin and to the topic."""
        limit = self.origins.get(origin)
        if limit is None:
            messages, room = TokenBucket(TOPIC_RATE, TOPIC_BURST, now), TokenBucket(TOPIC_BYTES, TOPIC_BYTES_BURST, now)
            limit = RateLimit(messages, room)
        self.origins.put(origin, limit)
        return limit.take(size, now) and self.total.take(1, now)


def is_subscription(entry: Entry) -> bool:
    """True when a SUBSCRIPTION entry is what it should be: named by a scope, with nothing to say."""
    return len(entry.name) == 32 and all(c in "0123456789abcdef" for c in entry.name) and not entry.value


def parse_message(entry: Entry, topic: str) -> tuple[int, bytes] | None:
    """Epoch and data of a message; None when it is none of this topic."""
    if entry.kind != Kind.TOPIC or entry.name != topic or entry.value is None:
        return None
    try:
        fields = decode(entry.value, TOPIC_MAX_DATA + 32)
    except WireError:
        return None
    if not isinstance(fields, list) or len(fields) != 2 or type(fields[0]) is not int or type(fields[1]) is not bytes:
        return None
    epoch, data = fields
    if len(data) > TOPIC_MAX_DATA or not 0 <= epoch < entry.seq:
        return None
    return epoch, data
