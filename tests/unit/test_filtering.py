"""What a node says of its NAT's filtering is never wrong; where nothing proves it, it says that it does not know."""

from __future__ import annotations

import random

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import FILTER_MOVE_S, FILTER_SETTLE_S, MAX_SENT_ADDRESSES, MAX_SENT_PORTS
from meshnode.base.path import ViaRelay
from meshnode.nat.filtering import Filtering, FilterView
from meshnode.sim.nat import PRESETS, Behaviour, Dependence, Nat, Ports

OWN = Addr("10.0.0.2", 4242)
NETWORKS = (("10.0.0.2", 24),)
OUTSIDE = Addr("198.51.100.1", 4242)
PEER, STRANGER = Addr("192.0.2.1", 7001), Addr("203.0.113.9", 7001)


def _view(*, own: tuple[Addr, ...] = (OWN,), fresh: bool = True, seen: Addr | None = OUTSIDE) -> FilterView:
    view = FilterView()
    view.begin(0.0, fresh_port=fresh)
    view.moved(frozenset(own), NETWORKS, -FILTER_MOVE_S, moved=False)
    if seen is not None:
        view.seen(seen)
    return view


def test_a_stranger_that_gets_in_unasked_proves_that_no_source_is_filtered() -> None:
    view = _view()
    view.heard(STRANGER, 1.0)
    assert view.filtering(4) is Filtering.INDEPENDENT
    assert view.filtering(6) is Filtering.UNKNOWN


def test_another_port_of_a_host_that_we_sent_to_proves_only_that_ports_do_not_matter() -> None:
    view = _view()
    view.sent(PEER)
    view.heard(PEER, 1.0)
    assert view.filtering(4) is Filtering.UNKNOWN, "an answer proves nothing"
    view.heard(Addr(PEER.host, 7002), 2.0)
    assert view.filtering(4) is Filtering.AT_MOST_ADDRESS
    view.heard(STRANGER, 3.0)
    view.heard(Addr(PEER.host, 7003), 4.0)
    assert view.filtering(4) is Filtering.INDEPENDENT, "the stronger evidence stays"


def test_a_fresh_node_believes_its_first_caller() -> None:
    view = FilterView()
    view.begin(100.0, fresh_port=True)
    view.moved(frozenset({OWN}), NETWORKS, 100.0, moved=False)
    view.seen(OUTSIDE)
    view.heard(STRANGER, 100.5)
    assert view.filtering(4) is Filtering.INDEPENDENT


NO_EVIDENCE = {
    "a neighbour": (_view, Addr("10.0.0.7", 1)),
    "another private network": (_view, Addr("192.168.7.7", 1)),
    "behind our carrier's NAT": (_view, Addr("100.64.0.9", 1)),
    "behind our own NAT, hairpinned": (_view, Addr(OUTSIDE.host, 9)),
    "a relayed path": (_view, ViaRelay("x")),
    "our outside address is not known": (lambda: _view(seen=None), STRANGER),
    "we have two addresses": (lambda: _view(own=(OWN, Addr("192.168.1.2", 4242))), STRANGER),
    "the same site": (lambda: _view(own=(Addr("198.51.100.1", 1),)), Addr("198.51.7.7", 1)),
    "the same IPv6 site": (lambda: _view(own=(Addr("2001:db8:1::1", 1),)), Addr("2001:db8:1:2::1", 1)),
    "the other family has no address": (_view, Addr("2001:db8::1", 1)),
    "a predecessor used our port": (lambda: _view(fresh=False), STRANGER),
}


@pytest.mark.parametrize("case", NO_EVIDENCE)
def test_what_did_not_certainly_cross_the_filter_unasked_proves_nothing(case: str) -> None:
    make, source = NO_EVIDENCE[case]
    view = make()
    view.heard(source, 1.0)
    assert view.filtering(4) is view.filtering(6) is Filtering.UNKNOWN


def test_an_ipv6_node_with_several_addresses_of_one_network_can_tell() -> None:
    own = Addr("2001:db8:1::1", 1), Addr("2001:db8:1::2", 1)
    view = _view(own=own, seen=own[0])
    view.heard(Addr("2001:db8:2::1", 1), 1.0)
    assert view.filtering(6) is Filtering.INDEPENDENT
    assert view.filtering(4) is Filtering.UNKNOWN


