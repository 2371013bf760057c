"""Endpoint records and gossip entries of every kind: from fields to signed bytes and back."""

from __future__ import annotations

import random
from typing import Any

from meshnode.base.address import parse_addr
from meshnode.base.metrics import Metrics
from meshnode.base.wire import decode
from meshnode.directory.announcement import Offer, parse_offer
from meshnode.directory.names import Names, is_claim
from meshnode.directory.services import Announce
from meshnode.gossip import messages as gossip
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind, id_of, open_entry, sign_entry
from meshnode.gossip.kinds import Accusation, Member, parse_accusation, parse_member
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointKind, open_record, sign_record
from meshnode.topics.entries import parse_message, scope_in
from meshnode.topics.messages import Greet
from meshnode.topics.overlay import scope_of
from meshnode.topics.topics import Topics
from meshnode.trust.authority import pack_chain, parse_chain
from meshnode.trust.grant import Delegation, is_signed, open_grant, sign_grant
from meshnode.trust.revocation import open_revocation, sign_revocation
from meshnode.trust.rotation import open_rotation, sign_rotation
from meshnode.trust.signed_policy import open_policy, sign_policy
from meshnode.trust.succession import is_signed_by_both, open_succession, sign_succession
from meshnode.trust.ticket import Ticket, format_ticket, parse_ticket
from tests.vectors.values import Encode, Fields, plain


def make_record(f: Fields, g: Fields) -> bytes:
    endpoints = tuple(Endpoint(parse_addr(e["addr"]), EndpointKind(e["kind"])) for e in f["endpoints"])
    relays = tuple(NodeId(raw) for raw in f["relays"])
    common = {key: f[key] for key in ("seq", "ttl", "capabilities")}
    made = sign_record(Identity(g["seed"]), issued_ms=f["issued"], endpoints=endpoints, relays=relays, **common)
    return made.encoded


def read_record(data: bytes, g: Fields) -> Fields:
    found = plain(open_record(data, g["wall"]))
    del found["encoded"]
    return found  # type: ignore[no-any-return]


def make_grant(f: Fields, g: Fields) -> bytes:
    delegation = None if f["delegation"] is None else Delegation(**f["delegation"])
    said = f | {"subject": NodeId(f["subject"]), "delegation": delegation}
    return sign_grant(Identity(g["seed"]), **said).encoded


def read_grant(data: bytes, g: Fields) -> Fields:
    grant = open_grant(data)
    assert is_signed(grant)
    assert grant.issuer == Identity(g["seed"]).id
    found = plain(grant)
    del found["encoded"], found["issuer"]
    if not grant.lineage:
        del found["lineage"]
    return found | {"serial": decode(data[64:], 1024)[8]}


def make_policy(f: Fields, g: Fields) -> bytes:
    return sign_policy(Identity(g["seed"]), f["text"].encode()).encoded


def read_policy(data: bytes, g: Fields) -> Fields:
    opened = open_policy(data, Identity(g["seed"]).id)
    text = decode(data[64:], 66_000)[3].decode()
    assert opened.policy.version == opened.version
    return {"text": text}


def make_rotation(f: Fields, g: Fields) -> bytes:
    return sign_rotation(Identity(g["seed"]), **f).encoded


def read_rotation(data: bytes, g: Fields) -> Fields:
    found = plain(open_rotation(data, Identity(g["seed"]).id))
    del found["encoded"]
    return found  # type: ignore[no-any-return]


def make_succession(f: Fields, g: Fields) -> bytes:
    return sign_succession(Identity(g["seed"]), Identity(g["new"]), time=f["time"], ends=f["ends"])


def read_succession(data: bytes, g: Fields) -> Fields:
    link = open_succession(data)
    assert is_signed_by_both(data)
    assert (link.issuer, link.subject) == (Identity(g["seed"]).id, Identity(g["new"]).id)
    return {"time": link.not_before, "ends": link.expires}


def make_revocation(f: Fields, g: Fields) -> bytes:
    said = f | {"chain": tuple(f["chain"])}
    return sign_revocation(Identity(g["seed"]), said.pop("target"), **said).encoded


def read_revocation(data: bytes, g: Fields) -> Fields:
    found = plain(open_revocation(data, NodeId(g["authority"]), g["wall"]))
    assert found["issuer"] == plain(bytes(Identity(g["seed"]).id))
    del found["encoded"], found["name"], found["issuer"]
    return found  # type: ignore[no-any-return]


