"""Topics: applications' own messages, spread among the nodes that joined and no others. Sans I/O.

A node that joins publishes a stored entry (kind SUBSCRIPTION), so every node knows the members. They link to each other
(overlay.py), and over these links runs one Plumtree per topic (topic_plumtree.py): on the mesh's shared tree every node
would carry every topic's bytes. A message is a signed, fleeting entry of kind TOPIC: it comes at most once, and in
order while the tree does not change.

This file is what a node has of topics as a whole: which are joined, the members and the connections. What happens in
one topic is in joined_topic.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.fair_table import Groups
from meshnode.base.limits import TOPIC_MAX_JOINED, TOPIC_MAX_NAME, TOPIC_MAX_REPLAY
from meshnode.base.metrics import Metrics
from meshnode.directory.services import Announce
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.topics.context import FREE, Access, TopicContext
from meshnode.topics.effects import DENIED, STRANGER, SUBSCRIBERS_FULL, Effect
from meshnode.topics.entries import scope_in
from meshnode.topics.inbox import Inbox
from meshnode.topics.joined_topic import WITHDRAWN_TTL_S, JoinedTopic
from meshnode.topics.messages import MemberMessage, Part
from meshnode.topics.overlay import scope_of


class Topics:
    """Topics of one node. ``status`` asks the membership, ``groups_of`` where a linked peer is.

    ``now`` is monotonic seconds, ``wall`` Unix seconds.

    What peers send never raises. After each call, the caller carries out ``take_effects()``.
    """

    def __init__(
        self,
        identity: Identity,
        rng: random.Random,
        metrics: Metrics,
        status: Callable[[NodeId], Status],
        groups_of: Callable[[NodeId], Groups] = lambda peer: (peer,),
        access: Access = FREE,
        is_leaf: Callable[[NodeId], bool] = lambda peer: False,
    ) -> None:
        self._context = TopicContext(identity, rng, metrics, status, groups_of, access, is_leaf)
        self._topics: dict[str, JoinedTopic] = {}
        self._by_scope: dict[bytes, JoinedTopic] = {}

    def take_effects(self) -> list[Effect]:
        """Return everything to do since the last call, in order."""
        effects, self._context.effects = self._context.effects, []
        return effects

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next."""
        return self._context.timers.next_deadline()

    def tick(self, now: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._context.timers.run(now)
        for topic in self._topics.values():
            topic.flush(now)

    # ---- verbs

    def join(self, name: str, now: float, wall: float, replay: int = 0) -> Inbox:
        """Take part in a topic; returns the queue of its messages.

        Args:
            name: 1 to ``TOPIC_MAX_NAME`` characters.
            now: Monotonic seconds.
            wall: Unix seconds. Its milliseconds number this node's messages, so they must not be those of an earlier
                time here.
            replay: How many of the topic's latest messages come first, 0 to ``TOPIC_MAX_REPLAY``.

        Raises:
            ValueError: The name or the number is out of range, the topic is joined already, or ``TOPIC_MAX_JOINED``
                are.
        """
        if not 0 < len(name) <= TOPIC_MAX_NAME:
            raise ValueError(f"a topic's name has 1 to {TOPIC_MAX_NAME} characters")
        if not 0 <= replay <= TOPIC_MAX_REPLAY:
            raise ValueError(f"at most {TOPIC_MAX_REPLAY} messages are replayed")
        if name in self._topics:
            raise ValueError(f"the topic {name!r} is joined already")
        if len(self._topics) >= TOPIC_MAX_JOINED:
            raise ValueError(f"a node joins at most {TOPIC_MAX_JOINED} topics")
        self._context.names[scope_of(name)] = name
        topic = JoinedTopic(self._context, name, replay, now, wall)
        self._topics[name] = self._by_scope[topic.scope] = topic
        return topic.inbox

    def leave(self, name: str, now: float) -> None:
        """Leave a topic; its inbox is closed.

        Nothing happens when it is not joined.
        """
        topic = self._topics.pop(name, None)
        if topic is not None:
            del self._by_scope[topic.scope], self._context.names[topic.scope]
            topic.leave()

    def room(self, name: str, size: int, now: float) -> float:
        """Return the seconds until a message of ``size`` bytes may be published; 0.0 when it may be now.

        Raises KeyError when the topic is not joined, ValueError when ``size`` is over ``TOPIC_MAX_DATA``.
        """
        return self._topics[name].publisher.wait(size, now)

    def publish(self, name: str, data: bytes, now: float, wall: float) -> int:
        """Send a message to all members of a topic; returns its number, which counts this node's messages from 1.

        It goes out whatever ``room`` says, but members drop what is over the rate. Raises KeyError when the topic is
        not joined, ValueError when the message has over ``TOPIC_MAX_DATA`` bytes.
        """
        return self._topics[name].publish(data, now, wall)

    # ---- questions

    def neighbours(self, name: str) -> list[NodeId]:
        """Return the members that this node exchanges the topic's messages with: at most ``TOPIC_MAX_LINKS``.

        Raises KeyError when the topic is not joined.
        """
        return list(self._topics[name].neighbours.greeted)

    def waiting(self, name: str) -> dict[NodeId, int]:
        """Return the bytes that wait for each neighbour's link; a neighbour for which none wait is missing.

        Raises KeyError when the topic is not joined.
        """
        return dict(self._topics[name].tree.queues.waiting)

    def known(self, name: str) -> list[NodeId]:
        """Return the other members of a topic, joined here or not, as their entries say.

        A node that left the mesh, or is believed gone, is none.
        """
        return self._context.members(scope_of(name))

    def uses(self, peer: NodeId) -> bool:
        """Return whether a topic needs the connection to ``peer``."""
        return any(topic.uses(peer) for topic in self._topics.values())

    def joined(self) -> list[str]:
        """Return the names of the topics that are joined."""
        return list(self._topics)

    # ---- what gossip tells

    def on_entry(self, entry: Entry, now: float) -> None:
        """Take a new SUBSCRIPTION entry: a member more or less.

        One of this node's own for a topic that is not joined is of an earlier run, and is withdrawn.
        """
        scope = scope_in(entry.name)
        if scope is None:
            return
        topic = self._by_scope.get(scope)
        if entry.origin == self._context.identity.id:
            if entry.value is not None and topic is None:
                self._context.effects.append(Announce(Kind.SUBSCRIPTION, entry.name, None, WITHDRAWN_TTL_S))
        elif entry.value is None:
            self.on_expired(entry, now)
        else:
            added = self._context.subscribers.add(scope, entry.origin)
            if added is None:
                self._context.metrics.count(SUBSCRIBERS_FULL)
            elif added and topic is not None:
                topic.neighbours.choose_soon(now)

    def on_expired(self, entry: Entry, now: float) -> None:
        """Remove a member: its SUBSCRIPTION entry was withdrawn, or not renewed."""
        scope = scope_in(entry.name)
        if scope is None:
            return
        self._context.subscribers.remove(scope, entry.origin)
        topic = self._by_scope.get(scope)
        if topic is not None:
            topic.neighbours.on_unsubscribed(entry.origin, now)

    def on_member(self, peer: NodeId, now: float) -> None:
        """Choose neighbours again: the believed state of ``peer`` changed."""
        for scope, topic in self._by_scope.items():
            if peer in self._context.subscribers.of(scope):
                topic.neighbours.choose_soon(now)

    def on_access_changed(self, now: float) -> None:
        """Part from neighbours that may take part in a topic no longer, and choose again among those that may."""
        for name, topic in self._topics.items():
            for peer in list(topic.neighbours.greeted):
                if not self._context.access.joins(peer, name):
                    topic.neighbours.part(peer)
            topic.neighbours.choose_soon(now)

    # ---- what happens to connections

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """Note that a connection to ``peer`` came or went, whichever end or layer wanted it."""
        self._context.links.on_link(peer, up)
        for topic in list(self._topics.values()):
            topic.neighbours.on_link(peer, up, now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """Avoid a member for a while: ``Dial`` gave no connection.

        One that does connect comes with ``on_link``.
        """
        self._context.links.avoid(peer, now)
        for topic in self._topics.values():
            topic.neighbours.on_connect_failed(peer, now)

    def on_busy(self, peer: NodeId, busy: bool, now: float) -> None:
        """Note that the link to ``peer`` takes nothing at present, or takes something again.

        While it is busy, up to ``TOPIC_LINK_QUEUE`` bytes wait for it in each topic.
        """
        if busy:
            self._context.links.busy[peer] = None
            return
        self._context.links.busy.pop(peer, None)
        for topic in self._topics.values():
            topic.on_progress(peer, now)

    def on_drained(self, peer: NodeId, now: float) -> None:
        """Note that messages handed out for ``peer`` were dropped, and will be no longer.

        It is told the recent ids of each topic that it is a neighbour in, and asks for what it lacks.
        """
        for topic in self._topics.values():
            topic.on_drained(peer)

    def on_message(self, peer: NodeId, message: MemberMessage, now: float, wall: float) -> None:
        """Take a message of a linked peer.

        One of a topic that is not joined is answered with Part.
        """
        self._context.wall_offset = wall - now
        topic = self._by_scope.get(message.scope)
        if topic is not None and not self._context.access.joins(peer, self._context.names[message.scope]):
            self._context.metrics.count(DENIED)
            topic.neighbours.part(peer)
        elif topic is not None:
            topic.on_message(peer, message, now)
        elif not isinstance(message, Part):
            self._context.metrics.count(STRANGER)
            self._context.send(peer, Part(message.scope))
