"""Probes by datagram: one for each node at a time, answered or given up. Sans I/O."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import GOSSIP_MAX_ACTIVE, GOSSIP_MAX_PROBES
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.gossip.effects import Probe
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId

ANSWER_S = 0.45
OF_ASKER = GOSSIP_MAX_PROBES // GOSSIP_MAX_ACTIVE  # probes at once for one neighbour, which takes no others' places
LATE_S = 0.25  # a timer that fires this much late shows that the process was held up

PROBES_FULL = describe("gossip_probes_full", "probes refused: too many are outstanding")

Answer = Callable[[bool, float], None]


class Probes:
    """Outstanding probes, at most ``GOSSIP_MAX_PROBES``. ``send`` takes what is to be sent.

    ``health`` returns the factor by which an overloaded node waits longer.
    """

    def __init__(
        self,
        timers: Timers,
        metrics: Metrics,
        send: Callable[[Probe], None],
        health: Callable[[], float],
    ) -> None:
        self._health = health
        self._timers = timers
        self._metrics = metrics
        self._send = send
        self._running: dict[NodeId, dict[NodeId, Answer]] = {}  # by asker; this node's own under the target

    def __contains__(self, target: NodeId) -> bool:
        return target in self._running

    def probe(self, contact: Contact, now: float, answer: Answer, asker: NodeId | None = None) -> bool:
        """Probe a node and call ``answer`` with the outcome; not where its end comes late: answers may lie unread then.

        What asks for a node that is being probed shares that probe. False (counted) when this node has asked already,
        or too many are under way, or as many of the asker as is its share.
        """
        target = contact.id
        running = self._running.get(target)
        if running is not None and (asker is not None or target not in running):
            running[asker or target] = answer
            return True
        if running is not None or len(self._running) >= GOSSIP_MAX_PROBES or self._has_many(asker):
            self._metrics.count(PROBES_FULL)
            return False
        started = self._running[target] = {asker or target: answer}
        self._send(Probe(contact))

        due = now + ANSWER_S * self._health()

        def give_up(now: float) -> None:
            if self._running.get(target) is not started:
                return
            if now - due > LATE_S:
                del self._running[target]
            else:
                self.end(target, False, now)

        self._timers.at(due, give_up)
        return True

    def _has_many(self, asker: NodeId | None) -> bool:
        return asker is not None and sum(asker in of for of in self._running.values()) >= OF_ASKER

    def end(self, target: NodeId, alive: bool, now: float) -> None:
        """Give the outcome of the probe of a node, if one runs, to all that asked."""
        for answer in self._running.pop(target, {}).values():
            answer(alive, now)
