"""The gossip of one node, sans I/O: messages, links and time in, effects out.

The cores do not know each other; this class owns them, and is the only place where they meet: ``views`` (who is
linked), ``detector`` (who answers), ``members`` (who is believed to live), ``broadcast`` (the tree), ``store`` (what
counts), ``reconcile`` (what we lack), ``standing`` (who behaves). For layers above: ``publish``, ``entries``,
``status``, and the effects ``Changed`` and ``MemberChanged``. docs/explanation/gossip.md says why it is as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from meshnode.base.limits import GOSSIP_MAX_SEEDS, GOSSIP_MAX_TTL_S, GOSSIP_OWN_SHARE
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.wire import WireError
from meshnode.errors import RateLimited
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.dissemination.ingest import Ingest
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.effects import (
    Accuse,
    Banned,
    Changed,
    Connect,
    Effect,
    Estranged,
    Expired,
    MemberChanged,
    NeedContacts,
    NeighbourDown,
    NeighbourUp,
    Probe,
    Release,
    Scoped,
    Send,
    Silent,
    Status,
)
from meshnode.gossip.entry import Entry, Key, Kind, sign_entry
from meshnode.gossip.kinds import Member
from meshnode.gossip.membership.accusations import Accusations
from meshnode.gossip.membership.hyparview import HyParView
from meshnode.gossip.membership.members import Members
from meshnode.gossip.membership.reputation import Fault, Reputation
from meshnode.gossip.membership.swim import Swim
from meshnode.gossip.messages import (
    Contact,
    Disconnect,
    Eager,
    Entries,
    ForwardJoin,
    Graft,
    IHave,
    IndirectProbe,
    IndirectReply,
    Join,
    Message,
    Neighbour,
    NeighbourReply,
    Prune,
    Shuffle,
    ShuffleReply,
    SyncRequest,
    SyncResponse,
    UnknownMessage,
    Want,
    decode_message,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

MEMBER_TTL_S = 7200
LEAVE_TTL_S = 86_400  # no replayed member entry, which lives two hours, outlives the goodbye
SEED_S = 20.0
EXPIRY_SLACK_S = 1.0  # many entries expire in one go

MALFORMED = describe("gossip_drop_message", "messages dropped: not a message")
UNKNOWN = describe("gossip_drop_type", "messages ignored: of a type that this version does not know")
STRANGER = describe("gossip_drop_stranger", "messages dropped: from a peer that is no neighbour")
BANNED = describe("gossip_drop_banned", "messages dropped: from a peer that is cut off for lying")

CoreEffect = (
    Send
    | Connect
    | Release
    | Probe
    | NeedContacts
    | NeighbourUp
    | NeighbourDown
    | Accuse
    | Estranged
    | Silent
    | MemberChanged
)


class Gossip:
    """One node's gossip. Peer input never raises; after each call, ``take_effects()``.

    ``first_seq`` is above every seq that this identity has used before (wall milliseconds, as a rule).
    """

    def __init__(
        self,
        identity: Identity,
        *,
        rng: random.Random,
        metrics: Metrics,
        now: float,
        wall: float,
        first_seq: int = 0,
        store_limit: int | None = None,
    ) -> None:
        self.id = identity.id
        self.metrics = metrics
        self.record = b""
        self._identity = identity
        self._rng = rng
        self._offset = wall - now
        self._seq = first_seq
        self._timers = Timers()
        self._effects: list[Effect] = []
        self._expiring: Timer | None = None
        self._left = False
        self.probeable: Callable[[Contact], bool] = lambda contact: True
        self._seeds: dict[NodeId, Contact] = {}
        timers = self._timers
        timers.at(now + SEED_S * rng.uniform(0.5, 1.5), self._look_for_seeds)
        self.store = EntryStore(metrics) if store_limit is None else EntryStore(metrics, limit=store_limit)
        self.views = HyParView(self.id, rng, timers, metrics, lambda: self.record, lambda: self.broadcast.spare(), now)
        self.detector = Swim(rng, timers, metrics, self._sample, now)
        self.members = Members(self.id, timers, metrics, lambda: self.detector.health)
        self.broadcast = Plumtree(rng, timers, metrics, now)
        self.reconciler = AntiEntropy(rng, timers, metrics, self.store, self.payload, now)
        self.standing = Reputation(metrics)
        self.belief = Accusations(self)
        self.intake = Ingest(self)

    # ---- pumping

    def receive(self, peer: NodeId, data: bytes, now: float) -> None:
        """Take the bytes of a message from a linked peer."""
        if self.standing.is_banned(peer, now):
            self.metrics.count(BANNED)
            return
        try:
            message = decode_message(data)
        except UnknownMessage:
            self.metrics.count(UNKNOWN)
            return
        except WireError:
            self.metrics.count(MALFORMED)
            self.mark(peer, Fault.MALFORMED, now)
            return
        self.on_message(peer, message, now)

    def on_message(self, peer: NodeId, message: Message, now: float) -> None:
        """Take a message from a linked peer."""
        if self._left or self.standing.is_banned(peer, now):
            self.metrics.count(BANNED)
            return
        self.detector.on_heard(peer, now)
        kind = type(message)
        if kind in _SCOPED and message.scope:  # type: ignore[union-attr]
            self._effects.append(Scoped(peer, message))  # type: ignore[arg-type]
        elif kind in _NEIGHBOURLY and peer not in self.views.active:
            self.metrics.count(STRANGER)
            self.views.on_stranger(peer)
        else:
            _HANDLERS[kind](self, peer, message, now)
        self._route(now)

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``."""
        self._offset = wall - now
        while not self._left:  # what one core does may be due for another at once
            self._timers.run(now)
            self._route(now)
            at = self._timers.next_deadline()
            if at is None or at > now:
                return

    def next_deadline(self) -> float | None:
        """When ``tick`` is wanted next."""
        return None if self._left else self._timers.next_deadline()

    def take_effects(self) -> list[Effect]:
        """Everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def join(self, contact: Contact, now: float) -> None:
        """Enter the mesh through a node that we know of."""
        if contact.id != self.id and not self.standing.is_banned(contact.id, now):
            self.views.join(contact, now)
            self._route(now)

    def add_seed(self, contact: Contact, now: float) -> None:
        """A configured node to begin with. It is joined through now, unless it was before and we have neighbours; and
        again whenever we do not know it as a member: then it and we are in meshes that do not know each other."""
        known = contact.id in self._seeds
        if known or len(self._seeds) < GOSSIP_MAX_SEEDS:
            self._seeds[contact.id] = contact
        if not known or not self.views.active:
            self.join(contact, now)

    def _look_for_seeds(self, now: float) -> None:
        self._timers.at(now + SEED_S * self._rng.uniform(0.8, 1.2), self._look_for_seeds)
        for peer, contact in self._seeds.items():
            if self.status(peer) in (Status.UNKNOWN, Status.GONE) and not self._left:
                self.views.join(contact, now)

    def add_contact(self, contact: Contact, now: float) -> None:
        """Some other source knows of a node: a neighbour, when we need one."""
        if not self.standing.is_banned(contact.id, now):
            self.views.add_contact(contact, now)
            self._route(now)

    def announce(self, record: bytes, now: float) -> Entry:
        """Our endpoint record is new: we live, and here. Also after every move."""
        self.record = record
        return self._publish(Kind.MEMBER, "", Member(False, record).encoded(), MEMBER_TTL_S, now)

    def send(self, peer: NodeId, message: Message) -> None:
        """Say something to a linked peer: for layers above that run trees of their own (``Scoped``)."""
        self._effects.append(Send(peer, message))

    def check(self, kind: int, fits: Callable[[Entry], bool]) -> None:
        """A layer above says what its kind demands: what does not fit is dropped, and blamed on who handed it over."""
        self.intake.checks[kind] = fits

    def blame(self, peer: NodeId, fault: Fault, now: float) -> None:
        """A layer above was handed by ``peer`` what no honest node passes on."""
        self.mark(peer, fault, now)
        self._route(now)

    def leave(self, now: float) -> None:
        """Say goodbye to the mesh; gossip is over afterwards."""
        if not self._left:
            self._publish(Kind.MEMBER, "", Member(True, b"").encoded(), LEAVE_TTL_S, now, wide=True)
            self.views.leave(now)
            self._route(now)
            self._left = True

    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry:
        """Sign an entry and spread it; None as ``value`` withdraws an earlier one.

        Raises ValueError when it is too large, RateLimited when others would drop it (nothing has changed then). It
        replaces what we published before under the same kind and name, and lives at least as long.
        """
        return self._publish(kind, name, value, ttl, now, must=False)

    def _publish(
        self,
        kind: int,
        name: str,
        value: bytes | None,
        ttl: int,
        now: float,
        *,
        wide: bool = False,
        must: bool = True,
    ) -> Entry:
        """``wide``: at once to all neighbours; ``must``: whatever our rate is."""
        wall = self.wall(now)
        wall_ms = int(wall * 1000)
        before = self.store.get((self.id, kind, name))
        if before is not None and wall + ttl < before.expires:  # what replaces an entry has to live as long as it
            ttl = min(GOSSIP_MAX_TTL_S, math.ceil(before.expires - wall))
        entry = sign_entry(
            self._identity,
            kind=kind,
            name=name,
            seq=max(self._seq + 1, wall_ms),
            issued_ms=wall_ms,
            ttl=ttl,
            value=value,
        )
        allowed = self.standing.allows(self.id, len(entry.encoded), now, share=GOSSIP_OWN_SHARE)
        if not allowed and not must:
            raise RateLimited(
                "this node publishes more than others would pass on", hint="publish fewer, larger or later entries"
            )
        self._seq = entry.seq
        if not entry.fleeting:
            self.store.put(entry)
            self.arm_expiry(now)
            if kind == Kind.MEMBER:
                self.belief.void_accusations(self.id, entry.seq)
        self.broadcast.publish(entry.id, entry.encoded, now, wide=wide)
        self._effects.append(Changed(entry, before, None, 0))
        self._route(now)
        return entry

    # ---- questions

    def get(self, key: Key) -> Entry | None:
        """The newest entry of (origin, kind, name)."""
        return self.store.get(key)

    def entries(self, kind: int) -> Iterator[Entry]:
        """All stored entries of a kind, withdrawn ones (value None) included."""
        return self.store.entries(kind)

    def status(self, peer: NodeId) -> Status:
        """What we believe of a member."""
        status = self.members.status(peer)
        known = status is not Status.ALIVE or peer == self.id or self.belief.member(peer) is not None
        return status if known or peer in self.views.active else Status.UNKNOWN

    @property
    def neighbours(self) -> list[NodeId]:
        """The active view."""
        return list(self.views.active)

    # ---- links and signs of life

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """A connection to ``peer`` came or went, whoever wanted it."""
        if self._left:
            return
        if not up:
            contact = self.views.active.get(peer)
            self.views.on_unlink(peer, now)
            if contact is not None:
                self.belief.look_after(contact, now)  # nobody watches it now: did it close the link, or die?
        elif not self.standing.is_banned(peer, now):
            self.views.on_link(peer, now)
        self._route(now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """The answer to ``Connect`` when there is no link to be had."""
        self.views.on_connect_failed(peer, now)
        self._route(now)

    def on_alive(self, peer: NodeId, now: float) -> None:
        """``peer`` has answered a ``Probe``."""
        self.detector.on_alive(peer, now)
        if not self.standing.is_banned(peer, now):
            self.views.on_alive(peer, now)
        self._route(now)

    def on_probed(self, peer: NodeId, now: float) -> None:
        """``peer`` has sent us a probe: it lives, and need not be probed in turn."""
        self.detector.on_heard(peer, now)

    def on_drained(self, peer: NodeId, now: float) -> None:
        """The link had been too full for gossip, and is so no longer: see what was lost."""
        self.reconciler.ask(peer, now)
        self._route(now)

    # ---- what the parts share

    def payload(self, item: bytes) -> bytes | None:
        """The bytes of a stored entry."""
        entry = self.store.by_id(item)
        return entry.encoded if entry is not None else None

    def emit(self, effect: Effect) -> None:
        """Something for whoever drives us."""
        self._effects.append(effect)

    def tell_of_members(self, now: float) -> None:
        """What we believe of members has changed, and whoever drives us learns of it before anything that follows."""
        for effect in self.members.take_effects():
            self._carry(effect, now)

    def mark(self, peer: NodeId, fault: Fault, now: float) -> None:
        """Lower a peer's standing, and cut it off when it is too low."""
        if self.standing.lower(peer, fault, now):
            self.views.forget(peer, now)
            self._effects.append(Banned(peer))

    def put_out(
        self,
        kind: int,
        name: str,
        value: bytes | None,
        ttl: int,
        now: float,
        *,
        wide: bool = False,
    ) -> Entry:
        """Publish whatever our rate is; ``wide``: at once to all neighbours."""
        return self._publish(kind, name, value, ttl, now, wide=wide)

    def rise_above(self, seq: int) -> None:
        """Our next entry has a higher seq than this."""
        self._seq = max(self._seq, seq)

    def at(self, when: float, action: Callable[[float], None]) -> Timer:
        """Do something later."""
        return self._timers.at(when, action)

    def later(self, within: float, action: Callable[[float], None], now: float) -> None:
        """Do something at a random time, at most ``within`` seconds from now."""
        self._timers.at(now + self._rng.uniform(0.0, within), action)

    def _sample(self) -> Contact | None:
        found = [contact for contact in self.views.passive.values() if self.probeable(contact)]
        return self._rng.choice(found) if found else None

    # ---- the rest

    def wall(self, now: float) -> float:
        """Our Unix seconds."""
        return now + self._offset

    def arm_expiry(self, now: float) -> None:
        """Look at the store again when its next entry expires."""
        at = self.store.next_expiry()
        if at is None:
            return
        when = max(now, at - self._offset + EXPIRY_SLACK_S)
        if self._expiring is None or not self._expiring.live or when < self._expiring.when:
            if self._expiring is not None:
                self._expiring.cancel()
            self._expiring = self._timers.at(when, self._expire)

    def _expire(self, now: float) -> None:
        for entry in self.store.expire(self.wall(now)):
            self._effects.append(Expired(entry))
        self._expiring = None
        self.arm_expiry(now)

    def _route(self, now: float) -> None:
        """Carry what the cores want to each other, and out."""
        for _ in range(8):  # one's effect may cause another's; more rounds would be a loop
            effects = [
                *self.views.take_effects(),
                *self.detector.take_effects(),
                *self.members.take_effects(),
                *self.broadcast.take_effects(),
                *self.reconciler.take_effects(),
            ]
            if not effects:
                return
            for effect in effects:
                self._carry(effect, now)

    def _carry(self, effect: CoreEffect, now: float) -> None:
        if isinstance(effect, NeighbourUp):
            peer = effect.peer
            self.broadcast.link(peer)
            self.detector.watch(self.views.active[peer], now)
            self.reconciler.add(peer)
            self._timers.at(now + effect.reconcile_in, lambda now: self.reconciler.ask(peer, now))
        elif isinstance(effect, NeighbourDown):
            self.broadcast.unlink(effect.peer)
            self.detector.unwatch(effect.peer)
            self.reconciler.remove(effect.peer)
        elif isinstance(effect, Accuse):
            self.belief.accuse(effect.peer, now)
        elif isinstance(effect, Estranged):
            self.views.lose(effect.peer, now)
        elif isinstance(effect, Silent):
            contact = self.views.passive.get(effect.peer)
            if contact is not None:
                self.belief.look_after(contact, now)  # once more: three lost datagrams are no death
        else:
            if isinstance(effect, MemberChanged) and effect.status is Status.GONE:
                self.views.lose(effect.peer, now)
            self._effects.append(effect)


