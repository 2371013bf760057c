"""A topic's tree: Plumtree for hundreds of messages a second. Sans I/O.

At such rates many payloads of a link are on their way when we prune it, and two links that are equally fast take turns
in being first. Plain Plumtree then takes back the link that it has just pruned, without a word to its other end, prunes
the one that it lives by, and is soon without any, until announcements mend it: over and over. With several publishers
it is worse: each one's payloads meet at another place of the same circle, which is then cut in two places at once.

So what comes over a link just pruned is taken, and changes nothing; a link is pruned only for the sake of one that is
not, after its payloads have come second for a time that is drawn by lot (the first cut opens the circle, and the others
need none); and when the link that we live by is pruned from its other end, another is taken back at once.

Payloads for a link that is busy wait here, at most 1 MB of them: so what is said about links is not
behind them, and when one is pruned, what waits for it becomes announcements.
"""

from __future__ import annotations

import random
from collections.abc import Container

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_HOPS, GOSSIP_MAX_IDS, TOPIC_LINK_QUEUE, TOPIC_MAX_SOURCES
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.plumtree import Plumtree, frames
from meshnode.gossip.effects import Send
from meshnode.gossip.entry import ID_LENGTH, id_of
from meshnode.gossip.messages import Eager, Graft
from meshnode.identity.node_id import NodeId

STRAY_S = 1.0  # what comes later than this over a pruned link was not on its way then: its other end takes us for eager
PATIENCE_S = 0.3, 6.0  # payloads come second for so long (drawn by lot) before their link is pruned
PULL = b"\xff" * ID_LENGTH  # the first id of a GRAFT that asks for payloads only
MOST_FRAMES = 4  # for a neighbour at once
CUT_S = 1.5  # who lacks a little for so long is cut off from some publisher, though not from all
OVER_S = 3.0  # without any, it begins anew
ANNOUNCE_S = 0.5  # ids for a lazy link wait so long: at 200 messages a second 100 share a packet
GRAFT_S, AGAIN_S = 0.8, 1.0  # an announced payload is asked for after so long: it may come late over many links ...
SLACK_S = 2.5  # ... and later still while publishers are held back: then queues are long, and asking makes them longer


