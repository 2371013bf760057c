"""The life of a mapping in virtual time, opposite honest, odd, broken and hostile routers."""

from __future__ import annotations

import struct

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import PORTMAP_LIFETIME_S, PORTMAP_MAX_LIFETIME_S, PORTMAP_RENEW_GAP_S, PORTMAP_REST_S
from meshnode.nat.portmap.epochs import Epochs
from meshnode.nat.portmap.vocabulary import Protocol, Route
from tests.unit.portmap_bench import DELAY, OUTSIDE, OWN, PORT, ROUTE, ROUTE6, ROUTER, Bench, Router

AT_ROUTER = Addr(ROUTER, 5351)


def mapped(router: Router, *, after: float = 20.0) -> Bench:
    bench = Bench(router)
    bench.routes(ROUTE)
    bench.advance(after)
    return bench


def announcement(epoch: int) -> bytes:
    return struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, epoch)


# ---- getting one


@pytest.mark.parametrize(
    ("router", "protocol", "within"),
    [
        (Router(pcp=True, nat_pmp=True, upnp=2), Protocol.PCP, 0.01),
        (Router(nat_pmp=True, upnp=2), Protocol.NAT_PMP, 0.01),  # it says at once that it speaks no PCP
        (Router(upnp=2), Protocol.UPNP, 3.6),
        (Router(upnp=1), Protocol.UPNP, 3.6),
    ],
)
def test_the_first_protocol_that_the_router_speaks_gives_the_mapping(
    router: Router, protocol: Protocol, within: float
) -> None:
    bench = mapped(router, after=within)
    assert bench.mapping is not None
    assert bench.mapping.protocol is protocol
    assert (bench.mapping.external, bench.mapping.internal) == (Addr(OUTSIDE, PORT), Addr(OWN, PORT))
    assert router.ports == {PORT: (OWN, PORT)}
    assert bench.changes == 1


def test_requests_go_to_the_router_and_nowhere_else() -> None:
    bench = mapped(Router())
    assert {to for _, to, _ in bench.sent} == {AT_ROUTER, Addr("239.255.255.250", 1900)}
    assert not bench.fetched
    assert len(bench.sent) == 3 + 3 + 4
    quiet = Bench(Router(), upnp=False)
    quiet.routes(ROUTE)
    quiet.advance(60)
    assert {to for _, to, _ in quiet.sent} == {AT_ROUTER}
    assert len(quiet.sent) == 6


def test_a_mute_router_is_left_in_peace_for_a_quarter_of_an_hour() -> None:
    bench = mapped(Router(), after=10)
    before = len(bench.sent)
    bench.advance(PORTMAP_REST_S - 20)
    assert len(bench.sent) == before
    bench.advance(40)
    assert len(bench.sent) == 2 * before


def test_requests_are_repeated_with_doubling_pauses() -> None:
    bench = mapped(Router(), after=1.8)
    times = [round(at - 100, 3) for at, _, data in bench.sent if data[0] == 2]
    assert times == [0, 0.25, 0.75]


def test_without_a_route_nothing_is_sent() -> None:
    bench = Bench(Router(pcp=True))
    bench.routes()
    bench.advance(4_000)
    assert not bench.sent
    assert bench.mapper.next_deadline() is None


def test_an_ipv6_address_gets_a_pinhole_by_pcp_and_is_asked_for_in_nothing_else() -> None:
    bench = Bench(Router(pcp=True))
    bench.routes(ROUTE, ROUTE6)
    bench.advance(1)
    inside = Addr("2001:db8::17", PORT)
    assert [m.external for m in bench.mapper.mappings()] == [Addr(OUTSIDE, PORT), inside]
    bench = Bench(Router(nat_pmp=False))
    bench.routes(ROUTE6)
    bench.advance(60)
    assert [data[0] for _, _, data in bench.sent] == [2, 2, 2]


