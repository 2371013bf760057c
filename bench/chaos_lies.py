"""What a liar says in ``chaos.py``: forged, replayed, future, oversized and senseless messages."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Protocol

from meshnode.base.wire import encode
from meshnode.gossip import Contact, Entry, Kind, Message
from meshnode.gossip.kinds import Accusation, Member
from meshnode.gossip.messages import (
    Disconnect,
    Eager,
    Entries,
    ForwardJoin,
    IHave,
    IndirectReply,
    Join,
    ShuffleReply,
    SyncResponse,
)
from meshnode.identity.keys import Identity
from tests.sim.gossip_sim import EPOCH, GossipNet, GossipNode

LABELS = ("ant", "bee", "cat", "dog")  # names that nodes claim


class Scene(Protocol):
    """What a liar knows: the mesh, entries of the past, and goodbyes; ``sign`` makes a valid entry."""

    rng: Random
    net: GossipNet
    past: list[bytes]
    goodbyes: list[bytes]

    def sign(
        self, signer: Identity, kind: int, name: str, seq: int, value: bytes, *, ahead_ms: int = 0, ttl: int = 3600
    ) -> Entry: ...


def lies(chaos: Scene, liar: GossipNode, message: Message) -> Iterable[Message | bytes]:
    """What a liar sends instead of, or beside, what it should."""
    rng, net = chaos.rng, chaos.net
    if rng.random() < 0.7:
        return [message]
    other = rng.choice(net.nodes)
    now_ms = int((EPOCH + net.now) * 1000)
    match rng.randrange(18):
        case 0:
            return []
        case 1:
            return [message, message]
        case 2:
            return [Eager(b"", ((0, rng.randbytes(rng.choice((10, 100, 5000)))),))]
        case 3:  # in another's name
            forged = chaos.sign(liar.identity, Kind.SERVICE, f"s{now_ms}", now_ms, b"forged").encoded
            return [Eager(b"", ((0, forged.replace(bytes(liar.id), bytes(other.id))),))]
        case 4:  # from the future
            future = chaos.sign(liar.identity, Kind.SERVICE, "s2", now_ms + 10**7, b"soon", ahead_ms=10**7)
            return [Eager(b"", ((0, future.encoded),))]
        case 5 if chaos.past:  # what is long superseded: old goodbyes too
            return [Eager(b"", tuple((0, rng.choice(chaos.past)) for _ in range(5)))]
        case 6 if other is not liar:
            value = Accusation(other.id, rng.choice((0, now_ms, 2**53))).encoded()
            accusation = chaos.sign(liar.identity, Kind.ACCUSATION, str(other.id), now_ms, value)
            return [Eager(b"", ((0, accusation.encoded),)), message]
        case 7:
            return [IHave(b"", tuple((0, rng.randbytes(8)) for _ in range(50))), message]
        case 8:
            contacts = tuple(Contact(rng.choice(net.nodes).id) for _ in range(8))
            return [ShuffleReply(rng.randrange(2**32), contacts), ForwardJoin(Contact(other.id), 6), message]
        case 9:
            return [IndirectReply(rng.randrange(2**32), True), Disconnect(rng.random() < 0.5), Join(b"")]
        case 11:
            flood = [chaos.sign(liar.identity, Kind.SERVICE, f"l{i}", now_ms + i, b"flood") for i in range(40)]
            return [Eager(b"", tuple((0, entry.encoded) for entry in flood))]
        case 12 if chaos.goodbyes:
            return [Entries(True, tuple(chaos.goodbyes)), Eager(b"", ((0, rng.choice(chaos.goodbyes)),)), message]
        case 13:  # the oldest claim of all
            claim = chaos.sign(liar.identity, Kind.NAME, rng.choice(LABELS), now_ms, encode(rng.choice((0, now_ms))))
            return [Eager(b"", ((0, claim.encoded),)), message]
        case 16:  # counts back, when what it said before is over
            back, ttl = rng.choice(((0, 1), (0, 1), (20_000, 3600)))
            entry = chaos.sign(liar.identity, Kind.SERVICE, "back", now_ms - back, b"", ttl=ttl)
            return [Eager(b"", ((0, entry.encoded),)), message]
        case 15:
            return [rng.randbytes(rng.choice((0, 3, 60, 20_000))) or b"\x80", message]
        case 14:  # of a time that is over
            late = chaos.sign(liar.identity, Kind.SERVICE, "s3", now_ms - 10**7, b"late", ahead_ms=-(10**7))
            return [Eager(b"", ((0, late.encoded),)), message]
        case 10:
            return [SyncResponse(1, False, ((0, tuple(rng.randbytes(8) for _ in range(20))),)), message]
        case _:
            junk = chaos.sign(liar.identity, Kind.MEMBER, "", now_ms, Member(True, b"").encoded())
            return [Entries(True, (rng.randbytes(80), junk.encoded.replace(bytes(liar.id), bytes(other.id))))]
