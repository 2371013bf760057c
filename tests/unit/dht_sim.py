"""A deterministic virtual network for DHT cores: a heap of events, ideal sealing, a latency model, bad nodes."""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.wire import WireError
from meshnode.discovery.dht import Dht, Effect, Found, LookupDone, SendSealed
from meshnode.discovery.dht.messages import (
    ContactInfo,
    Find,
    Get,
    Nodes,
    Ping,
    Pong,
    Reply,
    Request,
    Status,
    Store,
    Stored,
    Value,
    Watch,
    decode_message,
    encode_message,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record
from meshnode.stack.newest_first import NewestFirst
from meshnode.stack.reception import Run

WALL = 1_800_000_000.0


@dataclass(eq=False)
class SimNode:
    """One node: its core, where it is, and what it said to its user."""

    identity: Identity
    dht: Dht
    addr: Addr
    place: tuple[float, float]
    metrics: Metrics
    alive: bool = True
    junk: bool = False
    seq: int = 1_000
    log: list[tuple[float, Effect]] = field(default_factory=list)
    scheduled: float = math.inf
    backlog: NewestFirst | None = None  # of a node whose CPU is short
    spent: float = 0.0  # seconds of CPU
    busy: bool = False
    own_id: NodeId | None = None  # instead of its identity's
    lies: Callable[[Request], Reply | None] | None = None  # how a liar that is no fool answers

    @property
    def id(self) -> NodeId:
        """The node's id."""
        return self.own_id or self.identity.id


class Net:
    """Virtual time and the packets in it. Median RTT is about 90 ms over the unit square."""

    def __init__(self, seed: int = 1, *, loss: float = 0.0, base: float = 0.010, spread: float = 0.0687) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.base = base
        self.spread = spread
        self.now = 1_000.0
        self.nodes: list[SimNode] = []
        self.by_addr: dict[Addr, SimNode] = {}
        self.packets = 0
        self.sent_bytes = 0
        self.trace = hashlib.blake2b(digest_size=16)
        self.longest_reply_excess = 0
        self.priced: dict[NodeId, None] = {}  # ids that were paid for
        self.cost = 0.0  # seconds of CPU that a message costs its receiver
        self.share = 1.0  # of a core that each node has
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0

    def wall(self) -> float:
        """Unix seconds."""
        return WALL + self.now

    def add(
        self,
        *,
        seed_role: bool = False,
        seed: bytes | None = None,
        addr: Addr | None = None,
        own_id: NodeId | None = None,
    ) -> SimNode:
        """A new node that knows no other; ``own_id`` is one that signs nothing."""
        identity = Identity(seed or self.rng.randbytes(32))
        metrics = Metrics()
        own = random.Random(self.rng.getrandbits(64))
        dht = Dht(
            own_id or identity.id,
            rng=own,
            entropy=own.randbytes,
            metrics=metrics,
            now=self.now,
            wall=self.wall(),
            seed_role=seed_role,
            has_price=self.priced.__contains__,
        )
        place = (self.rng.random(), self.rng.random())
        node = SimNode(identity, dht, addr or self.fresh_addr(), place, metrics, own_id=own_id)
        self.nodes.append(node)
        self.by_addr[node.addr] = node
        self.pump(node)
        return node

    def fresh_addr(self) -> Addr:
        """A public address that no node has."""
        while True:
            r = self.rng
            host = f"{r.randint(11, 99)}.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}"
            addr = Addr(host, r.randint(1024, 65535))
            if addr not in self.by_addr:
                return addr

    def move(self, node: SimNode) -> None:
        """A new address; the old one is dead at once."""
        del self.by_addr[node.addr]
        node.addr = self.fresh_addr()
        self.by_addr[node.addr] = node

    def kill(self, node: SimNode) -> None:
        """It stops answering."""
        node.alive = False

    def record(self, node: SimNode) -> EndpointRecord:
        """The node's next record, with its present address."""
        node.seq += 1
        return sign_record(
            node.identity,
            seq=node.seq,
            issued_ms=int(self.wall() * 1000),
            ttl=7200,
            endpoints=(Endpoint(node.addr),),
        )

    def publish(self, node: SimNode) -> EndpointRecord:
        """Sign and publish the node's next record."""
        record = self.record(node)
        node.dht.publish(record, self.now)
        self.pump(node)
        return record

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run ``action`` at a virtual time."""
        self._counter += 1
        heapq.heappush(self._heap, (when, self._counter, action))

    def pump(self, node: SimNode) -> None:
        """Carry out the node's effects and arm its timer."""
        for effect in node.dht.take_effects():
            if isinstance(effect, SendSealed):
                self._send(node, effect)
            else:
                node.log.append((self.now, effect))
        deadline = node.dht.next_deadline()
        if deadline is not None and deadline < node.scheduled:
            node.scheduled = deadline
            self.at(deadline, lambda: self._wake(node, deadline))

    def _wake(self, node: SimNode, deadline: float) -> None:
        if node.scheduled != deadline:
            return
        node.scheduled = math.inf
        if node.alive:
            node.dht.tick(self.now, self.wall())
            after = node.dht.next_deadline()
            assert after is None or after > self.now, "a tick must leave no deadline behind"
            self.pump(node)

    def _send(self, node: SimNode, effect: SendSealed) -> None:
        self.packets += 1
        self.sent_bytes += len(effect.body) + 97
        self.trace.update(b"%.9f" % self.now + node.id.raw + str(effect.addr).encode() + effect.body)
        if self.loss and self.rng.random() < self.loss:
            return
        target = self.by_addr.get(effect.addr)
        if target is None or target.id != effect.peer:
            return
        delay = self.base + self.spread * math.dist(node.place, target.place)
        delay *= 1 + 0.1 * self.rng.random()
        source = node.addr
        self.at(self.now + delay, lambda: self._deliver(node.id, source, target, effect.addr, effect.body))

    def _deliver(self, sender: NodeId, source: Addr, target: SimNode, addr: Addr, body: bytes) -> None:
        if not target.alive or target.addr != addr:
            return
        if target.junk:
            self._reply_junk(sender, source, target, body)
            return
        if target.lies is not None and isinstance(request := decode_message(body), Find | Get | Ping | Store | Watch):
            reply = target.lies(request)
            if reply is not None:
                self._send(target, SendSealed(sender, source, encode_message(reply)))
            return
        if self.cost:
            self._queue(sender, source, target, body)
            return
        target.dht.handle(sender, body, source, len(body) + 97, self.now, self.wall())
        self.pump(target)

    def _queue(self, sender: NodeId, source: Addr, node: SimNode, body: bytes) -> None:
        """Let a message wait for the receiver's CPU, in the order that a node's driver gives it."""
        if node.backlog is None:
            node.backlog = NewestFirst(lambda source: True, lambda: node.spent)
        node.backlog.put([([bytes([1]) + sender.raw + bytes(64) + body], source)], self.now)
        if not node.busy:
            node.busy = True
            self.at(self.now, lambda: self._serve(node))

    def _serve(self, node: SimNode) -> None:
        """Give a node one turn of CPU: what it handles then is answered when the time for it has passed."""
        assert node.backlog is not None
        began = node.spent

        def take(runs: Sequence[Run]) -> None:
            for (data, *_), source in runs:
                node.spent += self.cost
                assert isinstance(source, Addr)
                sender, body = NodeId(data[1:33]), data[97:]
                node.dht.handle(sender, body, source, len(data), self.now, self.wall())

        node.backlog.turn(take, self.now)
        self.at(self.now + (node.spent - began) / self.share, lambda: self._served(node))

    def _served(self, node: SimNode) -> None:
        assert node.backlog is not None
        if node.alive:
            self.pump(node)
        if node.backlog.waiting:
            self._serve(node)
        else:
            node.busy = False

    def _reply_junk(self, sender: NodeId, source: Addr, node: SimNode, body: bytes) -> None:
        """A liar: contacts that do not exist, forged records, noise, or an honest-looking lie."""
        try:
            request = decode_message(body)
        except WireError:
            return  # another liar's noise
        fakes = tuple(ContactInfo(NodeId(self.rng.randbytes(32)), self.fresh_addr()) for _ in range(16))
        token = self.rng.randbytes(8)
        lie = self.rng.randrange(4)
        if isinstance(request, Find):
            reply = encode_message(Nodes(request.tx, token, fakes))
        elif isinstance(request, Get):
            record = self.rng.randbytes(200) if lie == 0 else self.record(node).encoded if lie == 1 else b""
            reply = encode_message(Value(request.tx, token, fakes, record))
        elif isinstance(request, Ping):
            reply = encode_message(Pong(request.tx, token))
        elif isinstance(request, Store):
            reply = encode_message(Stored(request.tx, Status.OK, token))
        else:
            return
        if lie == 3:
            reply = reply[:1] + self.rng.randbytes(len(reply) - 1)
        self._send(node, SendSealed(sender, source, reply))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Let virtual time pass until ``condition()``, at most ``limit`` seconds; False at the limit."""
        end = self.now + limit
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return False
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return True

    def join(self, node: SimNode, via: Iterable[SimNode]) -> None:
        """Tell ``node`` of seeds."""
        for seed in via:
            node.dht.add_contact_hint(seed.id, seed.addr, self.now, seed=True)
        self.pump(node)

    def resolve(
        self, node: SimNode, target: NodeId, limit: float = 15.0
    ) -> tuple[Found | None, float, LookupDone | None]:
        """Look up; the first record, how long it took (s), and the end of it."""
        started, mark = self.now, len(node.log)
        number = node.dht.lookup(target, self.now)
        self.pump(node)

        def done() -> bool:
            return any(isinstance(e, LookupDone) and e.lookup_id == number for _, e in node.log[mark:])

        self.run_until(done, limit)
        first: tuple[float, Found] | None = None
        end: LookupDone | None = None
        for when, effect in node.log[mark:]:
            if isinstance(effect, Found) and effect.lookup_id == number and first is None:
                first = (when, effect)
            elif isinstance(effect, LookupDone) and effect.lookup_id == number:
                end = effect
        if first is None:
            return None, self.now - started, end
        return first[1], first[0] - started, end


def build(
    count: int,
    seed: int,
    *,
    join_every: float = 0.02,
    loss: float = 0.0,
    priced: float = 0.0,
    kind: type[Net] = Net,
) -> Net:
    """A mesh that grew by nodes joining through one of the first three; a share of their ids is ``priced``."""
    net = kind(seed, loss=loss)
    for i in range(count):
        node = net.add()
        if priced and net.rng.random() < priced:
            net.priced[node.id] = None
        if i:
            net.join(node, [net.nodes[net.rng.randrange(min(i, 3))]])
        net.run(join_every)
    net.run(8.0)
    return net
