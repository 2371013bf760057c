"""The zone ``mesh``: answers to queries, byte by byte, and the addresses that stand for services."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from dnslib import EDNS0, OPCODE, QTYPE, RCODE, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.limits import MAX_PROXY_ADDRESSES
from meshnode.errors import NameDisputed, NotFound
from meshnode.identity.mesh_host import MeshHost
from meshnode.identity.node_id import NodeId
from meshnode.services.proxy.dns import MAX_QUERY, Query, answer_with, answer_without, read_query
from meshnode.services.proxy.overlay import OverlayNames

ID = NodeId(bytes(range(32)))
HEADER = b"\0\1\1\0\0\1\0\0\0\0\0\0"  # of one question
ADDRESS = IPv6Address("fd00::7")


def query(name: str, kind: str = "AAAA") -> bytes:
    packed: bytes = DNSRecord.question(name, kind).pack()
    return packed


def asked(name: str, kind: str = "AAAA") -> Query:
    found = read_query(query(name, kind))
    assert isinstance(found, Query)
    return found


def answered(data: bytes) -> DNSRecord:
    found = read_query(data)
    assert isinstance(found, bytes)
    return DNSRecord.parse(found)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (f"{ID}.mesh", MeshHost("", ID)),
        ("Laptop.MESH.", MeshHost("", "laptop")),
        ("web.laptop.mesh", MeshHost("web", "laptop")),
        ("mesh", None),
    ],
)
def test_a_name_of_the_zone_is_looked_up(name: str, host: MeshHost | None) -> None:
    assert asked(name).host == host


def test_a_node_has_one_aaaa_record() -> None:
    for kind in ("AAAA", "ANY"):
        found = DNSRecord.parse(answer_with(asked("Web.laptop.mesh", kind), ADDRESS))
        (record,) = found.rr
        assert (record.rtype, str(record.rdata)) == (QTYPE.AAAA, "fd00::7")
        assert str(record.rname) == "Web.laptop.mesh.", "spelt as it was asked for"
        assert 0 < record.ttl <= 60
        assert (found.header.rcode, found.header.aa, found.header.ra, found.auth) == (RCODE.NOERROR, 1, 0, [])


@pytest.mark.parametrize("kind", ["A", "MX", "TXT", "HTTPS", "SOA"])
def test_a_node_has_no_other_record_which_is_not_that_it_does_not_exist(kind: str) -> None:
    found = DNSRecord.parse(answer_with(asked("laptop.mesh", kind), ADDRESS))
    assert (found.header.rcode, found.rr) == (RCODE.NOERROR, [])
    assert [str(record.rname) for record in found.auth] == ["mesh."]
    assert found.auth[0].rtype == QTYPE.SOA


def test_the_zone_itself_exists_and_has_no_address() -> None:
    found = DNSRecord.parse(answer_with(asked("mesh"), None))
    assert (found.header.rcode, found.rr) == (RCODE.NOERROR, [])


def test_a_name_that_no_node_has_does_not_exist_for_a_moment() -> None:
    found = DNSRecord.parse(answer_without(asked("laptop.mesh"), NotFound("none")))
    assert (found.header.rcode, found.header.aa, found.rr) == (RCODE.NXDOMAIN, 1, [])
    assert found.auth[0].ttl <= 5
    assert answered(query("lap_top.mesh")).header.rcode == RCODE.NXDOMAIN


def test_a_name_of_which_it_is_not_sure_is_a_failure_and_not_cached() -> None:
    found = DNSRecord.parse(answer_without(asked("laptop.mesh"), NameDisputed("two")))
    assert (found.header.rcode, found.header.aa, found.auth) == (RCODE.SERVFAIL, 0, [])


@pytest.mark.parametrize("name", ["example.org", "laptopmesh", "mesh.example.org", ".", "1.0.0.127.in-addr.arpa"])
def test_other_names_are_refused(name: str) -> None:
    found = answered(query(name))
    assert (found.header.rcode, found.header.aa, found.rr, found.auth) == (RCODE.REFUSED, 0, [], [])


def test_the_question_comes_back_with_its_number_and_wish() -> None:
    sent = DNSRecord.question("example.org", "A")
    found = answered(sent.pack())
    assert (found.header.id, found.header.qr, found.header.rd) == (sent.header.id, 1, 1)
    assert str(found.q) == str(sent.q)


def test_a_query_with_edns_has_an_answer_with_it() -> None:
    sent = DNSRecord.question("laptop.mesh", "AAAA")
    assert DNSRecord.parse(answer_with(asked("laptop.mesh"), ADDRESS)).ar == []
    sent.add_ar(EDNS0(udp_len=4096))
    found = read_query(sent.pack())
    assert isinstance(found, Query)
    (extra,) = DNSRecord.parse(answer_with(found, ADDRESS)).ar
    assert (extra.rtype, extra.edns_len) == (QTYPE.OPT, 1232)


@pytest.mark.parametrize("name", ["laptop.mesh", "example.org"])
@pytest.mark.parametrize("version", [1, 255])
def test_a_query_with_a_version_of_edns_that_is_not_known_is_told_the_one_that_is(name: str, version: int) -> None:
    sent = DNSRecord.question(name, "AAAA")
    sent.add_ar(EDNS0(udp_len=4096, version=version))
    found = answered(sent.pack())
    (extra,) = found.ar
    assert (extra.edns_rcode << 4) + found.header.rcode == 16, "BADVERS"
    assert (extra.rtype, extra.edns_ver, extra.edns_len) == (QTYPE.OPT, 0, 1232)
    assert (found.header.aa, found.rr, found.auth) == (0, [], [])
    assert str(found.q) == str(sent.q)


@pytest.mark.parametrize(
    ("header", "questions", "code"),
    [
        (DNSHeader(opcode=OPCODE.UPDATE), [DNSQuestion("laptop.mesh", QTYPE.AAAA)], RCODE.NOTIMP),
        (DNSHeader(), [], RCODE.FORMERR),
        (DNSHeader(), [DNSQuestion("a.mesh"), DNSQuestion("b.mesh")], RCODE.FORMERR),
        (DNSHeader(), [DNSQuestion("laptop.mesh", QTYPE.AAAA, 3)], RCODE.REFUSED),
    ],
)
def test_what_is_no_plain_question_is_told_so(header: DNSHeader, questions: list[DNSQuestion], code: int) -> None:
    sent = DNSRecord(header, questions=questions)
    sent.header.qr = 0
    assert answered(sent.pack()).header.rcode == code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        query("laptop.mesh")[:-1],
        query("laptop.mesh") + bytes(MAX_QUERY),
        b"\0\1\x81\0" + query("laptop.mesh")[4:],  # an answer
        b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\x1c\0\1",  # a name that points to itself
        b"\0\1\1\0\0\1\0\0\0\0\0\0\x3fa",
    ],
)
def test_what_is_no_query_is_dropped(data: bytes) -> None:
    assert read_query(data) is None


@given(st.one_of(st.binary(max_size=600), st.binary(max_size=60).map(lambda tail: HEADER + tail)))
def test_no_bytes_raise_and_no_answer_is_longer_than_a_datagram_of_dns(data: bytes) -> None:
    found = read_query(data)
    if isinstance(found, Query):
        found = answer_with(found, ADDRESS)
    assert found is None or len(found) <= 512


def test_the_longest_name_fits_an_answer() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, str(ID), "mesh"])
    sent = DNSRecord.question(name, "AAAA")
    sent.add_ar(EDNS0(udp_len=4096))
    found = read_query(sent.pack())
    assert isinstance(found, Query)
    assert len(answer_with(found, ADDRESS)) <= 512


def test_a_node_has_its_overlay_address_and_its_services_have_others() -> None:
    names = OverlayNames(b"s" * 32)
    assert names.meaning(ID.overlay) is None, "not before a program was told"
    found = {service: names.address_of(service, ID) for service in ("", "web", "db")}
    assert found[""] == ID.overlay
    assert len(set(found.values())) == 3
    assert all(address.packed[0] == 0xFD for address in found.values())
    assert {service: names.meaning(address) for service, address in found.items()} == {
        service: MeshHost(service, ID) for service in found
    }
    assert names.address_of("web", ID) == found["web"], "each time the same"
    assert OverlayNames(b"t" * 32).address_of("web", ID) != found["web"], "and in each process another"
    assert names.address_of("web", NodeId(bytes(32))) != found["web"]


def test_the_oldest_address_is_forgotten_at_the_bound_and_one_in_use_is_not() -> None:
    names = OverlayNames(b"s" * 32)
    first, second = names.address_of("0", ID), names.address_of("1", ID)
    for number in range(2, MAX_PROXY_ADDRESSES):
        names.address_of(str(number), ID)
    names.address_of("0", ID)
    names.address_of("one more", ID)
    assert names.meaning(first) is not None
    assert names.meaning(second) is None


@pytest.mark.parametrize(
    "name",
    [b"\x40" + b"a" * 64 + b"\4mesh\0", b"\x7f" + b"a" * 127 + b"\0", (b"\x3f" + b"a" * 63) * 4 + b"\4mesh\0"],
    ids=["a label of 64", "a label of 127", "a name of 261"],
)
def test_a_name_that_cannot_be_written_again_is_dropped(name: bytes) -> None:
    assert read_query(bytes.fromhex("123401000001000000000000") + name + b"\0\x1c\0\1") is None
