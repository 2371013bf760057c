"""The few bytes of a QUIC header that are read before any key is known."""

from __future__ import annotations

import pytest

from meshnode.identity.keys import Identity
from meshnode.quic import packets
from meshnode.quic.engines import pick_engine

ONE, OTHER = Identity(bytes(32)), Identity(bytes(range(32)))
TOKEN = bytes(range(96))


def initial(token: bytes = TOKEN) -> tuple[bytes, bytes]:
    """A real dialler's first datagram and its original destination connection id."""
    engine = pick_engine("auto").dial(ONE, OTHER.id, lambda odcid: token, 30.0, 0.0)
    return engine.transmit(0.0)[0], engine.odcid


def long_header(
    first: int = 0xC0, version: bytes = packets.VERSION_1, dcid: bytes = b"d" * 8, rest: bytes = b""
) -> bytes:
    """A long header packet."""
    return bytes([first]) + version + bytes([len(dcid)]) + dcid + rest


def test_a_real_initial_shows_its_connection_id_and_its_token() -> None:
    datagram, odcid = initial()
    assert packets.is_v1_initial(datagram)
    assert packets.acceptable(datagram)
    assert packets.dcid_of(datagram) == odcid
    assert packets.initial_token(datagram) == TOKEN


@pytest.mark.parametrize("size", [1, 63, 64, 96, 300])
def test_tokens_of_every_length_are_read(size: int) -> None:
    token = bytes(range(256))[:1] * size
    assert packets.initial_token(initial(token)[0]) == token


def test_a_source_connection_id_of_any_length_is_passed_over() -> None:
    for size in (0, 1, 8, 20):
        rest = bytes([size]) + bytes(size) + bytes([len(TOKEN) >> 8 | 0x40, len(TOKEN)]) + TOKEN
        assert packets.initial_token(long_header(rest=rest)) == TOKEN
        assert packets.initial_token(long_header(rest=rest + b"length and payload")) == TOKEN
        assert packets.initial_token(long_header(rest=rest[:-1])) is None


def test_an_initial_without_a_token_has_none() -> None:
    assert packets.initial_token(initial(b"")[0]) is None


def test_a_short_header_is_routed_by_its_first_eight_bytes() -> None:
    assert packets.dcid_of(b"\x40" + b"abcdefgh" + b"rest") == b"abcdefgh"
    assert packets.dcid_of(b"\x40" + b"abcdefg") is None


def test_only_full_size_version_1_initials_may_begin_anything() -> None:
    datagram, _ = initial()
    assert packets.is_v1_initial(datagram[:1200]), "RFC 9000 section 14.1"
    assert not packets.is_v1_initial(datagram[:1199])
    assert not packets.is_v1_initial(datagram[:1] + b"\x6b\x33\x43\xcf" + datagram[5:])
    for kind in (0xD0, 0xE0, 0xF0, 0x40, 0x80):
        assert not packets.is_v1_initial(bytes([kind]) + datagram[1:])


def test_what_an_engine_must_not_see_is_not_acceptable() -> None:
    assert packets.acceptable(long_header(0xE0)), "a Handshake packet is"
    assert packets.acceptable(b"\x40" + bytes(20)), "a 1-RTT packet is"
    assert not packets.acceptable(long_header(0xF0)), "Retry"
    assert not packets.acceptable(long_header(version=bytes(4))), "Version Negotiation"
    assert not packets.acceptable(long_header(version=b"\x6b\x33\x43\xcf")), "version 2"
    assert not packets.acceptable(b"\x00" + bytes(20)), "no fixed bit"
    assert not packets.acceptable(b"")


def test_a_long_header_cut_anywhere_has_no_connection_id_or_the_right_one() -> None:
    whole = long_header(rest=b"\x00" * 4)
    for size in range(len(whole)):
        assert packets.dcid_of(whole[:size]) in (None, b"d" * 8)


def test_a_connection_id_longer_than_quic_allows_is_none() -> None:
    assert packets.dcid_of(long_header(dcid=b"d" * 20, rest=b"\x00")) == b"d" * 20
    assert packets.dcid_of(long_header(dcid=b"d" * 21, rest=b"\x00")) is None


@pytest.mark.parametrize(
    "tail",
    [b"", b"\x00", b"\x08", b"\x00\x00", b"\x00\x40", b"\x00\x10abc", b"\x00\x80\x00\x00\x01a", b"\xff\x01a"],
    ids=bytes.hex,
)
def test_a_token_that_is_cut_short_or_absurdly_long_is_none(tail: bytes) -> None:
    assert packets.initial_token(long_header(rest=tail)) is None
