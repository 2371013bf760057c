"""Effects that the path core asks the stack to carry out, and its record of path changes."""

from __future__ import annotations

from meshnode.base.path import Path
from meshnode.base.path_reason import PathReason
from meshnode.base.value import value
from meshnode.paths.history import PathHistory

MOVED, SEEKING = 1, 2  # flags of a PING: its sender's own address has changed; its sender hears nothing from the peer
EXPAND = 8  # and: its answer is to be as long as it is (RFC 9000 section 8.2.2)


@value
class SendProbe:
    """Send a sealed PING; ``pad_to`` is the whole datagram's size in bytes, 0 for the smallest.

    ``named``: a record, a relay or the configuration names the address; it is not only the source of a datagram.
    """

    path: Path
    tx: bytes
    flags: int
    pad_to: int = 0
    named: bool = False


@value
class Switched:
    """Packets go to ``new`` from now on (the same as ``old`` when a new connection begins on the path in use).

    ``failed`` is true when the old path no longer carries packets: what is in flight is likely lost.
    """

    old: Path | None
    new: Path
    reason: PathReason
    failed: bool


@value
class Nudge:
    """The path stays, but what is in flight on it is likely lost: QUIC should not wait for its own timers."""

    path: Path
    reason: PathReason


@value
class Validated:
    """Our own probe went round trip on the path in use."""

    path: Path


@value
class MtuChanged:
    """Datagrams of ``size`` bytes fit the active path."""

    size: int


@value
class FellSilent:
    """An expected packet is overdue: other addresses are being probed."""


@value
class Answered:
    """The peer answers again: the end of ``FellSilent``."""


@value
class Suspended:
    """No path works: streams stay open, writers wait."""


@value
class Resumed:
    """A path works again."""


@value
class NeedRecord:
    """No known address answers: ask the watches and the resolver for a newer record of the peer."""


@value
class NeedIntroduction:
    """The active path is a relay: have it tell both ends each other's observed addresses, and when to probe."""


Effect = (
    SendProbe
    | Switched
    | Nudge
    | Validated
    | MtuChanged
    | FellSilent
    | Answered
    | Suspended
    | Resumed
    | NeedRecord
    | NeedIntroduction
)


class Journal:
    """The effects that wait to be carried out, and the last path changes."""

    __slots__ = ("effects", "history")

    def __init__(self) -> None:
        self.history = PathHistory()
        self.effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        """Ask the stack to do something."""
        self.effects.append(effect)

    def note(self, now: float, reason: PathReason, active: Path | None) -> None:
        """Record a path change for people.

        ``active`` is where packets go from now on, None for nowhere.
        """
        self.history.note(now, reason, active)

    def take(self) -> list[Effect]:
        """Return the waiting effects in order, and forget them."""
        effects, self.effects = self.effects, []
        return effects