def test_a_router_behind_another_nat_gives_a_mapping_that_is_marked() -> None:
    for outside in ("10.9.9.9", "100.64.3.4"):
        router = Router(pcp=True)
        router.outside = outside
        bench = mapped(router)
        assert bench.mapping is not None
        assert bench.mapping.to_json(bench.now)["private"] is True
        assert bench.mapping.external.host == outside
    public = Router(pcp=True)
    public.outside = "8.8.4.4"
    bench = mapped(public)
    assert bench.mapping is not None
    assert bench.mapping.to_json(bench.now) == {
        "protocol": "pcp",
        "external": "8.8.4.4:4242",
        "internal": "192.168.1.23:4242",
        "lifetime_s": PORTMAP_LIFETIME_S - 20,
        "private": False,
    }


# ---- keeping it


@pytest.mark.parametrize("kind", ["pcp", "nat_pmp"])
def test_a_mapping_is_renewed_at_half_its_life_with_the_same_nonce_and_port(kind: str) -> None:
    bench = mapped(Router(**{kind: True}))  # type: ignore[arg-type]
    first = [data for _, _, data in bench.sent]
    bench.sent.clear()
    bench.advance(PORTMAP_LIFETIME_S * 5 / 8)
    renewed = bench.sent[0][0] - 100
    assert PORTMAP_LIFETIME_S / 2 <= renewed <= PORTMAP_LIFETIME_S * 5 / 8 + 1
    if kind == "pcp":
        assert bench.sent[0][2][24:36] == first[0][24:36]
        assert bench.sent[0][2][42:44] == PORT.to_bytes(2, "big")
    bench.advance(10 * PORTMAP_LIFETIME_S)
    assert bench.mapping is not None
    assert bench.changes == 1, "no part needs to hear of a renewal"


def test_a_mute_router_loses_the_mapping_when_it_expires_and_not_before() -> None:
    bench = mapped(Router(pcp=True))
    bench.reachable = False
    bench.advance(PORTMAP_LIFETIME_S - 30)
    assert bench.mapping is not None
    asked = [at for at, _, data in bench.sent if data[0] == 2]
    assert 10 < len(asked) < 60, "asked ever sooner as the end comes near, but never in haste"
    bench.advance(20)
    assert bench.mapping is None
    assert bench.changes == 2


@pytest.mark.parametrize("kind", ["pcp", "nat_pmp"])
def test_a_restarted_router_is_asked_again_within_five_seconds_of_its_announcement(kind: str) -> None:
    router = Router(**{kind: True})  # type: ignore[arg-type]
    bench = mapped(router)
    router.restart(bench.now)
    bench.advance(1)
    said = (
        announcement(1) if kind == "pcp" else struct.pack("!BBHI4s", 0, 0x80, 0, 1, bytes(map(int, OUTSIDE.split("."))))
    )
    for _ in range(10):
        bench.announce(said, AT_ROUTER)
    assert not router.ports
    before = len(bench.sent)
    bench.advance(5.1)
    assert router.ports == {PORT: (OWN, PORT)}
    assert len(bench.sent) - before <= 2, "ten announcements are one restart"
    assert bench.dropped["router_restarted"] == 1
    assert bench.mapping is not None


def test_an_epoch_that_went_back_in_an_answer_has_the_other_mappings_of_that_router_renewed() -> None:
    router = Router(pcp=True)
    bench = Bench(router)
    other = Route(ROUTE6.router, "2001:db8::18")
    bench.routes(ROUTE6, other)
    bench.advance(10)
    assert len(bench.mapper.mappings()) == 2
    router.restart(bench.now)
    bench.sent.clear()
    bench.advance(PORTMAP_LIFETIME_S * 5 / 8)
    assert bench.dropped["router_restarted"] == 1
    renewals = [at for at, _, _ in bench.sent]
    assert len(renewals) >= 2
    assert renewals[1] - renewals[0] < PORTMAP_RENEW_GAP_S + 1, "the second did not wait for its own half time"


