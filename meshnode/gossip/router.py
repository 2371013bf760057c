"""The gossip of one node, sans I/O: messages, links and time in, effects out.

The cores do not know each other; this class owns them, and is the only place where they meet. Each is named after its
module. A message goes to the handler that its row in messages.py names; what a core wants done comes back as effects,
which either go to another core here, or out. The reasons are in docs/explanation/gossip.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

from meshnode.base.limits import GOSSIP_MAX_STORED, GOSSIP_OWN_SHARE
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.wire import WireError
from meshnode.errors import RateLimited
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.dissemination.ingest import Blame, Ingest, Taken
from meshnode.gossip.dissemination.own_entries import OwnEntries
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.effects import (
    Accuse,
    Banned,
    Changed,
    Effect,
    Estranged,
    Expired,
    Fault,
    MemberChanged,
    NeighbourDown,
    NeighbourUp,
    Publish,
    Send,
    Silent,
    Status,
)
from meshnode.gossip.entry import Entry, Kind, id_of
from meshnode.gossip.facts import Facts
from meshnode.gossip.kinds import Member, parse_accusation, parse_member
from meshnode.gossip.membership.accusations import MEMBER_TTL_S, Accusations, Unreachable
from meshnode.gossip.membership.hyparview import HyParView
from meshnode.gossip.membership.members import Members
from meshnode.gossip.membership.reputation import Reputation
from meshnode.gossip.membership.seeds import Seeds
from meshnode.gossip.membership.swim import Swim
from meshnode.gossip.message_table import UnknownMessage
from meshnode.gossip.messages import (
    MESSAGES,
    TABLE,
    Contact,
    Disconnect,
    Eager,
    Entries,
    Graft,
    IHave,
    Message,
    Prune,
    decode_message,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

LEAVE_TTL_S = 86_400  # no replayed member entry, which lives two hours, outlives the goodbye
EXPIRY_SLACK_S = 1.0  # many entries expire in one go
ROUNDS = 8  # of effects that cause effects; more would be a loop

MALFORMED = describe("gossip_drop_message", "messages dropped: not a message")
UNKNOWN = describe("gossip_drop_type", "messages ignored: of a type that this version does not know")
STRANGER = describe("gossip_drop_stranger", "messages dropped: from a peer that is no neighbour")
BANNED = describe("gossip_drop_banned", "messages dropped: from a peer that is cut off for lying")

NEIGHBOURS_ONLY = {row.kind: row.neighbours_only for row in MESSAGES.values()}


class Gossip:
    """Gossip of one node. Peer input never raises; after each call, ``take_effects()``.

    ``first_seq`` is above every seq that this identity has used before (wall milliseconds, as a rule); ``probeable``
    tells whether datagrams reach a node.
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
        store_limit: int = GOSSIP_MAX_STORED,
        probeable: Callable[[Contact], bool] = lambda contact: True,
    ) -> None:
        own = self.own_entries = OwnEntries(identity, wall - now, first_seq)
        timers = self._timers = Timers()
        self.metrics = metrics
        self._effects: list[Effect] = []
        self.store = EntryStore(metrics, limit=store_limit)
        self.seeds = Seeds(rng, timers, self.status, lambda contact, now: self.hyparview.join(contact, now), now)
        self.hyparview = HyParView(own.id, rng, timers, metrics, lambda: own.record, lambda: self.plumtree.spare(), now)
        self.swim = Swim(rng, timers, metrics, lambda: facts.strangers(), now)
        self.members = Members(own.id, timers, metrics, lambda: self.swim.health)
        facts = Facts(self.status, self.store, self.members, self.hyparview.views, probeable)
        self.plumtree = Plumtree(rng, timers, metrics, now, find=self.store.payload)
        self.anti_entropy = AntiEntropy(rng, timers, metrics, self.store, now)
        self.reputation = Reputation(metrics)
        self.accusations = Accusations(rng, timers, metrics, facts, self.swim.probe, lambda: own.record)
        self.ingest = Ingest(own.id, metrics, self.store, own.wall, self.reputation.allows, self._on_own_entry)

    # ---- pumping

    def receive(self, peer: NodeId, data: bytes, now: float) -> None:
        """Take the bytes of a message from a linked peer.

        Malformed ones are dropped, counted, and lower the peer's reputation; unknown ones are only counted, for a later
        version may send them.
        """
        if self.reputation.is_banned(peer, now):
            self.metrics.count(BANNED)
            return
        try:
            message = decode_message(data)
        except UnknownMessage:
            self.metrics.count(UNKNOWN)
            return
        except WireError:
            self.metrics.count(MALFORMED)
            self.blame(peer, Fault.MALFORMED, now)
            return
        self.on_message(peer, message, now)

    def on_message(self, peer: NodeId, message: Message, now: float) -> None:
        """Take a message from a linked peer.

        Those that only neighbours may send are dropped from others, which are told with Disconnect that they are none.
        """
        if self.own_entries.left or self.reputation.is_banned(peer, now):
            self.metrics.count(BANNED)
            return
        self.swim.on_heard(peer, now)
        if isinstance(message, Eager | IHave | Graft | Prune) and message.scope:
            self.metrics.count(UNKNOWN)  # not of the whole mesh: a later version may have a meaning for it
        elif NEIGHBOURS_ONLY[type(message)] and peer not in self.hyparview.active:
            self.metrics.count(STRANGER)
            if not self.hyparview.wants(peer):  # it takes this node for its neighbour: tell it that it is none
                self._effects.append(Send(peer, Disconnect(False)))
        else:
            TABLE.handler(self, message)(peer, message, now)
        self._route(now)

    def tick(self, now: float, wall: float) -> None:
        """Do what is due; afterwards ``next_deadline()`` is None or later than ``now``.

        ``now`` is monotonic seconds, ``wall`` Unix seconds: their difference dates entries until the next call.
        """
        self.own_entries.offset = wall - now
        while not self.own_entries.left:  # what one core does may be due for another at once
            self._timers.run(now)
            at = self.next_deadline()
            if at is not None and at <= now:  # timers have run: it is entries that expire
                self._effects += [Expired(entry) for entry in self.store.expire(wall)]
            self._route(now)
            at = self.next_deadline()
            if at is None or at > now:
                return

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next, in monotonic seconds; None after ``leave``."""
        if self.own_entries.left:
            return None
        at, expiry = self._timers.next_deadline(), self.store.next_expiry()
        if expiry is None:
            return at
        expiry += EXPIRY_SLACK_S - self.own_entries.offset
        return expiry if at is None else min(at, expiry)

    def take_effects(self) -> list[Effect]:
        """Return what is to be done since the last call.

        In order, but for changes of members, which come first: one message may bring a node's service before its member
        entry, and a node is back before its services are.
        """
        effects, self._effects = self._effects, []
        return sorted(effects, key=lambda effect: not isinstance(effect, MemberChanged))

    def join(self, contact: Contact, now: float) -> None:
        """Enter the mesh through a known node; nothing happens for this node itself and for a banned one."""
        if contact.id != self.own_entries.id and not self.reputation.is_banned(contact.id, now):
            self.hyparview.join(contact, now)
            self._route(now)

    def add_seed(self, contact: Contact, now: float) -> None:
        """Add a configured node and join through it, at once unless it was known and there are neighbours.

        It is tried again while there are no neighbours, and now and then afterwards, so that meshes that were cut in
        two find each other.
        """
        if self.seeds.add(contact) or not self.hyparview.active:
            self.join(contact, now)

    def add_contact(self, contact: Contact, now: float) -> None:
        """Add a node that another source knows: it becomes a neighbour when one is needed.

        A banned node is ignored.
        """
        if not self.reputation.is_banned(contact.id, now):
            self.hyparview.add_contact(contact, now)
            self._route(now)

    def announce(self, record: bytes, now: float) -> Entry:
        """Publish this node's encoded endpoint record: after its start, and after each move.

        The entry goes out even above the rate limit; it is renewed until ``leave``.
        """
        self.own_entries.record = record
        entry = self._put_out(Publish(Kind.MEMBER, "", Member(False, record).encoded(), MEMBER_TTL_S), now)
        self._route(now)
        return entry

    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry:
        """Sign an entry and spread it; None as ``value`` withdraws an earlier one. ``ttl`` is in seconds.

        Raises ValueError when it is too large, RateLimited when others would drop it (nothing has changed then). It
        replaces what this node published before under the same kind and name, and lives at least as long.
        """
        entry = self._put_out(Publish(kind, name, value, ttl), now, must=False)
        self._route(now)
        return entry

    def blame(self, peer: NodeId, fault: Fault, now: float) -> None:
        """Lower the reputation of a peer that sent what no honest node passes on.

        At ``BAN_AT`` points it is banned for ``GOSSIP_BAN_S`` (the effect ``Banned``).
        """
        self.reputation.lower(peer, fault, now)
        self._route(now)

    def leave(self, now: float) -> None:
        """Say goodbye to the mesh; afterwards messages are dropped, and there is no deadline.

        The goodbye lives ``LEAVE_TTL_S``, longer than any entry that says that the node lives. May be repeated.
        """
        if not self.own_entries.left:
            self._put_out(Publish(Kind.MEMBER, "", Member(True, b"").encoded(), LEAVE_TTL_S, wide=True), now)
            self._route(now)
            self.hyparview.leave(now)
            self._route(now)
            self.own_entries.left = True

    def status(self, peer: NodeId) -> Status:
        """Return the believed state of a member.

        UNKNOWN when no entry says that it is one, unless it is a neighbour; ALIVE for this node itself.
        """
        status = self.members.status(peer)
        known = status is not Status.ALIVE or peer == self.own_entries.id or self.store.incarnation(peer) is not None
        return status if known or peer in self.hyparview.active else Status.UNKNOWN

    # ---- links and signs of life

    def on_link(self, peer: NodeId, up: bool, now: float) -> None:
        """Take up, or give up, a connection to ``peer``, whichever end or layer opened it.

        A neighbour whose link is over is replaced, and probed: it may have closed the link, or have died.
        """
        if self.own_entries.left:
            return
        if not up:
            contact = self.hyparview.active.get(peer)
            self.hyparview.on_unlink(peer, now)
            if contact is not None:  # no neighbour may watch it now: did it close the link, or die?
                self.accusations.on_unwatched(contact, now)
        elif not self.reputation.is_banned(peer, now):
            self.hyparview.on_link(peer, now)
        self._route(now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """Give up a peer that ``Connect`` asked for: no link could be opened.

        It leaves the passive view, and is probed now and then when its record is known.
        """
        self.hyparview.on_connect_failed(peer, now)
        self._route(now)

    def on_alive(self, peer: NodeId, now: float) -> None:
        """Take the answer of ``peer`` to a ``Probe``."""
        self.swim.on_alive(peer, now)
        if not self.reputation.is_banned(peer, now):
            self.hyparview.on_alive(peer, now)
        self._route(now)

    def on_drained(self, peer: NodeId, now: float) -> None:
        """Reconcile over a link that was too full for gossip for a while: messages were dropped."""
        self.anti_entropy.ask(peer, now)
        self._route(now)

    # ---- handlers that join several cores

    def on_eager(self, peer: NodeId, message: Eager, now: float) -> None:
        """Take payloads of the tree: each is verified and stored before it is passed on.

        One that was seen is not opened: it shows which of two links is slower.
        """
        for hops, payload in message.items:
            item = id_of(payload)
            if item in self.plumtree.seen:
                if not self.plumtree.on_overtaken(peer, item, hops, now):
                    self.plumtree.on_duplicate(peer, item, now)
                continue
            taken = self.ingest.take(peer, payload, now)
            if taken is None:
                self.plumtree.on_rejected(item, now)
            else:
                wide = _breaks_the_tree(self, taken.entry)
                self.plumtree.on_payload(peer, item, payload, hops, now, wide=wide)
                self._apply(taken, peer, hops + 1, now)

    def on_entries(self, peer: NodeId, message: Entries, now: float) -> None:
        """Take the entries that anti-entropy brings: new ones are announced to the tree, not pushed."""
        ids = [id_of(payload) for payload in message.payloads]
        self.anti_entropy.on_entries(peer, message, ids, now)
        for item, payload in zip(ids, message.payloads, strict=True):
            taken = self.ingest.take(peer, payload, now) if self.store.by_id(item) is None else None
            if taken is not None:
                self.plumtree.announce(item, payload, peer, now)
                self._apply(taken, peer, 0, now)

    # ---- inside

    def _put_out(self, wanted: Publish, now: float, *, must: bool = True) -> Entry:
        """Publish an entry of this node. Raises RateLimited when it ``must`` not go out whatever the rate is."""
        own = self.own_entries
        before = self.store.get((own.id, wanted.kind, wanted.name))
        entry = own.sign(wanted, before, now)
        allowed = self.reputation.allows(own.id, len(entry.encoded), now, share=GOSSIP_OWN_SHARE)
        if not allowed and not must:
            raise RateLimited(
                "this node publishes more than others would pass on", hint="publish fewer, larger or later entries"
            )
        own.rise_above(entry.seq)
        if not entry.fleeting:
            self.store.put(entry)
        if entry.kind == Kind.MEMBER:
            self.store.void_accusations(own.id, entry.seq)
        self.plumtree.publish(entry.id, entry.encoded, now, wide=wanted.wide)
        self._effects.append(Changed(entry, before, None, 0))
        accusation = parse_accusation(entry) if entry.kind == Kind.ACCUSATION else None
        if accusation is not None:
            self.members.on_accused(accusation.accused, own.id, accusation.incarnation, now)
        return entry

    def _apply(self, taken: Taken, via: NodeId, hops: int, now: float) -> None:
        """Tell the cores and the layers above of a new entry of another node."""
        if taken.entry.kind == Kind.MEMBER:
            _on_member(self, taken, now)
        elif taken.entry.kind == Kind.ACCUSATION:
            _on_accusation(self, taken.entry, now)
        for effect in self.members.take_effects():  # first, for a node is back before its services are
            self._carry(effect, now)
        self._effects.append(Changed(taken.entry, taken.before, via, hops))

    def _on_own_entry(self, entry: Entry, stale: bool, now: float) -> None:
        """Answer an entry of this node that it does not remember: its state was lost, or its key is used elsewhere."""
        if stale:
            wanted = self.own_entries.outlive(entry, self.store.get(entry.key), now)
            if wanted is not None:
                self._put_out(wanted, now)
            return
        self.own_entries.rise_above(entry.seq)
        if entry.kind == Kind.MEMBER:  # also when seqs are higher already: others take it for the newest
            self.accusations.refute(now)
            for effect in self.accusations.take_effects():
                self._carry(effect, now)

    def _route(self, now: float) -> None:
        """Carry what the cores want to each other, and out."""
        cores = (
            self.hyparview,
            self.swim,
            self.members,
            self.plumtree,
            self.anti_entropy,
            self.accusations,
            self.ingest,
            self.reputation,
        )
        for _ in range(ROUNDS):
            effects = [effect for core in cores for effect in core.take_effects()]
            if not effects:
                return
            for effect in effects:
                self._carry(effect, now)

    def _carry(self, effect: object, now: float) -> None:
        wire = _WIRING.get(type(effect))
        if wire is None:
            self._effects.append(cast(Effect, effect))
        else:
            wire(self, effect, now)


# ---- wiring: what an entry or an effect of one core means to the others


def _breaks_the_tree(gossip: Gossip, entry: Entry) -> bool:
    """Return whether an entry is the first accusation of a neighbour that is silent here too, so the tree is broken."""
    accusation = parse_accusation(entry) if entry.kind == Kind.ACCUSATION else None
    if accusation is None or accusation.accused not in gossip.hyparview.active:
        return False
    return gossip.members.accusers(accusation.accused) == 0 and not gossip.swim.hears(accusation.accused)


def _on_member(gossip: Gossip, taken: Taken, now: float) -> None:
    """Take news of a member: it lives, has moved, refutes an accusation, or leaves."""
    peer, seq, member = taken.entry.origin, taken.entry.seq, parse_member(taken.entry)
    if peer == gossip.own_entries.id or member is None:
        return
    gossip.members.on_member(peer, seq, member.left, now, news=taken.before is None)
    gossip.store.void_accusations(peer, seq)
    if member.left:
        gossip.hyparview.forget(peer, now)
    else:
        gossip.hyparview.views.note_record(Contact(peer, member.record))
        gossip.swim.on_refuted(peer)


def _on_accusation(gossip: Gossip, entry: Entry, now: float) -> None:
    """Handle an accusation: refute it when it names this node, else suspect and perhaps probe the accused."""
    accusation = parse_accusation(entry)
    if accusation is None:
        return
    accused = accusation.accused
    if accused == gossip.own_entries.id:
        gossip.own_entries.rise_above(accusation.incarnation)
        gossip.swim.blame_itself()
        gossip.accusations.refute(now)
        return
    gossip.members.on_accused(accused, entry.origin, accusation.incarnation, now)
    gossip.swim.suspect(accused, now)
    contact = gossip.hyparview.passive.get(accused)
    if contact is not None:
        gossip.accusations.on_accused(contact, now)


def _neighbour_up(gossip: Gossip, effect: NeighbourUp, now: float) -> None:
    peer = effect.peer
    gossip.plumtree.link(peer)
    gossip.swim.watch(gossip.hyparview.active[peer], now)
    gossip.anti_entropy.add(peer, now + effect.reconcile_in)


def _neighbour_down(gossip: Gossip, effect: NeighbourDown, now: float) -> None:
    gossip.plumtree.unlink(effect.peer)
    gossip.swim.unwatch(effect.peer)
    gossip.anti_entropy.remove(effect.peer)


def _silent(gossip: Gossip, effect: Silent, now: float) -> None:
    contact = gossip.hyparview.passive.get(effect.peer)
    if contact is not None:
        gossip.accusations.on_unwatched(contact, now)  # once more: three lost datagrams are no death


def _banned(gossip: Gossip, effect: Banned, now: float) -> None:
    gossip.hyparview.forget(effect.peer, now)
    gossip._effects.append(effect)


def _member_changed(gossip: Gossip, effect: MemberChanged, now: float) -> None:
    if effect.status is Status.GONE:
        gossip.hyparview.lose(effect.peer, now)
    gossip._effects.append(effect)


_WIRING: dict[type, Callable[[Gossip, Any, float], object]] = {
    NeighbourUp: _neighbour_up,
    NeighbourDown: _neighbour_down,
    Accuse: lambda gossip, effect, now: gossip.accusations.accuse(effect.peer, now),
    Estranged: lambda gossip, effect, now: gossip.hyparview.lose(effect.peer, now),
    Silent: _silent,
    Unreachable: lambda gossip, effect, now: gossip.hyparview.passive.pop(effect.peer, None),
    Publish: lambda gossip, effect, now: gossip._put_out(effect, now),
    Blame: lambda gossip, effect, now: gossip.reputation.lower(effect.peer, effect.fault, now),
    Banned: _banned,
    MemberChanged: _member_changed,
}
