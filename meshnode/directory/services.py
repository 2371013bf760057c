"""The service directory: what the mesh offers, and which instance to take. Sans I/O.

Others' announcements come in as entries; what is believed of their nodes is asked of the membership; what we have
lived through with them ourselves (an open that failed, a peer that fell silent) counts at once and for a while only.
Our own services go out as ``Announce``: soon after a change, again before they expire, and as a tombstone at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DIRECTORY_MAX_OFFERS, DIRECTORY_MAX_SHUNNED, DIRECTORY_MAX_STICKY, SERVICE_MAX_OWN
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.directory.announcement import Instance, Offer, is_service_name, parse_offer
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.node_id import NodeId

SERVICE_TTL_S = 3600  # shorter than the membership remembers who is gone: an instance never rises by forgetting
REFRESH_S = SERVICE_TTL_S / 3
WITHDRAWN_TTL_S = SERVICE_TTL_S + 600  # no replayed announcement outlives its withdrawal
PAUSE_S = 1.0  # between two announcements of one service: an application that flaps costs one entry a second
LOAD_STEP = 10  # a smaller change of load alone is not worth a broadcast
SWEEP_S = 10.0
UNKNOWN_RTT_S = 0.05  # of a node without a connection: dialling costs about that
SAME_RTT_S = 0.02  # nearer than this is equally near
FAILED_S, MAX_FAILED_S = 2.0, 60.0  # a failing instance is tried last for so long, doubling
REFUSED_S = 60.0
FORGIVEN_S = 30.0  # after so long without a failure the doubling begins anew

MALFORMED = describe("directory_drop_malformed", "service entries dropped: not an announcement")
FULL = describe("directory_full", "instances forgotten: more than we remember")
CHOSEN_AWAY = describe("directory_shunned", "times that an instance failed, refused or fell silent, and is tried last")
PAST = describe("directory_past_withdrawn", "announcements of an earlier run of ours that we withdrew")


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish this entry of ours; None as value withdraws it."""

    kind: Kind
    name: str
    value: bytes | None
    ttl: int


@dataclass(frozen=True, slots=True)
class ServiceChanged:
    """An instance came (``up``), says or is believed to be something else (``changed``), or is gone (``down``)."""

    change: str
    instance: Instance


Effect = Announce | ServiceChanged


@dataclass(slots=True)
class _Own:
    offer: Offer
    sent: Offer | None = None
    at: float = float("-inf")
    timer: Timer | None = None


@dataclass(slots=True)
class _Shun:
    state: str
    until: float
    wait: float
    seq: int = 0


