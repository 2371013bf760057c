"""UPnP conversations in virtual time: the oddities that routers are known for, and lies."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import UPNP_LEASE_S, UPNP_PORTS
from meshnode.nat.portmap.vocabulary import Protocol
from tests.unit.portmap_bench import OUTSIDE, OWN, PORT, ROUTE, ROUTER, Bench, Router


def mapped(router: Router, *, after: float = 20.0) -> Bench:
    bench = Bench(router)
    bench.routes(ROUTE)
    bench.advance(after)
    return bench


def actions(bench: Bench) -> list[str]:
    return [request.split(b"#")[1].split(b'"')[0].decode() for _, _, request in bench.fetched if b"#" in request]


def searching(router: Router | None = None) -> Bench:
    """A client in the middle of its search, which no router answers by itself."""
    bench = Bench(router or Router())
    bench.routes(ROUTE)
    bench.advance(3.6)
    return bench


def found(location: str, target: str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1") -> bytes:
    return f"HTTP/1.1 200 OK\r\nST: {target}\r\nLOCATION: {location}\r\n\r\n".encode()


def test_the_steps_are_search_description_address_mapping() -> None:
    bench = mapped(Router(upnp=1))
    assert bench.fetched[0][2].startswith(b"GET /d.xml HTTP/1.1\r\n")
    assert actions(bench) == ["GetExternalIPAddress", "AddPortMapping"]
    assert {to for _, to, _ in bench.fetched} == {Addr(ROUTER, 5000)}


def test_a_version_2_router_may_choose_the_port() -> None:
    router = Router(upnp=2)
    router.taken = {PORT}
    bench = mapped(router)
    assert bench.mapping is not None
    assert bench.mapping.external == Addr(OUTSIDE, PORT + 1)
    assert actions(bench)[-1] == "AddAnyPortMapping"


def test_a_port_that_another_host_has_is_not_taken_from_it() -> None:
    router = Router(upnp=1)
    router.taken = {PORT}
    bench = mapped(router)
    assert bench.mapping is not None
    assert bench.mapping.external.port not in (PORT, 0)
    assert router.ports == {bench.mapping.external.port: (OWN, PORT)}
    router = Router(upnp=1)
    router.taken = set(range(65_536))
    bench = mapped(router)
    assert bench.mapping is None
    assert actions(bench).count("AddPortMapping") == UPNP_PORTS


def test_a_router_that_knows_only_permanent_leases_gets_one_and_is_asked_to_take_it_back() -> None:
    router = Router(upnp=1)
    router.permanent_only = True
    bench = mapped(router)
    assert bench.mapping is not None
    assert bench.mapping.to_json(bench.now)["lifetime_s"] is None
    bench.advance(10 * UPNP_LEASE_S)
    assert bench.mapping is not None
    assert actions(bench).count("GetExternalIPAddress") > 10, "whether it still is there is asked all the same"
    bench.withdraw()
    bench.advance(1)
    assert not router.ports


def test_a_version_2_router_without_its_action_is_asked_as_version_1() -> None:
    router = Router(upnp=2)
    router.no_any_port = True
    bench = mapped(router)
    assert bench.mapping is not None
    assert actions(bench) == ["GetExternalIPAddress", "AddAnyPortMapping", "AddPortMapping"]


def test_a_router_without_an_outside_address_maps_nothing() -> None:
    for outside in ("0.0.0.0", "", "nonsense", "1.2.3.4.5", "203.0.113.5;x"):
        router = Router(upnp=1)
        router.outside = outside
        bench = mapped(router)
        assert bench.mapping is None, outside
        assert not router.ports


def test_a_lease_is_renewed_at_half_its_life_without_a_new_search() -> None:
    bench = mapped(Router(upnp=2))
    bench.sent.clear()
    bench.fetched.clear()
    bench.advance(UPNP_LEASE_S * 5 / 8)
    assert not bench.sent
    assert actions(bench) == ["GetExternalIPAddress", "AddPortMapping"]
    assert UPNP_LEASE_S / 2 <= bench.fetched[0][0] - 100 <= UPNP_LEASE_S * 5 / 8 + 5


def test_a_restarted_router_is_searched_and_mapped_again() -> None:
    router = Router(upnp=2)
    bench = mapped(router)
    bench.reachable = False
    bench.advance(UPNP_LEASE_S)
    assert bench.mapping is None
    router.restart(bench.now)
    bench.reachable = True
    bench.advance(1_000)
    assert bench.mapping is not None
    assert bench.mapping.protocol is Protocol.UPNP
    assert router.ports


@pytest.mark.parametrize(
    "location",
    [
        "http://192.168.1.66:5000/d.xml",
        "http://203.0.113.9/d.xml",
        "http://router/d.xml",
        "https://192.168.1.1/d.xml",
        "http://192.168.1.1@203.0.113.9/",
        "http://192.168.1.1:0/",
        "//203.0.113.9/",
        "/d.xml",
        "http://192.168.1.1/" + "x" * 1_000,
    ],
)
def test_a_location_off_the_router_is_not_fetched(location: str) -> None:
    bench = searching()
    bench.receive(found(location), Addr(ROUTER, 1900))
    bench.advance(0.5)
    assert not bench.fetched
    assert bench.dropped["bad_location"] == 1


def test_search_answers_from_others_are_dropped() -> None:
    bench = searching()
    for source in (Addr("192.168.1.66", 1900), Addr("203.0.113.9", 1900)):
        bench.receive(found(f"http://{ROUTER}:5000/d.xml"), source)
        bench.receive(found(f"http://{source.host}:5000/d.xml"), source)
    bench.receive(found(f"http://{ROUTER}:5000/d.xml", "upnp:rootdevice"), Addr(ROUTER, 1900))
    assert not bench.fetched
    assert bench.dropped == {"stranger": 4, "unmatched": 1}


def test_search_answers_outside_a_search_are_dropped() -> None:
    bench = mapped(Router(pcp=True))
    bench.receive(found(f"http://{ROUTER}:5000/d.xml"), Addr(ROUTER, 1900))
    assert not bench.fetched
    assert bench.dropped == {"unmatched": 1}


class Liar(Router):
    """A gateway whose HTTP says what the test wants."""

    def __init__(self, *bodies: bytes, status: int = 200) -> None:
        super().__init__(upnp=1)
        self.bodies = list(bodies)
        self.status = status

    def http(self, request: bytes, now: float) -> tuple[int, bytes]:
        if self.bodies:
            return self.status, self.bodies.pop(0)
        return super().http(request, now)


SERVICE = (
    b"<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
    b"<controlURL>%s</controlURL></service></root>"
)
BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><root>&c;</root>'


@pytest.mark.parametrize(
    "bodies",
    [
        (b"",),
        (b"<html>",),
        (BOMB,),
        (b"<root/>",),
        (SERVICE % b"http://203.0.113.9/c",),
        (SERVICE % b"/c", BOMB),
        (SERVICE % b"/c", b"<a><NewExternalIPAddress>127.0.0.1</NewExternalIPAddress></a>"),
        (SERVICE % b"/c", b"<a><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></a>", b"junk"),
        (SERVICE % b"/c", b"<a><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></a>", b""),
    ],
)
def test_lies_over_http_map_nothing_and_end_in_rest(bodies: tuple[bytes, ...]) -> None:
    bench = mapped(Liar(*bodies), after=60)
    assert bench.mapping is None
    assert bench.mapper.to_json(bench.now)[0]["state"] == "none offered"
    assert {to.host for _, to, _ in bench.fetched} <= {ROUTER}
    assert len(bench.fetched) <= 4


def test_many_services_are_tried_no_further_than_the_bound() -> None:
    services = b"".join(
        b"<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
        b"<controlURL>/c%d</controlURL></service>" % number
        for number in range(200)
    )
    down = b"<a><NewExternalIPAddress>0.0.0.0</NewExternalIPAddress></a>"
    bench = mapped(Liar(b"<root>" + services + b"</root>", *[down] * 300), after=60)
    assert bench.mapping is None
    assert len(bench.fetched) == 5


def test_an_answer_to_an_earlier_fetch_is_ignored() -> None:
    bench = searching()
    bench.receive(found(f"http://{ROUTER}:5000/d.xml"), Addr(ROUTER, 1900))
    assert len(bench.fetched) == 1
    bench._due.clear()
    bench.mapper.on_http(0xDEAD, 200, SERVICE % b"/elsewhere", bench.now)
    bench._carry_out()
    assert len(bench.fetched) == 1
