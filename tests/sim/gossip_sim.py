"""Thousands of gossip cores in virtual time, over links as QUIC gives them: in order, and loss costs time, not data.

One seed, one run, in any process. ``strict`` sends every message as its bytes; without it the objects themselves go,
which is three times as fast. A followed entry leaves a trace that says why it was late where it was.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from meshnode.base.limits import GOSSIP_MAX_STORED
from meshnode.base.metrics import Metrics
from meshnode.gossip import (
    Banned,
    Changed,
    Connect,
    Contact,
    Effect,
    Entry,
    Gossip,
    Kind,
    MemberChanged,
    Message,
    NeedContacts,
    Probe,
    Release,
    Send,
    encode_message,
)
from meshnode.gossip.entry import id_of
from meshnode.gossip.messages import TABLE, Eager, Entries
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from tests.sim.gossip_node import GossipNode, Hop

EPOCH = 1_800_000_000.0
DIAL_TIMEOUT_S = 5.0
LINGER_S = 5.0
MAX_HELD = 256  # messages that wait on a link that is cut, as GOSSIP_QUEUE bounds them in a real node


class GossipNet:
    """Virtual time, and all that is on its way in it."""

    def __init__(self, seed: int, *, delay: float = 0.05, loss: float = 0.01, strict: bool = False) -> None:
        self.rng = random.Random(seed)
        self.delay = delay
        self.jitter = 0.0
        self.loss = loss
        self.strict = strict
        self.now = 0.0
        self.nodes: list[GossipNode] = []
        self.by_id: dict[NodeId, GossipNode] = {}
        self.messages = 0
        self.probes = 0
        self.weighed: int | None = None  # bytes of messages since it was set to 0; None: they are not encoded for it
        self.side: dict[NodeId, int] = {}  # while there is a partition: the side of each node
        self.arrivals: dict[bytes, dict[int, Hop]] = {}
        self.keep_statuses = True
        self.store_limit = GOSSIP_MAX_STORED
        self.on_changed: Callable[[GossipNode, Changed], None] | None = None
        self._followed: dict[bytes, bytes] = {}
        self._trace = hashlib.blake2b(digest_size=16)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._free: dict[tuple[int, int], float] = {}
        self._held: dict[tuple[int, int], list[Message | bytes]] = {}
        self._epoch = 0

    # ---- building

    def add(self, identity: Identity | None = None, *, skew: float = 0.0, listed: bool = False) -> GossipNode:
        """A new node that knows no other; ``listed``: all have to know it, as they do a seed."""
        identity = identity or Identity(self.rng.randbytes(32))
        core, metrics = self._core(identity, skew, listed=listed)
        node = GossipNode(len(self.nodes), identity, core, metrics, born=self.now, skew=skew)
        self.nodes.append(node)
        self.by_id[identity.id] = node
        self.pump(node)
        return node

    def _core(self, identity: Identity, skew: float, seq: int = 0, listed: bool = False) -> tuple[Gossip, Metrics]:
        metrics = Metrics()
        wall = EPOCH + self.now + skew
        rng = random.Random(self.rng.getrandbits(64))
        first = max(seq, int(wall * 1000))
        gossip = Gossip(
            identity,
            rng=rng,
            metrics=metrics,
            now=self.now,
            wall=wall,
            first_seq=first,
            store_limit=self.store_limit,
            listed=listed,
        )
        return gossip, metrics

    def wall(self, node: GossipNode) -> float:
        """A node's Unix seconds."""
        return EPOCH + self.now + node.skew

    def join(self, node: GossipNode, via: GossipNode) -> None:
        """Enter the mesh through ``via``."""
        node.contacts = [via]
        node.gossip.join(Contact(via.id), self.now)
        self.pump(node)

    def publish(self, node: GossipNode, name: str, value: bytes | None, *, kind: int = Kind.SERVICE) -> Entry:
        """Publish an entry, and follow it."""
        entry = node.gossip.publish(kind, name, value, 3600 if kind < 16 else 60, self.now)
        self.follow(entry, node)
        self.pump(node)
        return entry

    def announce(self, node: GossipNode) -> Entry | None:
        """Announce the node as a member, as after a start or a move; its entry, if it is listed already."""
        entry = node.gossip.announce(b"", self.now)
        if entry is not None:
            self.follow(entry, node)
        self.pump(node)
        return entry

    def introduce(self) -> None:
        """All nodes know each other, as if each had announced itself long ago, and offered something."""
        for node in self.nodes:
            node.gossip.own_entries.listing.must(self.now)
        entries = [node.gossip.announce(b"", self.now) for node in self.nodes]
        for node in self.nodes:
            node.gossip.take_effects()
            for entry in filter(None, entries):
                node.gossip.store.put(entry)

    def follow(self, entry: Entry, origin: GossipNode) -> None:
        """Keep a trace of an entry."""
        self._followed[entry.id] = entry.encoded
        self.arrivals[entry.id] = {origin.number: Hop(origin.number, self.now, self.now, 0, False)}

    def unfollow(self) -> None:
        """Forget all traces."""
        self._followed.clear()
        self.arrivals.clear()

    # ---- time

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Do something at a virtual time."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action, args))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; ends early, returning True, when ``until`` holds (looked at every 10 ms)."""
        end = self.now + seconds
        look = self.now
        queue = self._queue
        while queue and queue[0][0] <= end:
            when, _, action, args = heapq.heappop(queue)
            if until is not None and when >= look:
                if until():
                    return True
                look = when + 0.01
            self.now = when
            action(*args)
        self.now = end
        return until is not None and until()

    @property
    def digest(self) -> str:
        """Names the run so far: sender, receiver, kind and time of each message, and the bytes when ``strict``."""
        return self._trace.copy().hexdigest()

    # ---- what happens to nodes

    def crash(self, node: GossipNode) -> None:
        """Vanish without a word."""
        node.alive = False
        node.links.clear()
        for other in self.nodes:  # the one that lives with the same key is to be found from now on
            if other.alive and other.id == node.id:
                self.by_id[node.id] = other

    def leave(self, node: GossipNode) -> None:
        """Say goodbye and go."""
        node.gossip.leave(self.now)
        self.pump(node)
        self.at(self.now + 1.0, self.crash, node)

    def restart(self, node: GossipNode, via: GossipNode, *, seq: int = 0) -> None:
        """Come back with the same key, and no memory but, perhaps, the highest ``seq`` that was used."""
        self.crash(node)
        self.unlink_all(node)
        node.gossip, node.metrics = self._core(node.identity, node.skew, seq)
        node.alive, node.born, node.scheduled = True, self.now, math.inf
        self.by_id[node.id] = node
        self.join(node, via)

    def unlink_all(self, node: GossipNode) -> None:
        """Links of this key end, at both ends."""
        for other in self.nodes:
            if other.alive and node.id in other.links:
                self._unlink(other, node)
            for peer in list(other.links) if other.id == node.id else ():
                self._unlink(other, self.by_id[peer])

    def partition(self, half: Iterable[GossipNode]) -> None:
        """Cut these off from the rest."""
        self.side = {node.id: 1 for node in half}

    def heal(self) -> None:
        """End the partition: what waited on links goes on its way."""
        self.side = {}
        held, self._held = self._held, {}
        for (source, target), messages in held.items():
            a, b = self.nodes[source], self.nodes[target]
            if b.id in a.links:
                for message in messages:
                    self._transmit(a, b, message)

    def _cut(self, a: GossipNode, b: GossipNode) -> bool:
        return bool(self.side) and self.side.get(a.id, 0) != self.side.get(b.id, 0)

    # ---- driving a core

    def pump(self, node: GossipNode) -> None:
        """Carry out a node's effects and arm its timer."""
        while True:
            effects = node.gossip.take_effects()
            if not effects:
                break
            for effect in effects:
                self._carry(node, effect)
        at = node.gossip.next_deadline()
        if at is not None and at < node.scheduled:
            node.scheduled = at
            self.at(max(at, node.stalled_until), self._wake, node, at, node.born)

    def _wake(self, node: GossipNode, at: float, born: float) -> None:
        if node.scheduled != at or node.born != born or not node.alive:
            return
        if node.stalled_until > self.now:
            self.at(node.stalled_until, self._wake, node, at, born)
            return
        node.scheduled = math.inf
        node.gossip.tick(self.now, self.wall(node))
        after = node.gossip.next_deadline()
        assert after is None or after > self.now, "a tick must leave no deadline behind"
        self.pump(node)

    def _carry(self, node: GossipNode, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(node, effect.peer, effect.message)
        elif isinstance(effect, Changed):
            if self.on_changed is not None:
                self.on_changed(node, effect)
        elif isinstance(effect, Connect):
            self._connect(node, effect.contact.id)
        elif isinstance(effect, Probe):
            self._probe(node, effect.contact.id)
        elif isinstance(effect, MemberChanged):
            if self.keep_statuses:
                node.statuses.append((self.now, effect.peer, effect.status))
        elif isinstance(effect, Release):
            self.at(self.now + LINGER_S, self._release, node, effect.peer)
        elif isinstance(effect, NeedContacts):
            for other in node.contacts:
                node.gossip.add_contact(Contact(other.id), self.now)
        elif isinstance(effect, Banned):
            other = self.by_id[effect.peer]
            self._unlink(node, other)
            self.at(self.now + self.delay, self._unlink, other, node)

    def _send(self, node: GossipNode, peer: NodeId, message: Message) -> None:
        other = self.by_id[peer]
        if peer not in node.links or not node.alive:
            return
        for said in [message] if node.liar is None else node.liar(node, message):
            if self._cut(node, other):
                held = self._held.setdefault((node.number, other.number), [])
                if len(held) < MAX_HELD:
                    held.append(said)
            else:
                self._transmit(node, other, said)

    def _transmit(self, node: GossipNode, other: GossipNode, message: Message | bytes) -> None:
        self.messages += 1
        if self.weighed is not None:
            self.weighed += len(message if isinstance(message, bytes) else encode_message(message))
        rng, losses = self.rng, 0
        late, rto = self.delay, 2 * self.delay + 0.1
        if self.jitter:
            late += rng.random() * self.jitter
        while rng.random() < self.loss:
            late, rto, losses = late + rto, rto * 2, losses + 1
        lane = node.number, other.number
        arrives = self._free[lane] = max(self._free.get(lane, 0.0), self.now + late)
        raw = isinstance(message, bytes)
        data = message if raw else encode_message(message) if self.strict else b""
        self._trace.update(b"%.9f %d %d %d" % (arrives, *lane, 0 if raw else TABLE.numbers[type(message)]) + data)
        if self._followed and isinstance(message, Eager | Entries):
            self._note(node, other, message, arrives, losses)
        self.at(arrives, self._deliver, node, other, node.born, other.born, data or message)

    def _note(self, node: GossipNode, other: GossipNode, message: Eager | Entries, arrives: float, losses: int) -> None:
        payloads = [p for _, p in message.items] if isinstance(message, Eager) else message.payloads
        for payload in payloads:
            item = (
                id_of(payload)
                if len(self._followed) > 8
                else next((i for i, p in self._followed.items() if p == payload), b"")
            )
            hops = self.arrivals.get(item)
            if hops is None:
                continue
            known = hops.get(other.number)
            if known is None or arrives < known.arrived:
                first = hops.get(node.number)
                hops[other.number] = Hop(
                    node.number, self.now, arrives, losses, first is not None and self.now > first.arrived + 1e-9
                )

    def _deliver(self, node: GossipNode, other: GossipNode, b1: float, b2: float, said: Message | bytes) -> None:
        if other.stalled_until > self.now and other.alive:
            self.at(other.stalled_until, self._deliver, node, other, b1, b2, said)
            return
        if not other.alive or node.born != b1 or other.born != b2:
            return
        if node.id not in other.links:  # a connection that the other end does not know: its node's paths are told so
            self._unlink(node, other)
            return
        if isinstance(said, bytes):
            other.gossip.receive(node.id, said, self.now)
        else:
            other.gossip.on_message(node.id, said, self.now)
        self.pump(other)

    # ---- links and probes

    def _connect(self, node: GossipNode, peer: NodeId) -> None:
        other = self.by_id.get(peer)
        if other is None or not other.alive or self._cut(node, other) or other is node:
            self.at(self.now + DIAL_TIMEOUT_S, self._failed, node, peer, node.born)
        else:
            self.at(self.now + 3 * self.delay, self._connected, node, other, node.born)

    def _failed(self, node: GossipNode, peer: NodeId, born: float) -> None:
        if node.alive and node.born == born:
            node.gossip.on_connect_failed(peer, self.now)
            self.pump(node)

    def _connected(self, node: GossipNode, other: GossipNode, born: float) -> None:
        if not node.alive or not other.alive or self._cut(node, other) or node.born != born:
            self._failed(node, other.id, born)
            return
        self._epoch += 1
        for here, there in ((node, other), (other, node)):
            if there.id not in here.links:
                here.links[there.id] = self._epoch
        for here, there in ((node, other), (other, node)):
            here.gossip.on_link(there.id, True, self.now)
            self.pump(here)

    def _unlink(self, node: GossipNode, other: GossipNode) -> None:
        if node.links.pop(other.id, None) is not None and node.alive:
            self._held.pop((node.number, other.number), None)
            node.gossip.on_link(other.id, False, self.now)
            self.pump(node)

    def _release(self, node: GossipNode, peer: NodeId) -> None:
        """Close a link that neither end's gossip needs."""
        other = self.by_id[peer]
        if not node.alive or peer in node.gossip.hyparview.active or peer in node.gossip.hyparview._pending:
            return
        wanted = other.gossip.hyparview.active, other.gossip.hyparview._pending
        if other.alive and not self._cut(node, other) and (node.id in wanted[0] or node.id in wanted[1]):
            return
        self._unlink(node, other)
        if not self._cut(node, other):
            self._unlink(other, node)

    def _probe(self, node: GossipNode, peer: NodeId) -> None:
        self.probes += 1
        other = self.by_id.get(peer)
        for number in range(3):
            wait = number * 0.15
            if other is None or not other.alive or self._cut(node, other):
                return
            if self.rng.random() >= self.loss:
                self.at(self.now + wait + self.delay, self._probed, node, other, other.born)
                if self.rng.random() >= self.loss:
                    self.at(self.now + wait + 2 * self.delay, self._answered, node, other, node.born)
                    return

    def _probed(self, node: GossipNode, other: GossipNode, born: float) -> None:
        if other.alive and other.born == born and other.stalled_until <= self.now:
            other.gossip.on_heard(node.id, self.now)
            self.pump(other)

    def _answered(self, node: GossipNode, other: GossipNode, born: float) -> None:
        if other.stalled_until > self.now or not other.alive:
            return
        if node.stalled_until > self.now:
            self.at(node.stalled_until, self._answered, node, other, born)
            return
        if node.alive and node.born == born:
            node.gossip.on_alive(other.id, self.now)
            self.pump(node)

    # ---- questions

    def living(self) -> list[GossipNode]:
        """Nodes that run."""
        return [node for node in self.nodes if node.alive]

    def is_connected(self, among: list[GossipNode] | None = None) -> bool:
        """True when the active views of those that live (or only of these) form one graph."""
        living = self.living() if among is None else among
        ids = {node.id: None for node in living}
        seen = {living[0].id: None}
        frontier = [living[0]]
        while frontier:
            node = frontier.pop()
            for peer in node.gossip.hyparview.active:
                if peer in ids and peer not in seen:
                    seen[peer] = None
                    frontier.append(self.by_id[peer])
        return len(seen) == len(living)

    def delays(self, entry: Entry) -> list[float]:
        """How long a followed entry took to each node that has it, sorted; the origin is not counted."""
        hops = self.arrivals[entry.id]
        began = min(hop.arrived for hop in hops.values())
        return sorted(hop.arrived - began for hop in hops.values())[1:]

    def why(self, entry: Entry, node: GossipNode) -> str:
        """The way of a followed entry to a node, hop by hop, in seconds since it was published: where the time went."""
        hops = self.arrivals[entry.id]
        began = min(hop.arrived for hop in hops.values())
        lines, number = [], node.number
        while number in hops:
            hop = hops[number]
            if hop.source == number:
                lines.append(f"{0:7.3f} s  node {number} published it")
                break
            before = hops[hop.source].arrived
            notes = [f"{hop.losses} losses"] if hop.losses else []
            if hop.repaired:
                notes.append(f"sent {hop.sent - before:.3f} s after it was there: asked for, or reconciled")
            lines.append(
                f"{hop.arrived - began:7.3f} s  node {hop.source} -> node {number}, {hop.arrived - hop.sent:.3f} s"
                + (f" ({'; '.join(notes)})" if notes else "")
            )
            number = hop.source
        return "\n".join(reversed(lines))


def build(
    count: int,
    seed: int,
    *,
    announce: bool = False,
    every: float = 0.01,
    settle: float = 15.0,
    through: int = 3,
    statuses: bool = True,
    **options: Any,
) -> GossipNet:
    """A mesh whose nodes joined through one of the first ``through`` of them, one after the other."""
    net = GossipNet(seed, **options)
    net.keep_statuses = statuses
    for number in range(count):
        node = net.add()
        if number:
            net.join(node, net.nodes[net.rng.randrange(min(number, through))])
        if announce:
            node.gossip.announce(b"", net.now)
            net.pump(node)
        net.run(every)
    net.run(settle)
    return net
