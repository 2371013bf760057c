"""What gossip wants done, or has to tell: a closed union of values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshnode.gossip.entry import Entry
from meshnode.gossip.messages import Contact, Message
from meshnode.identity.node_id import NodeId


class Status(Enum):
    """State of a member as this node believes it. GONE: it stopped answering; LEFT: it said goodbye."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"
    LEFT = "left"


class Fault(Enum):
    """What a peer did that no honest, working node does; ``reputation`` weighs it."""

    MALFORMED = "a message or an entry that no version of this program makes"
    FORGED = "an entry that its origin did not sign"
    TOO_MUCH = "one entry of its own over its rate"
    UNTIMELY = "an entry that expired or comes from the future: a wrong clock, as a rule"


# ---- of the cores, and on to the stack


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a linked peer."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a link; ``on_link`` or ``on_connect_failed`` answers."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Release:
    """Gossip no longer needs the link."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe a node, linked or not, by a few datagrams; ``on_alive`` reports its answer."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class NeedContacts:
    """No known node is left to ask: pass other sources' nodes to ``add_contact``."""


@dataclass(frozen=True, slots=True)
class Banned:
    """``peer`` is cut off for its faults: close the link."""

    peer: NodeId


# ---- of the cores, for the router only


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """``peer`` entered the active view; reconcile with it in so many seconds."""

    peer: NodeId
    reconcile_in: float


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    """``peer`` left the active view."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Accuse:
    """``peer`` answers neither direct nor indirect probes."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Estranged:
    """Other nodes hear ``peer`` and this one does not: the link is broken, not the peer."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Silent:
    """A member that is no neighbour did not answer a probe."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish an entry of this node, whatever its rate: ``wide`` at once to all neighbours, its seq above ``above``."""

    kind: int
    name: str
    value: bytes | None
    ttl: int
    wide: bool = False
    above: int = 0


# ---- for the layers above


@dataclass(frozen=True, slots=True)
class Changed:
    """A new entry counts, in place of ``before``. It came from ``via`` (None: this node) over ``hops`` links (0: by
    anti-entropy)."""

    entry: Entry
    before: Entry | None
    via: NodeId | None
    hops: int


@dataclass(frozen=True, slots=True)
class Expired:
    """An entry was not renewed and counts no longer."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """The believed state of a member changed."""

    peer: NodeId
    status: Status
    before: Status


Effect = Send | Connect | Release | Probe | NeedContacts | Changed | Expired | MemberChanged | Banned