class Services:
    """One node's view. ``status`` asks the membership; ``now`` is monotonic seconds, ``wall`` Unix seconds."""

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
        self._shunned: BoundedDict[tuple[NodeId, str], _Shun] = BoundedDict(DIRECTORY_MAX_SHUNNED)
        self._silent: dict[NodeId, None] = {}
        self._last: BoundedDict[str, NodeId] = BoundedDict(DIRECTORY_MAX_STICKY)
        self._seen_up: dict[tuple[str, NodeId], str] = {}
        self._effects: list[Effect] = []
        self._wall = 0.0
        self._timers.at(now + SWEEP_S, self._sweep)

    def take_effects(self) -> list[Effect]:
        """Everything to do or to tell since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        return self._timers.next_deadline()

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._wall = wall
        self._timers.run(now)

    # ---- our own services

    def announce(self, name: str, offer: Offer, now: float) -> None:
        """We offer this, or something about it has changed. Raises ValueError for what cannot be announced."""
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
        """We offer this no longer."""
        own = self._own.pop(name, None)
        if own is None:
            return
        if own.timer is not None:
            own.timer.cancel()
        if own.sent is not None:
            self._effects.append(Announce(Kind.SERVICE, name, None, WITHDRAWN_TTL_S))

    def announced(self) -> dict[str, Offer]:
        """Our own services by name."""
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
        """A new SERVICE entry counts: of another, or of an earlier run of ours."""
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
        shun = self._shunned.get((entry.origin, entry.name))
        if shun is not None and shun.state == "missing" and entry.seq > shun.seq:
            del self._shunned[entry.origin, entry.name]  # it was not there, and says that it is now
        self._tell(key, now)

    def on_member(self, peer: NodeId, now: float) -> None:
        """The membership believes something else of ``peer``: its services come or go with it."""
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
        """Tell those who listen, when an instance came, went or changed."""
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
            public = replace(instance, state=self._public_state(key[1], found[1]))  # no event tells when ours ends
            self._effects.append(ServiceChanged("up" if before is None else "changed", public))

    def _sweep(self, now: float) -> None:
        """Forget what has expired."""
        self._timers.at(now + SWEEP_S, self._sweep)
        for key, (entry, _) in list(self._offers.items()):
            if entry.expires < self._wall:
                self._forget(key)

    # ---- what we have lived through

    def on_opened(self, peer: NodeId, name: str) -> None:
        """A stream to this service was accepted."""
        self._shunned.pop((peer, name), None)
        self._shunned.pop((peer, ""), None)
        self._silent.pop(peer, None)
        self._last.put(name, peer)

    def on_failed(self, peer: NodeId, now: float, name: str = "") -> None:
        """The node could not be reached, or (with a name) its service broke: it is tried last for a while."""
        self._shun(peer, name, "failed", FAILED_S, now)

    def on_refused(self, peer: NodeId, name: str, now: float) -> None:
        """The node does not allow us to use the service."""
        self._shun(peer, name, "refused", REFUSED_S, now)

    def on_missing(self, peer: NodeId, name: str, now: float) -> None:
        """The node says that it has no such service: until it announces it anew."""
        found = self._offers.get((name, peer))
        self._shun(peer, name, "missing", REFUSED_S, now, found[0].seq if found is not None else 0)

    def on_silent(self, peer: NodeId, now: float) -> None:
        """Something is expected of ``peer`` and does not come: others are asked first, from now on."""
        self._silent[peer] = None

    def on_heard(self, peer: NodeId) -> None:
        """``peer`` answers."""
        self._silent.pop(peer, None)

    def is_silent(self, peer: NodeId) -> bool:
        """True while something is expected of ``peer``, or the mesh has given it up."""
        return peer in self._silent or self._status(peer) in (Status.GONE, Status.LEFT)

    def _shun(self, peer: NodeId, name: str, state: str, wait: float, now: float, seq: int = 0) -> None:
        self._metrics.count(CHOSEN_AWAY)
        before = self._shunned.get((peer, name))
        if before is not None and now < before.until + FORGIVEN_S:
            wait = min(MAX_FAILED_S, max(wait, before.wait * 2))
        self._shunned.put((peer, name), _Shun(state, now + wait, wait, seq))

    # ---- questions

    def names(self) -> list[str]:
        """Names of all services that are announced by somebody."""
        return sorted(self._by_name)

    def instances(
        self, name: str, now: float, wall: float, rtt: Callable[[NodeId], float | None] | None = None
    ) -> list[Instance]:
        """All instances of a service whose nodes are in the mesh, by id; each says whether it is worth trying."""
        self._wall = wall
        found = [self._instance((name, node), now, rtt) for node in sorted(self._by_name.get(name, ()))]
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
    ) -> list[Instance]:
        """The instances in the order in which to try them: those that should work first, near and idle ones before
        others; then those that may work after all. ``sticky`` begins with the last one that worked."""
        excluded = dict.fromkeys(without)
        ranked = []
        for instance in self.instances(name, now, wall, rtt):
            if instance.node in excluded:
                continue
            tier = _TIERS[instance.state]
            near = UNKNOWN_RTT_S if instance.rtt is None else max(instance.rtt, SAME_RTT_S)
            cost = near * (1 + instance.offer.load / 10) * self._rng.uniform(0.9, 1.1)
            if sticky and tier == 0 and self._last.get(name) == instance.node:
                cost = 0.0
            ranked.append((tier, cost, instance.node, instance))
        return [instance for *_, instance in sorted(ranked, key=lambda item: item[:3])]

    def _public_state(self, node: NodeId, offer: Offer) -> str:
        if not offer.healthy:
            return "failing"
        return "suspect" if self._status(node) is Status.SUSPECT else "up"

    def _instance(
        self, key: tuple[str, NodeId], now: float, rtt: Callable[[NodeId], float | None] | None = None
    ) -> Instance | None:
        """The instance as we see it now; None when its node has gone or its announcement has expired."""
        name, node = key
        entry, offer = self._offers[key]
        if entry.expires < self._wall or self._status(node) in (Status.GONE, Status.LEFT):
            return None
        state = self._public_state(node, offer)
        shun = self._shunned.get((node, name)) or self._shunned.get((node, ""))
        if shun is not None and shun.until > now:
            state = shun.state
        elif node in self._silent:
            state = "silent"
        return Instance(node, name, offer, entry.expires, state, rtt(node) if rtt is not None else None)


_TIERS = {"up": 0, "suspect": 1, "silent": 2, "failing": 3, "failed": 4, "missing": 5, "refused": 6}