class TopicPlumtree(Plumtree):
    """One topic's. Announces more rarely than the mesh's tree."""

    announce_s, graft_s, again_s = ANNOUNCE_S, GRAFT_S, AGAIN_S

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        now: float,
        scope: bytes,
        busy: Container[NodeId] = (),
    ) -> None:
        super().__init__(rng, timers, metrics, now, scope)
        self.waiting: dict[NodeId, int] = {}  # bytes of payloads for each neighbour
        self._busy = busy
        self._behind: dict[NodeId, None] = {}  # more was to wait than may
        self._pulls = now, now  # since when, and until when, a little was lacking
        self.dropped = 0
        self.held_until = now  # publishers are held back, as far as we know
        self._sources: BoundedDict[bytes, NodeId] = BoundedDict(TOPIC_MAX_SOURCES)
        self._pulled: BoundedDict[bytes, None] = BoundedDict(TOPIC_MAX_SOURCES)  # asked for without taking the link
        self._fed: dict[NodeId, float] = {}  # when a neighbour was last the first to bring a payload
        self._twice: dict[
            NodeId, tuple[float, float]
        ] = {}  # its payloads come second: how long we bear it, the last time
        self._heard: dict[NodeId, float] = {}  # when it last brought one at all

    def remove(self, peer: NodeId) -> None:
        """A neighbour no more."""
        super().remove(peer)
        self.waiting.pop(peer, None)
        self._behind.pop(peer, None)
        self._fed.pop(peer, None)
        self._heard.pop(peer, None)
        self._twice.pop(peer, None)

    def on_payload(
        self, peer: NodeId, item: bytes, payload: bytes, hops: int, now: float, *, wide: bool = False
    ) -> None:
        """A payload that we had not, and that counts: pass it on."""
        pruned = self.lazy.get(peer)
        self._missing.pop(item, None)  # no swap for a shorter way: what is short for one publisher is long for another
        super().on_payload(peer, item, payload, hops, now, wide=wide)
        pulled = self._pulled.pop(item, peer) is None
        if pruned is not None and (pulled or now - pruned < STRAY_S) and peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = pruned
        self._fed[peer] = self._heard[peer] = now
        self._sources[item] = peer

    def on_duplicate(self, peer: NodeId, item: bytes, now: float) -> None:
        """A payload that we had: the link is superfluous, if the one that was faster is still to be relied on."""
        self._heard[peer] = now
        source = self._sources.get(item)
        if source is not None and (source not in self.eager or source == peer):
            return
        until, last = self._twice.get(peer, (0.0, -OVER_S))
        if now - last > OVER_S:
            until = now + self._rng.uniform(*PATIENCE_S)
        self._twice[peer] = until, now
        if now > until:
            del self._twice[peer]
            super().on_duplicate(peer, item, now)

    def on_prune(self, peer: NodeId, now: float) -> None:
        """A neighbour gets payloads from others. Those who got theirs from it take another link back."""
        super().on_prune(peer, now)
        self._announce_instead(peer, now)
        if not self._fed or self._is_fed(now):
            return
        lately = [(at, other) for other, at in self._heard.items() if other in self.lazy and other != peer]
        if lately:
            at, other = max(lately)
            if now - at < STRAY_S:
                self.add(other)
                self._effects.append(Send(other, Graft(self._scope, ())))

    def recent(self) -> list[bytes]:
        """The ids of the payloads that are at hand, oldest first; as many as one IHAVE takes."""
        return list(self._recent)[-GOSSIP_MAX_IDS:]

    def on_pull(self, peer: NodeId, ids: tuple[bytes, ...], find: dict[bytes, bytes]) -> None:
        """A neighbour lacks these, and no link."""
        for item in ids:
            payload, hops, _ = self._recent.get(item) or (find.get(item), 0, 0.0)
            if payload is not None:
                self._push(peer, hops, payload)

    def take_effects(self) -> list[Send]:
        """Everything to send since the last call; for each neighbour as many payloads as its link takes at once."""
        pushes, self._pushes = self._pushes, {}
        for peer, items in pushes.items():
            parts = [] if peer in self._busy else frames(items)[:MOST_FRAMES]
            self._effects += [Send(peer, Eager(self._scope, part)) for part in parts]
            rest = items[sum(map(len, parts)) :] if parts else items
            if rest:
                self._pushes[peer] = rest
                self.waiting[peer] -= sum(len(payload) for part in parts for _, payload in part)
            else:
                del self.waiting[peer]
        effects, self._effects = self._effects, []
        return effects

    def take_behind(self) -> list[NodeId]:
        """Neighbours who lack payloads that could not wait, and have got all others."""
        found = [peer for peer in self._behind if peer not in self.waiting]
        for peer in found:
            del self._behind[peer]
        return found

    def _push(self, peer: NodeId, hops: int, payload: bytes) -> None:
        super()._push(peer, hops, payload)
        size = self.waiting.get(peer, 0) + len(payload)
        while size > TOPIC_LINK_QUEUE:
            size -= len(self._pushes[peer].pop(0)[1])
            self._behind[peer] = None
            self.dropped += 1
        self.waiting[peer] = size

    def _announce_instead(self, peer: NodeId, now: float) -> None:
        """The link is lazy now: what waits for it is announced."""
        items = self._pushes.pop(peer, None)
        if items:
            del self.waiting[peer]
            announced = [(min(hops + 1, GOSSIP_MAX_HOPS), id_of(payload)) for hops, payload in items]
            self._announcements.setdefault(peer, []).extend(announced)
            self._announce_soon(now)

    def _prune(self, peer: NodeId, now: float) -> None:
        super()._prune(peer, now)
        self._announce_instead(peer, now)

    def _is_fed(self, now: float) -> bool:
        lately = STRAY_S + self._slack(now)
        return any(now - self._fed.get(peer, -lately) < lately for peer in self.eager)

    def _slack(self, now: float) -> float:
        return SLACK_S if now < self.held_until else 0.0

    def _graft_soon(self) -> None:
        if self._due and (self._grafting is None or not self._grafting.live):
            at = next(iter(self._due.values()))
            self._grafting = self._timers.at(at + self._slack(at), self._graft)

    def _graft(self, now: float) -> None:
        """Ask for what is due. Whoever is fed, and lost a few when a link was pruned, wants those and no link: unless
        it goes on, for then the tree has been cut in two."""
        first = next(iter(self._due.values()), now)
        if first + self._slack(first) > now:
            self._grafting = None
            self._graft_soon()
            return
        if now - self._pulls[1] > OVER_S:
            self._pulls = now, now
        self._pulls = self._pulls[0], now
        if not self._is_fed(now) or now - self._pulls[0] > CUT_S:
            self._pulls = now, now
            super()._graft(now)
            return
        lazy, sent = dict(self.lazy), len(self._effects)
        super()._graft(now)
        for peer, since in lazy.items():
            if peer in self.eager:
                del self.eager[peer]
                self.lazy[peer] = since
        for number, effect in enumerate(self._effects[sent:], sent):
            if isinstance(effect.message, Graft):
                ids = effect.message.ids[: GOSSIP_MAX_IDS - 1]
                self._effects[number] = Send(effect.peer, Graft(self._scope, (PULL, *ids)))
                self._pulled.update(dict.fromkeys(ids))
