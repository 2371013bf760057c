"""Failure detection: which neighbours, and which of a sample of the rest, still answer. Sans I/O.

SWIM (Das, Gupta, Motivala, DSN 2002): ping, and after a silence ask others to probe. Lifeguard (Dadgar, Phillips,
Currey 2018): waits grow with this node's own ill health, and helpers answer "no" too, so that the silence of all is
taken for a fault of this node. A probe is a few datagrams, also to neighbours: they cost a fifth of a message on a QUIC
stream, and no connection where there is none. A timer that fires late shows that this process was held up: it accuses
no node then.

A round probes the neighbour that was heard longest ago, if that is ``QUIET_S`` ago: whatever comes from one counts,
also its own probes and the packets of a connection (``heard_at``), so a node sends one probe a second at most, a link
of eight is probed by one of its ends each 4 s, and a busy one never. A broadcast is heard on all links at once, so for
``QUIET_S`` after it no neighbour misses a node that is gone: four seconds of it were most of the time that a crash took
to be known. While any is silent, all are probed: what fails
fails together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import field
from enum import Enum, auto

from meshnode.base.metrics import Metrics, describe
from meshnode.base.rtt import RttEstimator
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import state
from meshnode.gossip.effects import Accuse, Estranged, Probe, Send, Silent
from meshnode.gossip.membership.probes import LATE_S, Answer, Probes
from meshnode.gossip.messages import MAX_TX, Contact, IndirectProbe, IndirectReply
from meshnode.identity.node_id import NodeId

ROUND_S = 1.0  # the protocol period of the paper
QUIET_S = 2.0  # a neighbour heard within this is not probed
RECENT_S = 0.45  # the same while another is silent
DIRECT_S, MAX_DIRECT_S = 0.45, 3.0  # for an answer: at least, and at most when round trips are long
INDIRECT_S = 0.6  # for the helpers' answers, after the direct one did not come
FRESH_S = 0.3  # what was heard within this answers a helper's question by itself
SAMPLE_S = 30.0  # between probes of members that are no neighbours
NEVER = float("-inf")
HELPERS = 3  # k of the paper
MAX_HEALTH = 7  # S of Lifeguard's local health multiplier
LET_GO_S = 20.0  # after an accusation: it was confirmed or refuted by now, or could not be noted: it is no neighbour
ISOLATED_S = 8.0  # no neighbour heard for this long: none is left to ask, or to mislead

ACCUSATIONS = describe("gossip_accusations", "neighbours accused of not answering")
ESTRANGED = describe("gossip_estranged", "neighbours that others hear and this node does not")
OWN_FAULT = describe("gossip_own_fault", "silences blamed on this node: no helper answered either, or it was held up")


class Phase(Enum):
    """How far the silence of a neighbour has gone."""

    HEARD = auto()
    PROBED = auto()
    ASKED = auto()  # helpers are asked
    ACCUSED = auto()


@state
class _Watch:
    contact: Contact
    heard: float
    phase: Phase = Phase.HEARD
    silent: float = 0.0  # since when it does not answer: the first probe that it did not
    accused: bool = False  # by others
    tx: int = 0
    asked: float = 0.0
    deadline: float = 0.0
    helpers: dict[NodeId, None] = field(default_factory=dict)
    nays: int = 0
    rtt: RttEstimator = field(default_factory=RttEstimator)

    def hear(self, now: float) -> None:
        """Note a sign of life."""
        self.heard = now
        self.phase = Phase.HEARD
        self.accused = False

    @property
    def awaited(self) -> bool:
        """Whether an answer is awaited, of it or of helpers."""
        return self.phase in (Phase.PROBED, Phase.ASKED)


SwimEffect = Send | Probe | Accuse | Estranged | Silent


class Swim:
    """Watches the neighbours. ``strangers`` returns the known members that are none and that datagrams reach.

    ``heard_at`` returns when anything came from a node by the connection with it, in monotonic seconds.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        strangers: Callable[[], list[Contact]],
        now: float,
        heard_at: Callable[[NodeId], float] = lambda peer: NEVER,
    ) -> None:
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._strangers = strangers
        self._heard_at = heard_at
        self._watches: dict[NodeId, _Watch] = {}
        self._effects: list[SwimEffect] = []
        self._probes = Probes(timers, metrics, self._effects.append, lambda: self.health)
        self._ill = 0
        self._check: Timer | None = None
        self._round_at = now + ROUND_S * rng.random()
        timers.at(self._round_at, self._round)
        timers.at(now + SAMPLE_S * rng.uniform(0.5, 1.5), self._sample)

    @property
    def health(self) -> float:
        """Return the factor by which waits are longer than usual, 1 to 8.

        It is Lifeguard's local health multiplier (section IV.A), higher while answers are late or this node is accused.
        """
        return 1.0 + self._ill

    def take_effects(self) -> list[SwimEffect]:
        """Return everything to do since the last call, in order."""
        effects = list(self._effects)
        self._effects.clear()
        return effects

    # ---- verbs

    def watch(self, contact: Contact, now: float) -> None:
        """Watch a new neighbour, which counts as heard now."""
        self._watches[contact.id] = _Watch(contact, now)

    def unwatch(self, peer: NodeId) -> None:
        """Stop watching: it is no neighbour any more."""
        self._watches.pop(peer, None)

    def hears(self, peer: NodeId) -> bool:
        """Return whether ``peer`` is a neighbour that is not silent at present."""
        watch = self._watches.get(peer)
        return watch is not None and watch.phase is Phase.HEARD

    def suspect(self, peer: NodeId, now: float) -> None:
        """Probe a neighbour that others accuse at once, unless it was heard within ``FRESH_S``.

        When it does not answer, it is accused without asking helpers, for its accuser has asked some.
        """
        watch = self._watches.get(peer)
        if watch is not None and now - watch.heard > FRESH_S:
            watch.accused = True
            if watch.phase is Phase.HEARD:
                self._ping(watch, now)
                self._arm_check()

    def probe(self, contact: Contact, now: float, answer: Answer) -> bool:
        """Probe a node by datagrams; returns False when it is being probed already, or too many are.

        ``answer`` is called once, with whether it answered and the time: not when False was returned, nor when this
        process was held up meanwhile and no answer was read.
        """
        return self._probes.probe(contact, now, answer)

    def blame_itself(self) -> None:
        """Wait longer from now on: this node is slow, or is accused and lives (Lifeguard, section IV.A)."""
        self._ill = min(MAX_HEALTH, self._ill + 1)

    # ---- what happens

    def on_heard(self, peer: NodeId, now: float) -> None:
        """Note that a neighbour lives: any message or probe of it counts.

        A peer that is no neighbour is ignored.
        """
        watch = self._watches.get(peer)
        if watch is not None:
            watch.hear(now)
            if self._check is not None and _next_check(self._watches.values()) is None:
                self._check.cancel()

    def on_refuted(self, peer: NodeId) -> None:
        """Probe an accused neighbour again that has shown itself alive: the silence may be that of the link with it."""
        watch = self._watches.get(peer)
        if watch is not None and watch.phase is Phase.ACCUSED:
            watch.phase, watch.accused = Phase.HEARD, False

    def on_indirect_probe(self, peer: NodeId, message: IndirectProbe, now: float) -> None:
        """Probe a node for a neighbour, or answer at once when it was heard within ``FRESH_S``.

        The neighbour is told either way (Lifeguard, section IV.A: a nack shows that the helper itself is alive).
        """
        target = message.contact.id
        watch = self._watches.get(target)
        if peer not in self._watches or target == peer:
            return
        if watch is not None and now - watch.heard <= FRESH_S:
            self._effects.append(Send(peer, IndirectReply(message.tx, True)))
            return

        def answered(alive: bool, now: float) -> None:
            self._effects.append(Send(peer, IndirectReply(message.tx, alive)))

        contact = message.contact if watch is None or message.contact.record else watch.contact
        self._probes.probe(contact, now, answered, peer)

    def on_indirect_reply(self, peer: NodeId, message: IndirectReply, now: float) -> None:
        """Take a helper's answer about a silent neighbour.

        One that the helper hears is not accused: it is probed once more, or, silent here for four times the usual wait,
        counts as estranged, and the fault as this node's.
        """
        for watch in self._watches.values():
            if watch.phase is Phase.ASKED and watch.tx == message.tx and peer in watch.helpers:
                del watch.helpers[peer]
                if message.alive:
                    self._estranged(watch, now)
                else:
                    watch.nays += 1
                return

    def on_alive(self, peer: NodeId, now: float) -> None:
        """Take the answer of ``peer`` to a datagram: it ends a probe, and measures the round trip to a neighbour."""
        self._probes.end(peer, True, now)
        watch = self._watches.get(peer)
        if watch is None:
            return
        if watch.asked:
            self._measure(watch, now)
        self.on_heard(peer, now)

    def _measure(self, watch: _Watch, now: float) -> None:
        """Take a round trip (RFC 6298); one that took a second datagram only lengthens waits."""
        rtt, watch.asked = now - watch.asked, 0.0
        watch.rtt.sample(rtt)
        if self._ill and self._rng.random() < 0.25:  # a round has several answers: one of them improves health
            self._ill -= 1

    # ---- rounds

    def _round(self, now: float) -> None:
        late = now - self._round_at
        self._round_at = now + ROUND_S * self._rng.uniform(0.9, 1.1)
        self._timers.at(self._round_at, self._round)
        if late > LATE_S:
            self._held_up(now)
            return
        for watch in _due(list(self._watches.values()), self._heard_at, now):
            self._ping(watch, now)
        for watch in self._watches.values():
            if watch.phase is Phase.ACCUSED:
                over = now > watch.deadline
                # one that is not listed shows only by its answer that it lives
                self._effects.append(Estranged(watch.contact.id) if over else Probe(watch.contact))
        self._arm_check()

    def _held_up(self, now: float) -> None:
        """Restart all watches, and wait longer: answers may lie unread."""
        self._metrics.count(OWN_FAULT)
        self.blame_itself()
        for watch in self._watches.values():
            watch.heard, watch.phase, watch.asked = now, Phase.HEARD, 0.0

    def _ping(self, watch: _Watch, now: float) -> None:
        if watch.phase is Phase.HEARD:
            watch.silent = now
        watch.phase, watch.asked = Phase.PROBED, now
        watch.deadline = now + watch.rtt.timeout(DIRECT_S, MAX_DIRECT_S, unknown=DIRECT_S) * self.health
        self._effects.append(Probe(watch.contact))

    def _arm_check(self) -> None:
        at = _next_check(self._watches.values())
        if at is None:
            return
        if self._check is not None and self._check.live:
            if self._check.when <= at:
                return
            self._check.cancel()
        self._check = self._timers.at(at, self._checked)

    def _checked(self, now: float) -> None:
        for watch in self._watches.values():
            if watch.deadline > now or _was_heard(watch, self._heard_at):
                continue
            if now - watch.deadline > LATE_S * self.health and watch.awaited:
                self._held_up(now)
                break
            if watch.phase is Phase.PROBED and watch.accused and _hears_others(self._watches.values(), watch, now):
                self._accuse(watch, now)  # its accuser had asked helpers: those of this node would find the same
            elif watch.phase is Phase.PROBED:
                self._ask_helpers(watch, now)
            elif watch.phase is Phase.ASKED:
                self._decide(watch, now)
        self._arm_check()

    def _ask_helpers(self, watch: _Watch, now: float) -> None:
        target = watch.contact.id
        others = [w.contact.id for w in self._watches.values() if w.phase is Phase.HEARD and w.contact.id != target]
        helpers = self._rng.sample(others, min(HELPERS, len(others)))
        watch.phase, watch.nays, watch.tx = Phase.ASKED, 0, self._rng.randrange(MAX_TX)
        watch.helpers = dict.fromkeys(helpers)
        watch.deadline = now + INDIRECT_S * self.health
        for helper in helpers:
            self._effects.append(Send(helper, IndirectProbe(watch.tx, watch.contact)))
        if target not in self._probes:
            self._effects.append(Probe(watch.contact))  # once more

    def _decide(self, watch: _Watch, now: float) -> None:
        alone = len(self._watches) == 1
        isolated = all(now - w.heard > ISOLATED_S for w in self._watches.values())
        if watch.nays or alone or isolated:
            self._accuse(watch, now)
        else:
            self._metrics.count(OWN_FAULT)  # the helpers do not answer either
            self.blame_itself()
            self._ping(watch, now)

    def _accuse(self, watch: _Watch, now: float) -> None:
        self._metrics.count(ACCUSATIONS)
        watch.phase, watch.deadline = Phase.ACCUSED, now + LET_GO_S * self.health
        self._effects.append(Accuse(watch.contact.id))

    def _estranged(self, watch: _Watch, now: float) -> None:
        if now - watch.silent > 4 * (DIRECT_S + INDIRECT_S) * self.health:
            self._metrics.count(ESTRANGED)
            self.blame_itself()
            watch.heard, watch.phase = now, Phase.HEARD
            self._effects.append(Estranged(watch.contact.id))
        else:  # slow rather than broken: ask again
            self._ping(watch, now)
            self._arm_check()

    def _sample(self, now: float) -> None:
        """Probe one member that is no neighbour: neighbours of it may all have failed together."""
        self._timers.at(now + SAMPLE_S * self._rng.uniform(0.8, 1.2), self._sample)
        strangers = self._strangers()
        contact = self._rng.choice(strangers) if strangers else None
        if contact is None or contact.id in self._watches:
            return
        target = contact.id

        def answered(alive: bool, now: float) -> None:
            if not alive:
                self._effects.append(Silent(target))

        self._probes.probe(contact, now, answered)


