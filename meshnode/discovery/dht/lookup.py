"""One iterative lookup as a state machine: which nodes to ask next, and when it is over (Kademlia section 2.3).

Two disjoint paths (S/Kademlia section 4.4): each contact is asked by one path only, so a liar misleads the
path that met it and not the other. Nor does it use up what the other may ask and remember, and an address that it
invents for an honest node counts on its own path alone. Each path keeps ``alpha`` fresh questions in flight; a question
that is slow frees its place while its answer is still awaited (hedging). A path ends when the ``width`` nearest that
answered are nearer than anything left to ask, and the ``width`` nearest of those whose ids have a price
(``identity/price.py``) too: ids that cost nothing surround a key in a second, and then hide the others from no
lookup. A lookup of a record asks a few seeds beside that, whose contacts it does not follow. Liars' contacts are put
off, not obeyed.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import field

from meshnode.base.address import Addr
from meshnode.base.limits import DHT_MAX_LOOKUP_QUEUE, DHT_MAX_LOOKUP_RPCS, DHT_MAX_PER_SUBNET, DHT_MAX_SEEDS
from meshnode.base.value import state
from meshnode.discovery.dht.messages import ContactInfo
from meshnode.discovery.dht.table import neighbourhood
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, newer

ALPHA = 4
PATHS = 2
BLAME = 3  # dead contacts, and none alive, after which a referrer's others are put off
MAX_ASKED = (DHT_MAX_LOOKUP_RPCS - DHT_MAX_SEEDS) // PATHS  # by one path
MAX_NAMED = DHT_MAX_LOOKUP_QUEUE // PATHS  # contacts that one path remembers


@state
class Candidate:
    """A node that a lookup may ask."""

    id: NodeId
    addr: Addr
    distance: int
    depth: int
    path: int
    referrer: NodeId | None
    priced: bool = False
    is_left: bool = True  # neither asked nor put off
    token: bytes = b""
    seq: int | None = None  # of the record that it returned


Entry = tuple[int, int, Candidate]


@state
class _Path:
    width: int
    alpha: int
    follows: bool = True  # the contacts that answers name
    asked: int = 0
    named: int = 0
    fresh: int = 0
    heap: list[Entry] = field(default_factory=list)
    priced: list[Entry] = field(default_factory=list)  # those of the heap whose ids have a price
    put_off: list[Entry] = field(default_factory=list)
    in_flight: dict[NodeId, Candidate] = field(default_factory=dict)
    slow: dict[NodeId, bool] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)  # distances, sorted
    answered_priced: list[int] = field(default_factory=list)
    is_priceds_turn: bool = True
    networks: dict[bytes, int] = field(default_factory=dict)

    def reaches(self, distance: int, *, priced: bool) -> bool:
        """Return whether an answer from there would be one of the ``width`` nearest, of all or of those with a price.

        True while there are fewer answers.
        """
        answered, width = self.answered, self.width
        if len(answered) < width or distance <= answered[width - 1]:
            return True
        answered = self.answered_priced
        return priced and (len(answered) < width or distance <= answered[width - 1])

    def note_answer(self, candidate: Candidate) -> None:
        """Count an answer."""
        insort(self.answered, candidate.distance)
        if candidate.priced:
            insort(self.answered_priced, candidate.distance)

    def take_best(self) -> Entry | None:
        """Remove the nearest unasked candidate that could matter and return its entry; None when there is none.

        Those with a price are taken by turns, so that a crowd of others does not use up a lookup's requests.
        """
        self.is_priceds_turn = not self.is_priceds_turn
        for queue in (self.heap, self.priced)[:: -1 if self.is_priceds_turn else 1]:
            if self.first_of(queue):
                entry = heapq.heappop(queue)
                entry[2].is_left = False
                return entry
        return None

    def first_of(self, queue: list[Entry]) -> bool:
        """Return whether the first candidate of a queue that is still to be asked could matter."""
        while queue and not queue[0][2].is_left:
            heapq.heappop(queue)
        return bool(queue) and self.reaches(queue[0][0], priced=queue is self.priced)

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

    def __init__(
        self,
        own: NodeId,
        key: bytes,
        now: float,
        *,
        width: int,
        want_record: bool,
        has_price: Callable[[NodeId], bool] = lambda peer: False,
        asked: Container[NodeId] = (),
        alpha: int = ALPHA,
    ) -> None:
        """Ask none yet; nodes that were ``asked`` by an earlier lookup of the same key count as answers."""
        self._asked = asked
        self.key = key
        self.want_record = want_record
        self.started = now
        self.rpcs = 0
        self.hops = 0
        self.junk = 0
        self.first: float | None = None
        self.best: EndpointRecord | None = None
        self.answers: list[Candidate] = []
        self._has_price = has_price
        self._paths = [*(_Path(width, alpha) for _ in range(PATHS)), _Path(DHT_MAX_SEEDS, ALPHA, follows=False)]
        # the address that each path was told of a node; None where no answer may tell another
        self._known: dict[NodeId, dict[int, Addr] | None] = {own: None}
        self._referrers = _Referrers()

    def serves(self, width: int) -> bool:
        """Return whether its answers are those of a lookup of that width: it leaves none out that was asked before."""
        return not self._asked and self._paths[0].width >= width

    def start(self, contacts: Iterable[ContactInfo], seeds: Iterable[ContactInfo] = ()) -> None:
        """Deal the first contacts out to the paths, nearest first; ask the ``seeds`` that are none of them besides."""
        for i, contact in enumerate(contacts):
            self._add(contact, 1, i % PATHS, None)
        for contact in seeds:
            self._add(contact, 1, PATHS, None)

    def _add(self, contact: ContactInfo, depth: int, path: int, referrer: NodeId | None) -> None:
        told, of = self._known.get(contact.id, {}), self._paths[path]
        if told is None or path in told or contact.addr in told.values() or of.named >= MAX_NAMED:
            return
        distance = int.from_bytes(contact.id.dht_key, "big") ^ int.from_bytes(self.key, "big")
        priced = self._has_price(contact.id)
        candidate = Candidate(contact.id, contact.addr, distance, depth, path, referrer, priced)
        is_asked = contact.id in self._asked
        self._known[contact.id] = None if is_asked or referrer is None else {**told, path: contact.addr}
        of.named += 1
        if is_asked:
            of.note_answer(candidate)
            return
        entry = distance, of.named, candidate
        heapq.heappush(of.heap, entry)
        if priced:
            heapq.heappush(of.priced, entry)

    def take_queries(self) -> list[Candidate]:
        """Return the nodes to ask now: up to ``alpha`` fresh questions a path, ``MAX_ASKED`` in all by each."""
        wanted: list[Candidate] = []
        for path in self._paths:
            while path.fresh < path.alpha and path.asked < MAX_ASKED:
                candidate = self._next(path)
                if candidate is None:
                    break
                self.rpcs += 1
                path.asked += 1
                path.fresh += 1
                path.in_flight[candidate.id] = candidate
                wanted.append(candidate)
        return wanted

    def _next(self, path: _Path) -> Candidate | None:
        while (entry := path.take_best()) is not None:
            candidate = entry[2]
            if not self._referrers.is_blamed(candidate.referrer) and path.admits(candidate.addr):
                return candidate
            heapq.heappush(path.put_off, entry)
        # nothing better is left: a mesh within one network is served too
        if path.fresh or not self._may_matter(path):
            return None
        return heapq.heappop(path.put_off)[2]

    @staticmethod
    def _may_matter(path: _Path) -> bool:
        """Return whether the nearest candidate that was put off would be one of the nearest."""
        return bool(path.put_off) and path.reaches(path.put_off[0][0], priced=path.put_off[0][2].priced)

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
        if all(other.id != candidate.id for other in self.answers):  # one that answers at two addresses is one node
            self.answers.append(candidate)
        path.note_answer(candidate)
        self.hops = max(self.hops, candidate.depth) if self.first is None else self.hops
        self._referrers.count(candidate.referrer, alive=True)
        for contact in contacts if path.follows else ():
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
        if not path.follows and self.best is not None:
            return path.fresh == 0  # a slow seed is awaited only while no other node has the record
        if any(path.reaches(c.distance, priced=c.priced) for c in path.in_flight.values()):
            return False
        if path.asked >= MAX_ASKED:
            return True
        return not (path.first_of(path.heap) or path.first_of(path.priced) or self._may_matter(path))

    @property
    def asked(self) -> list[NodeId]:
        """Return the nodes that have answered, or may still."""
        return [*(c.id for c in self.answers), *(peer for path in self._paths for peer in path.in_flight)]

    @property
    def heard(self) -> Collection[NodeId]:
        """Return all nodes that it knows of."""
        return self._known

    def closest(self, count: int) -> list[Candidate]:
        """Return the ``count`` nearest nodes that answered, and the ``count`` nearest with a price; each once."""
        by_distance = sorted(self.answers, key=lambda c: c.distance)
        priced = [c for c in by_distance if c.priced][:count]
        return [c for i, c in enumerate(by_distance) if i < count or (c.priced and c in priced)]

    def unasked(self, count: int) -> list[Candidate]:
        """Return the nearest nodes that it heard of and did not need to ask."""
        left = [e for path in self._paths for e in (*(e for e in path.heap if e[2].is_left), *path.put_off)]
        return [entry[2] for entry in sorted(left, key=lambda e: e[:2])[:count]]