def test_an_outside_address_that_changes_is_learnt_from_the_announcement() -> None:
    router = Router(nat_pmp=True)
    bench = mapped(router)
    router.outside = "203.0.113.99"
    said = struct.pack("!BBHI4s", 0, 0x80, 0, router.epoch(bench.now), bytes([203, 0, 113, 99]))
    bench.announce(said, AT_ROUTER)
    bench.advance(6)
    assert bench.mapping is not None
    assert bench.mapping.external.host == "203.0.113.99"
    assert bench.changes == 2


def test_a_router_that_gets_its_service_later_is_heard() -> None:
    router = Router()
    bench = mapped(router, after=120)
    router.pcp = True
    bench.announce(announcement(3), AT_ROUTER)
    bench.advance(6)
    assert bench.mapping is not None


def test_interface_events_check_the_router_and_do_not_flood_it() -> None:
    bench = mapped(Router(pcp=True))
    before = len(bench.sent)
    for _ in range(100):
        bench.routes(ROUTE)
        bench.advance(0.1)
    assert 1 <= len(bench.sent) - before <= 4
    mute = mapped(Router())
    before = len(mute.sent)
    for _ in range(300):
        mute.routes(ROUTE)
        mute.advance(0.1)
    assert len(mute.sent) == before, "a vain search is not repeated for every event"


def test_on_another_network_with_the_same_addresses_the_mapping_is_gone_in_two_seconds() -> None:
    bench = mapped(Router(pcp=True))
    bench.router = Router()
    bench.routes(ROUTE)
    bench.advance(2)
    assert bench.mapping is None


def test_a_new_address_is_mapped_at_once_and_the_old_one_is_forgotten() -> None:
    router = Router(pcp=True)
    bench = mapped(router)
    fresh = Route(ROUTER, "192.168.1.77")
    bench.routes(fresh)
    bench.advance(2 * DELAY)
    assert [m.internal.host for m in bench.mapper.mappings()] == ["192.168.1.77"]
    bench.routes()
    assert bench.mapper.mappings() == []
    assert bench.mapper.next_deadline() is None


@pytest.mark.parametrize("router", [Router(pcp=True), Router(nat_pmp=True), Router(upnp=2)])
def test_a_new_port_is_mapped_and_the_old_one_given_back(router: Router) -> None:
    bench = mapped(router)
    bench.routes(ROUTE, port=5555)
    bench.advance(10)
    assert router.ports == {5555: (OWN, 5555)}
    assert [m.external.port for m in bench.mapper.mappings()] == [5555]


@pytest.mark.parametrize(
    ("server", "client", "restarted"),
    [  # RFC 6887 section 8.5, by how much each clock went on; our clock is the second one
        (100, 100, False),
        (-1, 0, False),
        (-2, 0, True),
        (0, 0, False),
        (0, 3, True),
        (93, 100, False),
        (90, 100, True),
        (110, 102, False),
        (120, 100, True),
        (3_000_000, 1, True),
    ],
)
def test_a_clock_that_does_not_go_on_as_ours_does_has_restarted(server: int, client: int, restarted: bool) -> None:
    epochs = Epochs()
    assert not epochs.restarted(ROUTER, 5_000, 100.0, nat_pmp=False), "the first reading says nothing"
    assert epochs.restarted(ROUTER, 5_000 + server, 100.0 + client, nat_pmp=False) is restarted


@pytest.mark.parametrize(("server", "restarted"), [(100, False), (86, False), (85, True), (0, True), (10_000, False)])
def test_natpmp_allows_a_clock_that_is_an_eighth_slow(server: int, restarted: bool) -> None:
    epochs = Epochs()
    epochs.restarted(ROUTER, 5_000, 100.0, nat_pmp=True)
    assert epochs.restarted(ROUTER, 5_000 + server, 200.0, nat_pmp=True) is restarted


# ---- giving it back


