"""The gossip of one node, sans I/O: messages, links and time in, effects out.

The cores do not know each other; this class owns them, and is the only place where they meet. Each is named after its
module. A message goes to the handler that its row in messages.py names; what a core wants done comes back as effects,
which either go to another core here, or out. The reasons are in docs/explanation/gossip.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from typing import cast

from meshnode.base.limits import GOSSIP_MAX_STORED, GOSSIP_OWN_SHARE
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.wire import WireError
from meshnode.errors import RateLimited
from meshnode.gossip.arrivals import Arrivals
from meshnode.gossip.dissemination.anti_entropy import AntiEntropy
from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.dissemination.ingest import Ingest, Taken
from meshnode.gossip.dissemination.listing import Listing
from meshnode.gossip.dissemination.own_entries import OwnEntries
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.dissemination.roll import Listed, Roll
from meshnode.gossip.dissemination.telling import Telling
from meshnode.gossip.effects import Banned, Changed, Effect, Expired, Fault, MemberChanged, Publish, Send, Status
from meshnode.gossip.entry import Entry, Kind, latest_ms
from meshnode.gossip.facts import Facts
from meshnode.gossip.kinds import GOODBYE, parse_accusation
from meshnode.gossip.membership.accusations import Accusations
from meshnode.gossip.membership.hyparview import HyParView
from meshnode.gossip.membership.members import Members
from meshnode.gossip.membership.reputation import Reputation
from meshnode.gossip.membership.seeds import Seeds
from meshnode.gossip.membership.swim import NEVER, Swim
from meshnode.gossip.message_table import UnknownMessage
from meshnode.gossip.messages import (
    MESSAGES,
    TABLE,
    Contact,
    Disconnect,
    Eager,
    Graft,
    IHave,
    Message,
    Prune,
    decode_message,
)
from meshnode.gossip.wiring import (
    WIRING,
    breaks_the_tree,
    has_standing,
    listed_members,
    met_nodes,
    offering_members,
    on_accusation,
    on_member,
    publish_member,
)
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import read_record

LEAVE_TTL_S = 86_400  # no replayed member entry, which lives two hours, outlives the goodbye
EXPIRY_SLACK_S = 1.0  # many entries expire in one go
OF_MEMBERS = (Kind.REDEMPTION, Kind.GRANTS)  # what any member may say of itself: it offers nothing to others by that
ROUNDS = 8  # of effects that cause effects; more would be a loop

MALFORMED = describe("gossip_drop_message", "messages dropped: not a message")
UNKNOWN = describe("gossip_drop_type", "messages ignored: of a type that this version does not know")
STRANGER = describe("gossip_drop_stranger", "messages dropped: from a peer that is no neighbour")
BANNED = describe("gossip_drop_banned", "messages dropped: from a peer that is cut off for lying")

# Made once: a union that is written where it is used is built again for each message.
SCOPED = Eager, IHave, Graft, Prune
CARRIED_AND_TOLD = Banned, MemberChanged
NEIGHBOURS_ONLY = {row.kind: row.neighbours_only for row in MESSAGES.values()}


class Gossip:
    """Gossip of one node. Peer input never raises; after each call, ``take_effects()``.

    ``first_seq`` is above every seq that this identity has used before (wall milliseconds, as a rule); ``probeable``
    tells whether datagrams reach a node, ``answered`` whether a node is connected or has answered this one, and
    ``network_of`` the source network of a linked one, and ``heard_at`` when anything came by the connection with one.
    ``listed``: all members have to know this one, however many they are. ``is_leaf`` tells which nodes are leaves,
    ``leaf`` that this one is (``membership/leaves.py``).
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
        listed: bool = False,
        probeable: Callable[[Contact], bool] = lambda contact: True,
        answered: Callable[[NodeId], bool] = lambda peer: False,
        network_of: Callable[[NodeId], Hashable] = lambda peer: None,
        heard_at: Callable[[NodeId], float] = lambda peer: NEVER,
        is_leaf: Callable[[NodeId], bool] = lambda peer: False,
        leaf: bool = False,
    ) -> None:
        timers = self._timers = Timers()

        def roll_of(kind: int) -> Roll:
            def members() -> Iterator[Listed]:
                return listed_members(self, answered) if kind == Kind.MEMBER else offering_members(self, answered, kind)

            return Roll(rng, members, lambda: read_record(own.record), lambda *asked: self.swim.probe(*asked))

        roll = roll_of(Kind.MEMBER)
        listing = Listing(
            rng,
            timers,
            roll,
            lambda now: publish_member(self, now),
            always=listed,
            never=leaf,
            met=lambda: met_nodes(self),
        )
        own = self.own_entries = OwnEntries(identity, wall - now, first_seq, listing)
        self.metrics = metrics
        self._effects: list[Effect] = []

        def standing(peer: NodeId) -> bool:
            return has_standing(self, answered, peer)

        self.store = EntryStore(
            metrics,
            limit=store_limit,
            own=own.id,
            has_standing=standing,
            is_kept=lambda peer: peer in self.hyparview.active or peer in self.seeds,
            network_of=network_of,
        )
        own.telling = Telling(lambda kind: len(self.store.places(kind)), cache(roll_of))
        self.seeds = Seeds(
            rng,
            timers,
            self.status,
            lambda contact, now: self.hyparview.join(contact, now),
            lambda: bool(self.hyparview.active),
            now,
        )
        self.hyparview = HyParView(
            own.id,
            rng,
            timers,
            metrics,
            lambda: own.record,
            lambda: self.plumtree.spare(),
            now,
            network_of,
            is_leaf,
            leaf,
        )
        self.swim = Swim(rng, timers, metrics, lambda: [] if leaf else facts.strangers(), now, heard_at)
        self.members = Members(own.id, timers, metrics, lambda: self.swim.health, standing, self.hyparview.views.tries)
        facts = Facts(self.status, self.store, self.members, self.hyparview.views, probeable)
        self.plumtree = Plumtree(rng, timers, metrics, now, find=self.store.buckets.payload, forwards=not leaf)
        self.anti_entropy = AntiEntropy(rng, timers, metrics, self.store.buckets, self.store.lacks, now, rare=leaf)
        self.reputation = Reputation(metrics)
        self.accusations = Accusations(rng, timers, metrics, facts, self.swim.probe, lambda: own.record)
        ingest = Ingest(own.id, metrics, self.store, own.wall, self.reputation.allows, self._on_own_entry)
        self.arrivals = Arrivals(
            timers,
            metrics,
            now,
            (self.plumtree, self.anti_entropy, ingest, self.store),
            self._apply,
            lambda entry: breaks_the_tree(self, entry),
            standing,
            network_of,
            lambda peer, now: self.reputation.lower(peer, Fault.TOO_MUCH, now),
        )

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
        self.members.on_heard(peer)
        if isinstance(message, SCOPED) and message.scope:
            self.metrics.count(UNKNOWN)  # not of the whole mesh: a later version may have a meaning for it
        elif NEIGHBOURS_ONLY[type(message)] and not (peer in self.hyparview.active or peer in self.hyparview.leaves):
            self.metrics.count(STRANGER)
            if not self.hyparview.wants(peer) and self.hyparview.links.may_tell(peer, now):
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

    def on_clock_set(self, now: float, wall: float) -> None:
        """Drop entries that are dated ahead of the clock, and publish this node's again.

        The clock was wrong before, or is now: others refuse what this node has dated by it.
        """
        own = self.own_entries
        own.set_clock(now, wall)
        published = self.store.of_origin(own.id)
        self._effects += [Expired(entry) for entry in self.store.drop_ahead(latest_ms(wall)) if entry.origin != own.id]
        for entry in published:
            if entry.kind != Kind.ACCUSATION and not own.left:
                self.put_out(Publish(entry.kind, entry.name, entry.value, entry.ttl), now)
        self._route(now)

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
        if not self._effects:
            return []
        effects, self._effects = self._effects, []
        if len(effects) > 1:
            effects.sort(key=_comes_after)
        return effects

    def join(self, contact: Contact, now: float) -> None:
        """Enter the mesh through a known node; nothing happens for this node itself and for a banned one."""
        if contact.id != self.own_entries.id and not self.reputation.is_banned(contact.id, now):
            self.hyparview.join(contact, now)
            self._route(now)

    def add_seed(self, contact: Contact, now: float) -> None:
        """Add a configured node and join through it, at once unless it was known and is not away, and there are others.

        It is tried again while there are no neighbours, and now and then afterwards, so that meshes that were cut in
        two find each other.
        """
        if self.seeds.add(contact) or not self.hyparview.active or self.status(contact.id).is_away:
            self.join(contact, now)

    def add_contact(self, contact: Contact, now: float) -> None:
        """Add a node that another source knows: it becomes a neighbour when one is needed.

        A banned node is ignored.
        """
        if not self.reputation.is_banned(contact.id, now):
            self.hyparview.add_contact(contact, now)
            self._route(now)

    def announce(self, record: bytes, now: float) -> Entry | None:
        """Take this node's encoded endpoint record: after its start, after each move, and to renew it until ``leave``.

        It is published, even above the rate limit, by a node that is listed; else None is returned, and it may be later
        (``listing.py``).
        """
        own = self.own_entries
        own.record = record
        before = self.store.get((own.id, Kind.MEMBER, ""))
        age = own.wall(now) - before.issued / 1000 if before is not None else None
        entry = publish_member(self, now) if own.listing.announces(now, age) else None
        self._route(now)
        return entry

    def publish(self, kind: int, name: str, value: bytes | None, ttl: int, now: float) -> Entry:
        """Sign an entry and spread it; None as ``value`` withdraws an earlier one. ``ttl`` is in seconds.

        Raises ValueError when it is too large, RateLimited when others would drop it (nothing has changed then). It
        replaces what this node published before under the same kind and name, and lives at least as long. A node that
        publishes what others are to find by gossip is listed from then on; what has no place in it (``telling.py``) is
        an effect like any other, and told to none.
        """
        entry = self.put_out(Publish(kind, name, value, ttl), now, must=False)
        if not entry.fleeting and kind not in OF_MEMBERS and not self.own_entries.telling.is_untold(entry):
            self.own_entries.listing.must(now)
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

        The goodbye lives ``LEAVE_TTL_S``, longer than any entry that says that the node lives; when there is none, only
        neighbours are told. May be repeated.
        """
        own = self.own_entries
        if not own.left:
            if self.store.incarnation(own.id) is not None:
                self.put_out(Publish(Kind.MEMBER, "", GOODBYE, LEAVE_TTL_S, wide=True), now)
                self._route(now)
            self.hyparview.leave(now)
            self._route(now)
            own.left = True

    def status(self, peer: NodeId) -> Status:
        """Return the believed state of a member.

        UNKNOWN when no entry says that it is one, unless it is connected; ALIVE for this node itself.
        """
        status = self.members.status(peer)
        if status is not Status.ALIVE or peer == self.own_entries.id:
            return status
        said = self.store.get((peer, Kind.MEMBER, ""))
        if said is not None and said.value == GOODBYE:  # of those that left only a bounded number is remembered
            return Status.LEFT
        return status if said is not None or peer in self.hyparview.links else Status.UNKNOWN

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
            self.members.on_heard(peer)
            self.hyparview.on_link(peer, now)
        self._route(now)

    def on_connect_failed(self, peer: NodeId, now: float) -> None:
        """Give up a peer that ``Connect`` asked for: no link could be opened.

        It leaves the passive view, and is probed now and then when its record is known.
        """
        self.hyparview.on_connect_failed(peer, now)
        self._route(now)

    def on_heard(self, peer: NodeId, now: float) -> None:
        """Take a sign of life of ``peer``."""
        self.swim.on_heard(peer, now)
        self.members.on_heard(peer)
        self._route(now)

    def on_alive(self, peer: NodeId, now: float) -> None:
        """Take the answer of ``peer`` to a ``Probe``."""
        self.swim.on_alive(peer, now)
        self.members.on_heard(peer)
        if not self.reputation.is_banned(peer, now):
            self.hyparview.on_alive(peer, now)
        self._route(now)

    def on_drained(self, peer: NodeId, now: float) -> None:
        """Reconcile over a link that was too full for gossip for a while: messages were dropped."""
        self.anti_entropy.ask_again(peer, now)
        self._route(now)

    # ---- inside

    def put_out(self, wanted: Publish, now: float, *, must: bool = True) -> Entry:
        """Publish an entry of this node.

        Raises RateLimited when it ``must`` not go out whatever the rate is.
        """
        own = self.own_entries
        told = self.store.get((own.id, wanted.kind, wanted.name))
        before = self.own_entries.telling.last(wanted.kind, wanted.name, told)
        entry = own.sign(wanted, before, now)
        if not must and not self.own_entries.telling.tells(entry, told, now):
            own.rise_above(entry.seq)
            self._effects.append(Changed(entry, before, None, 0))
            return entry
        allowed = self.reputation.allows(own.id, len(entry.encoded), now, share=GOSSIP_OWN_SHARE)
        if not allowed and not must:
            raise RateLimited(
                "this node publishes more than others would pass on", hint="publish fewer, larger or later entries"
            )
        own.rise_above(entry.seq)
        if not entry.fleeting:
            self.store.put(entry)
        if entry.kind == Kind.MEMBER:
            own.listing.on_published()
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
            on_member(self, taken, now)
        elif taken.entry.kind == Kind.ACCUSATION:
            on_accusation(self, taken.entry, via, now)
        for effect in (*self.store.take_effects(), *self.members.take_effects()):  # first: what gave way to it, and
            self._carry(effect, now)  # that its node is back
        self._effects.append(Changed(taken.entry, taken.before, via, hops))

    def _on_own_entry(self, entry: Entry, stale: bool, now: float) -> None:
        """Answer an entry of this node that it does not remember: its state was lost, or its key is used elsewhere."""
        if stale:
            held = self.own_entries.telling.last(entry.kind, entry.name, self.store.get(entry.key))
            wanted = self.own_entries.outlive(entry, held, now)
            if wanted is not None:
                self.put_out(wanted, now)
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
            self.arrivals.ingest,
            self.reputation,
            self.store,
        )
        for _ in range(ROUNDS):
            effects = [effect for core in cores for effect in core.take_effects()]
            if not effects:
                return
            for effect in effects:
                self._carry(effect, now)

    def _carry(self, effect: object, now: float) -> None:
        wire = WIRING.get(type(effect))
        if wire is not None:
            wire(self, effect, now)
        if wire is None or isinstance(effect, CARRIED_AND_TOLD):
            self._effects.append(cast(Effect, effect))


def _comes_after(effect: Effect) -> bool:
    return not isinstance(effect, MemberChanged)
