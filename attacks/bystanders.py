"""What others notice of a flood at one node: an established peer that downloads from it and moves, and newcomers.

Each figure is compared with that of a control: the same process sends the same datagrams at the same rate to a socket
that is never read, so the attacker's CPU is spent in both, and only the control's victim is left alone. Control and
attack take turns of a few seconds, and the median of their ratios counts: what else the machine does is in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attacks.foe import Address, sink
from attacks.lab import Member, Stream, keepalive_time, mesh, move_time, newcomer_time

FLOORS_S = {"keepalive": 0.005, "move": 0.025, "newcomer": 0.05}  # shorter times count as these: a scheduler's turn
ROUNDS = 5
FILL_S, CPU_S, MOVE_S, GOODPUT_S = 0.7, 0.8, 1.0, 0.8


@dataclass(frozen=True, slots=True)
class Felt:
    """Goodput in MB/s, times in seconds, the victim's memory in MB, and the share of a core that it uses while idle.

    ``newcomer`` is NaN in the rounds that leave it out.
    """

    goodput: float
    keepalive: float
    move: float
    newcomer: float
    rss: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a flood did to bystanders, in short phases by turns with the control: each is compared with the one before.

    Attributes:
        before: What they felt first, under the control.
        pairs: What they felt under the control, and then under the flood.
        rate: Of the flood, a second.
        counted: What the victim's counters have grown by.
    """

    before: Felt
    pairs: tuple[tuple[Felt, Felt], ...]
    rate: float
    counted: dict[str, int]

    @property
    def goodput(self) -> float:
        """Goodput, of the control's."""
        return statistics.median(under.goodput / max(control.goodput, 0.001) for control, under in self.pairs)

    def times(self, what: str) -> float:
        """How many times the control a time is."""
        floor = FLOORS_S[what]
        both = [(getattr(control, what), getattr(under, what)) for control, under in self.pairs]
        return float(statistics.median(max(now, floor) / max(before, floor) for before, now in both if now == now))

    @property
    def cpu(self) -> float:
        """The share of a core that the flood takes from the victim."""
        return statistics.median(under.cpu - control.cpu for control, under in self.pairs)

    @property
    def memory(self) -> float:
        """MB that the victim has grown by."""
        return max(under.rss for _, under in self.pairs) - self.before.rss


class Flooding(Protocol):
    """A context that attacks an address; ``rate`` is what it reached."""

    def __enter__(self) -> Flooding: ...
    def __exit__(self, *args: Any) -> None: ...
    @property
    def rate(self) -> float: ...


class Bystanders:
    """A victim, a peer that has a connection with it and downloads from it, and the way in for newcomers."""

    def __init__(
        self, root: Path, seed: Member, victim: Member, peer: Member, streams: tuple[Stream, Stream], newcomers: str
    ) -> None:
        self._root, self._seed, self.victim, self._peer = root, seed, victim, peer
        self._bulk, self._trickle = streams
        self._newcomers = newcomers

    def compare(self, flood: Callable[[Address], Flooding], *, rounds: int = ROUNDS) -> Comparison:
        """Measure a control and then under the flood, ``rounds`` times; newcomers in every second one.

        ``flood`` is given an address and returns a context that attacks it; for the control that of a ``sink``.
        """
        pairs: list[tuple[Felt, Felt]] = []
        reached: list[float] = []
        before = self.victim.counters()
        with sink() as nowhere:
            for number in range(rounds):
                with flood(nowhere.getsockname()):
                    control = self._felt(newcomer=number % 2 == 0)
                with flood(self.victim.address) as flooding:
                    pairs.append((control, self._felt(newcomer=number % 2 == 0)))
                reached.append(flooding.rate)
        counted = {name: count - before.get(name, 0) for name, count in self.victim.counters().items()}
        return Comparison(pairs[0][0], tuple(pairs), statistics.median(reached), counted)

    def _felt(self, *, newcomer: bool) -> Felt:
        self._trickle.longest_gap(FILL_S)  # the flood fills what it can fill
        used = self.victim.cpu_s()
        self._trickle.longest_gap(CPU_S)
        cpu = (self.victim.cpu_s() - used) / CPU_S
        keepalive = keepalive_time(self._peer, self.victim, 5)
        move = move_time(self._peer, self._trickle, MOVE_S)
        came = float("nan")
        if newcomer:
            came = newcomer_time(self._root, self.victim, "--seed", self._seed.at, listen=self._newcomers)
        self._bulk.goodput(0.3)  # what has waited
        return Felt(self._bulk.goodput(GOODPUT_S), keepalive, move, came, self.victim.rss_mb(), cpu)


@contextmanager
def bystanders(newcomers: str = "127.0.0.1:0", *, at_seed: bool = False, engine: str = "") -> Iterator[Bystanders]:
    """Yield them, live, on loopback.

    ``newcomers`` is where newcomers listen. The victim is the seed when ``at_seed``, else a member that it knows. All
    have this engine; by default that of the environment.
    """
    with (
        mesh(2, engine) as (root, seed, (member, peer)),
        Stream(seed if at_seed else member, peer) as bulk,
        Stream(seed if at_seed else member, peer, size=100, pause=0.005) as trickle,
    ):
        bulk.goodput(1.0)
        yield Bystanders(root, seed, seed if at_seed else member, peer, (bulk, trickle), newcomers)
