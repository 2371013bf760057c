"""The directory of services and the names of nodes, in a node: two cores, wired to gossip and to paths' silences.

Gossip carries their entries and says which members are alive; by a path's silence a dead instance is known long before
the mesh agrees that it is dead. The runtime sets the ``on_...`` callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from meshnode.base.metrics import describe
from meshnode.directory.announcement import Instance, is_offer
from meshnode.directory.names import NameConflict, Names, PinsChanged, is_claim
from meshnode.directory.providers import ProviderConflict, Providers
from meshnode.directory.services import WITHDRAWN_TTL_S, Announce, ServiceChanged, Services
from meshnode.gossip import Changed, Entry, Kind, MemberChanged
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.stack.component import Component, Spread, tell
from meshnode.stack.context import Context
from meshnode.stack.dht_offers import DhtOffers
from meshnode.trust.policy import Act

NOT_ALLOWED = describe("names_drop_policy", "claims of names that count for nothing: the policy does not allow them")


def _ignore(*_: object) -> None:
    return None


class DirectoryLink(Component):
    """Everything of a node that others find by name."""

    def __init__(self, context: Context, gossip: Spread) -> None:
        self._context = context
        self._gossip = gossip
        now = context.clock.monotonic()
        own, rng, metrics = context.identity.id, context.rng, context.metrics
        self.directory = Services(own, rng, metrics, gossip.status, now)
        self.names = Names(own, metrics, gossip.status)
        self.providers = Providers(metrics)
        self.on_service: Callable[[ServiceChanged], None] = _ignore
        self.on_conflict: Callable[[NameConflict | ProviderConflict], None] = _ignore
        self.on_pins: Callable[[], None] = _ignore
        self.on_name: Callable[[], None] = _ignore
        self.on_member: Callable[[MemberChanged], None] = _ignore
        self.on_peer_silent: Callable[[NodeId], None] = _ignore
        self._timer = context.timers.timer(self._tick)
        self._draining = False
        self.offers = DhtOffers(context, gossip, self._take, self._on_expired)
        for kind, fits in ((Kind.SERVICE, is_offer), (Kind.NAME, is_claim)):
            gossip.check(kind, fits)
            gossip.subscribe(kind, self._on_entry)
        gossip.watch(self._on_member)
        context.guard.name_of = self._name_of
        context.access_changed.append(self._on_access_changed)
        gossip.on_expiry(self._on_expired)
        context.successors.on_new.append(self._on_successor)

    # ---- time

    def _arm(self) -> None:
        waits = (core.next_deadline() for core in (self.directory, self.names))
        self._timer.set(min((at for at in waits if at is not None), default=None))

    def _tick(self, now: float) -> None:
        self.directory.tick(now, self._context.clock.wall())
        self.names.tick(now)
        self.drain(now)

    def drain(self, now: float) -> None:
        """Carry out what the cores want done.

        To be called after each command to one of them; a call from within has no effect, for the outer one goes on.
        """
        if self._draining:
            return
        self._draining = True
        try:
            cores = self.directory, self.names, self.providers
            while effects := [effect for core in cores for effect in core.take_effects()]:
                for effect in effects:
                    tell((self._carry,), self._context.timers.on_error, effect, now)
        finally:
            self._draining = False
        self._arm()

    def _carry(
        self, effect: Announce | ServiceChanged | NameConflict | PinsChanged | ProviderConflict, now: float
    ) -> None:
        if isinstance(effect, Announce):
            self._gossip.publish_soon(effect.kind, effect.name, effect.value, effect.ttl, now)
        elif isinstance(effect, ServiceChanged):
            if effect.change == "up":
                self.providers.on_offer(effect.instance.service, effect.instance.node)
            self.on_service(effect)
        elif isinstance(effect, NameConflict | ProviderConflict):
            self.on_conflict(effect)
        else:
            self.on_pins()

    def withdraw_published(self, now: float) -> bool:
        """Withdraw what this node has in the DHT; return whether that is on its way (until ``offers.on_withdrawn``).

        Gossip's goodbye ends only what gossip told: what a search finds would lead to a node that has gone, for as long
        as it lives.
        """
        for kind, name in self.offers.publisher.out():
            if kind == Kind.SERVICE:
                self.directory.withdraw(name, now)
            else:
                self._gossip.publish_soon(Kind.NAME, name, None, WITHDRAWN_TTL_S, now)
        self.drain(now)
        return self.offers.publisher.is_withdrawing

    # ---- what happens

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Count a peer as heard again, also when its connection is over: a new one is not silent."""
        self.directory.experience.on_heard(connection.peer)
        guard = self._context.guard
        if up and (guard.mesh is not None or guard.local is not None):  # its roles are known now: may it claim a name?
            for entry in self._all_claims():
                if entry.origin == connection.peer:
                    self._on_claim(entry, self._context.clock.wall(), again=True)
        self.drain(now)

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Note that something expected of ``peer`` did not come, or that it answers again."""
        if silent:
            self.directory.experience.on_silent(peer, now)
            self.on_peer_silent(peer)
        else:
            self.directory.experience.on_heard(peer)

    def _on_entry(self, change: Changed, now: float) -> None:
        self.offers.on_entry(change, now)
        self._take(change.entry, now)

    def _take(self, entry: Entry, now: float) -> None:
        """Handle an offer, or its end, that gossip told or the DHT."""
        wall = self._context.clock.wall()
        if entry.kind == Kind.SERVICE:
            self.directory.on_entry(entry, wall, now)
        else:
            self._on_claim(entry, wall)
            self.on_name()
            self._on_renamed(entry)
        self.drain(now)

    def _on_renamed(self, entry: Entry) -> None:
        """Have the guard decide again, where a rule is about names: it may be about other nodes now."""
        guard = self._context.guard
        if guard.uses_names() and entry.origin == self._context.identity.id:
            guard.changed()  # all that may be done here may depend on this node's own name
        elif guard.uses_names():
            guard.reconsider((entry.origin, *self.names.claimants(entry.name)))

    def _on_successor(self, old: NodeId, new: NodeId) -> None:
        for pins in (self.names, self.providers):
            pins.follow(old, new)
        self.drain(self._context.clock.monotonic())

    def _on_claim(self, entry: Entry, wall: float, *, again: bool = False) -> None:
        """Take a claim of a name, or its end; one that the policy lets its node not make counts for nothing.

        One that is looked at ``again`` is told of only where it has counted until now.
        """
        decision = self._context.guard.ask(Act.NAME, entry.origin, entry.name)
        if decision.allowed or entry.value is None:
            self.names.on_entry(entry, wall)
            return
        if again and entry.origin not in self.names.claimants(entry.name):
            return
        self._context.metrics.count(NOT_ALLOWED)
        self._context.events.on_refused(entry.origin, Act.NAME, entry.name, decision)
        self.names.on_expired(entry)

    def _on_access_changed(self, now: float) -> None:
        """Look at all claims again."""
        wall = self._context.clock.wall()
        for entry in self._all_claims():
            self._on_claim(entry, wall, again=True)
        self.on_name()
        self.drain(now)

    def _all_claims(self) -> list[Entry]:
        return [*self._gossip.stored(Kind.NAME), *self.offers.search.found(Kind.NAME)]

    def _name_of(self, peer: NodeId) -> str:
        return self.names.name_of(peer, self._context.clock.wall())

    def _on_expired(self, entry: Entry, now: float) -> None:
        """Forget what gossip keeps no longer, so that no bound here is for a flood to use."""
        if entry.kind == Kind.SERVICE:
            self.directory.on_expired(entry)
        elif entry.kind == Kind.NAME:
            self.names.on_expired(entry)
        else:
            return
        self.drain(now)

    def _on_member(self, change: MemberChanged, now: float) -> None:
        self.directory.on_member(change.peer, now)
        self.names.on_member(change.peer, self._context.clock.wall())
        self.on_member(change)
        self.drain(now)

    # ---- questions

    def rtt(self, peer: NodeId) -> float | None:
        """Return the seconds to a peer and back; None without a connection."""
        connection = self._context.peers.connection(peer)
        return connection.engine.rtt() if connection is not None else None

    def seek_service(self, name: str, now: float) -> bool:
        """Look in the DHT for a service, where gossip may not tell all; return whether a search of it runs now."""
        return self.offers.seek(Kind.SERVICE, name, now)

    def may_seek_service(self) -> bool:
        """Return whether the DHT may have services that gossip has not told."""
        return self.offers.asks(Kind.SERVICE)

    def seek_name(self, label: str, now: float) -> bool:
        """Look in the DHT for a node's name, as ``seek_service`` does for a service."""
        return label != self.names.own_name and self.offers.seek(Kind.NAME, label, now)

    def instances(self, name: str, now: float) -> list[Instance]:
        """Return the instances of a service that other nodes announce, sorted by id."""
        return self.directory.instances(name, now, self._context.clock.wall(), self.rtt)

    def choose(
        self, name: str, now: float, *, sticky: bool = False, only: Collection[NodeId] | None = None
    ) -> list[Instance]:
        """Return the instances of a service in the order in which to try them (``Services.choose``)."""
        return self.directory.choose(name, now, self._context.clock.wall(), self.rtt, sticky=sticky, only=only)

    def provider(self, name: str, now: float) -> NodeId | None:
        """Return the node that a service means when it is used by its name alone (``Providers.choose``)."""
        wall, pinned = self._context.clock.wall(), self.providers.pinned(name)
        if pinned is not None and self.directory.instances(name, now, wall, only=(pinned,)):
            return pinned
        return self.providers.choose(name, [instance.node for instance in self.instances(name, now)])
