"""What the path core asks its driver to do."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.base.address import Addr


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a sealed PING; ``pad_to`` is the whole datagram's size in bytes, 0 for the smallest."""

    addr: Addr
    tx: bytes
    flags: int
    pad_to: int = 0


@dataclass(frozen=True, slots=True)
class Switched:
    """Packets go to ``new`` from now on; ``nudge``: what is in flight is likely lost."""

    old: Addr | None
    new: Addr
    why: str
    nudge: bool


@dataclass(frozen=True, slots=True)
class Validated:
    """Our own probe went round trip on this address: no byte budget any more."""

    addr: Addr


@dataclass(frozen=True, slots=True)
class MtuChanged:
    """Datagrams of ``size`` bytes fit the active path."""

    size: int


@dataclass(frozen=True, slots=True)
class FellSilent:
    """Something was expected and did not come: other addresses are being tried."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The silence is over."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """Nothing answers: streams stay open, writers wait."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Something answers again."""


@dataclass(frozen=True, slots=True)
class NeedRecord:
    """Nothing we know answers: ask the watches and the resolver where the peer is now."""


@dataclass(frozen=True, slots=True)
class NeedIntroduction:
    """The active path is a relay: have it tell both ends as which addresses it sees them, and when to probe."""


Effect = (
    SendProbe
    | Switched
    | Validated
    | MtuChanged
    | FellSilent
    | Answered
    | Suspended
    | Resumed
    | NeedRecord
    | NeedIntroduction
)
