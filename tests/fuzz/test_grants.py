"""What a member can say about grants and secrets: each frame and entry is taken or dropped, and none raises."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.wire import WireError, decode, encode
from meshnode.gossip.entry import Kind, sign_entry
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import Frame
from meshnode.sim.world import SimNode
from meshnode.stack.redemption_link import RedemptionLink
from meshnode.trust.authority import pack_chain
from meshnode.trust.rotation import open_rotation, sign_rotation
from tests.sim.test_grants import AUTHORITY, HOUR, MS, Mesh

MESH = Mesh()
ONE, OTHER = MESH.node("web", gossip=True), MESH.node("db", gossip=True)
LINK = MESH.dial(ONE, OTHER)
GRANT = MESH.grant(Identity(b"g" * 32), "web")[0]
OWN = OTHER.mesh.context.grants
ROTATION = sign_rotation(AUTHORITY.identity, serial=MS, key=bytes(32), begins=MS, ends=MS + HOUR).encoded

damaged = st.sampled_from([GRANT, OWN[0], ONE.mesh.context.grants[0], ROTATION]).flatmap(
    lambda good: st.tuples(st.integers(0, len(good) - 1), st.integers(1, 255)).map(
        lambda at: good[: at[0]] + bytes([good[at[0]] ^ at[1]]) + good[at[0] + 1 :]
    )
)
items = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text(max_size=9), st.binary(), damaged)
fields = st.lists(st.one_of(items, st.lists(items, max_size=6)), max_size=3)


@given(st.sampled_from([Frame.GRANTS, Frame.RENEW, Frame.RENEWED, Frame.MESH_KEY]), fields)
@settings(max_examples=300)
def test_a_members_frames_about_grants_are_taken_dropped_or_malformed(kind: Frame, said: list[Any]) -> None:
    connection = OTHER.mesh.context.peers.connection(ONE.id)
    assert connection is not None
    OTHER.mesh.context.standings._held[ONE.id].pace.give(4)  # type: ignore[attr-defined]
    renewal = OTHER.mesh.context.hooks.control[Frame.RENEWED].__self__  # type: ignore[attr-defined]
    renewal._asked = ONE.id
    before = OTHER.mesh.context.grants, OTHER.mesh.context.standings.caller(ONE.id)
    try:
        OTHER.mesh.context.hooks.control[kind](connection, decode(encode([int(kind), *said]), 20_000), MESH.world.now)
    except WireError:
        pass
    assert (OTHER.mesh.context.grants, OTHER.mesh.context.standings.caller(ONE.id)) == before
    assert OTHER.mesh.context.mesh_keys.held is None


@given(st.one_of(st.binary(max_size=400), st.lists(st.one_of(st.binary(), damaged), max_size=5).map(encode)))
@settings(max_examples=200)
def test_an_entry_about_an_invitation_is_fit_or_not_whatever_its_value_is(value: bytes) -> None:
    link = RedemptionLink(OTHER.mesh.context, OTHER.mesh.gossip.entries)  # type: ignore[union-attr]
    origin = Identity(b"g" * 32)
    common = {"seq": MS, "issued_ms": MS, "ttl": 60, "name": "0123456789abcdef"}
    assert not link._fits(sign_entry(origin, kind=Kind.REDEMPTION, value=value[:1200], **common))  # type: ignore[arg-type]


@given(st.one_of(st.binary(max_size=250), damaged))
def test_whatever_bytes_are_taken_for_a_rotation_there_is_none(data: bytes) -> None:
    assert open_rotation(data, AUTHORITY.identity.id) is None


def test_the_good_forms_are_taken() -> None:
    assert isinstance(LINK, Connection)
    assert LINK.state is State.READY
    assert open_rotation(ROTATION, AUTHORITY.identity.id) is not None
    assert pack_chain((GRANT,))
    assert isinstance(ONE, SimNode)
