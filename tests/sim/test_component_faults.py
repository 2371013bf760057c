"""A component that fails keeps no other from what happens, and no timer from its time; see also live/test_faults.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaTunnel
from meshnode.base.timers import Timers
from meshnode.discovery.dht.effects import Effect, LookupDone, LookupStats
from meshnode.discovery.dht.source import DhtSource
from meshnode.errors import PeerSilent
from meshnode.gossip import Changed, Kind
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, sign_record
from meshnode.paths.seeking import Connectivity
from meshnode.quic.seam import Engine
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

HAPPENINGS = ("link", "session_gone", "newer_record", "switched", "silence", "probed", "seed", "clock_set")


def _two(world: World, *, gossip: bool = False) -> tuple[SimNode, SimNode]:
    here, there = (
        SimNode(world, f"10.0.0.{number}", ModelEngines(world.entropy), sealer=PlainSealer, gossip=gossip)
        for number in (1, 2)
    )
    return here, there


class _Failing:
    """An engine of which one method always fails."""

    def __init__(self, engine: Engine, method: str) -> None:
        self._engine = engine
        setattr(self, method, _fail)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _fail(*args: object) -> None:
    raise RuntimeError("a fault")


@pytest.fixture
def world() -> World:
    return World(3, Weather(delay=0.02))


def test_whatever_happens_is_told_to_all_components_though_the_first_one_fails(world: World) -> None:
    here, there = _two(world)
    errors: list[Exception] = []
    told: set[str] = set()
    here.mesh.context.timers.on_error = errors.append
    for name in HAPPENINGS:
        hooks = getattr(here.mesh.context.hooks, name)
        hooks.insert(0, _fail)
        hooks.append(lambda *args, name=name: told.add(name))
    here.mesh.looks.insert(0, _fail)
    here.on_connection = _fail  # type: ignore[method-assign]  # the application's
    here.join(there)
    connection = here.connect(there.id)
    there.move("10.0.0.3")
    world.run(2.0)
    here.clock.error += 10.0
    there.kill()
    stream, _ = here.open(connection)
    stream.write(b"hello")
    here.on_dirty()
    assert world.run(20.0, lambda: told >= {"clock_set", "silence"})
    connection.close(0, "gone")
    world.run(5.0)
    assert told == set(HAPPENINGS)
    assert errors
    assert {str(error) for error in errors} == {"a fault"}


def test_a_record_that_one_component_cannot_tell_of_is_told_by_the_others(world: World) -> None:
    here, _ = _two(world)
    told: list[EndpointRecord] = []
    here.mesh.context.hooks.own_record[:] = [_fail, lambda record, now: told.append(record)]
    with pytest.raises(RuntimeError, match="a fault"):
        here.move("10.0.0.3")
    assert [str(each.addr.host) for each in told[0].endpoints] == ["10.0.0.3"]


def test_a_connection_whose_engine_timers_always_fail_is_suspended_and_idles_out_as_any_other(world: World) -> None:
    here, there = _two(world)
    errors: list[Exception] = []
    here.mesh.context.timers.on_error = errors.append
    here.join(there)
    connection = here.connect(there.id)
    connection.engine = _Failing(connection.engine, "on_timer")  # type: ignore[assignment]
    stream, _ = here.open(connection)
    stream.write(b"hello")
    here.on_dirty()
    world.run(5.0)
    assert not connection.error, "the peer answers"
    there.kill()
    stream.write(b"hello")
    here.on_dirty()
    limit = here.mesh.context.settings.idle_timeout
    seeking = here.mesh.sessions[there.id].paths.seeking
    assert world.run(60.0, lambda: seeking.connectivity is Connectivity.SUSPENDED)
    world.run(limit - 90.0)
    assert not connection.error
    assert world.run(120.0, lambda: isinstance(connection.error, PeerSilent))
    assert stream.error is connection.error
    assert len(errors) < 2 * limit, "once a second"
    world.run(5.0)
    assert there.id not in here.mesh.sessions


def test_a_connection_whose_engine_fails_at_a_move_keeps_no_peer_from_hearing_of_it(world: World) -> None:
    here, first = _two(world)
    second = SimNode(world, "10.0.0.3", ModelEngines(world.entropy), sealer=PlainSealer)
    errors: list[Exception] = []
    here.mesh.context.timers.on_error = errors.append
    for there in (first, second):
        here.join(there)
        connection = here.connect(there.id)
        if there is first:
            connection.engine = _Failing(connection.engine, "nudge")  # type: ignore[assignment]
    here.move("10.0.0.9")
    assert here.mesh.record is not None
    assert [each.addr for each in here.mesh.record.endpoints] == [here.addr]
    world.run(0.1)
    for there in (first, second):
        assert there.mesh.sessions[here.id].paths.active == here.addr
    assert {str(error) for error in errors} == {"a fault"}


def test_what_gossip_tells_is_told_to_all_that_listen_though_the_first_one_fails(world: World) -> None:
    here, there = _two(world, gossip=True)
    errors: list[Exception] = []
    here.mesh.context.timers.on_error = errors.append
    gossip, told = here.mesh.context.gossip, dict[NodeId, None]()
    assert gossip is not None

    def note(change: Changed, now: float) -> None:
        told[change.entry.origin] = None

    for listener in (_fail, note):
        gossip.subscribe(Kind.MEMBER, listener)
    here.join(there)
    assert world.run(20.0, lambda: there.id in told)
    assert errors


class _Core:
    """A DHT that says what it is told to say, and numbers the lookups that it is asked for."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.asked: list[NodeId] = []
        self.urgent: list[bool] = []

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def next_deadline(self) -> None:
        return None

    def lookup(self, peer: NodeId, now: float, *, is_urgent: bool = True) -> int:
        self.asked.append(peer)
        self.urgent.append(is_urgent)
        return len(self.asked)


class _Sink:
    def record(self, encoded: bytes, via: str = "") -> None:
        raise RuntimeError("a fault")

    def seed(self, peer: NodeId, addrs: Iterable[Addr | ViaTunnel]) -> None: ...

    def is_wanted(self, peer: NodeId) -> bool:
        return peer == Identity(bytes(32)).id


def test_a_record_that_cannot_be_handed_on_keeps_no_other_lookup_from_its_end(world: World) -> None:
    here, _ = _two(world)
    core, timers, errors = _Core(), Timers(), list[Exception]()
    timers.on_error = errors.append
    dht: Any = core
    source = DhtSource(dht, here.clock, timers, Metrics(), Mock(), Mock(), Mock(), Mock())
    source.start(_Sink(), 0.0)
    owner, other = Identity(bytes(32)), Identity(bytes([1]) * 32)
    record = sign_record(owner, seq=1, issued_ms=1, ttl=60, endpoints=())
    stats = LookupStats(1, 1, 1, 0, 0.1, None)
    for each in (owner, other):
        source.resolve(each.id, 0.0)
    assert core.urgent == [True, False], "a caller waits for the first one alone"
    core.effects = [LookupDone(1, record, stats), LookupDone(2, None, stats)]
    source.flush(1.0)
    assert len(errors) == 1
    source.resolve(other.id, 2.0)
    assert core.asked == [owner.id, other.id, other.id], "a lookup that has ended may be begun again"
