"""Messages of one topic from its neighbours to the application: verified, limited, each at most once. Sans I/O.

Each end of a new link tells the ids of its latest messages (Latest). That mends what a change of the tree has lost, and
gives late joiners their replay.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_MAX_HOPS,
    TOPIC_BURST,
    TOPIC_BYTES,
    TOPIC_BYTES_BURST,
    TOPIC_MAX_ORIGINS,
    TOPIC_RATE,
)
from meshnode.base.token_bucket import RateLimit, TokenBucket
from meshnode.gossip.entry import Entry, EntryReject, id_of, latest_ms, open_entry
from meshnode.gossip.messages import Eager, Graft, IHave
from meshnode.identity.node_id import NodeId
from meshnode.topics.context import TopicContext
from meshnode.topics.effects import DENIED, FLOOD, RECEIVED, REJECTED, TWICE, UNFIT, Misbehaved
from meshnode.topics.entries import parse_message
from meshnode.topics.inbox import Inbox
from meshnode.topics.link_rates import LinkRates
from meshnode.topics.messages import Latest
from meshnode.topics.overlay import LatestMessages
from meshnode.topics.replay import Replay
from meshnode.topics.topic_plumtree import TopicPlumtree

HISTORY_S = 3.0  # a member that joined without replay takes no old messages for this long
REPLAY_S, REPLAY_UNLINKED_S = 1.0, 3.0  # after the first link; without any
REPLAY_AGES_S = 300.0, 600.0  # a replayed message may be 10 minutes old, though its time to be passed on is over
CLOCKS = EntryReject.EXPIRED, EntryReject.FUTURE  # an honest node may pass these on, by its own clock


class Delivery:
    """Received messages of one topic. ``replay`` old messages come first; 0 for none."""

    def __init__(
        self,
        context: TopicContext,
        name: str,
        scope: bytes,
        tree: TopicPlumtree,
        latest: LatestMessages,
        *,
        replay: int,
        now: float,
    ) -> None:
        self.inbox = Inbox()
        self._context = context
        self._name = name
        self._scope = scope
        self._tree = tree
        self._latest = latest
        self._joined = now
        self._origins: BoundedDict[NodeId, RateLimit] = BoundedDict(TOPIC_MAX_ORIGINS)
        self._rates = LinkRates(now)
        self._expiring = context.timers.timer(self._expire)
        self._replay: Replay | None = None
        if replay:
            self._replay = Replay(replay, now + REPLAY_UNLINKED_S)
            context.timers.at(self._replay.until, self._end_replay)

    def on_linked(self, now: float) -> None:
        """Note a new neighbour: the replay, if there is one, ends within ``REPLAY_S``."""
        self.inbox.on_linked()
        if self._replay is not None and now + REPLAY_S < self._replay.until:
            self._replay.until = now + REPLAY_S
            self._context.timers.at(self._replay.until, self._end_replay)

    # ---- what neighbours say

    def on_eager(self, peer: NodeId, message: Eager, now: float) -> None:
        """Take payloads, each with the number of links that it came over: messages that members published.

        The peer is blamed for one that is forged, malformed or of another topic, and for far too many; clocks that
        differ blame no peer.
        """
        if not self._rates.is_honest(peer, len(message.items), now):
            self._context.metrics.count(FLOOD, len(message.items))
            self._context.effects.append(Misbehaved(peer))
            return
        for hops, payload in message.items:
            self._on_payload(peer, payload, hops, now)

    def on_ihave(self, peer: NodeId, message: IHave, now: float) -> None:
        """Await the payloads that a neighbour announces."""
        fresh = tuple((hops, item) for hops, item in message.items if item not in self._latest)
        self._tree.plumtree.on_ihave(peer, IHave(self._scope, fresh), now)

    def on_latest(self, peer: NodeId, message: Latest, now: float) -> None:
        """Ask for the latest messages that are not here: for a replay, or because a change of the tree lost them.

        Without a replay, what is named in the first ``HISTORY_S`` was published before this node joined: it counts as
        seen, and never comes.
        """
        plumtree = self._tree.plumtree
        unknown = [item for item in message.ids if item not in self._latest and item not in plumtree.seen]
        if not unknown:
            return
        if self._replay is not None:
            asked = self._replay.choose(unknown)
            self._context.send(peer, Graft(self._scope, asked))
            for item in unknown[: -len(asked)]:
                plumtree.on_rejected(item, now)
        elif now - self._joined < HISTORY_S:
            for item in unknown:
                plumtree.on_rejected(item, now)
        else:
            offered = IHave(self._scope, tuple((GOSSIP_MAX_HOPS, item) for item in unknown))
            plumtree.on_ihave(peer, offered, now)

    def _on_payload(self, peer: NodeId, payload: bytes, hops: int, now: float) -> None:
        item = id_of(payload)
        plumtree = self._tree.plumtree
        if item in plumtree.seen or item in self._latest:
            self._context.metrics.count(TWICE)
            self._tree.on_duplicate(peer, item, now)
            return
        if not self._rates.allows(peer, now):  # not noted as seen: it may come over another link
            self._context.metrics.count(FLOOD)
            return
        replay = self._replay
        old = replay is not None and replay.awaits(item)
        entry = self._verify(peer, payload, now, old=old)
        if entry is None:
            plumtree.on_rejected(item, now)
            return
        self._context.metrics.count(RECEIVED)
        self._latest.add(item, payload)
        if old:
            plumtree.on_rejected(item, now)  # others have it: it is not passed on
        else:
            self._tree.on_payload(peer, item, payload, hops, now)
        if replay is None:
            self._deliver(entry, now)
        else:
            replay.add(entry)

    def _verify(self, peer: NodeId, payload: bytes, now: float, *, old: bool) -> Entry | None:
        """Return the message when it counts; ``peer`` is blamed for what no honest node passes on."""
        entry = _open(payload, now + self._context.wall_offset, old=old)
        if isinstance(entry, EntryReject):
            self._context.metrics.count(REJECTED)
            if entry not in CLOCKS:
                self._context.effects.append(Misbehaved(peer))
            return None
        if parse_message(entry, self._name) is None:
            self._context.metrics.count(UNFIT)
            self._context.effects.append(Misbehaved(peer))
            return None
        if entry.origin == self._context.identity.id:
            return None
        if not self._context.access.publishes(entry.origin, self._name):
            self._context.metrics.count(DENIED)  # and no blame: the peer may not know the policy yet
            return None
        if not self._allows(entry.origin, len(payload), now):
            self._context.metrics.count(FLOOD)
            return None
        return entry

    def _allows(self, origin: NodeId, size: int, now: float) -> bool:
        """Charge a verified message to its origin."""
        limit = self._origins.get(origin)
        if limit is None:
            messages, octets = (
                TokenBucket(TOPIC_RATE, TOPIC_BURST, now),
                TokenBucket(TOPIC_BYTES, TOPIC_BYTES_BURST, now),
            )
            limit = RateLimit(messages, octets)
        self._origins.put(origin, limit)
        return limit.take(size, now)

    # ---- to the application

    def _deliver(self, entry: Entry, now: float) -> None:
        parsed = parse_message(entry, self._name)
        if parsed is not None:
            latest = latest_ms(now + self._context.wall_offset)
            self.inbox.on_message(entry.origin, parsed[0], entry.seq - parsed[0], parsed[1], now, latest)
        if not self._expiring.live:
            self._expire(now)

    def _expire(self, now: float) -> None:
        self._expiring.set(self.inbox.expire(now))

    def _end_replay(self, now: float) -> None:
        """Deliver the replay in order, and then what came meanwhile."""
        replay = self._replay
        if replay is None or now < replay.until:
            return
        self._replay = None
        for entry in replay.entries():
            self._deliver(entry, now)


def _open(payload: bytes, wall: float, *, old: bool) -> Entry | EntryReject:
    """Verify a payload; ``old`` allows it to be 10 minutes old, as a replay is."""
    entry = open_entry(payload, wall)
    for age in REPLAY_AGES_S if old else ():
        if entry is EntryReject.EXPIRED:
            entry = open_entry(payload, wall - age)
    return entry
