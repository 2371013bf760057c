"""A component that fails keeps no other from what happens, and no timer from its time; see also live/test_faults.py."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.errors import PeerSilent
from meshnode.identity.record import EndpointRecord
from meshnode.paths.seeking import Connectivity
from meshnode.quic.seam import Engine
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

HAPPENINGS = ("link", "session_gone", "newer_record", "switched", "silence", "probed", "seed", "clock_set")


def _two(world: World) -> tuple[SimNode, SimNode]:
    here, there = (
        SimNode(world, f"10.0.0.{number}", ModelEngines(world.entropy), sealer=PlainSealer) for number in (1, 2)
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
