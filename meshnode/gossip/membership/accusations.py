"""Accusations and refutations of this node: when to publish them, and when to probe first. Sans I/O.

SWIM's suspicion (Das, Gupta, Motivala, DSN 2002, section 4.2) as signed entries. An accusation names the incarnation
(the seq of the accused's member entry) that did not answer; a newer member entry refutes it. A lone accuser may lie, or
be cut off itself, so nodes that know the accused and are not its neighbours give a second opinion.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from meshnode.base.limits import GOSSIP_MAX_ACCUSERS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timer, Timers
from meshnode.base.value import value
from meshnode.gossip.effects import Doubt, Publish, Status
from meshnode.gossip.entry import Kind
from meshnode.gossip.kinds import NEEDED, Accusation, Member
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId

MEMBER_TTL_S = 7200
ACCUSATION_TTL_S = 7200  # as long as the member entry: a partition of two hours still heals by refutation
REFUTE_EVERY_S = 0.5
SECOND_OPINION_S = 0.4  # drawn at random up to this, so that not all nodes probe at once

REFUTATIONS = describe("gossip_refutations", "accusations of this node that it refuted")


@value
class Unreachable:
    """``peer``, which is no neighbour, did not answer: it is not to be offered as a contact."""

    peer: NodeId


class Facts(Protocol):
    """What the other cores know of nodes."""

    def incarnation(self, peer: NodeId) -> int: ...
    def accusers(self, peer: NodeId) -> int: ...
    def status(self, peer: NodeId) -> Status: ...
    def is_neighbour(self, peer: NodeId) -> bool: ...
    def may_be_probed(self, contact: Contact) -> bool: ...


Probe = Callable[[Contact, float, Callable[[bool, float], None]], bool]


class Accusations:
    """Decides what to publish about members.

    ``probe`` probes a node and calls back with the answer, or returns False; ``record`` returns this node's encoded
    record.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        metrics: Metrics,
        facts: Facts,
        probe: Probe,
        record: Callable[[], bytes],
    ) -> None:
        self._rng = rng
        self._timers = timers
        self._metrics = metrics
        self._facts = facts
        self._probe = probe
        self._record = record
        self._refuted_at = float("-inf")
        self._refuting: Timer | None = None
        self._effects: list[Publish | Unreachable | Doubt] = []

    def take_effects(self) -> list[Publish | Unreachable | Doubt]:
        """Return everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def accuse(self, peer: NodeId, now: float) -> None:
        """Publish that ``peer`` does not answer, unless ``GOSSIP_MAX_ACCUSERS`` nodes have.

        One that is not listed cannot refute it, nor do others know it: that is kept to this node.
        """
        incarnation = self._facts.incarnation(peer)
        if not incarnation:
            self._effects.append(Doubt(peer))
        elif self._facts.accusers(peer) < GOSSIP_MAX_ACCUSERS:
            value = Accusation(peer, incarnation).encoded()
            name = str(peer)
            self._effects.append(Publish(Kind.ACCUSATION, name, value, ACCUSATION_TTL_S, wide=True, above=incarnation))

    def on_accused(self, contact: Contact, now: float) -> None:
        """Give a second opinion about a node that is known here and no neighbour.

        It is probed after a random wait of up to ``SECOND_OPINION_S``, if by then it has one accuser still, and accused
        when it does not answer.
        """
        if self._facts.accusers(contact.id) < NEEDED:
            wait = self._rng.uniform(0.0, SECOND_OPINION_S)
            self._timers.at(now + wait, lambda now: self._second_opinion(contact, now))

    def _second_opinion(self, contact: Contact, now: float) -> None:
        def answered(alive: bool, now: float) -> None:
            if not alive and 0 < self._facts.accusers(contact.id) < NEEDED:
                self.accuse(contact.id, now)

        if self._facts.accusers(contact.id) == 1:
            self._probe(contact, now, answered)

    def on_unwatched(self, contact: Contact, now: float) -> None:
        """Probe a node that no neighbour of it may be watching any more, and accuse it when it does not answer.

        One that datagrams do not reach, or that is suspected already, is left to others.
        """

        def answered(alive: bool, now: float) -> None:
            peer = contact.id
            if not alive and not self._facts.is_neighbour(peer) and self._facts.status(peer) is Status.ALIVE:
                self._effects.append(Unreachable(peer))
                self.accuse(peer, now)

        if self._facts.may_be_probed(contact):
            self._probe(contact, now, answered)

    def refute(self, now: float) -> None:
        """Publish that this node lives: at once, or ``REFUTE_EVERY_S`` after the last time.

        The new member entry has a higher seq, so it refutes all accusations that have been published.
        """
        if self._refuting is None or not self._refuting.live:
            wait = max(0.0, self._refuted_at + REFUTE_EVERY_S - now)
            self._refuting = self._timers.at(now + wait, self._refute)
            if not wait:
                self._refuting.fire(now)

    def _refute(self, now: float) -> None:
        self._refuted_at = now
        self._metrics.count(REFUTATIONS)
        self._effects.append(Publish(Kind.MEMBER, "", Member(False, self._record()).encoded(), MEMBER_TTL_S))
