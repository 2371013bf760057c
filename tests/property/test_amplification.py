"""The law of what a victim is sent: whatever members do, it is bounded by what came "from" it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import meshnode
from meshnode.base.address import Addr, pack_addr
from meshnode.base.limits import HOST_ALLOWANCE, HOST_ALLOWANCE_PER_S
from meshnode.gossip.messages import (
    Contact,
    ForwardJoin,
    IndirectProbe,
    Join,
    Message,
    Neighbour,
    Shuffle,
    ShuffleReply,
    encode_message,
)
from meshnode.quic.connection import State
from meshnode.quic.hello import FIELDS, Frame
from meshnode.stack import probe
from tests.sim.spoofing import VICTIM, Spoofer

KINDS = [probe.PING, probe.PONG, *range(0x10, 0x1C)]
OTHERS = ["moved", "quic", "junk", "half-open", "initial", "relayed", "own"]

actions = st.lists(
    st.tuples(
        st.sampled_from([*KINDS, *OTHERS]),
        st.booleans(),
        st.integers(32, 1_300),
        st.integers(1, 65_535),
        st.sampled_from([0.0, 0.001, 0.05, 0.35, 1.1]),
    ),
    min_size=1,
    max_size=40,
)


def act(spoofer: Spoofer, what: int | str, linked: bool, size: int, port: int) -> None:
    """One thing that a spoofing member can do."""
    world = spoofer.world
    match what:
        case int():
            spoofer.sealed(spoofer.bodies()[what](size), port, linked=linked)
        case "moved":
            spoofer.moved(port, size if linked else 0)
        case "quic":  # the member's own packets, authentic and new, from elsewhere
            spoofer.quic_from[spoofer.member.addr] = Addr(VICTIM, port)
        case "own":
            spoofer.quic_from.clear()
        case "junk":
            cid = spoofer.target.mesh.sessions[spoofer.member.id]
            if cid.connection is not None:
                spoofer.send(b"\x41" + cid.connection.engine.host_cid + world.entropy(size), port, linked=True)
        case "half-open":
            odcid = spoofer.half_open(port)
            spoofer.send(b"\x41" + odcid + world.entropy(12), port, linked=True)
        case "initial":  # a first flight from the victim at once
            spoofer.half_open(port, at_once=True)
        case "relayed":
            spoofer.relayed(1 + size // 100)


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 1_000), steps=actions)
def test_a_victim_is_sent_at_most_three_times_what_came_from_it_and_once_without_a_connection(
    seed: int, steps: list[tuple[int | str, bool, int, int, float]]
) -> None:
    spoofer = Spoofer(seed)
    for what, linked, size, port, gap in steps:
        act(spoofer, what, linked, size, port)
        spoofer.world.run(gap)
        assert spoofer.to_victim <= spoofer.allowed
    spoofer.world.run(20.0)
    assert spoofer.to_victim <= spoofer.allowed


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("kind", [probe.PING, 0x12])
def test_a_download_that_is_said_to_move_spends_what_was_earned_and_no_more(kind: int, linked: bool) -> None:
    spoofer = Spoofer(1)
    for port in range(8):
        for size in (1_000, 1_001, 1_002):
            spoofer.sealed(spoofer.bodies()[kind](size), port + 1, linked=linked)
        spoofer.moved(1_000 + port)
        spoofer.world.run(0.31)
        assert spoofer.to_victim <= spoofer.allowed
    assert spoofer.to_victim > 0.3 * spoofer.allowed


def everything(spoofer: Spoofer) -> None:
    """Send every kind of message as from the victim, for 10 seconds."""
    for turn in range(8):
        for kind, body in spoofer.bodies().items():
            for size in (32, 33, 1_001):
                spoofer.sealed(body(size), 1 + kind, linked=bool(size % 2))
        spoofer.world.run(0.1)
        spoofer.half_open(7 + turn, at_once=bool(turn % 2))
        for port in range(3):
            spoofer.moved(1_000 + 10 * turn + port)
            spoofer.world.run(0.05)
            spoofer.relayed(3)
            spoofer.world.run(0.26)


def test_every_kind_of_sealed_message_is_tried() -> None:
    assert set(KINDS) == set(Spoofer(1).target.mesh.context.hooks.sealed)


PROTOCOLS = ["quic", "handshake", "relay frame", "PING", "PONG", "DHT answer", "DHT ping"]


@pytest.mark.parametrize("loose", ["", *PROTOCOLS])
def test_where_nothing_is_earned_nothing_is_sent_and_one_protocol_past_the_credit_is_found(
    loose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each protocol sends something to the victim here, and each is paid by what the victim earned."""
    spoofer = Spoofer(1)
    context = spoofer.target.mesh.context
    credit, sender = context.credit, context.sender
    monkeypatch.setattr(credit, "earn", lambda *what: None)

    def free(method: str, protocol: Callable[..., str]) -> None:
        real = getattr(sender, method)

        def send(*what):  # type: ignore[no-untyped-def]
            path = what[0] if method == "forward" else what[1]
            if protocol(*what) != loose or path in credit.proven:
                return real(*what)
            credit.proven[path] = None
            sent = real(*what)
            del credit.proven[path]
            return sent

        monkeypatch.setattr(sender, method, send)

    of_body = {probe.PING: "PING", probe.PONG: "PONG", 0x10: "DHT ping"}
    free("send_sealed", lambda peer, path, body, *cause: of_body.get(body[0], "DHT answer"))
    free("send", lambda peer, *what: "handshake" if peer in [node.id for node in spoofer.diallers] else "quic")
    free("forward", lambda *what: "relay frame")
    everything(spoofer)
    assert (spoofer.to_victim > 0) == bool(loose)


