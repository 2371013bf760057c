"""Failure detection: who of the neighbours, and of a sample of the rest, still answers. Sans I/O.

SWIM (Das, Gupta, Motivala, DSN 2002): ping, and after a silence ask others to probe. Lifeguard (Dadgar, Phillips,
Currey 2018): waits grow with our own ill health, and helpers say "no answer" too, so that the silence of all is blamed
on ourselves. A probe is a few datagrams, also to neighbours: they cost a fifth of a message on a QUIC stream, and no
connection where there is none. A timer that fires late says that this process was held up: nobody is accused then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from meshnode.base.limits import GOSSIP_MAX_PROBES
from meshnode.base.metrics import Metrics, describe
from meshnode.base.rtt import RttEstimator
from meshnode.base.timers import Timer, Timers
from meshnode.gossip.effects import Accuse, Estranged, Probe, Send, Silent
from meshnode.gossip.messages import MAX_TX, Contact, IndirectProbe, IndirectReply
from meshnode.identity.node_id import NodeId

ROUND_S = 1.0
QUIET_S = 0.45  # a neighbour heard more lately than this is not probed in this round
DIRECT_S, MAX_DIRECT_S = 0.45, 3.0  # for an answer: at least, and at most when round trips are long
INDIRECT_S = 0.6  # for the helpers' answers, after the direct one did not come
PROBE_S = 0.45  # for the answer to datagrams
FRESH_S = 0.3  # what we heard less long ago answers a helper's question by itself
SAMPLE_S = 5.0
HELPERS = 3
MAX_HEALTH = 7
LATE_S = 0.25
ISOLATED_S = 8.0  # no neighbour heard for so long: nobody is left to ask, and nobody to mislead

PROBES_FULL = describe("gossip_probes_full", "probes for others refused: enough are outstanding")
ACCUSATIONS = describe("gossip_accusations", "neighbours that we accused of not answering")
ESTRANGED = describe("gossip_estranged", "neighbours whom others hear and we do not")
OWN_FAULT = describe("gossip_own_fault", "silences blamed on ourselves: no helper answered either, or we were held up")


class Phase(Enum):
    """How far the silence of a neighbour has gone."""

    HEARD = auto()
    PROBED = auto()
    ASKED = auto()  # helpers are asked
    ACCUSED = auto()


@dataclass(slots=True)
class _Watch:
    contact: Contact
    heard: float
    phase: Phase = Phase.HEARD
    accused: bool = False  # by others
    tx: int = 0
    asked: float = 0.0
    deadline: float = 0.0
    helpers: dict[NodeId, None] = field(default_factory=dict)
    nays: int = 0
    rtt: RttEstimator = field(default_factory=RttEstimator)


@dataclass(slots=True)
class _Probing:
    askers: dict[NodeId, int]  # who wants to know, and by which tx
    sample: bool
    ours: Callable[[bool, float], None] | None = None


DetectorEffect = Send | Probe | Accuse | Estranged | Silent


class Swim:
    """Watches the neighbours. ``sample`` returns some member that is no neighbour, or None."""

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        sample: Callable[[], Contact | None],
        now: float,
    ) -> None:
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._sample = sample
        self._watches: dict[NodeId, _Watch] = {}
        self._probing: dict[NodeId, _Probing] = {}
        self._effects: list[DetectorEffect] = []
        self._ill = 0
        self._check: Timer | None = None
        self._round_at = now + ROUND_S * rng.random()
        timers.at(self._round_at, self._round)
        timers.at(now + SAMPLE_S * rng.uniform(0.5, 1.5), self._sample_one)

    @property
    def health(self) -> float:
        """The factor by which waits are longer than usual: 1 is well, 8 is very ill."""
        return 1.0 + self._ill

    def take_effects(self) -> list[DetectorEffect]:
        """Everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def watch(self, contact: Contact, now: float) -> None:
        """A new neighbour."""
        self._watches[contact.id] = _Watch(contact, now)

    def unwatch(self, peer: NodeId) -> None:
        """A neighbour no more."""
        self._watches.pop(peer, None)

    def hears(self, peer: NodeId) -> bool:
        """True for a neighbour that is not silent at present."""
        watch = self._watches.get(peer)
        return watch is not None and watch.phase is Phase.HEARD

    def suspect(self, peer: NodeId, now: float) -> None:
        """Others accuse a neighbour: ask it at once, unless it was heard just now."""
        watch = self._watches.get(peer)
        if watch is not None and now - watch.heard > FRESH_S:
            watch.accused = True
            if watch.phase is Phase.HEARD:
                self._ping(watch, now)
                self._arm_check()

    def probe(self, contact: Contact, now: float, answer: Callable[[bool, float], None]) -> bool:
        """Probe a node by datagrams for ourselves; False when too many probes are outstanding."""
        return self._probe(contact, now, ours=answer)

    def blame_ourselves(self) -> None:
        """Somebody accused us and we live: perhaps we are slow (Lifeguard's third rule)."""
        self._worsen()

    # ---- what happens

    def on_heard(self, peer: NodeId, now: float) -> None:
        """Any message of a neighbour."""
        watch = self._watches.get(peer)
        if watch is not None:
            watch.heard = now
            watch.phase = Phase.HEARD
            watch.accused = False

    def on_probe_ask(self, peer: NodeId, message: IndirectProbe, now: float) -> None:
        """A neighbour does not hear somebody: do we?"""
        target = message.contact.id
        watch = self._watches.get(target)
        if peer not in self._watches or target == peer:
            return
        if watch is not None and now - watch.heard <= FRESH_S:
            self._effects.append(Send(peer, IndirectReply(message.tx, True)))
            return
        running = self._probing.get(target)
        if running is not None:
            running.askers[peer] = message.tx
            return
        contact = message.contact if watch is None or message.contact.record else watch.contact
        self._probe(contact, now, asker=(peer, message.tx))

    def on_probe_tell(self, peer: NodeId, message: IndirectReply, now: float) -> None:
        """A helper answers."""
        for watch in self._watches.values():
            if watch.phase is Phase.ASKED and watch.tx == message.tx and peer in watch.helpers:
                del watch.helpers[peer]
                if message.alive:
                    self._estranged(watch, now)
                else:
                    watch.nays += 1
                return

    def on_alive(self, peer: NodeId, now: float) -> None:
        """``peer`` answered a datagram: it lives."""
        running = self._probing.pop(peer, None)
        if running is not None:
            self._probed(running, True, now)
        watch = self._watches.get(peer)
        if watch is None:
            return
        if watch.asked:
            self._measure(watch, now)
        self.on_heard(peer, now)

    def _measure(self, watch: _Watch, now: float) -> None:
        """A round trip (RFC 6298); one that took a second datagram only makes us more patient."""
        watch.rtt.sample(now - watch.asked)
        watch.asked = 0.0
        if self._ill and self._rng.random() < 0.25:  # a round has several answers: one of them makes us better
            self._ill -= 1

    # ---- rounds

    def _round(self, now: float) -> None:
        late = now - self._round_at
        self._round_at = now + ROUND_S * self._rng.uniform(0.9, 1.1)
        self._timers.at(self._round_at, self._round)
        if late > LATE_S:
            self._held_up(now)
            return
        for watch in self._watches.values():
            if watch.phase is Phase.HEARD and now - watch.heard >= QUIET_S:
                self._ping(watch, now)
        self._arm_check()

    def _held_up(self, now: float) -> None:
        """Answers may lie unread: begin anew, and wait longer."""
        self._metrics.count(OWN_FAULT)
        self._worsen()
        for watch in self._watches.values():
            watch.heard, watch.phase, watch.asked = now, Phase.HEARD, 0.0

    def _worsen(self) -> None:
        self._ill = min(MAX_HEALTH, self._ill + 1)

    def _ping(self, watch: _Watch, now: float) -> None:
        watch.phase, watch.asked = Phase.PROBED, now
        watch.deadline = now + watch.rtt.timeout(DIRECT_S, MAX_DIRECT_S, unknown=DIRECT_S) * self.health
        self._effects.append(Probe(watch.contact))

    def _arm_check(self) -> None:
        at = min((w.deadline for w in self._watches.values() if w.phase in (Phase.PROBED, Phase.ASKED)), default=None)
        if at is None:
            return
        if self._check is not None and self._check.live:
            if self._check.when <= at:
                return
            self._check.cancel()
        self._check = self._timers.at(at, self._checked)

    def _checked(self, now: float) -> None:
        for watch in self._watches.values():
            if watch.deadline > now:
                continue
            if now - watch.deadline > LATE_S * self.health and watch.phase in (Phase.PROBED, Phase.ASKED):
                self._held_up(now)
                break
            if watch.phase is Phase.PROBED and watch.accused and self._is_well(watch, now):
                self._say(watch)  # its accuser had asked helpers: ours would find the same
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
        if target not in self._probing:
            self._effects.append(Probe(watch.contact))  # once more

    def _decide(self, watch: _Watch, now: float) -> None:
        alone = len(self._watches) == 1
        isolated = all(now - w.heard > ISOLATED_S for w in self._watches.values())
        if watch.nays or alone or isolated:
            self._say(watch)
        else:
            self._metrics.count(OWN_FAULT)  # the helpers do not answer either
            self._worsen()
            self._ping(watch, now)

    def _is_well(self, silent: _Watch, now: float) -> bool:
        """True when others are heard: what is silent is not our own link."""
        return any(w is not silent and now - w.heard < 2 * ROUND_S for w in self._watches.values())

    def _say(self, watch: _Watch) -> None:
        self._metrics.count(ACCUSATIONS)
        watch.phase = Phase.ACCUSED
        self._effects.append(Accuse(watch.contact.id))

    def _estranged(self, watch: _Watch, now: float) -> None:
        if now - watch.heard > 4 * (DIRECT_S + INDIRECT_S) * self.health:
            self._metrics.count(ESTRANGED)
            self._worsen()
            watch.heard, watch.phase = now, Phase.HEARD
            self._effects.append(Estranged(watch.contact.id))
        else:  # slow rather than broken: ask again
            self._ping(watch, now)
            self._arm_check()

    # ---- probes by datagram

    def _sample_one(self, now: float) -> None:
        self._timers.at(now + SAMPLE_S * self._rng.uniform(0.8, 1.2), self._sample_one)
        contact = self._sample()
        if contact is not None and contact.id not in self._watches:
            self._probe(contact, now, sample=True)

    def _probe(
        self,
        contact: Contact,
        now: float,
        *,
        sample: bool = False,
        asker: tuple[NodeId, int] | None = None,
        ours: Callable[[bool, float], None] | None = None,
    ) -> bool:
        target = contact.id
        if target in self._probing or len(self._probing) >= GOSSIP_MAX_PROBES:
            self._metrics.count(PROBES_FULL)
            return False
        running = self._probing[target] = _Probing(dict([asker] if asker else []), sample, ours)
        self._effects.append(Probe(contact))

        def late(now: float) -> None:
            if self._probing.get(target) is running:
                del self._probing[target]
                self._probed(running, False, now)
                if running.sample:
                    self._effects.append(Silent(target))

        self._timers.at(now + PROBE_S, late)
        return True

    def _probed(self, running: _Probing, alive: bool, now: float) -> None:
        for asker, tx in running.askers.items():
            self._effects.append(Send(asker, IndirectReply(tx, alive)))
        if running.ours is not None:
            running.ours(alive, now)
