"""Failure detection by one node: ``meshnode.gossip.membership.swim`` alone, with neighbours that answer or do not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from meshnode.base.limits import GOSSIP_MAX_PROBES
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.effects import Accuse, Estranged, Probe, Send, Silent
from meshnode.gossip.membership.probes import LATE_S, OF_ASKER, Probes
from meshnode.gossip.membership.swim import LET_GO_S, Swim
from meshnode.gossip.messages import Contact, IndirectProbe, IndirectReply
from meshnode.identity.node_id import NodeId


def _id(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class Neighbours:
    """One detector and its neighbours, numbered from 1. Datagrams are answered after 20 ms by those that are ``up``.

    Helpers answer after 100 ms that the one asked for lives when it is in ``heard_by_others``.
    """

    def __init__(
        self, count: int, sampled: Contact | None = None, heard_at: Callable[[NodeId], float] = lambda peer: -1.0
    ) -> None:
        self.metrics = Metrics()
        self.timers = Timers()
        others = [sampled] if sampled else []
        self.detector = Swim(random.Random(1), self.timers, self.metrics, lambda: others, 0.0, heard_at)
        self.up = {_id(number) for number in range(1, count + 1)}
        self.helpful = set(self.up)
        self.heard_by_others: set[NodeId] = set()
        self.now = 0.0
        self.log: list[tuple[float, object]] = []
        for number in range(1, count + 1):
            self.detector.watch(Contact(_id(number), b"record"), 0.0)

    def _act(self) -> None:
        for effect in self.detector.take_effects():
            self.log.append((self.now, effect))
            if isinstance(effect, Probe) and effect.contact.id in self.up:
                self._alive_soon(effect.contact.id)
            elif isinstance(effect, Send) and isinstance(effect.message, IndirectProbe) and effect.peer in self.helpful:
                self._tell_soon(effect.peer, effect.message)

    def _alive_soon(self, peer: NodeId) -> None:
        self.timers.at(self.now + 0.02, lambda now: self.detector.on_alive(peer, now))

    def _tell_soon(self, helper: NodeId, asked: IndirectProbe) -> None:
        answer = IndirectReply(asked.tx, asked.contact.id in self.heard_by_others)
        self.timers.at(self.now + 0.1, lambda now: self.detector.on_indirect_reply(helper, answer, now))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (at := self.timers.next_deadline()) is not None and at <= end:
            self.now = at
            self.timers.run(at)
            self._act()
        self.now = end

    def seen(self, kind: type) -> list[float]:
        """When effects of one kind came."""
        return [at for at, effect in self.log if isinstance(effect, kind)]


def test_neighbours_that_answer_are_accused_of_nothing() -> None:
    mesh = Neighbours(6)
    mesh.run(300.0)
    assert not mesh.seen(Accuse)
    assert mesh.detector.health == 1.0
    assert 0.9 * 300 < len(mesh.seen(Probe)) < 1.1 * 300, "one is asked each second"
    asked = Counter(effect.contact.id for _, effect in mesh.log if isinstance(effect, Probe))
    assert min(asked.values()) > 45, "and each in its turn"


def test_a_lone_neighbour_is_asked_when_it_was_silent_for_two_seconds() -> None:
    mesh = Neighbours(1)
    mesh.run(300.0)
    asked = mesh.seen(Probe)
    waits = [after - before for before, after in pairwise(asked)]
    assert min(waits) > 2.02, "its answer took 20 ms"
    assert len(asked) > 95


def test_a_node_that_dies_when_all_have_just_heard_it_is_missed_within_three_rounds_of_silence() -> None:
    mesh = Neighbours(2)
    mesh.run(10.0)
    for number in (1, 2):
        mesh.detector.on_heard(_id(number), mesh.now)
    mesh.up.discard(_id(2))
    mesh.run(6.0)
    (at,) = mesh.seen(Accuse)
    assert at - 10.0 < 1.0 + 2 * 1.1 + 1.05, "silence, two turns, two answers that do not come"


def test_what_comes_by_a_connection_is_a_sign_of_life() -> None:
    mesh = Neighbours(6, heard_at=lambda peer: mesh.now - 0.1 if peer != _id(2) else 0.0)
    mesh.up.clear()
    mesh.run(6.0)
    assert {e.contact.id for _, e in mesh.log if isinstance(e, Probe)} == {_id(2)}


def test_an_answer_that_came_by_the_connection_ends_a_silence() -> None:
    heard: dict[NodeId, float] = {}
    mesh = Neighbours(6, heard_at=lambda peer: heard.get(peer, 0.0))
    mesh.up.discard(_id(3))
    for _ in range(300):
        mesh.run(0.1)
        heard.update({e.contact.id: at + 0.05 for at, e in mesh.log if isinstance(e, Probe)})
    assert _id(3) in heard
    assert not mesh.seen(Accuse)
    assert not [e for _, e in mesh.log if isinstance(e, Send)], "no helper is asked"


def test_a_neighbour_that_is_heard_anyway_is_not_asked() -> None:
    mesh = Neighbours(1)
    for _ in range(100):
        mesh.run(0.2)
        mesh.detector.on_heard(_id(1), mesh.now)
    assert not mesh.seen(Probe)


def test_a_neighbour_that_falls_silent_is_accused_when_its_turn_has_come_and_helpers_were_asked() -> None:
    mesh = Neighbours(6)
    mesh.run(10.0)
    mesh.up.discard(_id(3))
    mesh.run(8.0)
    asked = [e for _, e in mesh.log if isinstance(e, Send) and isinstance(e.message, IndirectProbe)]
    assert len(asked) == 3
    assert {e.message.contact.id for e in asked if isinstance(e.message, IndirectProbe)} == {_id(3)}
    assert _id(3) not in {e.peer for e in asked}
    (at,) = mesh.seen(Accuse)
    assert 11.0 < at < 10.0 + 6 * 1.1 + 1.05, "six take their turns"
    assert [e for _, e in mesh.log if isinstance(e, Accuse)] == [Accuse(_id(3))]
    mesh.run(0.1)  # past the answers to a round
    assert not mesh.detector.hears(_id(3))
    assert mesh.detector.hears(_id(2))


def test_a_neighbour_that_others_hear_is_not_accused_and_its_link_is_given_up_in_time() -> None:
    mesh = Neighbours(6)
    mesh.run(10.0)
    mesh.detector.on_heard(_id(3), mesh.now)
    mesh.up.discard(_id(3))
    mesh.heard_by_others.add(_id(3))
    mesh.run(20.0)
    assert not mesh.seen(Accuse)
    assert mesh.seen(Estranged)[0] - 10.0 > 4.2, "slow is not broken"


def test_the_silence_of_all_is_our_own_fault_for_eight_seconds() -> None:
    mesh = Neighbours(6)
    mesh.run(10.0)
    for number in range(1, 7):
        mesh.detector.on_heard(_id(number), mesh.now)
    mesh.up.clear()
    mesh.helpful.clear()
    mesh.run(8.0)
    assert not mesh.seen(Accuse)
    assert mesh.detector.health > 1.0
    mesh.run(60.0)
    assert mesh.seen(Accuse), "no member is left to ask, and none to mislead"


def test_a_node_that_was_ill_is_well_again_after_some_rounds_of_answers() -> None:
    mesh = Neighbours(4)
    for _ in range(20):
        mesh.detector.blame_itself()
    assert mesh.detector.health == 8.0
    mesh.run(60.0)
    assert mesh.detector.health == 1.0


def test_an_ill_node_waits_longer_before_it_accuses_and_a_recovered_one_does_not() -> None:
    waits = []
    for ill, rest in ((0, 0.0), (3, 0.0), (3, 60.0)):
        mesh = Neighbours(6)
        for _ in range(ill):
            mesh.detector.blame_itself()
        mesh.run(rest)
        began = mesh.now
        mesh.up.discard(_id(1))  # the first whose turn comes: no answer makes the node well before
        while not mesh.seen(Accuse):
            mesh.run(0.05)
        waits.append(mesh.now - began)
    well, ill, recovered = waits
    assert ill > well + 1.0
    assert recovered < 6 * 1.1 + 1.05


def test_a_timer_that_fires_late_accuses_no_neighbour() -> None:
    mesh = Neighbours(4)
    mesh.run(10.0)
    for number in range(1, 5):
        mesh.up.discard(_id(number))
    mesh.now += 3.0  # this process did not run
    mesh.timers.run(mesh.now)
    mesh._act()
    mesh.up |= {_id(number) for number in range(1, 5)}
    mesh.run(10.0)
    assert not mesh.seen(Accuse)
    assert mesh.metrics.counters["gossip_own_fault"] == 1


def test_an_ill_node_waits_longer_for_the_answer_to_any_probe() -> None:
    mesh = Neighbours(1)
    answers: list[bool] = []
    for _ in range(3):
        mesh.detector.blame_itself()
    mesh.detector.probe(Contact(_id(60)), mesh.now, lambda alive, now: answers.append(alive))
    mesh.run(0.45 * 4 - 0.01)
    assert answers == []
    mesh.run(0.02)
    assert answers == [False]


def test_a_probe_that_ends_late_says_nothing_and_another_may_follow() -> None:
    mesh = Neighbours(1)
    mesh.detector.on_indirect_probe(_id(1), IndirectProbe(6, Contact(_id(50), b"record")), mesh.now)
    answers: list[bool] = []
    assert mesh.detector.probe(Contact(_id(60)), mesh.now, lambda alive, now: answers.append(alive))
    mesh.now += 0.45 + 2 * LATE_S
    mesh.timers.run(mesh.now)
    mesh._act()
    assert not [e for _, e in mesh.log if isinstance(e, Send) and isinstance(e.message, IndirectReply)]
    assert answers == []
    assert mesh.detector.probe(Contact(_id(60)), mesh.now, lambda alive, now: answers.append(alive))
    mesh.run(1.0)
    assert answers == [False]


def test_a_neighbour_that_has_ever_new_ids_probed_takes_no_place_of_anothers_probes() -> None:
    mesh = Neighbours(3)
    for number in range(2 * GOSSIP_MAX_PROBES):
        mesh.detector.on_indirect_probe(_id(1), IndirectProbe(number, Contact(_id(100 + number), b"record")), mesh.now)
    for number in range(OF_ASKER):
        mesh.detector.on_indirect_probe(_id(2), IndirectProbe(number, Contact(_id(50 + number), b"record")), mesh.now)
    probed = [e.contact.id for e in mesh.detector.take_effects() if isinstance(e, Probe)]
    assert set(probed) >= {_id(50 + number) for number in range(OF_ASKER)}
    assert len(probed) == 2 * OF_ASKER


def test_a_helper_answers_what_it_knows_and_probes_what_it_does_not() -> None:
    mesh = Neighbours(3)
    mesh.run(5.0)
    mesh.detector.on_heard(_id(2), mesh.now)
    mesh.log.clear()
    mesh.detector.on_indirect_probe(_id(1), IndirectProbe(5, Contact(_id(2), b"record")), mesh.now + 0.1)
    mesh.detector.on_indirect_probe(_id(1), IndirectProbe(6, Contact(_id(50), b"record")), mesh.now + 0.1)
    no_neighbour = _id(9)
    mesh.detector.on_indirect_probe(no_neighbour, IndirectProbe(7, Contact(_id(51), b"record")), mesh.now + 0.1)
    mesh._act()
    assert [effect for _, effect in mesh.log] == [
        Send(_id(1), IndirectReply(5, True)),
        Probe(Contact(_id(50), b"record")),
    ]
    mesh.run(0.6)
    assert Send(_id(1), IndirectReply(6, False)) in [effect for _, effect in mesh.log]


@pytest.mark.parametrize("answers", [True, False])
def test_a_sampled_member_that_does_not_answer_is_told_of(answers: bool) -> None:
    mesh = Neighbours(2, Contact(_id(77), b"record"))
    if answers:
        mesh.up.add(_id(77))
    mesh.run(180.0)
    probes = [at for at, e in mesh.log if isinstance(e, Probe) and e.contact.id == _id(77)]
    assert 5 <= len(probes) <= 8
    assert len(mesh.seen(Silent)) == (0 if answers else pytest.approx(len(probes), abs=1))


def test_a_neighbour_that_stays_accused_without_end_is_no_neighbour_any_more() -> None:
    mesh = Neighbours(4)
    mesh.run(10.0)
    mesh.up.discard(_id(2))
    mesh.run(15.0)
    (accused,) = mesh.seen(Accuse)
    assert not mesh.seen(Estranged), "the others decide"
    mesh.run(15.0)
    let_go = mesh.seen(Estranged)
    assert LET_GO_S < let_go[0] - accused < LET_GO_S + 1.1, "the accusation was lost: nothing else ends the link"


def test_an_accused_neighbour_that_answers_stays() -> None:
    mesh = Neighbours(4)
    mesh.run(10.0)
    mesh.up.discard(_id(2))
    mesh.run(15.0)
    mesh.up.add(_id(2))
    mesh.run(60.0)
    assert len(mesh.seen(Accuse)) == 1
    assert not mesh.seen(Estranged)


def test_a_node_that_a_neighbour_has_probed_here_is_probed_for_this_one_too() -> None:
    answers: list[tuple[str, bool]] = []
    probes = Probes(Timers(), Metrics(), lambda probe: None, lambda: 1.0)
    target = Contact(_id(7), b"record")
    assert probes.probe(target, 0.0, lambda alive, now: answers.append(("neighbour", alive)), _id(1))
    assert probes.probe(target, 0.1, lambda alive, now: answers.append(("own", alive)))
    assert not probes.probe(target, 0.2, lambda alive, now: answers.append(("twice", alive)))
    probes.end(target.id, False, 0.3)
    assert answers == [("neighbour", False), ("own", False)]