@pytest.mark.parametrize("router", [Router(pcp=True), Router(nat_pmp=True), Router(upnp=1), Router(upnp=2)])
def test_the_mapping_is_given_back(router: Router) -> None:
    bench = mapped(router)
    assert router.ports
    bench.withdraw()
    assert not bench.mapper.is_idle
    bench.advance(0.1)
    assert not router.ports
    assert bench.mapper.is_idle
    assert bench.mapper.next_deadline() is None


def test_a_mapping_whose_granting_is_under_way_is_given_back_too() -> None:
    router = Router(pcp=True)
    bench = Bench(router)
    bench.routes(ROUTE)
    bench.withdraw()
    bench.advance(0.3)
    assert not router.ports
    assert bench.mapper.is_idle
    assert bench.mapper.mappings() == []


def test_a_mute_router_does_not_keep_the_withdrawal_alive() -> None:
    bench = mapped(Router(pcp=True))
    bench.reachable = False
    bench.withdraw()
    bench.advance(2)
    assert bench.mapper.is_idle


def test_after_a_crash_the_same_node_may_have_its_mapping_again_and_another_may_not() -> None:
    router = Router(pcp=True)
    router.strict = True
    assert mapped(router).mapping is not None
    assert mapped(router).mapping is not None, "a second run: the nonce is the same"
    other = Bench(router, secret=b"another node")
    other.routes(ROUTE)
    other.advance(1)
    assert other.mapping is None


# ---- refusals


def test_a_refusal_in_every_protocol_ends_in_rest_and_says_why() -> None:
    router = Router(pcp=True, nat_pmp=True)
    router.result = 2
    bench = mapped(router)
    (state,) = bench.mapper.to_json(bench.now)
    assert state["state"] == "none offered"
    assert (state["pcp"], state["nat-pmp"], state["upnp"]) == ("NOT_AUTHORIZED", "NOT_AUTHORIZED", "no answer")
    before = len(bench.sent)
    bench.advance(1_700)
    assert len(bench.sent) == before, "the error itself says that it holds for 1,800 s"
    router.result = 0
    bench.advance(200)
    assert bench.mapping is not None


def test_a_refusal_by_the_only_protocol_holds_for_as_long_as_the_router_says() -> None:
    router = Router(pcp=True)
    router.result = 2
    bench = Bench(router)
    bench.routes(ROUTE6)
    bench.advance(1_790)
    assert len(bench.sent) == 1
    bench.advance(20)
    assert len(bench.sent) == 2


def test_a_refused_renewal_ends_the_mapping_and_the_next_protocol_is_tried() -> None:
    router = Router(pcp=True, upnp=2)
    bench = mapped(router)
    router.result = 8
    bench.advance(PORTMAP_LIFETIME_S)
    assert bench.mapping is not None
    assert bench.mapping.protocol is Protocol.UPNP


@pytest.mark.parametrize("lifetime", [0, 1, 9])
def test_a_grant_for_no_time_is_none(lifetime: int) -> None:
    router = Router(pcp=True)
    router.lifetime = lifetime
    bench = mapped(router, after=60)
    assert bench.mapping is None
    assert bench.dropped["bad_grant"] == 1
    assert len(bench.sent) < 12


def test_a_grant_for_ever_is_believed_for_a_day() -> None:
    router = Router(pcp=True)
    bench = Bench(router)
    bench.routes(ROUTE)
    request = bench.sent[0][2]
    reply = struct.pack("!BBBBII12x", 2, 0x81, 0, 0, 0xFFFFFFFF, 9) + request[24:42] + b"\x10\x92" + bytes(10)
    bench._due.clear()
    bench.receive(reply + b"\xff\xff\xcb\x00\x71\x05", AT_ROUTER)
    assert bench.mapping is not None
    assert bench.mapping.expires - bench.now == PORTMAP_MAX_LIFETIME_S


