"""A peer that takes no control frames is ended by the next one: it keeps the news in that frame from no other peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshnode.base.limits import AWAY_S, MAX_CONTROL_QUEUE
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import Sealer
from meshnode.quic.hello import Frame
from meshnode.quic.seam import Engine
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.rotation import sign_rotation
from tests.sim.revoked import AUTHORITY, MS, link_of, make_grant, make_node, now_ms, say


class _Full:
    """The engine of a connection whose peer has taken no control frame for long."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def queued_bytes(self, stream_id: int) -> int:
        """Return what waits."""
        return MAX_CONTROL_QUEUE + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _move(world: World, hub: SimNode) -> None:
    hub.move("10.0.9.9")


def _revoke(world: World, hub: SimNode) -> None:
    key = bytes(Identity(world.entropy(32)).id)
    say(hub, sign_revocation(AUTHORITY, key, time=now_ms(world), reason="stolen"))


def _compare(world: World, hub: SimNode) -> None:
    link_of(hub)._look(world.now)


def _sleep(world: World, hub: SimNode) -> None:
    hub.clock.error += 2 * AWAY_S
    link_of(hub).on_clock_set(world.now)


def _rotate(world: World, hub: SimNode) -> None:
    rotation = sign_rotation(AUTHORITY, serial=MS, key=bytes(32), begins=MS + 90_000, ends=MS + 120_000)
    assert hub.mesh.context.mesh_keys.adopt(rotation.encoded, world.now)


def _renew(world: World, hub: SimNode) -> None:
    hub.mesh.context.standings.set_own(make_grant(world, hub.mesh.context.identity))


@pytest.mark.parametrize(
    ("happens", "frame"),
    [
        (_move, Frame.RECORD),
        (_revoke, Frame.REVOKED),
        (_compare, Frame.REVOKED_HAVE),
        (_sleep, Frame.REVOKED_ASK),
        (_rotate, Frame.MESH_KEY),
        (_renew, Frame.GRANTS),
    ],
)
def test_a_peer_that_is_ended_by_the_news_keeps_it_from_no_other(
    happens: Callable[[World, SimNode], None], frame: Frame
) -> None:
    world = World(3, Weather(delay=0.02))
    hub, *others = [make_node(world, seed_role=number == 0, sealer=Sealer) for number in range(4)]
    for node in others:
        node.join(hub)
    world.run(20.0)
    _revoke(world, hub)
    world.run(5.0)
    connections = [session.connection for session in hub.mesh.sessions.values() if session.connection]
    assert len(connections) == len(others)
    told: list[Frame] = []
    for connection in connections[:-1]:
        connection.engine = _Full(connection.engine)  # type: ignore[assignment]
    last = connections[-1]
    send = last.send_frame

    def noted(kind: Frame, *fields: object) -> None:
        told.append(kind)
        send(kind, *fields)

    last.send_frame = noted  # type: ignore[method-assign]
    happens(world, hub)
    assert frame in told
    assert [bool(connection.error) for connection in connections] == [True, True, False]
