"""What members that lie or spoof make a node send, in virtual time: the bytes that reach a host that never spoke."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import (
    BASE_MTU,
    HOST_ALLOWANCE,
    HOST_ALLOWANCE_PER_S,
    RECORDS_BURST,
    RECORDS_PER_S,
)
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.paths.effects import MOVED
from meshnode.stack import probe
from meshnode.stack.record_pace import RecordPace
from tests.sim.spoofing import VICTIM, Spoofer


def _allowance(seconds: float) -> float:
    """Bytes of probes that one node may send to a host in that time, of its own accord."""
    return HOST_ALLOWANCE / 2 + HOST_ALLOWANCE_PER_S * seconds


def test_moved_from_ever_new_ports_of_a_victim_brings_it_three_times_what_came_from_it() -> None:
    spoofer = Spoofer(1)
    for port in range(30):
        spoofer.moved(31_000 + port)
        spoofer.world.run(0.31)
    assert spoofer.target.mesh.metrics.counters["path_switches"] >= 10, "the traffic was moved"
    assert 0 < spoofer.to_victim <= 3 * spoofer.linked


def test_a_member_whose_padded_moved_is_heard_is_sent_data_before_its_probe_comes_back() -> None:
    spoofer = Spoofer(1)
    spoofer.moved(31_000, BASE_MTU)
    spoofer.world.run(0.02 + 0.001)
    assert spoofer.to_victim > 2 * BASE_MTU, "and a move has no gap of a round trip"


def test_a_peer_whose_address_changed_unannounced_is_probed_though_its_packets_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoofer = Spoofer(1)
    probes: list[int] = []
    deliver = spoofer.world.deliver
    size = probe.MIN_PING + SEAL_OVERHEAD

    def watch(source: Addr, to: Addr, datagram: bytes, nat: None = None) -> None:
        if to.host == VICTIM and len(datagram) == size:
            probes.append(to.port)
        deliver(source, to, datagram, nat)

    spoofer.quic_from[spoofer.member.addr] = Addr(VICTIM, 1)
    spoofer.world.deliver = watch  # type: ignore[method-assign]
    credit = spoofer.target.mesh.context.credit
    earn = credit.earn
    monkeypatch.setattr(credit, "earn", lambda path, size, factor, now: earn(path, min(size, 29), factor, now))
    spoofer.world.run(0.06)  # no silence yet, which would have all addresses probed
    assert size > 3 * 29, "the smallest packet that QUIC has earns no probe alone"
    assert probes


def test_junk_does_not_turn_the_answers_of_a_half_open_connection() -> None:
    spoofer = Spoofer(1)
    odcid = spoofer.half_open(32_000)
    dialler = spoofer.diallers[0]
    spoofer.quic_from.clear()
    for _ in range(5):
        spoofer.send(b"\x41" + odcid + bytes(12), 32_000, linked=False)
    spoofer.world.run(3.0)
    assert spoofer.to_victim == 0
    assert spoofer.target.mesh.context.peers.connection(dialler.id) is not None


def test_an_address_that_a_handshake_ended_at_but_did_not_begin_at_is_no_validated_one() -> None:
    spoofer = Spoofer(1)
    spoofer.half_open(32_000)
    dialler = spoofer.diallers[0]
    spoofer.quic_from.clear()
    ping = probe.encode_ping(probe.Ping(MOVED, bytes(8), probe.NO_HANDLE), 300)
    spoofer.send(dialler.mesh.context.sealer.seal(spoofer.target.id, ping), 32_000, linked=True)
    spoofer.world.run(0.1)
    connection = spoofer.target.mesh.context.peers.connection(dialler.id)
    assert connection is not None
    assert spoofer.target.mesh.sessions[dialler.id].paths.active == Addr(VICTIM, 32_000), "where it says that it is"
    for _ in range(20):
        connection.push_record(spoofer.target.mesh.record.encoded)  # type: ignore[union-attr]
    spoofer.world.run(5.0)
    assert Addr(VICTIM, 32_000) not in spoofer.target.mesh.context.credit.proven
    assert 0 < spoofer.to_victim <= 3 * spoofer.linked


def test_a_listener_that_says_to_move_in_the_middle_of_our_dial_proves_no_address() -> None:
    spoofer = Spoofer(1)
    listener = spoofer.stranger
    spoofer.target.mesh.resolution.hints[listener.id] = (listener.addr,)
    spoofer.target.mesh.connect(listener.id, spoofer.world.now, lambda result: None)
    spoofer.target.on_dirty()
    spoofer.world.run(0.021)  # the first flight has arrived; what the listener sends now comes behind its answer
    dial = spoofer.target.mesh.sessions[listener.id].dial
    assert dial is not None
    listener.mesh.probing.on_ping = lambda *what: None  # type: ignore[method-assign]
    ping = probe.Ping(MOVED, bytes(8), probe.connection_tag(dial))
    spoofer.sealed(probe.encode_ping(ping, 300), 32_000, linked=False)
    spoofer.linked, spoofer.unlinked = spoofer.linked + spoofer.unlinked, 0  # it is about a connection
    spoofer.world.run(5.0)
    assert Addr(VICTIM, 32_000) not in spoofer.target.mesh.context.credit.proven
    assert spoofer.to_victim <= 3 * spoofer.linked


@pytest.mark.parametrize("ports", [1, 16])
def test_records_that_name_a_victim_cost_it_the_allowance_of_a_host_however_many_they_are(ports: int) -> None:
    spoofer = Spoofer(1)
    began = spoofer.world.now
    for n in range(400):
        addrs = [Addr(VICTIM, 20_000 + n * ports + k) for k in range(ports)]
        spoofer.link.push_record(spoofer.record(spoofer.member, *addrs))
        spoofer.member.on_dirty()
        spoofer.world.run(0.01)
    assert 0 < spoofer.to_victim <= _allowance(spoofer.world.now - began)
    counters = spoofer.target.mesh.metrics.counters
    taken = 400 - counters["records_paced"]
    assert taken <= RECORDS_BURST + RECORDS_PER_S * (spoofer.world.now - began) + 1


def test_the_last_of_too_many_records_counts() -> None:
    spoofer = Spoofer(1)
    last = b""
    for n in range(40):
        last = spoofer.record(spoofer.member, Addr("192.0.2.9", 1_000 + n))
        spoofer.link.push_record(last)
    spoofer.member.on_dirty()
    spoofer.world.run(1.0)
    held = spoofer.target.mesh.context.records.cached(spoofer.member.id)
    assert held is not None
    assert held.encoded == last


def test_many_members_that_name_one_victim_share_one_allowance() -> None:
    spoofer = Spoofer(1)
    for _ in range(12):
        spoofer.half_open(1)
        spoofer.quic_from.clear()
    spoofer.world.run(2.0)
    began, before = spoofer.world.now, spoofer.to_victim
    for turn in range(20):
        for n, dialler in enumerate(spoofer.diallers):
            connection = dialler.mesh.context.peers.connection(spoofer.target.id)
            assert connection is not None
            connection.push_record(spoofer.record(dialler, *(Addr(VICTIM, 100 * n + turn + k + 1) for k in range(8))))
            dialler.on_dirty()
        spoofer.world.run(0.5)
    assert 0 < spoofer.to_victim - before <= _allowance(spoofer.world.now - began)


def test_records_are_paced_a_peer_and_what_waits_is_replaced() -> None:
    timers, pace, done = Timers(), None, []
    pace = RecordPace(timers, Metrics())
    one, other = Identity(bytes([1] * 32)).id, Identity(bytes([2] * 32)).id
    for n in range(100):
        pace.run(one, lambda now, n=n: done.append((n, now)), 0.0)  # type: ignore[misc]
    assert [n for n, _ in done] == list(range(int(RECORDS_BURST)))
    pace.run(other, lambda now: done.append((-1, now)), 0.0)
    assert done.pop() == (-1, 0.0), "a peer that floods delays no other"
    timers.run(10.0)
    assert done.pop() == (99, 10.0)
    for n in range(100):
        pace.run(one, lambda now, n=n: done.append((n, now)), 10.0)  # type: ignore[misc]
    pace.forget(one)
    timers.run(20.0)
    assert done[-1][0] < 99, "what waits is forgotten with its peer"