_Handler = Callable[[Gossip, NodeId, Any, float], None]


def _on_graft(gossip: Gossip, peer: NodeId, message: Graft, now: float) -> None:
    found = {item: payload for item in message.ids if (payload := gossip.payload(item)) is not None}
    gossip.broadcast.on_graft(peer, message, found, now)


_SCOPED = (Eager, IHave, Graft, Prune)
_NEIGHBOURLY = (
    ForwardJoin,
    Shuffle,
    IndirectProbe,
    Eager,
    IHave,
    Graft,
    Prune,
    SyncRequest,
    SyncResponse,
    Want,
    Entries,
)
_HANDLERS: dict[type, _Handler] = {
    Join: lambda g, peer, m, now: g.views.on_join(peer, m, now),
    ForwardJoin: lambda g, peer, m, now: g.views.on_forward_join(peer, m, now),
    Neighbour: lambda g, peer, m, now: g.views.on_neighbour(peer, m, now),
    NeighbourReply: lambda g, peer, m, now: g.views.on_neighbour_reply(peer, m, now),
    Disconnect: lambda g, peer, m, now: g.views.on_disconnect(peer, m, now),
    Shuffle: lambda g, peer, m, now: g.views.on_shuffle(peer, m, now),
    ShuffleReply: lambda g, peer, m, now: g.views.on_shuffle_reply(peer, m, now),
    IndirectProbe: lambda g, peer, m, now: g.detector.on_probe_ask(peer, m, now),
    IndirectReply: lambda g, peer, m, now: g.detector.on_probe_tell(peer, m, now),
    Eager: lambda g, peer, m, now: g.intake.on_eager(peer, m, now),
    IHave: lambda g, peer, m, now: g.broadcast.on_ihave(peer, m, now),
    Graft: _on_graft,
    Prune: lambda g, peer, m, now: g.broadcast.on_prune(peer, now),
    SyncRequest: lambda g, peer, m, now: g.reconciler.on_ask(peer, m, now),
    SyncResponse: lambda g, peer, m, now: g.reconciler.on_tell(peer, m, now),
    Want: lambda g, peer, m, now: g.reconciler.on_want(peer, m, now),
    Entries: lambda g, peer, m, now: g.intake.on_entries(peer, m, now),
}