def make_ticket(f: Fields, g: Fields) -> bytes:
    return format_ticket(Ticket(**(f | {"authority": NodeId(f["authority"])}))).encode()


def read_ticket(data: bytes, g: Fields) -> Fields:
    return plain(parse_ticket(data.decode()))  # type: ignore[no-any-return]


def _sign(f: Fields, g: Fields, name: str, value: bytes | None) -> bytes:
    common = {key: f[key] for key in ("kind", "seq", "ttl")}
    return sign_entry(Identity(g["seed"]), issued_ms=f["issued"], name=name, value=value, **common).encoded


def _announced(f: Fields, g: Fields, announce: Any) -> bytes:
    assert isinstance(announce, Announce)
    assert announce.kind == f["kind"]
    return _sign(f, g, announce.name, announce.value)


def _member(f: Fields, g: Fields) -> bytes:
    return _sign(f, g, "", Member(f["value"]["left"], f["value"]["record"]).encoded())


def _accusation(f: Fields, g: Fields) -> bytes:
    accusation = Accusation(NodeId(f["value"]["accused"]), f["value"]["incarnation"])
    return _sign(f, g, str(accusation.accused), accusation.encoded())


def _service(f: Fields, g: Fields) -> bytes:
    return _sign(f, g, f["name"], Offer(**f["value"]).encoded())


def _name(f: Fields, g: Fields) -> bytes:
    names = Names(Identity(g["seed"]).id, Metrics(), lambda peer: Status.ALIVE)
    names.claim(f["name"], f["value"], 0.0)
    return _announced(f, g, names.take_effects()[0])


def _redemption(f: Fields, g: Fields) -> bytes:
    return _sign(f, g, f["name"], pack_chain((f["value"],)))


def _topics(g: Fields) -> Topics:
    return Topics(Identity(g["seed"]), random.Random(1), Metrics(), lambda peer: Status.ALIVE)


def _subscription(f: Fields, g: Fields) -> bytes:
    topics = _topics(g)
    topics.join(g["topic"], 0.0, 1.0)
    return _announced(f, g, topics.take_effects()[0])


def _topic_message(f: Fields, g: Fields) -> bytes:
    """Join and publish with one neighbour, which is sent the entry."""
    topics, peer = _topics(g), NodeId(g["peer"])
    topics.join(f["name"], 0.0, f["value"]["epoch"] / 1000)
    topics.on_link(peer, True, 0.0)
    topics.on_message(peer, Greet(scope_of(f["name"])), 0.0, 1.0)
    topics.publish(f["name"], f["value"]["data"], 0.0, f["issued"] / 1000)
    sent = [e.message for e in topics.take_effects() if isinstance(getattr(e, "message", None), gossip.Eager)]
    return sent[0].items[0][1]


def _entry_value(entry: Entry) -> Any:
    if entry.value is None:
        return None
    if entry.kind == Kind.MEMBER:
        return parse_member(entry)
    if entry.kind == Kind.ACCUSATION:
        return parse_accusation(entry)
    if entry.kind == Kind.SERVICE:
        return parse_offer(entry)
    if entry.kind == Kind.NAME:
        return decode(entry.value, 16) if is_claim(entry) else "not a claim"
    if entry.kind == Kind.SUBSCRIPTION:
        return scope_in(entry.name)
    if entry.kind in (Kind.REDEMPTION, Kind.GRANTS):
        return parse_chain(entry.value)[0]
    if entry.kind == Kind.TOPIC:
        epoch, data = parse_message(entry, entry.name)  # type: ignore[misc]
        return {"epoch": epoch, "data": data}
    return entry.value


def read_entry(data: bytes, g: Fields) -> Fields:
    entry = open_entry(data, g["wall"])
    assert isinstance(entry, Entry), entry
    assert entry.id == id_of(data)
    found = {key: getattr(entry, key) for key in ("origin", "kind", "name", "seq", "issued", "ttl", "id")}
    return found | {"value": _entry_value(entry)}


def make_entry(f: Fields, g: Fields) -> bytes:
    return _sign(f, g, f["name"], f["value"])


ENTRIES: dict[Kind, Encode] = {
    Kind.MEMBER: _member,
    Kind.ACCUSATION: _accusation,
    Kind.SERVICE: _service,
    Kind.NAME: _name,
    Kind.SUBSCRIPTION: _subscription,
    Kind.REDEMPTION: _redemption,
    Kind.GRANTS: _redemption,
    Kind.TOPIC: _topic_message,
}
