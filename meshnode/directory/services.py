"""The service directory: the instances of services in the mesh, and the order in which to try them. Sans I/O.

Other nodes' announcements come in as entries; the membership says which of these nodes live; experience.py says how
streams to them went. This node's own services go out as ``Announce``: soon after a change, again before they expire,
and as a tombstone at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DIRECTORY_MAX_OFFERS, SERVICE_MAX_OWN
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state, value
from meshnode.directory.announcement import Instance, Offer, is_service_name, parse_offer
from meshnode.directory.experience import Experience
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.node_id import NodeId

SERVICE_TTL_S = (
    3600  # the membership remembers gone nodes for longer: no instance comes back because that was forgotten
)
REFRESH_S = SERVICE_TTL_S / 3
WITHDRAWN_TTL_S = SERVICE_TTL_S + 600  # no replayed announcement outlives its withdrawal
PAUSE_S = 1.0  # between two announcements of one service: an application that flaps costs one entry a second
LOAD_STEP = 10  # a smaller change of load alone is not worth a broadcast
SWEEP_S = 10.0
UNKNOWN_RTT_S = 0.05  # of a node without a connection: dialling costs about that
SAME_RTT_S = 0.02  # nearer than this is equally near

MALFORMED = describe("directory_drop_malformed", "service entries dropped: not an announcement")
FULL = describe("directory_full", "instances forgotten: there are too many")
PAST = describe("directory_past_withdrawn", "announcements of an earlier run of this node that it withdrew")


@value
class Announce:
    """Publish an entry of this node, which lives ``ttl`` seconds; None as value withdraws it."""

    kind: Kind
    name: str
    value: bytes | None
    ttl: int


@value
class ServiceChanged:
    """An instance came (``up``), announces or is believed something else (``changed``), or is gone (``down``)."""

    change: str
    instance: Instance


Effect = Announce | ServiceChanged


@state
class _Own:
    offer: Offer
    sent: Offer | None = None
    at: float = float("-inf")
    timer: Timer | None = None


class Services:
    """One node's view of all services. ``now`` is monotonic seconds, ``wall`` Unix seconds.

    ``status`` asks the membership; ``experience`` is to be told how streams to instances go. What peers announce never
    raises. After each call, the caller carries out ``take_effects()``.
    """

    def __init__(
        self, own: NodeId, rng: random.Random, metrics: Metrics, status: Callable[[NodeId], Status], now: float
    ) -> None:
        self._own_id = own
        self._rng = rng
        self._metrics = metrics
        self._status = status
        self._timers = Timers()
        self._own: dict[str, _Own] = {}
        self._offers: BoundedDict[tuple[str, NodeId], tuple[Entry, Offer]] = BoundedDict(DIRECTORY_MAX_OFFERS)
        self._by_name: dict[str, dict[NodeId, None]] = {}
        self._by_node: dict[NodeId, dict[str, None]] = {}
        self.experience = Experience(metrics, status, self._seq_of)
        self._seen_up: dict[tuple[str, NodeId], str] = {}
        self._effects: list[Effect] = []
        self._wall = 0.0
        self._timers.at(now + SWEEP_S, self._sweep)

    def take_effects(self) -> list[Effect]:
        """Return everything to do or to tell since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next."""
        return self._timers.next_deadline()

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is later than ``now``."""
        self._wall = wall
        self._timers.run(now)

    # ---- services of this node

    def announce(self, name: str, offer: Offer, now: float) -> None:
        """Announce a service of this node, or a change of it.

        It goes out at once, but at most once in ``PAUSE_S``, and not for a load that differs by less than
        ``LOAD_STEP``. Raises ValueError for a name or an offer that receivers would drop, and for more than
        ``SERVICE_MAX_OWN`` services.
        """
        if not is_service_name(name):
            raise ValueError("an announced name has 1 to 64 visible characters and no slash")
        offer.encoded()
        own = self._own.get(name)
        if own is None:
            if len(self._own) >= SERVICE_MAX_OWN:
                raise ValueError(f"a node announces at most {SERVICE_MAX_OWN} services")
            own = self._own[name] = _Own(offer)
        own.offer = offer
        self._plan(name, own, now)

    def withdraw(self, name: str, now: float) -> None:
        """Withdraw a service of this node; nothing happens when it is not announced."""
        own = self._own.pop(name, None)
        if own is None:
            return
        if own.timer is not None:
            own.timer.cancel()
        if own.sent is not None:
            self._effects.append(Announce(Kind.SERVICE, name, None, WITHDRAWN_TTL_S))

    def announced(self) -> dict[str, Offer]:
        """Return the services of this node by name, as they were last passed to ``announce``."""
        return {name: own.offer for name, own in self._own.items()}

    def _plan(self, name: str, own: _Own, now: float) -> None:
        if own.sent is not None:
            load_apart = abs(own.offer.load - own.sent.load) < LOAD_STEP and own.offer.load not in (0, 100)
            if own.offer == own.sent or (load_apart and replace(own.offer, load=own.sent.load) == own.sent):
                return
        if own.timer is not None:
            own.timer.cancel()
        at = own.at + PAUSE_S
        if at <= now:
            self._say(name, own, now)
        else:
            own.timer = self._timers.at(at, lambda now: self._say(name, own, now))

    def _say(self, name: str, own: _Own, now: float) -> None:
        if self._own.get(name) is not own:
            return
        own.sent, own.at = own.offer, now
        self._effects.append(Announce(Kind.SERVICE, name, own.offer.encoded(), SERVICE_TTL_S))
        own.timer = self._timers.at(
            now + REFRESH_S * self._rng.uniform(0.8, 1.2), lambda now: self._say(name, own, now)
        )

    # ---- what gossip tells

    def on_entry(self, entry: Entry, wall: float, now: float) -> None:
        """Take a new SERVICE entry: an announcement or a withdrawal.

        One of this node's own that it does not announce is of an earlier run, and is withdrawn. When there are over
        ``DIRECTORY_MAX_OFFERS`` instances, the one announced longest ago is forgotten.
        """
        self._wall = wall
        key = entry.name, entry.origin
        if entry.origin == self._own_id:
            if entry.value is not None and entry.name not in self._own:
                self._metrics.count(PAST)
                self._effects.append(Announce(Kind.SERVICE, entry.name, None, WITHDRAWN_TTL_S))
            return
        offer = parse_offer(entry)
        if offer is None:
            if entry.value is not None:
                self._metrics.count(MALFORMED)
            self._forget(key)
            return
        pushed_out = self._offers.put(key, (entry, offer))
        if pushed_out is not None:
            self._metrics.count(FULL)
            self._unlist(*pushed_out)
        self._by_name.setdefault(entry.name, {})[entry.origin] = None
        self._by_node.setdefault(entry.origin, {})[entry.name] = None
        self.experience.on_announced(entry.origin, entry.name, entry.seq)
        self._tell(key, now)

    def on_expired(self, entry: Entry) -> None:
        """Forget an announcement that gossip keeps no longer, unless there is a newer one."""
        found = self._offers.get((entry.name, entry.origin))
        if found is not None and found[0].seq <= entry.seq:
            self._forget((entry.name, entry.origin))

    def on_member(self, peer: NodeId, now: float) -> None:
        """Tell the changes of a node's services: the membership believes something else of it.

        They go down when it is gone or left, and come up again when it is back.
        """
        for name in list(self._by_node.get(peer, ())):
            self._tell((name, peer), now)

    def _forget(self, key: tuple[str, NodeId]) -> None:
        found = self._offers.pop(key, None)
        if found is not None:
            self._unlist(key, found)

    def _unlist(self, key: tuple[str, NodeId], found: tuple[Entry, Offer]) -> None:
        name, node = key
        for index, first, second in ((self._by_name, name, node), (self._by_node, node, name)):
            inner = index[first]  # type: ignore[index]
            del inner[second]  # type: ignore[arg-type]
            if not inner:
                del index[first]  # type: ignore[arg-type]
        if self._seen_up.pop(key, None) is not None:
            self._effects.append(ServiceChanged("down", Instance(node, name, found[1], found[0].expires, "down")))

    def _tell(self, key: tuple[str, NodeId], now: float) -> None:
        """Emit an event when an instance came, went or changed."""
        found = self._offers.get(key)
        if found is None:
            return
        before = self._seen_up.get(key)
        instance = self._instance(key, now)
        if instance is None:
            if before is not None:
                del self._seen_up[key]
                self._effects.append(
                    ServiceChanged("down", Instance(key[1], key[0], found[1], found[0].expires, "down"))
                )
            return
        said = f"{found[1]}{self._public_state(key[1], found[1])}"
        if said != before:
            self._seen_up[key] = said
            public = replace(instance, state=self._public_state(key[1], found[1]))  # experience ends without an event
            self._effects.append(ServiceChanged("up" if before is None else "changed", public))

    def _sweep(self, now: float) -> None:
        """Forget what has expired."""
        self._timers.at(now + SWEEP_S, self._sweep)
        for key, (entry, _) in list(self._offers.items()):
            if entry.expires < self._wall:
                self._forget(key)

    # ---- questions

    def names(self) -> list[str]:
        """Return the names of all services that other nodes announce, sorted."""
        return sorted(self._by_name)

    def instances(
        self,
        name: str,
        now: float,
        wall: float,
        rtt: Callable[[NodeId], float | None] | None = None,
        only: Collection[NodeId] | None = None,
    ) -> list[Instance]:
        """Return the instances of a service whose nodes are in the mesh, sorted by id; each with its state.

        ``rtt`` returns the seconds to a node and back, None without a connection; ``only`` leaves out all other nodes,
        so that a crowd that offers the same name costs nothing. Instances of this node are not here.
        """
        self._wall = wall
        nodes: Iterable[NodeId] = self._by_name.get(name, ())
        if only is not None:
            nodes = (node for node in only if (name, node) in self._offers)
        found = [self._instance((name, node), now, rtt) for node in sorted(nodes)]
        return [instance for instance in found if instance is not None]

    def choose(
        self,
        name: str,
        now: float,
        wall: float,
        rtt: Callable[[NodeId], float | None],
        *,
        sticky: bool = False,
        without: Iterable[NodeId] = (),
        only: Collection[NodeId] | None = None,
    ) -> list[Instance]:
        """Return the instances of a service in the order in which to try them.

        First come those in the state ``up``, then the other states in the order of ``_TIERS``. Within one state the
        cost decides: the round-trip time, times 1 to 11 with the load, times a random 0.9 to 1.1, so that equal
        instances share the work.

        Args:
            name: The service.
            now: Monotonic seconds.
            wall: Unix seconds.
            rtt: Seconds to a node and back; None, counted as ``UNKNOWN_RTT_S``, without a connection.
            sticky: Begin with the instance that was opened last, while it is up.
            without: Nodes to leave out.
            only: Nodes that may serve; None: all.
        """
        excluded = dict.fromkeys(without)
        ranked = []
        for instance in self.instances(name, now, wall, rtt, only):
            if instance.node in excluded:
                continue
            tier = _TIERS[instance.state]
            near = UNKNOWN_RTT_S if instance.rtt is None else max(instance.rtt, SAME_RTT_S)
            cost = near * (1 + instance.offer.load / 10) * self._rng.uniform(0.9, 1.1)
            if sticky and tier == 0 and self.experience.last_opened(name) == instance.node:
                cost = 0.0
            ranked.append((tier, cost, instance.node, instance))
        return [instance for *_, instance in sorted(ranked, key=lambda item: item[:3])]

    def _seq_of(self, node: NodeId, name: str) -> int:
        found = self._offers.get((name, node))
        return found[0].seq if found is not None else 0

    def _public_state(self, node: NodeId, offer: Offer) -> str:
        if not offer.healthy:
            return "failing"
        return "suspect" if self._status(node) is Status.SUSPECT else "up"

    def _instance(
        self, key: tuple[str, NodeId], now: float, rtt: Callable[[NodeId], float | None] | None = None
    ) -> Instance | None:
        """Return the instance in its present state; None when its node is gone or its announcement has expired."""
        name, node = key
        entry, offer = self._offers[key]
        if entry.expires < self._wall or self._status(node) in (Status.GONE, Status.LEFT):
            return None
        state = self.experience.state(node, name, now) or self._public_state(node, offer)
        return Instance(node, name, offer, entry.expires, state, rtt(node) if rtt is not None else None)


_TIERS = {"up": 0, "suspect": 1, "silent": 2, "failing": 3, "failed": 4, "missing": 5, "refused": 6}
