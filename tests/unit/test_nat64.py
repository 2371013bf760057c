"""IPv4 hosts by a translator of the network (RFC 6052, RFC 7050): how they are written, found and sent to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.nat.own_addresses import WayOut
from meshnode.nat.translation import KNOWN, Translation, embed, extract, prefix_in
from meshnode.runtime import nat64
from meshnode.runtime.nat64 import Nat64
from meshnode.runtime.udp import UdpSocket

IPV4 = ipaddress.IPv4Address("192.0.2.33").packed
WELL_KNOWN = ipaddress.IPv6Address("64:ff9b::").packed[:12]
WAY4, WAY6 = WayOut(2, "192.0.2.5", "192.0.2.1"), WayOut(2, "2001:db8::5", "fe80::1")


@pytest.mark.parametrize(  # RFC 6052 section 2.4
    ("prefix", "length", "whole"),
    [
        ("2001:db8::", 4, "2001:db8:c000:221::"),
        ("2001:db8:100::", 5, "2001:db8:1c0:2:21::"),
        ("2001:db8:122::", 6, "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::", 7, "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::", 8, "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::", 12, "2001:db8:122:344::192.0.2.33"),
    ],
)
def test_an_address_is_written_behind_a_prefix_of_each_length_and_read_again(
    prefix: str, length: int, whole: str
) -> None:
    begin, packed = ipaddress.IPv6Address(prefix).packed[:length], ipaddress.IPv6Address(whole).packed
    assert embed(begin, IPV4) == packed
    assert extract(begin, packed) == IPV4
    known = str(ipaddress.IPv6Address(embed(begin, KNOWN[1])))
    assert prefix_in(["192.0.0.170", known]) == begin


def test_an_address_of_no_translator_is_no_ipv4_host() -> None:
    assert prefix_in(["192.0.0.170", "192.0.0.171", "2001:db8::1"]) is None
    translation = Translation(WELL_KNOWN)
    for host in ("2001:db8::1", "fe80::1%eth0", "192.0.2.1", "64:ff9b:1::c000:221"):
        assert translation.to_ipv4(host) is None


def test_what_is_for_an_ipv4_host_goes_to_the_translator_and_what_comes_by_it_is_that_hosts() -> None:
    sent: list[tuple[str, int, int, int]] = []

    class Kernel:
        family = socket.AF_INET6

        def sendto(self, datagram: bytes, to: tuple[str, int, int, int]) -> None:
            sent.append(to)

    udp: Any = UdpSocket(asyncio.new_event_loop(), lambda runs: None, Metrics())
    udp._socket = Kernel()
    peer, near, known = Addr("192.0.2.33", 4242), Addr("10.0.0.2", 4242), Addr("64:ff9b::c000:222", 4242)
    assert udp.send(peer, [b"x"])
    udp.translate(Translation(WELL_KNOWN, (("10.0.0.1", 24),)))
    for addr in (peer, near, known):
        assert udp.send(addr, [b"x"])
    assert [host for host, *_ in sent] == ["::ffff:192.0.2.33", "64:ff9b::c000:221", "::ffff:10.0.0.2", known.host]
    assert udp._learn(("64:ff9b::c000:221", 4242, 0, 0)) == peer
    assert udp._learn(("64:ff9b::c000:222", 4242, 0, 0)) == known, "it was sent to as that"
    assert udp._learn(("2001:db8::1", 4242, 0, 0)) == Addr("2001:db8::1", 4242)
    udp.translate(None)
    assert udp.send(peer, [b"x"])
    assert sent[-1][0] == "::ffff:192.0.2.33"


async def test_dns_is_asked_where_all_ways_out_are_ipv6_and_not_again_while_they_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, told = list[str](), list[Translation | None]()
    answers: list[list[str]] = [[], ["192.0.0.170", "64:ff9b::c000:aa"], ["192.0.0.170"]]

    async def look_up(host: str) -> list[str]:
        asked.append(host)
        answer = answers.pop(0)
        if not answer:
            raise OSError("no answer yet")
        return answer

    monkeypatch.setattr(nat64, "look_up", look_up)
    monkeypatch.setattr(nat64, "RETRY_S", (0.0, 0.0))
    search = Nat64(asyncio.get_running_loop(), told.append)
    search.look((WAY4, WAY6), ())
    assert (asked, told) == ([], [None])
    for _ in range(2):
        search.look((WAY6,), ())
        assert search._task is not None
        await search._task
    assert (asked, told[1:]) == (["ipv4only.arpa"] * 2, [Translation(WELL_KNOWN)])
    search.look((WAY6,), (("2001:db8:1::5", 64),))
    assert search._task is not None
    await search._task
    assert told[2:] == [None], "a network without a translator"


async def test_a_name_server_that_comes_late_is_asked_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    told, failures = list[Translation | None](), iter(range(10))

    async def look_up(host: str) -> list[str]:
        if next(failures, None) is not None:
            raise OSError("no answer yet")
        return ["192.0.0.170", "64:ff9b::c000:aa"]

    monkeypatch.setattr(nat64, "look_up", look_up)
    monkeypatch.setattr(nat64, "RETRY_S", (0.0, 0.0))
    search = Nat64(asyncio.get_running_loop(), told.append)
    search.look((WAY6,), ())
    assert search._task is not None
    await search._task
    assert told == [None] * 9 + [Translation(WELL_KNOWN)]
