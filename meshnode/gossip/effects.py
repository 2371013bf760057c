"""What gossip wants done, or has to tell: a closed union of values."""

from __future__ import annotations

from enum import Enum

from meshnode.base.value import value
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

    @property
    def is_away(self) -> bool:
        """Return whether the member is gone or has left."""
        return self in (Status.GONE, Status.LEFT)


class Fault(Enum):
    """What a peer did that no honest, working node does; ``reputation`` weighs it."""

    MALFORMED = "a message or an entry that no version of this program makes"
    FORGED = "an entry that its origin did not sign"
    TOO_MUCH = "one entry of its own over its rate, or one message over its link's"
    UNTIMELY = "an entry that expired or comes from the future: a wrong clock, as a rule"


# ---- of the cores, and on to the stack


@value
class Send:
    """Send a message to a linked peer."""

    peer: NodeId
    message: Message


@value
class Connect:
    """Open a link; ``on_link`` or ``on_connect_failed`` answers."""

    contact: Contact


@value
class Release:
    """Gossip no longer needs the link."""

    peer: NodeId


@value
class Probe:
    """Probe a node, linked or not, by a few datagrams; ``on_alive`` reports its answer."""

    contact: Contact


@value
class NeedContacts:
    """No known node is left to ask: pass other sources' nodes to ``add_contact``."""


@value
class Banned:
    """``peer`` is cut off for its faults: close the link."""

    peer: NodeId


# ---- of the cores, for the router only


@value
class NeighbourUp:
    """``peer`` entered the active view; reconcile with it in so many seconds."""

    peer: NodeId
    reconcile_in: float


@value
class NeighbourDown:
    """``peer`` left the active view."""

    peer: NodeId


@value
class Accuse:
    """``peer`` answers neither direct nor indirect probes."""

    peer: NodeId


@value
class Estranged:
    """Other nodes hear ``peer`` and this one does not: the link is broken, not the peer."""

    peer: NodeId


@value
class Silent:
    """A member that is no neighbour did not answer a probe."""

    peer: NodeId


@value
class Reconciled:
    """This node has what ``peer`` had a moment ago."""

    peer: NodeId


@value
class Doubt:
    """``peer``, which is not listed, answers neither direct nor indirect probes: for this node itself to know."""

    peer: NodeId


@value
class Publish:
    """Publish an entry of this node, whatever its rate: ``wide`` at once to all neighbours, its seq above ``above``."""

    kind: int
    name: str
    value: bytes | None
    ttl: int
    wide: bool = False
    above: int = 0


# ---- for the layers above


@value
class Changed:
    """A new entry counts, in place of ``before``. It came from ``via`` (None: this node) over ``hops`` links (0: by
    anti-entropy)."""

    entry: Entry
    before: Entry | None
    via: NodeId | None
    hops: int


@value
class Expired:
    """An entry counts no longer: it was not renewed, or gave way to others."""

    entry: Entry


@value
class MemberChanged:
    """The believed state of a member changed."""

    peer: NodeId
    status: Status
    before: Status


Effect = Send | Connect | Release | Probe | NeedContacts | Changed | Expired | MemberChanged | Banned
