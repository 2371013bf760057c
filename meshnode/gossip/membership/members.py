"""Believed state of members: accused, refuted, gone, left. Sans I/O.

SWIM's suspicion (Das, Gupta, Motivala, DSN 2002, section 4.2) with Lifeguard's shrinking wait (Dadgar, Phillips, Currey
2018, section IV.B). Different from both: there is no confirmation that one node could send. An accusation is an entry
signed by its accuser, about one incarnation (the seq of the accused's member entry); every node waits for itself, and
believes that a member is gone when two have accused it, or it has seen the silence itself, and no newer member entry
came meanwhile. So one liar buries no node, and a node that lives and is heard refutes any number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_table import FairTable
from meshnode.base.limits import GOSSIP_MAX_ACCUSERS, GOSSIP_MAX_SUSPECTS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state
from meshnode.gossip.effects import MemberChanged, Status
from meshnode.gossip.kinds import NEEDED
from meshnode.gossip.membership.probes import LATE_S
from meshnode.identity.node_id import NodeId

WAIT_S = (4.0, 2.0, 1.5)  # for a refutation, with one accuser, two, and more; it takes two broadcasts, about 1 s
MAX_EXCUSED = 3  # times that a wait which ends late, for this process was held up, begins again
FORGET_S = 7200.0  # as long as a record lives: by then a member entry of a gone node has expired too
LONE_S = 30.0  # between looks at whether one that only this node has for gone is still tried

SUSPECTS_FULL = describe("gossip_suspects_full", "accusations ignored: too many members are under suspicion")
SUSPECTED = describe("gossip_suspected", "members that came under suspicion")
REFUTED = describe("gossip_refuted", "suspicions that the member refuted")
CONFIRMED = describe("gossip_gone", "members believed to be gone")


@state
class _Suspect:
    since: float
    accusers: dict[NodeId, int] = field(default_factory=dict)  # and the incarnation that each accuses
    gone: bool = False
    due: float = 0.0  # when the wait for a refutation ends
    excused: int = 0  # times that it ended late
    timer: Timer | None = None


class Members:
    """Status of members. ``health`` returns the factor by which an overloaded node waits longer.

    Ids are free, and any may be accused, for hours. So half of the places are for those that this node knows by more
    than hearsay (``has_standing``), and each half is shared by the links that brought the first accusation: a neighbour
    that accuses ever new ids takes no place of what others bring. One that has no member entry can refute nothing: that
    this node alone has it for gone holds while it is tried now and then (``is_tried``), and finds its return.
    """

    def __init__(
        self,
        own: NodeId,
        timers: Timers,
        metrics: Metrics,
        health: Callable[[], float],
        has_standing: Callable[[NodeId], bool] = lambda peer: False,
        is_tried: Callable[[NodeId], bool] = lambda peer: False,
    ) -> None:
        self._own = own
        self._timers = timers
        self._metrics = metrics
        self._health = health
        self._has_standing = has_standing
        self._is_tried = is_tried
        self._suspects: dict[NodeId, _Suspect] = {}
        self._places: FairTable[NodeId] = FairTable(GOSSIP_MAX_SUSPECTS, newest_goes=True)
        self._left: BoundedDict[NodeId, int] = BoundedDict(GOSSIP_MAX_SUSPECTS)  # and the seq of the goodbye
        self._effects: list[MemberChanged] = []

    def take_effects(self) -> list[MemberChanged]:
        """Return the changes since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def status(self, peer: NodeId) -> Status:
        """Return SUSPECT, GONE or LEFT; ALIVE when nothing speaks against it.

        Of a node of which there is no entry, that says nothing.
        """
        suspect = self._suspects.get(peer)
        if suspect is not None:
            return Status.GONE if suspect.gone else Status.SUSPECT
        return Status.LEFT if peer in self._left else Status.ALIVE

    def accusers(self, peer: NodeId) -> int:
        """Return how many nodes accuse ``peer`` at present."""
        suspect = self._suspects.get(peer)
        return len(suspect.accusers) if suspect is not None else 0

    def suspects(self) -> list[NodeId]:
        """Return all that are under suspicion or gone."""
        return list(self._suspects)

    def on_member(self, peer: NodeId, seq: int, left: bool, now: float, *, news: bool) -> None:
        """Take the newest member entry of ``peer``: it refutes accusations of older ones.

        ``left``: it is a goodbye; ``news``: there was no member entry before.
        """
        suspect = self._suspects.get(peer)
        before = Status.UNKNOWN if news and suspect is None else self.status(peer)
        if suspect is not None:
            suspect.accusers = {accuser: of for accuser, of in suspect.accusers.items() if of >= seq}
            if not suspect.accusers:
                self._clear(peer, suspect)
                self._metrics.count(REFUTED)
            elif suspect.gone and not self._enough(suspect):
                suspect.gone, suspect.since = False, now
                self._arm(peer, suspect, now)
        if left:
            self._left.put(peer, seq)
        else:
            self._left.pop(peer, None)
        self._change(peer, before)

    def on_accused(
        self, peer: NodeId, accuser: NodeId, incarnation: int, now: float, via: NodeId | None = None
    ) -> None:
        """Take an accusation of the member entry with seq ``incarnation`` that a link brought; None for this node's.

        When ``GOSSIP_MAX_SUSPECTS`` members are under suspicion, the newest of the largest share gives way (counted),
        which may be this one.
        """
        if peer in self._left or peer == self._own:
            return
        before = self.status(peer)
        suspect = self._suspects.get(peer)
        if suspect is None:
            if not self._has_place(peer, via):
                return
            suspect = self._suspects[peer] = _Suspect(now)
            self._metrics.count(SUSPECTED)
        if accuser in suspect.accusers:
            suspect.accusers[accuser] = max(incarnation, suspect.accusers[accuser])
        elif len(suspect.accusers) < GOSSIP_MAX_ACCUSERS:
            suspect.accusers[accuser] = incarnation
            if not suspect.gone:
                self._arm(peer, suspect, now)
        self._change(peer, before)

    def on_heard(self, peer: NodeId) -> None:
        """Take a sign of life: it ends a suspicion that this node alone has, which no other node would refute."""
        suspect = self._suspects.get(peer)
        if suspect is not None and set(suspect.accusers) == {self._own}:
            before = self.status(peer)
            self._clear(peer, suspect)
            self._metrics.count(REFUTED)
            self._change(peer, before)

    def is_gone(self, peer: NodeId) -> bool:
        """Return whether ``peer`` is believed to be gone."""
        suspect = self._suspects.get(peer)
        return suspect is not None and suspect.gone

    # ---- inside

    def _has_place(self, peer: NodeId, via: NodeId | None) -> bool:
        """Give a suspicion a place, and forget the one that gives way to it; False when there is none for it."""
        gone = self._places.add(peer, self._has_standing(peer), via)
        if gone is None:
            return True
        self._metrics.count(SUSPECTS_FULL)
        if gone == peer:
            return False
        before = self.status(gone)
        self._clear(gone, self._suspects[gone])
        self._change(gone, before)
        return True

    def _enough(self, suspect: _Suspect) -> bool:
        return len(suspect.accusers) >= NEEDED or self._own in suspect.accusers

    def _arm(self, peer: NodeId, suspect: _Suspect, now: float) -> None:
        if suspect.timer is not None:
            suspect.timer.cancel()
        wait = WAIT_S[min(len(suspect.accusers), len(WAIT_S)) - 1] * self._health()
        suspect.due = max(now, suspect.since + wait)
        suspect.timer = self._timers.at(suspect.due, lambda now: self._over(peer, suspect, now))

    def _over(self, peer: NodeId, suspect: _Suspect, now: float) -> None:
        if self._suspects.get(peer) is not suspect:
            return
        if now - suspect.due > LATE_S and suspect.excused < MAX_EXCUSED:  # a refutation may lie unread
            suspect.excused += 1
            suspect.since = now
            self._arm(peer, suspect, now)
            return
        if not suspect.gone and self._enough(suspect):
            suspect.gone = True
            self._metrics.count(CONFIRMED)
            self._effects.append(MemberChanged(peer, Status.GONE, Status.SUSPECT))
        # a lone accuser that no other node joins was wrong, or lied
        self._expire_in(LONE_S if suspect.gone else WAIT_S[0], peer, suspect, now)

    def _expire_in(self, wait: float, peer: NodeId, suspect: _Suspect, now: float) -> None:
        suspect.timer = self._timers.at(now + wait, lambda now: self._expire(peer, suspect, now))

    def _expire(self, peer: NodeId, suspect: _Suspect, now: float) -> None:
        if self._suspects.get(peer) is suspect:
            left = suspect.due + FORGET_S - now
            lone = suspect.accusers == {self._own: 0}
            if suspect.gone and left > 0 and (not lone or self._is_tried(peer)):
                self._expire_in(min(left, LONE_S if lone else left), peer, suspect, now)
                return
            before = self.status(peer)
            self._clear(peer, suspect)
            if before is Status.SUSPECT:
                self._change(peer, before)

    def _clear(self, peer: NodeId, suspect: _Suspect) -> None:
        if suspect.timer is not None:
            suspect.timer.cancel()
        del self._suspects[peer]
        self._places.discard(peer)

    def _change(self, peer: NodeId, before: Status) -> None:
        status = self.status(peer)
        if status is not before:
            self._effects.append(MemberChanged(peer, status, before))
