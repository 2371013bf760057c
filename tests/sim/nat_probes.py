"""Probe scripts for NATs: senders and receivers in their order. Run on simulated NATs and on kernel ones alike.

The world of a script: two sites, ``left`` with the clients a and b, ``right`` with x and y, both numbered from
10.0.0.0/24 and all clients on one port; outside, one server with the sockets s1 and s2 and another with t. Steps:

    a>s1        a sends to s1
    s2>a@s1     s2 sends to the address under which s1 last saw a
    x>a!        x sends to where it last saw a itself, or else to where s1 did
    flush       the NATs forget their mappings
    wait        every mapping times out
    half        more than half of the time-out passes
    block, pass the NATs drop UDP, and let it through again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshnode.base.address import Addr

CLIENTS = ("a", "b", "x", "y")


class Bench(Protocol):
    """Sockets behind NATs, simulated or not. ``port`` is the clients' own."""

    port: int

    def addr(self, server: str) -> Addr:
        """The address of a server socket."""

    def send(self, name: str, to: Addr) -> tuple[str, Addr] | None:
        """Send one packet; return its receiver and the source that was seen, or None when it was dropped."""

    def do(self, what: str) -> None:
        """Any of the steps that are no packets."""


@dataclass(frozen=True)
class Outcome:
    """What can be told from outside.

    ``delivered``: per packet, whether its receiver got it. ``seen``: per sighting such as ``a@s1``, in order, a number;
    the same number means the same outside address and port. ``kept``: at which sightings the port was the inside one.
    """

    delivered: tuple[bool, ...]
    seen: tuple[tuple[str, int], ...]
    kept: tuple[str, ...]

    @property
    def text(self) -> str:
        """The deliveries as a word, such as ``++-``."""
        return "".join("+" if one else "-" for one in self.delivered)


def play(script: str, bench: Bench) -> Outcome:
    """Run one script."""
    delivered: list[bool] = []
    sightings: dict[str, Addr] = {}
    for step in script.split():
        sender, arrow, target = step.partition(">")
        if not arrow:
            bench.do(step)
            continue
        receiver, at, _ = target.partition("@")
        if target.endswith("!"):
            receiver = target[:-1]
            to = sightings.get(f"{receiver}@{sender}", sightings.get(f"{receiver}@s1"))
        else:
            to = sightings.get(target) if at else bench.addr(target)
        found = None if to is None else bench.send(sender, to)
        delivered.append(found is not None and found[0] == receiver)
        if found is not None and found[0] == receiver and sender in CLIENTS:
            sightings[f"{sender}@{receiver}"] = found[1]
    numbers: dict[Addr, int] = {}
    seen = tuple((name, numbers.setdefault(addr, len(numbers))) for name, addr in sightings.items())
    return Outcome(tuple(delivered), seen, tuple(name for name, addr in sightings.items() if addr.port == bench.port))


KINDS = ("full_cone", "address_restricted", "port_restricted", "symmetric")

# script: what is delivered, per kind in the order of KINDS, by RFC 4787
SCRIPTS: dict[str, tuple[str, tuple[str, str, str, str]]] = {
    "one port for all destinations or not": ("a>s1 a>s2 a>t", ("+++", "+++", "+++", "+++")),
    "allowed answers": ("a>s1 s1>a@s1 s2>a@s1 t>a@s1", ("++++", "+++-", "++--", "++--")),
    "only the one that was sent to": ("a>t s1>a@t t>a@t", ("+++", "+-+", "+-+", "+-+")),
    "an early knock spoils nothing": ("a>s1 s2>a@s1 a>s2 s2>a@s2", ("++++", "++++", "+-++", "+-++")),
    "two hosts with one port": ("a>s1 b>s1 s1>a@s1 s1>b@s1", ("++++", "++++", "++++", "++++")),
    "forgotten mappings": ("a>s1 flush s1>a@s1 a>s1 s1>a@s1", ("+-++", "+-++", "+-++", "+-++")),
    "blocked": ("a>s1 block a>s1 s1>a@s1 pass a>s1 s1>a@s1", ("+--++", "+--++", "+--++", "+--++")),
    "no hairpin": ("a>s1 b>s1 b>a@s1 a>b@s1 b>a@s1", ("++---", "++---", "++---", "++---")),
}
# with hairpinning; both must have sent first where the filter looks at addresses or ports
HAIRPIN = ("a>s1 b>s1 b>a@s1 a>b@s1 b>a@s1", ("+++++", "++-++", "++-++", "++---"))
TIMEOUTS = {
    "time-out": ("a>s1 wait s1>a@s1 a>s1 s1>a@s1", ("+-++", "+-++", "+-++", "+-++")),
    "answers keep it open": ("a>s1 half s1>a@s1 half s1>a@s1", ("+++", "+++", "+++", "+++")),
}
# a hole is punched when both of the last packets arrive
PUNCH = "a>s1 x>s1 a>x! x>a! a>x! x>a!"
# what Linux does that RFC 4787 forbids: two hosts share a port until they meet at one peer
OVERLOADED = (
    "a>s1 b>s2 s1>a@s1 s2>b@s2",
    "a>s1 b>s2 b>s1 b>t b>s2 a>s2 a>t",
    "a>s1 b>s1 b>s2 b>t s1>b@s1 s2>b@s2 a>t s1>a@s1",
    "a>s1 b>s1 b>s2 flush a>t b>s1 b>s2",
)
