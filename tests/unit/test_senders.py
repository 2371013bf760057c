"""Rates of senders: contacts and seeds are heard whatever strangers send, and few of them starve no others."""

from __future__ import annotations

import os
from collections.abc import Hashable

from meshnode.base import limits
from meshnode.base.address import Addr
from meshnode.base.path import Path
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.identity.senders import Senders
from meshnode.stack.half_open import HalfOpen

MESH = MeshKey.from_text("open")
NETWORKS = [f"198.51.{n}.1" for n in range(10)]
CONTACT = Addr("203.0.113.1", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def sealer(clock: Clock, identity: Identity | None = None) -> Sealer:
    return Sealer(identity or Identity.generate(), MESH, clock, os.urandom, born=0.0)


def flood(senders: Senders, now: float, networks: int = 10) -> int:
    """Strangers at 40 ports of each network send 25 datagrams each; returns how many are let in."""
    sources: list[Path] = [Addr(NETWORKS[n % networks], port) for port in range(1, 41) for n in range(networks)]
    return sum(senders.take_stranger(source, True, now) for _ in range(25) for source in sources)


def known_to(receiver: Sealer, homes: dict[NodeId, Hashable]) -> None:
    receiver.senders.home_of = homes.get


def test_a_contact_and_a_seed_are_heard_while_strangers_of_many_networks_use_up_all_that_they_may() -> None:
    clock = Clock()
    us, contact, seed, stranger = (Identity.generate() for _ in range(4))
    receiver = sealer(clock, us)
    known_to(receiver, {contact.id: b"net", seed.id: seed.id})
    for identity in (contact, seed, stranger):
        receiver.seal(identity.id, b"request")
    here = [sealer(clock, identity) for identity in (contact, seed, stranger)]
    heard = [0, 0, 0]
    for _ in range(5):
        clock.now += 1.0
        assert flood(receiver.senders, clock.now) > 1_900
        for n, each in enumerate(here):  # the stranger sits in a network of the flood
            for _ in range(20):
                heard[n] += (
                    receiver.unseal(each.seal(us.id, b"answer"), CONTACT if n < 2 else Addr(NETWORKS[0], 99))
                    is not None
                )
    assert heard[:2] == [100, 100]
    assert heard[2] < 50


def test_what_claims_to_be_of_a_contact_spends_nothing_of_its_and_no_key_agreement() -> None:
    clock = Clock()
    us, contact = Identity.generate(), Identity.generate()
    receiver, sender = sealer(clock, us), sealer(clock, contact)
    known_to(receiver, {contact.id: b"net"})
    receiver.seal(contact.id, b"request")
    liar = Identity(contact.seed)
    liar._kept[us.id] = bytes(32)  # what it seals names the contact and opens the box, and its mac is wrong
    forger = sealer(clock, liar)
    for _ in range(2_000):
        assert receiver.unseal(forger.seal(us.id, b"x"), CONTACT) is None
    assert receiver.drops == {"seal_mac": 2_000}
    assert all(receiver.unseal(sender.seal(us.id, b"y"), CONTACT) is not None for _ in range(100))


def test_a_network_of_contacts_leaves_other_contacts_and_seeds_their_turn() -> None:
    senders, now = Senders(), 0.0
    crowd = [NodeId(bytes([n]) * 32) for n in range(50)]
    honest, seed = NodeId(bytes([100]) * 32), NodeId(bytes([101]) * 32)
    for second in range(1, 10):
        now = float(second)
        for home in (b"one", b"two", b"three", b"four", b"five"):
            taken = sum(senders.take_known(each, home, now) for each in crowd for _ in range(20))
            assert taken <= limits.KNOWN_PER_NETWORK_BURST
        assert all(senders.take_known(honest, b"elsewhere", now) for _ in range(10))
        assert all(senders.take_known(seed, seed, now) for _ in range(200))
    assert sum(senders.take_known(crowd[0], b"six", now) for _ in range(1_000)) <= limits.KNOWN_EACH_BURST


def test_keys_of_established_peers_are_not_pushed_out_by_a_crowd_of_ids_that_prove_themselves() -> None:
    identity, peer = Identity.generate(), Identity.generate().id
    identity.shared_key(peer, established=True)
    for number in range(limits.MAX_SHARED_KEYS + 1):
        identity.remember_key(NodeId(number.to_bytes(32, "big")), b"key")
    assert identity.knows(peer)
    assert not identity.knows(NodeId(bytes(32)))


def test_noise_in_the_name_of_a_linked_peer_whose_key_is_not_kept_has_the_rate_of_strangers() -> None:
    clock = Clock()
    us, peer = Identity.generate(), Identity.generate()
    receiver, liar = sealer(clock, us), Identity(peer.seed)
    receiver.senders.is_linked = lambda other: other == peer.id
    liar._kept[us.id] = bytes(32)
    forger = sealer(clock, liar)
    for _ in range(100):
        receiver.unseal(forger.seal(us.id, b"x"), CONTACT)
    paid = limits.UNCONNECTED_PER_ADDRESS_BURST / limits.NEW_SENDER_COST
    assert receiver.drops == {"seal_mac": paid, "seal_rate": 100 - paid}
    receiver.keep_key(peer.id)
    sender = sealer(clock, peer)
    assert all(receiver.unseal(sender.seal(us.id, b"y"), CONTACT) is not None for _ in range(1_000))


def test_contacts_past_their_budget_are_strangers_and_no_less() -> None:
    clock = Clock()
    us, contact = Identity.generate(), Identity.generate()
    receiver, sender = sealer(clock, us), sealer(clock, contact)
    known_to(receiver, {contact.id: b"net"})
    receiver.seal(contact.id, b"request")
    got = sum(receiver.unseal(sender.seal(us.id, b"x"), CONTACT) is not None for _ in range(1_000))
    assert got == limits.KNOWN_EACH_BURST + limits.UNCONNECTED_PER_ADDRESS_BURST


def test_many_networks_are_served_past_the_total_while_there_is_cpu_to_spare() -> None:
    senders = Senders()
    now, let_in = 0.0, 0
    for second in range(1, 6):
        now = float(second)
        let_in = flood(senders, now)
    assert let_in <= limits.UNCONNECTED_PER_S + 10 * limits.UNCONNECTED_LITTLE_BURST
    senders.strangers.spare = lambda now: True
    for second in range(6, 11):
        now = float(second)
        let_in = flood(senders, now)
    assert let_in == 10 * limits.UNCONNECTED_PER_NETWORK_PER_S == 5_000


def test_first_flights_of_contacts_and_seeds_have_tokens_that_strangers_cannot_take() -> None:
    half_open, contact, seed = HalfOpen(), NodeId(bytes([100]) * 32), NodeId(bytes([101]) * 32)
    crowd: list[Path] = [Addr(f"10.{n}.0.{host}", 1) for n in range(200) for host in range(1, 20)]
    taken = sum(half_open.take(source, NodeId(bytes(32)), None, 1.0) for source in crowd)
    assert taken <= limits.ACCEPTS_BURST
    assert not half_open.has_token(CONTACT, 1.0)
    assert half_open.take(CONTACT, contact, b"net", 1.0)
    assert half_open.take(CONTACT, seed, seed, 1.0)
    ids = [NodeId(bytes([n]) * 32) for n in range(50)]
    contacts = sum(half_open.take(CONTACT, each, b"crowd", 1.0) for each in ids for _ in range(10))
    assert contacts <= 4 * limits.ACCEPTS_KNOWN_EACH_BURST
    assert half_open.take(CONTACT, contact, b"net", 1.0)
