"""A topic's tree: Plumtree for hundreds of messages a second. Sans I/O.

At such rates many payloads of a link are under way when it is pruned, and two links that are equally fast take turns in
being first. Plumtree as in its paper (Leitao, Pereira and Rodrigues, 2007) then makes the link eager again that it has
just pruned, without telling its other end, prunes the link that it depends on, and soon has none until announcements
mend it, over and over. With several publishers it is worse: payloads of each meet at another place of the same circle,
which is then cut in two places at once.

So a payload over a link that was just pruned is taken and changes nothing; a link is pruned only in favour of one that
is eager, after its payloads have come second for a random time (the first cut opens the circle, and no other is
needed); and when the link that payloads come over is pruned from its other end, another becomes eager at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_HOPS, GOSSIP_MAX_IDS, TOPIC_MAX_SOURCES
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.awaited import Wanted
from meshnode.gossip.dissemination.plumtree import Plumtree, Settings
from meshnode.gossip.effects import Send
from meshnode.gossip.entry import id_of
from meshnode.gossip.messages import Eager, Graft, Prune
from meshnode.identity.node_id import NodeId
from meshnode.topics.messages import Pull
from meshnode.topics.send_queues import SendQueues

STRAY_S = (
    1.0  # a payload later than this over a pruned link was not under way then: its other end has the link as eager
)
SECOND_S = 0.3, 6.0  # range of the random time for which payloads come second before their link is pruned
CUT_OFF_S = 1.5  # a node that lacks a few payloads for this long is cut off from some publisher, though not from all
PULLS_OVER_S = 3.0  # after this long without any, that time is counted from the start
SLACK_S = 2.5  # while publishers are held back queues are long, and asking makes them longer
# 200 messages a second put 100 ids into a packet; announced payloads may come late over many links; a path that is
# short for one publisher is long for another
SETTINGS = Settings(announce_s=0.5, graft_s=0.8, graft_again_s=1.0, swaps=False)


class Sources:
    """Which neighbours bring payloads, and which of them come first."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._first: BoundedDict[bytes, NodeId] = BoundedDict(TOPIC_MAX_SOURCES)  # that brought a payload
        self._fed: dict[NodeId, float] = {}  # when a neighbour was last the first
        self._heard: dict[NodeId, float] = {}  # when it last brought any
        self._second: dict[NodeId, tuple[float, float]] = {}  # tolerated until then, and the last time

    def remove(self, peer: NodeId) -> None:
        """Forget a neighbour."""
        for times in (self._fed, self._heard, self._second):
            times.pop(peer, None)

    def on_first(self, peer: NodeId, item: bytes, now: float) -> None:
        """Note that ``peer`` brought a new payload, so this node is fed by it."""
        self._fed[peer] = self._heard[peer] = now
        self._first[item] = peer

    def on_second(self, peer: NodeId, item: bytes, eager: Container[NodeId], now: float) -> bool:
        """Note that ``peer`` brought a payload again; returns whether its link is superfluous.

        It is when payloads have come second over it for a random time in ``SECOND_S``, and the links over which they
        came first are eager.
        """
        self._heard[peer] = now
        first = self._first.get(item)
        if first is not None and (first not in eager or first == peer):
            return False  # the link that was faster is not to be relied on
        until, last = self._second.get(peer, (0.0, -PULLS_OVER_S))
        if now - last > PULLS_OVER_S:
            until = now + self._rng.uniform(*SECOND_S)
        self._second[peer] = until, now
        if now > until:
            del self._second[peer]
            return True
        return False

    def is_fed(self, eager: dict[NodeId, None], within: float, now: float) -> bool:
        """Return whether an eager neighbour brought a new payload in the last ``within`` seconds."""
        return any(now - self._fed.get(peer, -within) < within for peer in eager)

    def replacement(self, lazy: Container[NodeId], without: NodeId, now: float) -> NodeId | None:
        """Return the lazy neighbour, other than ``without``, that brought a payload last.

        None when this node was never fed, or no lazy neighbour brought any in the last ``STRAY_S``.
        """
        if not self._fed:
            return None
        recent = [(at, other) for other, at in self._heard.items() if other in lazy and other != without]
        at, other = max(recent, default=(-STRAY_S, without))
        return other if now - at < STRAY_S and other != without else None