def _hears_others(watches: Iterable[_Watch], silent: _Watch, now: float) -> bool:
    """Return whether other neighbours are heard: the silence is not that of this node's own access."""
    return any(watch is not silent and now - watch.heard < 2 * ROUND_S for watch in watches)


def _due(watches: list[_Watch], heard_at: Callable[[NodeId], float], now: float) -> list[_Watch]:
    """Return the neighbours to probe in a round: the one heard longest ago, or all while one is silent."""
    heard = [watch for watch in watches if watch.phase is Phase.HEARD]
    for watch in heard:
        watch.heard = max(watch.heard, heard_at(watch.contact.id))
    if len(heard) < len(watches):
        return [watch for watch in heard if now - watch.heard >= RECENT_S]
    longest = min(heard, key=lambda watch: watch.heard, default=None)
    return [longest] if longest is not None and now - longest.heard >= QUIET_S else []


def _was_heard(watch: _Watch, heard_at: Callable[[NodeId], float]) -> bool:
    """Return whether something else than the answer to a probe came since it was sent."""
    at = heard_at(watch.contact.id) if watch.awaited else NEVER
    if at <= watch.asked:
        return False
    watch.hear(at)
    return True


def _next_check(watches: Iterable[_Watch]) -> float | None:
    return min((watch.deadline for watch in watches if watch.awaited), default=None)
