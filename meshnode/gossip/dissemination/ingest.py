"""Entries that neighbours hand over: verified, judged by their kind and their origin's rate, stored. Sans I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import value
from meshnode.gossip.effects import Fault
from meshnode.gossip.entry import REJECTED, Entry, EntryReject, Key, Kind, Put, is_signed, read_entry
from meshnode.gossip.kinds import parse_accusation, parse_member
from meshnode.identity.node_id import NodeId

STALE = describe("gossip_stale", "entries not taken: a newer one of the same key is known")
BARRED = describe("gossip_drop_revoked", "entries dropped: the key of their origin is revoked")
VOID = describe("gossip_drop_void", "accusations dropped: refuted before they came")

FAULTS = {
    EntryReject.OVERSIZED: Fault.MALFORMED,
    EntryReject.MALFORMED: Fault.MALFORMED,
    EntryReject.NOT_CANONICAL: Fault.MALFORMED,
    EntryReject.UNFIT: Fault.MALFORMED,
    EntryReject.FORGED: Fault.FORGED,
    EntryReject.FUTURE: Fault.UNTIMELY,
    EntryReject.EXPIRED: Fault.UNTIMELY,
}


class Store(Protocol):
    """The store of entries (entry_store.py), in what is needed here."""

    def judge(self, entry: Entry) -> Put: ...
    def put(self, entry: Entry, link: NodeId | None) -> Put: ...
    def get(self, key: Key) -> Entry | None: ...
    def is_void(self, entry: Entry) -> bool: ...


@value
class Blame:
    """``peer`` handed over what no honest node passes on."""

    peer: NodeId
    fault: Fault


class Taken(NamedTuple):
    """A new entry that counts, and the one that it replaces."""

    entry: Entry
    before: Entry | None


class Ingest:
    """Takes entries. ``checks`` holds what each kind demands; kinds without one are stored and passed on unseen.

    ``is_barred`` tells of which keys none are; ``allows`` charges an entry to its origin's rate; ``on_own`` hears of
    entries of this node that it does not remember: of older ones (``stale``), and of newer ones before they are stored.
    """

    def __init__(
        self,
        own: NodeId,
        metrics: Metrics,
        store: Store,
        wall: Callable[[float], float],
        allows: Callable[[NodeId, int, float], bool],
        on_own: Callable[[Entry, bool, float], None],
    ) -> None:
        self.checks: dict[int, Callable[[Entry], bool]] = {
            Kind.MEMBER: lambda entry: parse_member(entry) is not None,
            Kind.ACCUSATION: lambda entry: parse_accusation(entry) is not None,
        }
        self.is_barred: Callable[[NodeId], bool] = lambda origin: False
        self._own = own
        self._metrics = metrics
        self._store = store
        self._wall = wall
        self._allows = allows
        self._on_own = on_own
        self._effects: list[Blame] = []

    def take_effects(self) -> list[Blame]:
        """Return the faults since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def take(self, peer: NodeId, payload: bytes, now: float) -> Taken | None:
        """Verify an entry that ``peer`` sent and store it; None when it is dropped (counted) or not new.

        A fleeting entry is not stored, and always new. ``peer`` is blamed for an invalid one, and for its own entries
        above the rate.
        """
        entry = read_entry(payload, self._wall(now))
        if isinstance(entry, EntryReject):
            self._reject(peer, entry)
            return None
        if self.is_barred(entry.origin):  # no fault of the peer: it may not know yet
            self._metrics.count(BARRED)
            return None
        judged = Put.NEW if entry.fleeting else self._store.judge(entry)
        if judged is Put.NEW:
            if not self._fits(peer, entry):
                return None
        elif judged is not Put.STALE or entry.origin != self._own:
            if judged is Put.STALE:
                self._metrics.count(STALE)
            return None  # without a look at its signature, which costs more than all the rest
        if not is_signed(entry):
            self._reject(peer, EntryReject.FORGED)
            return None
        if judged is Put.STALE:
            self._on_own(entry, True, now)
            return None
        return self._keep(peer, entry, now)

    def _keep(self, peer: NodeId, entry: Entry, now: float) -> Taken | None:
        if not self._is_in_rate(peer, entry, now):
            return None
        if entry.fleeting:
            return Taken(entry, None)
        before = self._store.get(entry.key)
        return Taken(entry, before) if self._store.put(entry, peer) is Put.NEW else None

    def _reject(self, peer: NodeId, reject: EntryReject) -> None:
        self._metrics.count(REJECTED[reject])
        self._effects.append(Blame(peer, FAULTS[reject]))

    def _is_in_rate(self, peer: NodeId, entry: Entry, now: float) -> bool:
        """Return whether the origin's rate allows an entry; this node's own, which it does not remember, always may."""
        if entry.origin == self._own:
            self._on_own(entry, False, now)
            return True
        allowed = self._allows(entry.origin, len(entry.encoded), now)
        if not allowed and entry.origin == peer:  # other peers cannot know how much of it came here
            self._effects.append(Blame(peer, Fault.TOO_MUCH))
        return allowed

    def _fits(self, peer: NodeId, entry: Entry) -> bool:
        """Return whether an entry is what its kind demands; passing on a void accusation is no fault."""
        check = self.checks.get(entry.kind)
        if check is not None and not check(entry):
            self._reject(peer, EntryReject.UNFIT)
            return False
        if entry.kind == Kind.ACCUSATION and self._store.is_void(entry):
            self._metrics.count(VOID)
            return False
        return True
