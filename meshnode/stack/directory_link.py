"""The directory of services and the names of nodes, in a node: two cores, wired to gossip and to paths' silences.

Gossip carries their entries and says which members are alive; by a path's silence a dead instance is known long before
the mesh agrees that it is dead. The runtime sets the ``on_...`` callbacks.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.directory.announcement import Instance, is_offer
from meshnode.directory.names import NameConflict, Names, PinsChanged, is_claim
from meshnode.directory.services import Announce, ServiceChanged, Services
from meshnode.gossip import Changed, Kind, MemberChanged
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.stack.component import Component, Spread
from meshnode.stack.context import Context


def _ignore(*_: object) -> None:
    return None


class DirectoryLink(Component):
    """Everything of a node that others find by name."""

    def __init__(self, context: Context, gossip: Spread) -> None:
        self._context = context
        self._gossip = gossip
        now, wall = context.clock.monotonic(), context.clock.wall()
        own, rng, metrics = context.identity.id, context.rng, context.metrics
        self.directory = Services(own, rng, metrics, gossip.status, now)
        self.names = Names(own, metrics, gossip.status, wall)
        self.on_service: Callable[[ServiceChanged], None] = _ignore
        self.on_conflict: Callable[[NameConflict], None] = _ignore
        self.on_pins: Callable[[], None] = _ignore
        self.on_name: Callable[[], None] = _ignore
        self.on_member: Callable[[MemberChanged], None] = _ignore
        self.on_peer_silent: Callable[[NodeId], None] = _ignore
        self._timer = context.timers.timer(self._tick)
        self._draining = False
        for kind, fits in ((Kind.SERVICE, is_offer), (Kind.NAME, is_claim)):
            gossip.check(kind, fits)
            gossip.subscribe(kind, self._on_entry)
        gossip.watch(self._on_member)

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
            while effects := [*self.directory.take_effects(), *self.names.take_effects()]:
                for effect in effects:
                    self._carry(effect, now)
        finally:
            self._draining = False
        self._arm()

    def _carry(self, effect: Announce | ServiceChanged | NameConflict | PinsChanged, now: float) -> None:
        if isinstance(effect, Announce):
            self._gossip.publish_soon(effect.kind, effect.name, effect.value, effect.ttl, now)
        elif isinstance(effect, ServiceChanged):
            self.on_service(effect)
        elif isinstance(effect, NameConflict):
            self.on_conflict(effect)
        else:
            self.on_pins()

    # ---- what happens

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """Count a peer as heard again, also when its connection is over: a new one is not silent."""
        self.directory.experience.on_heard(connection.peer)
        self.drain(now)

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Note that something expected of ``peer`` did not come, or that it answers again."""
        if silent:
            self.directory.experience.on_silent(peer, now)
            self.on_peer_silent(peer)
        else:
            self.directory.experience.on_heard(peer)

    def _on_entry(self, change: Changed, now: float) -> None:
        entry, wall = change.entry, self._context.clock.wall()
        if entry.kind == Kind.SERVICE:
            self.directory.on_entry(entry, wall, now)
        else:
            self.names.on_entry(entry, wall)
            self.on_name()
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

    def instances(self, name: str, now: float) -> list[Instance]:
        """Return the instances of a service that other nodes announce, sorted by id."""
        return self.directory.instances(name, now, self._context.clock.wall(), self.rtt)

    def choose(self, name: str, now: float, *, sticky: bool = False) -> list[Instance]:
        """Return the instances of a service in the order in which to try them (``Services.choose``)."""
        return self.directory.choose(name, now, self._context.clock.wall(), self.rtt, sticky=sticky)
