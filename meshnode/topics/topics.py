"""Topics: applications' own messages, spread among the nodes that joined and no others. Sans I/O.

A node that joins publishes a stored entry (kind SUBSCRIPTION), so every node knows the members. They link to each other
(overlay.py), and over these links runs one Plumtree per topic (topic_plumtree.py): on the mesh's shared tree every node
would carry every topic's bytes. A message is a signed, fleeting entry of kind TOPIC: it comes at most once, and in
order while the tree does not change.

Messages are in messages.py. A link begins with a Greet and with the Latest ids of both ends, which mends what a change
of the tree has lost, and gives late joiners their replay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    GOSSIP_FRAME,
    GOSSIP_MAX_FLEETING_TTL_S,
    GOSSIP_MAX_HOPS,
    TOPIC_MAX_DATA,
    TOPIC_MAX_JOINED,
    TOPIC_MAX_LINKS,
    TOPIC_MAX_NAME,
    TOPIC_MAX_REPLAY,
    TOPIC_MAX_SUBSCRIBERS,
)
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.base.wire import encode
from meshnode.directory.services import Announce
from meshnode.gossip.effects import Send, Status
from meshnode.gossip.entry import Entry, EntryReject, Kind, id_of, open_entry, sign_entry
from meshnode.gossip.messages import Eager, Graft, IHave, Prune
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.back_pressure import REPEAT_S
from meshnode.topics.effects import (
    FLOOD,
    FULL,
    RECEIVED,
    REJECTED,
    SLOW,
    STRANGER,
    SUBSCRIBERS_FULL,
    TWICE,
    UNFIT,
    Dial,
    Effect,
    Misbehaved,
)
from meshnode.topics.inbox import Inbox
from meshnode.topics.joined_topic import JoinedTopic, Past, parse_message
from meshnode.topics.messages import MESSAGES, TABLE, Greet, Hold, Latest, MemberMessage, Part, Pull, Release
from meshnode.topics.overlay import scope_of
from meshnode.topics.subscribers import Subscribers, scope_in

SUBSCRIPTION_TTL_S = 3600
COALESCE_S = 0.05  # payloads for one link wait so long for others, unless the last ones went longer ago than this
CHOOSE_S = 0.1  # changes of the membership within this are one
LOOK_AGAIN_S, MAX_HELD_S = 0.02, 1.0  # a publisher that is held back looks again, and waits for one message at most
RENEW_S = 20.0  # a link that we want is greeted again
UNWANTED_S = 60.0  # and is over when neither end has wanted it for so long
AVOID_S, MAX_AVOID_S = 2.0, 60.0  # a member that does not answer is passed over for so long, doubling
HISTORY_S = 3.0  # who joined without replay takes no old messages for so long
REPLAY_S, REPLAY_UNLINKED_S = 1.0, 3.0  # after the first link; without any
REPLAY_AGES_S = 300.0, 600.0  # a replayed message may be 10 minutes old, though its time to be passed on is over
DISORDER = 8

LINKED_ONLY = {row.kind: row.neighbours_only for row in MESSAGES.values()}


class Topics:
    """Topics of one node. ``status`` asks the membership; ``now`` is monotonic seconds, ``wall`` Unix seconds."""

    def __init__(
        self,
        identity: Identity,
        rng: random.Random,
        metrics: Metrics,
        status: Callable[[NodeId], Status],
    ) -> None:
        self._identity = identity
        self._own = identity.id
        self._rng = rng
        self._metrics = metrics
        self._status = status
        self._timers = Timers()
        self._topics: dict[str, JoinedTopic] = {}
        self._by_scope: dict[bytes, JoinedTopic] = {}
        self._subscribers = Subscribers()
        self._links: dict[NodeId, None] = {}
        self._busy: dict[NodeId, None] = {}
        self._avoided: BoundedDict[NodeId, tuple[float, float]] = BoundedDict(TOPIC_MAX_SUBSCRIBERS)
        self._effects: list[Effect] = []
        self._wall_offset = 0.0  # seconds from monotonic to Unix time

    def take_effects(self) -> list[Effect]:
        """Everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        return self._timers.next_deadline()

    def tick(self, now: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._timers.run(now)
        for topic in self._topics.values():
            self._flush(topic, now)

    # ---- verbs

    def join(self, name: str, now: float, wall: float, replay: int = 0) -> Inbox:
        """Take part in a topic, with up to ``replay`` of its latest messages first. Raises ValueError."""
        if not 0 < len(name) <= TOPIC_MAX_NAME:
            raise ValueError(f"a topic's name has 1 to {TOPIC_MAX_NAME} characters")
        if not 0 <= replay <= TOPIC_MAX_REPLAY:
            raise ValueError(f"at most {TOPIC_MAX_REPLAY} messages are replayed")
        if name in self._topics:
            raise ValueError(f"the topic {name!r} is joined already")
        if len(self._topics) >= TOPIC_MAX_JOINED:
            raise ValueError(f"a node joins at most {TOPIC_MAX_JOINED} topics")
        topic = JoinedTopic(self._own, name, self._rng, self._timers, self._busy, now, wall)
        self._topics[name] = self._by_scope[topic.scope] = topic
        if replay:
            topic.past = Past(replay, now + REPLAY_UNLINKED_S)
            self._timers.at(topic.past.until, topic.end_past)
        self._subscribe(topic, now)
        self._choose(topic, now)
        self._timers.at(now + RENEW_S, lambda now: self._renew(topic, now))
        return topic.inbox

    def leave(self, name: str, now: float) -> None:
        """Leave a topic; its inbox is closed."""
        topic = self._topics.pop(name, None)
        if topic is None:
            return
        del self._by_scope[topic.scope]
        self._effects.append(Announce(Kind.SUBSCRIPTION, topic.scope.hex(), None, SUBSCRIPTION_TTL_S + 600))
        self._effects += topic.tree.take_effects()
        for peer in topic.greeted:
            self._effects.append(Send(peer, Part(topic.scope)))
        topic.inbox.close()

    def room(self, name: str, size: int, now: float) -> float:
        """Seconds until a message of ``size`` bytes may be published; 0 when it may. Raises KeyError, ValueError."""
        if size > TOPIC_MAX_DATA:
            raise ValueError(f"a message has at most {TOPIC_MAX_DATA} bytes, not {size}")
        topic = self._topics[name]
        if now < topic.published + MAX_HELD_S and topic.pressure.pressing(now):
            topic.own.messages.drain(1)  # what we were kept from is no burst that may follow
            return LOOK_AGAIN_S
        return topic.own.wait(size, now)

    def publish(self, name: str, data: bytes, now: float, wall: float) -> int:
        """Send to everybody who has joined; returns the message's seq. Raises KeyError, ValueError."""
        topic = self._topics[name]
        if len(data) > TOPIC_MAX_DATA:
            raise ValueError(f"a message has at most {TOPIC_MAX_DATA} bytes, not {len(data)}")
        topic.own.take(len(data), now)
        topic.published = now
        topic.count += 1
        entry = sign_entry(
            self._identity,
            kind=Kind.TOPIC,
            name=name,
            seq=topic.epoch + topic.count,
            issued_ms=int(wall * 1000),
            ttl=GOSSIP_MAX_FLEETING_TTL_S,
            value=encode([topic.epoch, data]),
        )
        topic.latest.add(entry.id, entry.encoded)
        topic.tree.publish(entry.id, entry.encoded, now)
        self._flush(topic, now)
        return topic.count

    # ---- questions

    def neighbours(self, name: str) -> list[NodeId]:
        """Return the members that this node exchanges the topic's messages with."""
        return list(self._topics[name].greeted)

    def waiting(self, name: str) -> dict[NodeId, int]:
        """Return the bytes that wait for each neighbour's link."""
        return dict(self._topics[name].tree.queues.waiting)

    def known(self, name: str) -> list[NodeId]:
        """Return other living nodes that have joined a topic, as their entries say."""
        members = self._subscribers.of(scope_of(name))
        return [peer for peer in members if self._status(peer) not in (Status.GONE, Status.LEFT)]

    def uses(self, peer: NodeId) -> bool:
        """True while a topic needs the connection to ``peer``."""
        return any(peer in topic.greeted or peer in topic.wanted for topic in self._topics.values())

    def joined(self) -> list[str]:
        """Return the names of the topics that are joined."""
        return list(self._topics)

    # ---- what gossip tells

    def on_entry(self, entry: Entry, now: float) -> None:
        """A new SUBSCRIPTION entry counts."""
        scope = scope_in(entry.name)
        if scope is None:
            return
        topic = self._by_scope.get(scope)
        if entry.origin == self._own:
            if entry.value is not None and topic is None:  # of an earlier run
                self._effects.append(Announce(Kind.SUBSCRIPTION, entry.name, None, SUBSCRIPTION_TTL_S + 600))
        elif entry.value is None:
            self.on_expired(entry, now)
        else:
            added = self._subscribers.add(scope, entry.origin)
            if added is None:
                self._metrics.count(SUBSCRIBERS_FULL)
            elif added and topic is not None:
                self._choose_soon(topic, now)

    def on_expired(self, entry: Entry, now: float) -> None:
        """A SUBSCRIPTION entry was withdrawn, or not renewed."""
        scope = scope_in(entry.name)
        if scope is None:
            return
        self._subscribers.remove(scope, entry.origin)
        topic = self._by_scope.get(scope)
        if topic is not None:
            topic.overlay.forget(entry.origin)
            self._choose_soon(topic, now)

    def on_member(self, peer: NodeId, now: float) -> None:
        """Choose neighbours again: the believed state of ``peer`` changed."""
        for scope, topic in self._by_scope.items():
            if peer in self._subscribers.of(scope):
                self._choose_soon(topic, now)

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """A connection to ``peer`` came or went, whoever wanted it."""
        if up:
            self._links[peer] = None
            self._avoided.pop(peer, None)
        else:
            self._links.pop(peer, None)
            self._busy.pop(peer, None)
        for topic in list(self._topics.values()):
            if up and peer in topic.wanted:
                self._greet(topic, peer, now)
            elif not up:
                known = peer in topic.greeted
                self._part(topic, peer)
                if known or peer in topic.wanted:
                    self._choose_soon(topic, now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """The answer to ``Dial`` when there is no connection to be had."""
        self._avoid(peer, now)
        for topic in self._topics.values():
            if peer in topic.wanted:
                self._choose_soon(topic, now)

    def on_busy(self, peer: NodeId, busy: bool, now: float) -> None:
        """The link to ``peer`` has enough to carry, or carries more again."""
        if busy:
            self._busy[peer] = None
            return
        self._busy.pop(peer, None)
        for topic in self._topics.values():
            topic.pressure.on_progress(peer, now)
            if peer in topic.tree.queues.waiting:
                topic.flushed = float("-inf")
                self._flush(topic, now)

    def on_drained(self, peer: NodeId, now: float) -> None:
        """Messages for ``peer`` were dropped behind us, and will be no longer."""
        for topic in self._topics.values():
            if peer in topic.greeted:
                self._tell(topic, peer, topic.tree.recent())

    # ---- what neighbours say

    def on_message(self, peer: NodeId, message: MemberMessage, now: float, wall: float) -> None:
        """Take a message of a linked peer."""
        self._wall_offset = wall - now
        topic = self._by_scope.get(message.scope)
        if topic is None:
            if not isinstance(message, Part):
                self._metrics.count(STRANGER)
                self._effects.append(Send(peer, Part(message.scope)))
            return
        if LINKED_ONLY[type(message)] and peer not in topic.greeted:
            self._metrics.count(STRANGER)
        else:
            TABLE.handler(self, message)(topic, peer, message, now)
        self._flush(topic, now)

    def on_greet(self, topic: JoinedTopic, peer: NodeId, message: Greet, now: float) -> None:
        """Take up a link, or turn it away when there are ``TOPIC_MAX_LINKS``."""
        if peer in topic.greeted:
            topic.greeted[peer] = now
        elif len(topic.greeted) >= TOPIC_MAX_LINKS:
            self._metrics.count(FULL)
            self._effects.append(Send(peer, Part(topic.scope)))
        else:
            topic.greeted[peer] = now
            topic.tree.plumtree.add(peer)
            if peer in topic.wanted:
                self._effects.append(Send(peer, Greet(topic.scope)))
            self._tell(topic, peer, topic.latest.ids())
            self._first_link(topic, now)

    def on_part(self, topic: JoinedTopic, peer: NodeId, message: Part, now: float) -> None:
        """Give up a link that its other end does not want."""
        self._part(topic, peer)
        self._avoid(peer, now)
        self._choose_soon(topic, now)

    def on_eager(self, topic: JoinedTopic, peer: NodeId, message: Eager, now: float) -> None:
        """Take payloads: messages that members published."""
        for hops, payload in message.items:
            self._on_payload(topic, peer, payload, hops, now, now + self._wall_offset)

    def on_ihave(self, topic: JoinedTopic, peer: NodeId, message: IHave, now: float) -> None:
        """Await the payloads that a neighbour announces."""
        fresh = tuple((hops, item) for hops, item in message.items if item not in topic.latest)
        topic.tree.plumtree.on_ihave(peer, IHave(topic.scope, fresh), now)

    def on_graft(self, topic: JoinedTopic, peer: NodeId, message: Graft, now: float) -> None:
        """Send payloads; the link becomes eager."""
        topic.tree.on_graft(peer, message, now)

    def on_pull(self, topic: JoinedTopic, peer: NodeId, message: Pull, now: float) -> None:
        """Send payloads; the link stays as it is."""
        topic.tree.on_pull(peer, message.ids)

    def on_prune(self, topic: JoinedTopic, peer: NodeId, message: Prune, now: float) -> None:
        """Make the link lazy."""
        topic.tree.on_prune(peer, message, now)

    def on_hold(self, topic: JoinedTopic, peer: NodeId, message: Hold, now: float) -> None:
        """Hold publishers back: a link behind ``peer`` is full."""
        topic.pressure.on_hold(peer, message.hops, now)
        self._pass_pressure(topic, now)

    def on_release(self, topic: JoinedTopic, peer: NodeId, message: Release, now: float) -> None:
        """Hold publishers back no longer on account of ``peer``."""
        topic.pressure.on_release(peer)
        self._pass_pressure(topic, now)

    def _on_payload(self, topic: JoinedTopic, peer: NodeId, payload: bytes, hops: int, now: float, wall: float) -> None:
        item = id_of(payload)
        if item in topic.tree.plumtree.seen or item in topic.latest:
            self._metrics.count(TWICE)
            topic.tree.on_duplicate(peer, item, now)
            return
        old = topic.past is not None and item in topic.past.wanted
        entry = open_entry(payload, wall)
        for age in REPLAY_AGES_S if old else ():
            if entry is EntryReject.EXPIRED:
                entry = open_entry(payload, wall - age)
        if isinstance(entry, EntryReject):
            self._metrics.count(REJECTED)
            if entry not in (EntryReject.EXPIRED, EntryReject.FUTURE):
                self._effects.append(Misbehaved(peer))
            topic.tree.plumtree.on_rejected(item, now)
            return
        parsed = parse_message(entry, topic.name)
        if parsed is None:
            self._metrics.count(UNFIT)
            self._effects.append(Misbehaved(peer))
            topic.tree.plumtree.on_rejected(item, now)
            return
        if entry.origin == self._own or not topic.allows(entry.origin, len(payload), now):
            if entry.origin != self._own:
                self._metrics.count(FLOOD)
            topic.tree.plumtree.on_rejected(item, now)
            return
        self._metrics.count(RECEIVED)
        topic.latest.add(item, payload)
        if old:
            topic.tree.plumtree.on_rejected(item, now)  # others have it: it is not passed on
        else:
            topic.tree.on_payload(peer, item, payload, hops, now)
        past = topic.past
        if past is None:
            topic.deliver(entry, now)
        else:
            (past.old if old else past.fresh).append(entry)
            past.wanted.pop(item, None)

    def on_latest(self, topic: JoinedTopic, peer: NodeId, message: Latest, now: float) -> None:
        """Ask for the latest messages that are not here: for a replay, or because a change of the tree lost them."""
        plumtree = topic.tree.plumtree
        unknown = [item for item in message.ids if item not in topic.latest and item not in plumtree.seen]
        if not unknown:
            return
        if topic.past is not None:
            asked = topic.past.count + DISORDER  # the latest to come there need not be the latest that were published
            topic.past.wanted.update(dict.fromkeys(unknown[-asked:]))
            self._effects.append(Send(peer, Graft(topic.scope, tuple(unknown[-asked:]))))
            for item in unknown[:-asked]:
                plumtree.on_rejected(item, now)
        elif now - topic.joined < HISTORY_S:
            for item in unknown:
                plumtree.on_rejected(item, now)  # published before this node joined
        else:
            offered = IHave(topic.scope, tuple((GOSSIP_MAX_HOPS, item) for item in unknown))
            plumtree.on_ihave(peer, offered, now)

    # ---- inside

    def _first_link(self, topic: JoinedTopic, now: float) -> None:
        topic.inbox.on_linked()
        if topic.past is not None and now + REPLAY_S < topic.past.until:
            topic.past.until = now + REPLAY_S
            self._timers.at(topic.past.until, topic.end_past)

    def _subscribe(self, topic: JoinedTopic, now: float) -> None:
        if self._topics.get(topic.name) is topic:
            self._effects.append(Announce(Kind.SUBSCRIPTION, topic.scope.hex(), b"", SUBSCRIPTION_TTL_S))
            wait = SUBSCRIPTION_TTL_S / 3 * self._rng.uniform(0.8, 1.2)
            self._timers.at(now + wait, lambda now: self._subscribe(topic, now))

    def _choose_soon(self, topic: JoinedTopic, now: float) -> None:
        if topic.choosing is None or not topic.choosing.live:
            topic.choosing = self._timers.at(now + CHOOSE_S, lambda now: self._choose(topic, now))

    def _choose(self, topic: JoinedTopic, now: float) -> None:
        """Choose the wanted neighbours; dial them, or greet them where there is a connection."""
        if self._topics.get(topic.name) is not topic:
            return
        members = [peer for peer in self.known(topic.name) if self._avoided.get(peer, (0.0, 0.0))[0] <= now]
        topic.wanted = dict.fromkeys(topic.overlay.choose(members))
        for peer in topic.wanted:
            if peer not in self._links:
                self._effects.append(Dial(peer))
            elif peer not in topic.greeted:
                self._greet(topic, peer, now)
        if self._avoided:
            again = min(until for until, _ in self._avoided.values())
            if again > now:
                self._timers.at(again + CHOOSE_S, lambda now: self._choose_soon(topic, now))

    def _greet(self, topic: JoinedTopic, peer: NodeId, now: float) -> None:
        self._effects.append(Send(peer, Greet(topic.scope)))
        if peer not in topic.greeted:
            topic.greeted[peer] = now
            topic.tree.plumtree.add(peer)
            self._tell(topic, peer, topic.latest.ids())
            self._first_link(topic, now)

    def _tell(self, topic: JoinedTopic, peer: NodeId, ids: Sequence[bytes]) -> None:
        if ids:
            self._effects.append(Send(peer, Latest(topic.scope, tuple(ids))))

    def _pass_pressure(self, topic: JoinedTopic, now: float) -> None:
        """Tell neighbours that bring payloads when other links can take no more."""
        if self._topics.get(topic.name) is not topic:
            return
        if topic.pressure.pressing(now):
            topic.tree.held_until = now + 2 * REPEAT_S
        for peer, hops in topic.pressure.tell(now):
            message = Release(topic.scope) if hops is None else Hold(topic.scope, hops)
            self._effects.append(Send(peer, message))
        if topic.pressure.tells and (topic.holding is None or not topic.holding.live):
            topic.holding = self._timers.at(now + REPEAT_S, lambda now: self._pass_pressure(topic, now))

    def _renew(self, topic: JoinedTopic, now: float) -> None:
        """Greet wanted neighbours again; part from those that neither end wants any longer."""
        if self._topics.get(topic.name) is not topic:
            return
        self._timers.at(now + RENEW_S * self._rng.uniform(0.8, 1.2), lambda now: self._renew(topic, now))
        for peer, heard in list(topic.greeted.items()):
            if peer in topic.wanted:
                self._effects.append(Send(peer, Greet(topic.scope)))
            elif now - heard > UNWANTED_S:
                self._part(topic, peer)
                self._effects.append(Send(peer, Part(topic.scope)))
        self._choose_soon(topic, now)

    def _part(self, topic: JoinedTopic, peer: NodeId) -> None:
        topic.greeted.pop(peer, None)
        topic.tree.remove(peer)
        topic.pressure.forget(peer)

    def _avoid(self, peer: NodeId, now: float) -> None:
        before = self._avoided.get(peer)
        wait = min(MAX_AVOID_S, before[1] * 2) if before is not None else AVOID_S
        self._avoided.put(peer, (now + wait, wait))

    def _flush(self, topic: JoinedTopic, now: float) -> None:
        """Hand out what the tree wants to send; payloads that follow each other closely share messages."""
        tree = topic.tree
        late = now < topic.flushed + COALESCE_S and max(tree.queues.waiting.values(), default=0) < GOSSIP_FRAME
        if not late:
            effects = tree.take_effects()
            if effects:
                topic.flushed = now
                self._effects += effects
            for peer in tree.queues.take_behind():
                self._tell(topic, peer, tree.recent())
        rest = late or any(peer not in self._busy for peer in tree.queues.waiting)
        if rest and (topic.flushing is None or not topic.flushing.live):
            at = topic.flushed + COALESCE_S if late else now + COALESCE_S
            topic.flushing = self._timers.at(at, lambda now: self._flush(topic, now))
        if topic.pressure.weigh(tree.queues.waiting, now):
            self._pass_pressure(topic, now)
        if tree.queues.dropped:
            self._metrics.count(SLOW, tree.queues.dropped)
            tree.queues.dropped = 0
