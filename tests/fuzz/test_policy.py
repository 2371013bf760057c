"""Policies, signed ones, their frames and audit logs: whatever the bytes are, an error with a name and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.wire import WireError
from meshnode.errors import ConfigError
from meshnode.identity.keys import Identity
from meshnode.quic.hello import Frame, FrameReader, frame
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, World
from meshnode.stack.policy_link import PolicyLink
from meshnode.trust.audit import Chain, Kind, compare, parse_line, verify_log
from meshnode.trust.expectations import parse_expectations
from meshnode.trust.policy import parse_policy
from meshnode.trust.signed_policy import open_policy, sign_policy
from tests.fuzz.test_parsers import fuzz, mutated

AUTHORITY = Identity(b"a" * 32)
TEXT = b"""version = 3
reasons = "told"
[[allow]]
from = ["role:dev", "name:laptop"]
to = "any"
services = ["web", "db-*"]
publish = "alarm/*"
[[deny]]
name = "no"
from = "any"
relay = true
"""
ASKED = b'[[expect]]\nfrom = "role:dev"\nservices = ["web"]\nallowed = true\n'
SIGNED = sign_policy(AUTHORITY, TEXT).encoded
FRAMES = (
    frame(Frame.POLICY_HAVE, 4),
    frame(Frame.POLICY_ASK, 3, 0),
    frame(Frame.POLICY_PART, 3, 0, 1, SIGNED),
)


class _Peer:
    """A node in a mesh with an authority, and a peer of which nothing but frames comes."""

    def __init__(self) -> None:
        world = World(1)
        self.world = world
        engines = ModelEngines(world.entropy)
        self.node, other = (
            SimNode(world, f"10.0.0.{n}", engines, sealer=PlainSealer, authority=AUTHORITY.id) for n in (1, 2)
        )
        link = self.node.mesh.context.policies
        assert isinstance(link, PolicyLink)
        self.link = link
        self.connection = _Connection(other)
        link.on_link(self.connection, True, 0.0)  # type: ignore[arg-type]


class _Connection:
    def __init__(self, node: SimNode) -> None:
        self.peer = node.id


PEER = _Peer()


@given(mutated(TEXT, b"[[allow]]\nfrom = 'any'\nservices = ['a', 'b']\n"))
@fuzz
def test_a_damaged_policy_is_a_policy_or_an_error_that_says_what_to_write(data: bytes) -> None:
    try:
        parse_policy(data)
    except ConfigError as error:
        assert error.hint


@given(mutated(ASKED))
@fuzz
def test_damaged_expectations_are_an_error_that_says_what_to_write(data: bytes) -> None:
    try:
        parse_expectations(data, "tests.toml")
    except ConfigError as error:
        assert error.hint


@given(mutated(SIGNED))
@fuzz
def test_a_damaged_signed_policy_never_counts(data: bytes) -> None:
    try:
        assert open_policy(data, AUTHORITY.id).encoded == data == SIGNED
    except ConfigError as error:
        assert error.hint


@given(st.lists(mutated(*FRAMES), min_size=1, max_size=4))
@fuzz
def test_a_peers_damaged_frames_put_no_other_policy_in_force(pieces: list[bytes]) -> None:
    for piece in pieces:
        try:
            found = FrameReader().feed(piece)
        except WireError:
            continue
        for fields in found:
            if fields[0] in (Frame.POLICY_HAVE, Frame.POLICY_ASK, Frame.POLICY_PART):
                PEER.link.on_control(PEER.connection, fields, PEER.world.now)  # type: ignore[arg-type]
    assert PEER.link.held is None or PEER.link.held.encoded == SIGNED
    assert len(PEER.link._fetches) <= 1


def _log() -> tuple[list[bytes], bytes]:
    chain = Chain(AUTHORITY)
    lines = [chain.line(n, Kind.OPENED, session="s", stream=n, service="web").rstrip() for n in range(4)]
    return [*lines, chain.checkpoint(9).rstrip()], chain.head()


LINES, HEAD = _log()


@given(mutated(b"\n".join([*LINES, HEAD])))
@fuzz
def test_a_damaged_log_does_not_hold_and_is_read_to_its_end(data: bytes) -> None:
    lines = data.split(b"\n")
    report = verify_log(lines[:-1], lines[-1], AUTHORITY.id)
    assert not report.ok or (lines[: len(LINES)] == LINES)
    entries = [fields for line in lines if (fields := parse_line(line)) is not None]
    compare(entries, entries[::-1])
