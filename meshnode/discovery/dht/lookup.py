"""One iterative lookup as a state machine: which nodes to ask next, and when it is over (Kademlia section 2.3).

Two disjoint paths (S/Kademlia section 4.4): each contact is asked by one path only, so a liar misleads the
path that met it and not the other. Each path keeps ``alpha`` fresh questions in flight; a question that is slow
frees its place while its answer is still awaited (hedging). A path ends when the ``width`` nearest that
answered are nearer than anything left to ask. Liars' contacts are put off, not obeyed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_LOOKUP_QUEUE, DHT_MAX_LOOKUP_RPCS, DHT_MAX_PER_SUBNET
from meshnode.discovery.dht.messages import ContactInfo
from meshnode.discovery.dht.table import neighbourhood
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, newer

ALPHA = 4
PATHS = 2
BLAME = 3  # dead contacts, and none alive, after which a referrer's others are put off


@dataclass(slots=True)
class Candidate:
    """A node that a lookup may ask."""

    id: NodeId
    addr: Addr
    distance: int
    depth: int
    path: int
    referrer: NodeId | None
    token: bytes = b""
    seq: int | None = None  # of the record that it returned


@dataclass(slots=True)
class _Path:
    width: int
    fresh: int = 0
    heap: list[tuple[int, int, Candidate]] = field(default_factory=list)
    put_off: list[tuple[int, int, Candidate]] = field(default_factory=list)
    in_flight: dict[NodeId, Candidate] = field(default_factory=dict)
    slow: dict[NodeId, bool] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)  # distances, sorted
    networks: dict[bytes, int] = field(default_factory=dict)

    def horizon(self) -> int | None:
        """Distance of the ``width``-th nearest answer; None while there are fewer."""
        return self.answered[self.width - 1] if len(self.answered) >= self.width else None

    def take_best(self, horizon: int | None) -> tuple[int, int, Candidate] | None:
        """Remove the nearest unasked candidate and return its heap entry; None when it is beyond ``horizon``."""
        if not self.heap or (horizon is not None and self.heap[0][0] > horizon):
            return None
        return heapq.heappop(self.heap)

    def admits(self, addr: Addr) -> bool:
        """Return False when ``DHT_MAX_PER_SUBNET`` nodes of the address's network were asked; count it otherwise."""
        network = neighbourhood(addr.host)
        if network is None:
            return True
        asked = self.networks.get(network, 0)
        if asked >= DHT_MAX_PER_SUBNET:
            return False
        self.networks[network] = asked + 1
        return True


class _Referrers:
    """How many of the contacts that each node named answered, and how many did not."""

    __slots__ = ("_alive", "_dead")

    def __init__(self) -> None:
        self._alive: dict[NodeId, int] = {}
        self._dead: dict[NodeId, int] = {}

    def count(self, referrer: NodeId | None, *, alive: bool) -> None:
        if referrer is not None:
            counts = self._alive if alive else self._dead
            counts[referrer] = counts.get(referrer, 0) + 1

    def is_blamed(self, referrer: NodeId | None) -> bool:
        return referrer is not None and self._dead.get(referrer, 0) >= BLAME and not self._alive.get(referrer)


