"""Names of nodes: ``laptop.mesh``. A promise from the first use on, and never taken over without an error. Sans I/O.

A claim is a NAME entry of its own node, and any member can make one for any name, with any date in it. So a date that a
claimant gives counts for nothing: a claim is as old as this node has known it. The first use of a name that one living
node claims pins its id, as ssh does with host keys; when several claim it, the first use is an error that names them.
From then on the name means that id or an error, until the user calls ``forget``. A second living claim is told as
``NameConflict`` either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import NAMES_MAX_CLAIMS, NAMES_MAX_PINS, NAMES_MAX_RIVALS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.base.value import state, value
from meshnode.base.wire import WireError, decode, encode
from meshnode.directory.services import Announce
from meshnode.errors import NameChanged, NameDisputed, NotFound
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind
from meshnode.identity.node_id import MAX_LABEL, NodeId, is_label

LEASE_S = 43_200  # below the longest ttl, so that the end of a claim outlives it
RENEW_S = LEASE_S / 3
MAX_VALUE = 16

MALFORMED = describe("names_drop_malformed", "name entries dropped: not a claim, or not a name")
FULL = describe("names_full", "claims not kept: there are too many, or too many of one name")
CONFLICTS = describe("names_conflicts", "times that two living nodes claimed one name, or a pinned name was disputed")


@value
class NameConflict:
    """More than one node claims ``name``: ``rival`` after ``holder``, which it means here when it ``is_pinned``."""

    name: str
    holder: NodeId
    rival: NodeId
    is_pinned: bool = False


@value
class PinsChanged:
    """The pins changed, and are to be saved."""


Effect = Announce | NameConflict | PinsChanged


@state
class _Claim:
    node: NodeId
    seen: int  # how many claims came here before it
    expires: float


def follow(pins: MutableMapping[str, NodeId], old: NodeId, new: NodeId) -> bool:
    """Have pins of an old key mean its new one; return whether there were any."""
    found = [name for name, node in pins.items() if node == old]
    pins.update(dict.fromkeys(found, new))
    return bool(found)


def is_claim(entry: Entry) -> bool:
    """Return whether a NAME entry is well-formed: a claim, or its end."""
    return is_label(entry.name) and (entry.value is None or _first(entry.value) is not None)


class Names:
    """One node's view of all names, and its own claim.

    ``status`` asks the membership; ``pins`` are the ids that names meant in earlier runs. ``now`` is monotonic seconds,
    ``wall`` Unix seconds. After each call, the caller carries out ``take_effects()``.
    """

    def __init__(
        self,
        own: NodeId,
        metrics: Metrics,
        status: Callable[[NodeId], Status],
        pins: Mapping[str, NodeId] | None = None,
    ) -> None:
        self.own_name = ""
        self._own = own
        self._metrics = metrics
        self._status = status
        self._claims: dict[str, dict[NodeId, _Claim]] = {}
        self._of: dict[NodeId, dict[str, None]] = {}
        self._count = self._came = 0
        self._pins: BoundedDict[str, NodeId] = BoundedDict(NAMES_MAX_PINS, pins or {})
        self._told: BoundedDict[str, tuple[NodeId, NodeId]] = BoundedDict(NAMES_MAX_CLAIMS)
        self._first_ms = 0
        self._timers = Timers()
        self._effects: list[Effect] = []

    def take_effects(self) -> list[Effect]:
        """Return everything to do or to tell since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """Return when ``tick`` is wanted next; None before ``claim``."""
        return self._timers.next_deadline()

    def tick(self, now: float) -> None:
        """Renew this node's claim when it is due."""
        self._timers.run(now)

    # ---- verbs

    def claim(self, label: str, first_ms: int, now: float) -> None:
        """Claim a name for this node; renewed each ``RENEW_S`` from now on.

        ``first_ms`` is when this node first claimed it, in Unix milliseconds: it is told, and counts for nothing with
        nodes of this version. Raises ValueError when the label is none.
        """
        if not is_label(label):
            raise ValueError(f"a name has 1 to {MAX_LABEL} of a-z, 0-9 and hyphens inside")
        self.own_name, self._first_ms = label, first_ms
        self._renew(now)

    def _renew(self, now: float) -> None:
        self._effects.append(Announce(Kind.NAME, self.own_name, encode(self._first_ms), LEASE_S))
        self._timers.at(now + RENEW_S, self._renew)

    def restore(self, pins: Mapping[str, NodeId]) -> None:
        """Add pins: the ids that names meant in earlier runs."""
        self._pins.update(pins)

    def follow(self, old: NodeId, new: NodeId) -> None:
        """Let names that mean a node mean the key that has replaced its key."""
        if follow(self._pins, old, new):
            self._effects.append(PinsChanged())

    def forget(self, label: str) -> bool:
        """Drop the pin of a name; returns False when there was none.

        The next use of the name pins the node that holds it then.
        """
        self._told.pop(label, None)
        if self._pins.pop(label, None) is None:
            return False
        self._effects.append(PinsChanged())
        return True

    @property
    def pins(self) -> dict[str, NodeId]:
        """Return the ids that the names used here mean, the name used longest ago first."""
        return dict(self._pins)

    # ---- what gossip tells

    def on_entry(self, entry: Entry, wall: float) -> None:
        """Take a new NAME entry: a claim, its renewal or its end.

        A claim of this node's own for another name than ``own_name`` is of an earlier run, and is withdrawn.
        """
        label = entry.name
        if entry.value is None:
            self._drop(label, entry.origin)
            return
        if _first(entry.value) is None or not is_label(label):
            self._metrics.count(MALFORMED)
            return
        if entry.origin == self._own and label != self.own_name:
            self._effects.append(Announce(Kind.NAME, label, None, LEASE_S))  # of an earlier run
            return
        known = self._claims.get(label, {}).get(entry.origin)
        if known is not None:
            known.expires = entry.expires
        elif not self._add(label, entry, wall):
            self._metrics.count(FULL)
            return
        self._check(label, wall)

    def _add(self, label: str, entry: Entry, wall: float) -> bool:
        """Add a claim that is new here; False when there is no room."""
        claims = self._claims.setdefault(label, {})
        if not self._room(label, claims, entry.origin, wall):
            return False
        self._came += 1
        claims[entry.origin] = _Claim(entry.origin, self._came, entry.expires)
        self._of.setdefault(entry.origin, {})[label] = None
        self._count += 1
        return True

    def on_expired(self, entry: Entry) -> None:
        """Forget a claim that gossip keeps no longer, unless it was renewed."""
        claim = self._claims.get(entry.name, {}).get(entry.origin)
        if claim is not None and claim.expires <= entry.expires:
            self._drop(entry.name, entry.origin)

    def on_member(self, peer: NodeId, wall: float) -> None:
        """Check the names of a node again: the membership believes something else of it.

        A node that left holds no name; one that is believed gone keeps it until its lease is over.
        """
        for label in list(self._of.get(peer, ())):
            self._check(label, wall)

    def _room(self, label: str, claims: dict[NodeId, _Claim], node: NodeId, wall: float) -> bool:
        """Make room for a claim; False when there is none: those that were there first stay."""
        for claim in list(claims.values()):
            if claim.expires < wall:
                self._drop(label, claim.node, keep=True)  # ``claims`` is about to get another
        if node == self._own:
            if len(claims) >= NAMES_MAX_RIVALS:
                self._drop(label, max(claims.values(), key=lambda c: c.seen).node, keep=True)
        elif len(claims) >= NAMES_MAX_RIVALS or self._count >= NAMES_MAX_CLAIMS:
            if not claims:
                del self._claims[label]
            return False
        return True

    def _drop(self, label: str, node: NodeId, keep: bool = False) -> None:
        claims = self._claims.get(label, {})
        if claims.pop(node, None) is None:
            return
        self._count -= 1
        del self._of[node][label]
        if not self._of[node]:
            del self._of[node]
        if not claims and not keep:
            del self._claims[label]

    def _check(self, label: str, wall: float) -> None:
        """Tell of a conflict, once for each pair of holder and rival."""
        living = self._living(label, wall)
        holder = self._pins.get(label) or (living[0].node if living else None)
        rival = next((claim.node for claim in living if claim.node != holder), None)
        if holder is None or rival is None or self._told.get(label) == (holder, rival):
            return
        self._told[label] = holder, rival
        self._metrics.count(CONFLICTS)
        self._effects.append(NameConflict(label, holder, rival, label in self._pins))

    def _living(self, label: str, wall: float) -> list[_Claim]:
        """Return the claims whose lease runs, by first sight; a crashed node keeps its name until its lease is over."""
        found = [
            c
            for c in self._claims.get(label, {}).values()
            if c.expires >= wall and self._status(c.node) is not Status.LEFT
        ]
        return sorted(found, key=lambda c: c.seen)

    # ---- questions

    def resolve(self, label: str, wall: float) -> NodeId:
        """Return the node of a name, which this use pins.

        A pinned name means the pinned node while no other one claims it, even when its claim has run out. This node's
        own name means this node.

        Raises:
            NotFound: No living node claims the name, and it is not pinned.
            NameDisputed: Several claim it, and it was never used here.
            NameChanged: Only other nodes than the pinned one claim it now.
        """
        if label == self.own_name:
            return self._own
        living = self._living(label, wall)
        pinned = self._pins.get(label)
        if pinned is None:
            if not living:
                hint = "`meshnode up --name NAME` there gives it a name"
                if label == "id":
                    hint = "ID stands for the id that `meshnode id` prints"
                raise NotFound(f"no node is called {label}", hint=hint)
            if len(living) > 1:
                raise _disputed(label, living)
            pinned = living[0].node
            self._pins[label] = pinned
            self._effects.append(PinsChanged())
        elif living and all(claim.node != pinned for claim in living):
            raise NameChanged(
                f"{label} was {pinned.short} when it was first used here, and is claimed by {living[0].node.short} now",
                hint=f"if that is right: `meshnode forget {label}`; else use the id",
            )
        self._pins.move_to_end(label)
        return pinned

    def claimants(self, label: str) -> list[NodeId]:
        """Return the nodes that claim a name, as far as they are kept."""
        return list(self._claims.get(label, ()))

    def is_pinned(self, label: str) -> bool:
        """Return whether a name was used here, and means the node that it meant then or an error."""
        return label in self._pins

    def name_of(self, node: NodeId, wall: float) -> str:
        """Return the name that a node holds, or held when it left; "" when it has none.

        A name that means another node here, or that several claim, is not returned. Pins nothing.
        """
        for label in self._of.get(node, ()):
            living = self._living(label, wall)
            holder = self._pins.get(label) or (living[0].node if len(living) == 1 else None)
            if node == self._own or holder == node:
                return label
            if not living and holder is None and self._claims[label][node].expires >= wall:
                return label
        return ""


def _disputed(label: str, living: list[_Claim]) -> NameDisputed:
    ids = tuple(sorted(str(claim.node) for claim in living))
    return NameDisputed(
        f"{label} is claimed by {len(ids)} nodes: {', '.join(ids)}",
        claimants=ids,
        hint="use the id of the right one; `meshnode id` there prints it",
    )


def _first(value: bytes) -> int | None:
    try:
        found = decode(value, MAX_VALUE)
    except WireError:
        return None
    return found if type(found) is int and 0 <= found <= 2**53 else None
