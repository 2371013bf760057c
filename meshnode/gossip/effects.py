"""What gossip wants done, or has to tell: a closed union of values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshnode.gossip.entry import Entry
from meshnode.gossip.messages import Contact, Eager, Graft, IHave, Message, Prune
from meshnode.identity.node_id import NodeId


class Status(Enum):
    """What we believe of a member. GONE: it stopped answering; LEFT: it said goodbye."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"
    LEFT = "left"


# ---- of the cores, and on to the driver


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to a linked peer."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a link; ``on_link`` or ``on_connect_failed`` answers."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Release:
    """The link is of no more use to gossip."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a node, linked or not, for a sign of life by a few datagrams; ``on_alive`` tells of the answer."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class NeedContacts:
    """Nobody is left to ask: ``add_contact`` whoever else is known."""


# ---- of the cores, for the router only


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """``peer`` is in the active view now; reconcile in so many seconds."""

    peer: NodeId
    reconcile_in: float


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    """``peer`` is no longer in the active view."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Accuse:
    """We have asked ``peer`` in every way: it does not answer."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Estranged:
    """Others hear ``peer`` and we do not: our link to it is broken, not the peer."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Silent:
    """A sampled member that is no neighbour did not answer."""

    peer: NodeId


# ---- for the layers above


@dataclass(frozen=True, slots=True)
class Changed:
    """A new entry counts, in place of ``before``. It came from ``via`` (None: ourselves) over ``hops`` links (0: by
    reconciliation)."""

    entry: Entry
    before: Entry | None
    via: NodeId | None
    hops: int


@dataclass(frozen=True, slots=True)
class Expired:
    """An entry that was not renewed counts no longer."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """We believe something else of a member than before."""

    peer: NodeId
    status: Status
    before: Status


@dataclass(frozen=True, slots=True)
class Banned:
    """``peer`` has lied too often: cut the link."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Scoped:
    """A broadcast message of another scope than the whole mesh: a layer above runs that tree."""

    peer: NodeId
    message: Eager | IHave | Graft | Prune


Effect = Send | Connect | Release | Probe | NeedContacts | Changed | Expired | MemberChanged | Banned | Scoped