class Lookup:
    """The state of one lookup. The caller sends what ``take_queries`` says and reports what happens."""

    def __init__(self, own: NodeId, key: bytes, now: float, *, width: int, want_record: bool) -> None:
        self.key = key
        self.want_record = want_record
        self.started = now
        self.rpcs = 0
        self.hops = 0
        self.junk = 0
        self.first: float | None = None
        self.best: EndpointRecord | None = None
        self.answers: list[Candidate] = []
        self._own = own
        self._target = int.from_bytes(key, "big")
        self._paths = [_Path(width) for _ in range(PATHS)]
        self._known: dict[NodeId, Candidate] = {}
        self._referrers = _Referrers()

    def start(self, contacts: Iterable[ContactInfo]) -> None:
        """Deal the first contacts out to the paths, nearest first."""
        for i, contact in enumerate(contacts):
            self._add(contact, 1, i % PATHS, None)

    def _add(self, contact: ContactInfo, depth: int, path: int, referrer: NodeId | None) -> None:
        if contact.id in self._known or contact.id == self._own or len(self._known) >= DHT_MAX_LOOKUP_QUEUE:
            return
        distance = int.from_bytes(contact.id.dht_key, "big") ^ self._target
        candidate = Candidate(contact.id, contact.addr, distance, depth, path, referrer)
        self._known[contact.id] = candidate
        heapq.heappush(self._paths[path].heap, (distance, len(self._known), candidate))

    def take_queries(self) -> list[Candidate]:
        """Return the nodes to ask now: up to ``ALPHA`` fresh questions a path, ``DHT_MAX_LOOKUP_RPCS`` in all."""
        wanted: list[Candidate] = []
        for path in self._paths:
            while path.fresh < ALPHA and self.rpcs < DHT_MAX_LOOKUP_RPCS:
                candidate = self._next(path)
                if candidate is None:
                    break
                self.rpcs += 1
                path.fresh += 1
                path.in_flight[candidate.id] = candidate
                wanted.append(candidate)
        return wanted

    def _next(self, path: _Path) -> Candidate | None:
        horizon = path.horizon()
        while (entry := path.take_best(horizon)) is not None:
            candidate = entry[2]
            if not self._referrers.is_blamed(candidate.referrer) and path.admits(candidate.addr):
                return candidate
            heapq.heappush(path.put_off, entry)
        # nothing better is left: a mesh within one network is served too
        if path.fresh or not path.put_off or (horizon is not None and path.put_off[0][0] > horizon):
            return None
        return heapq.heappop(path.put_off)[2]

    def on_slow(self, candidate: Candidate) -> None:
        """Free the place of a question whose early retransmission was due, for another node.

        Its answer is still awaited, and counts.
        """
        path = self._paths[candidate.path]
        if candidate.id in path.in_flight and candidate.id not in path.slow:
            path.slow[candidate.id] = True
            path.fresh -= 1

    def _landed(self, candidate: Candidate) -> _Path:
        path = self._paths[candidate.path]
        if path.in_flight.pop(candidate.id, None) is not None and not path.slow.pop(candidate.id, False):
            path.fresh -= 1
        return path

    def on_failed(self, candidate: Candidate) -> None:
        """Note that no answer came, and blame the node that named this one.

        A node whose contacts are dead ``BLAME`` times, and never alive, has its others put off.
        """
        self._landed(candidate)
        self._referrers.count(candidate.referrer, alive=False)

    def on_junk(self, candidate: Candidate) -> None:
        """Note an answer that no honest node gives; it does not count as one."""
        self.junk += 1
        self.on_failed(candidate)

    def on_answer(
        self,
        candidate: Candidate,
        contacts: Iterable[ContactInfo],
        token: bytes,
        record: EndpointRecord | None,
        now: float,
    ) -> bool:
        """Take a good answer; return True when ``record`` is the newest so far.

        Its ``contacts`` become candidates of the same path; ``token`` is kept for a later STORE at this node.
        """
        path = self._landed(candidate)
        candidate.token = token
        candidate.seq = None if record is None else record.seq
        self.answers.append(candidate)
        path.answered.append(candidate.distance)
        path.answered.sort()
        self.hops = max(self.hops, candidate.depth) if self.first is None else self.hops
        self._referrers.count(candidate.referrer, alive=True)
        for contact in contacts:
            self._add(contact, candidate.depth + 1, candidate.path, candidate.id)
        if record is None or (self.best is not None and not newer(record, self.best)):
            return False
        if self.first is None:
            self.first = now
            self.hops = candidate.depth
        self.best = record
        return True

    @property
    def done(self) -> bool:
        """True when nothing is left to ask, and no answer is awaited that could still matter."""
        return all(self._path_done(path) for path in self._paths)

    def _path_done(self, path: _Path) -> bool:
        horizon = path.horizon()
        if any(horizon is None or c.distance < horizon for c in path.in_flight.values()):
            return False
        if self.rpcs >= DHT_MAX_LOOKUP_RPCS:
            return True
        queues = (path.heap, path.put_off)
        return not any(q and (horizon is None or q[0][0] <= horizon) for q in queues)

    def closest(self, count: int) -> list[Candidate]:
        """Return the nearest nodes that answered, over both paths."""
        return sorted(self.answers, key=lambda c: c.distance)[:count]

    def unasked(self, count: int) -> list[Candidate]:
        """Return the nearest nodes that it heard of and did not need to ask."""
        left = [entry for path in self._paths for queue in (path.heap, path.put_off) for entry in queue]
        return [entry[2] for entry in sorted(left, key=lambda e: e[:2])[:count]]