class TopicPlumtree:
    """Plumtree of one topic, with queues for payloads. Announces less often than the mesh's tree.

    ``busy`` are the peers whose links take nothing at present; ``find`` returns older payloads for neighbours that ask.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        now: float,
        scope: bytes,
        *,
        busy: Container[NodeId] = (),
        find: Callable[[bytes], bytes | None],
    ) -> None:
        self.plumtree = Plumtree(
            rng, timers, Metrics(), now, scope=scope, settings=SETTINGS, find=find, ask=self._ask, slack=self._slack
        )
        self.queues = SendQueues(busy)
        self.held_until = now  # until then publishers are held back, as far as is known here
        self._sources = Sources(rng)
        self._scope = scope
        self._lacking = now, now  # the first and the last time at which a few payloads were lacking
        self._pulled: BoundedDict[bytes, None] = BoundedDict(TOPIC_MAX_SOURCES)  # asked for without taking the link

    def take_effects(self) -> list[Send]:
        """Return everything to send since the last call.

        For each neighbour whose link is not busy that is up to ``MOST_FRAMES`` messages of payloads; the rest waits.
        """
        self._queue()
        payloads = [Send(peer, Eager(self._scope, part)) for peer, part in self.queues.take()]
        return self.plumtree.take_effects() + payloads

    # ---- links and payloads of this node

    def remove(self, peer: NodeId) -> None:
        """Remove a neighbour."""
        self._queue()
        self.plumtree.remove(peer)
        self.queues.remove(peer)
        self._sources.remove(peer)

    def publish(self, item: bytes, payload: bytes, now: float) -> None:
        """Spread a payload of this node."""
        self.plumtree.publish(item, payload, now)
        self._queue()

    def recent(self) -> list[bytes]:
        """Return the ids of the latest payloads that are here, oldest first: at most ``GOSSIP_MAX_IDS``."""
        return self.plumtree.recent.ids()[-GOSSIP_MAX_IDS:]

    # ---- what neighbours say

    def on_payload(self, peer: NodeId, item: bytes, payload: bytes, hops: int, now: float) -> None:
        """Pass on a new, verified payload that came over ``hops`` links.

        The link becomes eager, unless the payload was pulled, or under way when the link was pruned.
        """
        pruned = self.plumtree.lazy.get(peer)
        pulled = self._pulled.pop(item, peer) is None
        stray = pruned is not None and (pulled or now - pruned < STRAY_S)
        self.plumtree.on_payload(peer, item, payload, hops, now, takes_link=not stray)
        if stray and peer in self.plumtree.lazy:  # the last to be announced to, as it has just had a payload
            self.plumtree.lazy[peer] = self.plumtree.lazy.pop(peer)
        self._sources.on_first(peer, item, now)
        self._queue()

    def on_duplicate(self, peer: NodeId, item: bytes, now: float) -> None:
        """Note that a payload came again.

        Prune its link when it is superfluous (``Sources.on_second``).
        """
        superfluous = self._sources.on_second(peer, item, self.plumtree.eager, now)
        if superfluous and self.plumtree.on_duplicate(peer, item, now):
            self._announce_instead(peer, now)

    def on_graft(self, peer: NodeId, message: Graft, now: float) -> None:
        """Make the link eager and send the payloads that are here of those asked for."""
        self.plumtree.on_graft(peer, message, now)
        self._queue()

    def on_pull(self, peer: NodeId, message: Pull, now: float) -> None:
        """Send the payloads that are here of those asked for; the link stays lazy or eager."""
        self.plumtree.serve(peer, message.ids)
        self._queue()

    def on_prune(self, peer: NodeId, message: Prune, now: float) -> None:
        """Make the link lazy; what waits for it is announced instead.

        When this node is not fed any more, the lazy neighbour that brought a payload last becomes eager at once.
        """
        self.plumtree.on_prune(peer, message, now)
        self._announce_instead(peer, now)
        if not self._is_fed(now):
            other = self._sources.replacement(self.plumtree.lazy, peer, now)
            if other is not None:
                self.plumtree.take_link(other)

    # ---- inside

    def _queue(self) -> None:
        """Move payloads from the tree to the queues."""
        for peer, items in self.plumtree.take_pushes().items():
            self.queues.put(peer, items)

    def _announce_instead(self, peer: NodeId, now: float) -> None:
        """Announce what waits for a link that is lazy now."""
        self._queue()
        items = self.queues.take_back(peer)
        if items:
            announced = [(min(hops + 1, GOSSIP_MAX_HOPS), id_of(payload)) for hops, payload in items]
            self.plumtree.announcements.add(peer, announced, now)

    def _is_fed(self, now: float) -> bool:
        return self._sources.is_fed(self.plumtree.eager, STRAY_S + self._slack(now), now)

    def _slack(self, at: float) -> float:
        return SLACK_S if at < self.held_until else 0.0

    def _ask(self, wanted: Wanted, now: float) -> None:
        """Ask for awaited payloads.

        A node that is fed, and lost a few when a link was pruned, makes no link eager for them; unless that goes on for
        ``CUT_OFF_S``, for then the tree has been cut in two.
        """
        since, until = self._lacking
        since = now if now - until > PULLS_OVER_S else since
        if not self._is_fed(now) or now - since > CUT_OFF_S:
            self._lacking = now, now
            self.plumtree.graft(wanted, now)
            return
        self._lacking = since, now
        for peer, items in wanted.items():
            for i in range(0, len(items), GOSSIP_MAX_IDS):
                part = tuple(items[i : i + GOSSIP_MAX_IDS])
                self.plumtree.effects.append(Send(peer, Pull(self._scope, part)))
                self._pulled.update(dict.fromkeys(part))