def test_nothing_of_the_stack_sends_but_its_sender() -> None:
    """What is charged in one place only is charged everywhere only when there is no other way out."""
    found = []
    for file in (Path(meshnode.__file__).parent / "stack").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_call = isinstance(node, ast.Attribute) and node.attr == "send" and isinstance(node.value, ast.Attribute)
            if is_call and node.value.attr.endswith("link"):
                found.append(file.name)
    assert set(found) == {"sender.py"}


def fields(spoofer: Spoofer) -> list[object]:
    """What a member may put into a field of a control frame: what names the victim, and what is near it."""
    victim = Addr(VICTIM, 1 + spoofer.world.entropy(1)[0])
    record = spoofer.record(spoofer.stranger, victim, Addr(VICTIM, 9))
    ids = [bytes(node.id) for node in (spoofer.target, spoofer.member, spoofer.stranger, spoofer.friend)]
    own = spoofer.record(spoofer.member, victim, *(Addr(VICTIM, 300 + number) for number in range(6)))
    return [
        pack_addr(victim),
        record,
        own,
        *ids,
        spoofer.world.entropy(8),
        b"",
        0,
        1,
        50,
        True,
        None,
        [record, own],
        [],
    ]


def gossip(spoofer: Spoofer, kind: int) -> bytes:
    """Return a message of gossip about a node whose record names the victim."""
    victim = Addr(VICTIM, 1 + spoofer.world.entropy(1)[0])
    node = spoofer.stranger if kind % 2 else spoofer.friend
    contact = Contact(node.id, spoofer.record(node, victim))
    messages: list[Message] = [
        Neighbour(True, spoofer.record(spoofer.member, victim)),
        Join(spoofer.record(spoofer.member, victim)),
        ForwardJoin(contact, 0),
        Shuffle(kind, 0, (contact,)),
        ShuffleReply(kind, (contact,)),
        IndirectProbe(kind, contact),
    ]
    return encode_message(messages[kind % len(messages)])


said = st.lists(
    st.tuples(
        st.sampled_from([*Frame, *[Frame.GOSSIP] * 8, *[Frame.SEARCH, Frame.INTRODUCED, Frame.RECORD] * 3]),
        st.lists(st.integers(0, 15), min_size=5, max_size=5),
        st.sampled_from([0.0, 0.05, 0.4, 2.5]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25, derandomize=True)
@given(seed=st.integers(0, 1_000), steps=said)
def test_whatever_a_peer_says_on_its_connection_a_victim_gets_no_more_than_a_host_may(
    seed: int, steps: list[tuple[Frame, list[int], float]]
) -> None:
    """Nothing comes "from" the victim here: it is named, in every kind of control frame and message of gossip."""
    spoofer = Spoofer(seed)
    began = spoofer.world.now
    for kind, chosen, gap in steps:
        if spoofer.link.state is State.CLOSED:
            spoofer.link = spoofer.member.connect(spoofer.target.id)
        pool = fields(spoofer)
        what = [pool[number % len(pool)] for number in chosen[: len(FIELDS[kind])]]
        spoofer.link.send_frame(kind, *([gossip(spoofer, chosen[0])] if kind is Frame.GOSSIP else what))
        spoofer.member.on_dirty()
        spoofer.world.run(gap)
        assert spoofer.to_victim <= HOST_ALLOWANCE + HOST_ALLOWANCE_PER_S * (spoofer.world.now - began)
    spoofer.world.run(20.0)
    assert spoofer.to_victim <= HOST_ALLOWANCE + HOST_ALLOWANCE_PER_S * (spoofer.world.now - began)


def test_what_is_said_does_bring_the_victim_something() -> None:
    """Or the test above would hold of a peer that is not heard."""
    spoofer = Spoofer(3)
    for number in range(12):
        spoofer.link.send_frame(Frame.GOSSIP, gossip(spoofer, number))
        spoofer.link.send_frame(Frame.RECORD, fields(spoofer)[2])
        spoofer.member.on_dirty()
        spoofer.world.run(0.4)
    assert 0 < spoofer.to_victim <= HOST_ALLOWANCE + HOST_ALLOWANCE_PER_S * 5