def test_a_predecessors_peers_prove_nothing_however_long_they_go_on() -> None:
    view = _view(fresh=False)
    view.heard(STRANGER, 1.0)
    view.stray(PEER, 2.0)
    late = FILTER_SETTLE_S + 1
    view.heard(STRANGER, late)
    assert view.filtering(4) is Filtering.UNKNOWN
    view.heard(Addr(PEER.host, 9), late)
    assert view.filtering(4) is Filtering.AT_MOST_ADDRESS
    view.heard(Addr("203.0.113.77", 1), late)
    assert view.filtering(4) is Filtering.INDEPENDENT


def test_after_a_move_it_is_learnt_again() -> None:
    view = _view()
    view.heard(STRANGER, 1.0)
    view.moved(frozenset({OWN}), NETWORKS, 10.0, moved=True)
    assert view.filtering(4) is Filtering.UNKNOWN
    view.seen(OUTSIDE)
    view.heard(Addr("203.0.113.1", 1), 10.1)
    assert view.filtering(4) is Filtering.UNKNOWN, "it may have been under way to the old place"
    view.heard(Addr("203.0.113.2", 1), 10.0 + FILTER_MOVE_S)
    assert view.filtering(4) is Filtering.INDEPENDENT
    view.on_other_host(4, 20.0)
    assert view.filtering(4) is Filtering.UNKNOWN


def test_when_it_cannot_remember_its_receivers_it_says_nothing() -> None:
    view = _view()
    for number in range(MAX_SENT_ADDRESSES + 1):
        view.sent(Addr(f"192.0.{number % 256}.{number // 256}", 1))
    view.heard(STRANGER, 1.0)
    assert view.filtering(4) is Filtering.UNKNOWN
    assert len(view.noted) == MAX_SENT_ADDRESSES


def test_a_port_search_counts_as_having_sent_to_all_ports_of_that_host() -> None:
    view = _view()
    for port in range(1, 2000):
        view.sent(Addr(PEER.host, port))
    view.heard(Addr(PEER.host, 60_000), 1.0)
    assert view.filtering(4) is Filtering.UNKNOWN
    assert len(view.noted) == MAX_SENT_PORTS
    view.heard(STRANGER, 2.0)
    assert view.filtering(4) is Filtering.INDEPENDENT


MODELS = {
    **PRESETS,
    "full cone, symmetric mapping": Behaviour(
        mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT, filtering=Dependence.ENDPOINT_INDEPENDENT, ports=Ports.RANDOM
    ),
    "address-dependent twice": Behaviour(mapping=Dependence.ADDRESS_DEPENDENT, filtering=Dependence.ADDRESS_DEPENDENT),
    "short memory": Behaviour(filtering=Dependence.ADDRESS_DEPENDENT, timeout=30, inbound_renews=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_whatever_happens_what_it_says_of_a_nat_is_never_wrong(name: str) -> None:
    behaviour = MODELS[name]
    told = set()
    for seed in range(40):
        rng = random.Random(seed)
        nat = Nat(behaviour, ("198.51.100.1",), rng=rng)
        old = Nat(PRESETS["full_cone"], ("198.51.100.2",), rng=rng)
        here = old if seed % 2 else nat
        view = _view(seen=None)
        now, mapped = 0.0, Addr("0.0.0.0", 0)
        peers = [Addr(f"192.0.2.{host}", port) for host in (1, 2, 3, 4) for port in (1, 2)]
        for _ in range(60):
            now += rng.choice((0.1, 1.0, 20.0))
            event, peer = rng.choice("sssrrrrrm"), rng.choice(peers)
            if event == "s":
                view.sent(peer)
                mapped = here.outbound(OWN, peer, now) or mapped
                if rng.random() < 0.5 and mapped.port:
                    view.seen(mapped)
            elif event == "r" and here.inbound(peer, mapped, now) == OWN:
                view.heard(peer, now)
            elif event == "m" and rng.random() < 0.2 and here is old:
                here = nat
                view.moved(frozenset({OWN}), NETWORKS, now, moved=True)
            found = view.filtering(4)
            if here is nat:
                told.add(found)
                if found is Filtering.INDEPENDENT:
                    assert behaviour.filtering is Dependence.ENDPOINT_INDEPENDENT
                if found is Filtering.AT_MOST_ADDRESS:
                    assert behaviour.filtering is not Dependence.ADDRESS_AND_PORT_DEPENDENT
    if behaviour.translates and not behaviour.blocked_udp:
        expected = {
            Dependence.ENDPOINT_INDEPENDENT: Filtering.INDEPENDENT,
            Dependence.ADDRESS_DEPENDENT: Filtering.AT_MOST_ADDRESS,
            Dependence.ADDRESS_AND_PORT_DEPENDENT: Filtering.UNKNOWN,
        }
        assert expected[behaviour.filtering] in told, "and it does find out"