@pytest.mark.parametrize(
    "outside", ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "240.1.1.1"]
)
@pytest.mark.parametrize("kind", ["pcp", "nat_pmp"])
def test_a_mapping_at_an_impossible_address_is_not_published(outside: str, kind: str) -> None:
    router = Router(**{kind: True})  # type: ignore[arg-type]
    router.outside = outside
    bench = mapped(router)
    assert bench.mapping is None
    assert bench.dropped["bad_grant"] == 1


# ---- hostile replies


def waiting() -> tuple[Bench, bytes]:
    """A client that waits for a PCP answer, and the answer that it waits for."""
    bench = Bench(Router(pcp=True))
    bench.routes(ROUTE)
    reply = bench.router.datagram(bench.sent[0][2], OWN, bench.now)
    bench._due.clear()
    bench.router = Router()
    assert reply is not None
    return bench, reply


def test_replies_from_anywhere_else_are_dropped() -> None:
    bench, reply = waiting()
    for source in (Addr("192.168.1.66", 5351), Addr("203.0.113.66", 5351), Addr(ROUTER, 5350), Addr("fe80::1", 5351)):
        bench.receive(reply, source)
    bench.receive(reply, AT_ROUTER, internal="192.168.1.99")
    assert bench.mapping is None
    assert bench.dropped == {"stranger": 5}
    bench.receive(reply, AT_ROUTER)
    assert bench.mapping is not None


def test_replies_with_another_nonce_port_or_protocol_are_dropped() -> None:
    bench, reply = waiting()
    for at in (24, 35, 36, 40, 41):
        bench.receive(reply[:at] + bytes([reply[at] ^ 1]) + reply[at + 1 :], AT_ROUTER)
    assert bench.mapping is None
    assert bench.dropped == {"unmatched": 5}


def test_replies_cut_short_and_requests_sent_back_are_dropped() -> None:
    bench, reply = waiting()
    for length in range(60):
        bench.receive(reply[:length], AT_ROUTER)
    bench.receive(bench.sent[0][2], AT_ROUTER)
    assert bench.mapping is None
    assert bench.dropped == {"malformed": 61}


def test_a_reply_that_is_not_waited_for_changes_nothing() -> None:
    bench, reply = waiting()
    bench.receive(reply, AT_ROUTER)
    changed = reply[:42] + b"\x00\x50" + reply[44:]
    for _ in range(3):
        bench.receive(changed, AT_ROUTER)
    assert bench.mapping is not None
    assert bench.mapping.external == Addr(OUTSIDE, PORT)
    assert bench.dropped == {"unmatched": 3}


def test_forged_announcements_cost_one_request_in_four_seconds() -> None:
    bench = mapped(Router(pcp=True))
    before = len(bench.sent)
    for number in range(600):
        bench.announce(announcement(number * 1_000_000 % 2**32), AT_ROUTER)
        bench.announce(announcement(5), Addr("192.168.1.66", 5351))
        bench.announce(b"\x02\x80", AT_ROUTER)
        bench.announce(b"M-SEARCH", AT_ROUTER)
        bench.advance(0.1)
    assert len(bench.sent) - before <= 60 / PORTMAP_RENEW_GAP_S + 1
    assert bench.dropped["stranger"] == 600
    assert bench.dropped["malformed"] >= 600
    assert bench.mapping is not None


def test_natpmp_answers_out_of_turn_are_dropped() -> None:
    bench = Bench(Router())
    bench.routes(ROUTE)
    bench.advance(1.8)  # past PCP: it asks for the outside address
    assert bench.sent[-1][2] == b"\x00\x00"
    bench.receive(struct.pack("!BBHIHHI", 0, 0x81, 0, 5, PORT, 80, 7_200), AT_ROUTER)
    assert bench.mapping is None
    bench.receive(struct.pack("!BBHI4s", 0, 0x80, 0, 5, bytes([203, 0, 113, 5])), AT_ROUTER)
    bench.receive(struct.pack("!BBHIHHI", 0, 0x81, 0, 5, PORT + 1, 80, 7_200), AT_ROUTER)
    assert bench.mapping is None
    assert bench.dropped == {"unmatched": 2}
