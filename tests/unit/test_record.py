"""Endpoint records: what is accepted, and under which name everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_CAPABILITY_LENGTH, MAX_RECORD
from meshnode.base.wire import encode
from meshnode.errors import RecordError, RecordReject
from meshnode.identity.keys import Identity
from meshnode.identity.record import DOMAIN, Endpoint, newer, open_record, sign_record
from meshnode.runtime.saved import SeqSource, parse_seq

WALL = 1_700_000_000.0
ME = Identity(bytes(range(32)))


def _record(seq: int = 1, issued: float = WALL, ttl: int = 600, endpoints: int = 2) -> bytes:
    places = tuple(Endpoint(Addr(f"192.0.2.{i + 1}", 4242)) for i in range(endpoints))
    return sign_record(ME, seq=seq, issued_ms=int(issued * 1000), ttl=ttl, endpoints=places).encoded


def _reason(encoded: bytes, **options: object) -> RecordReject:
    with pytest.raises(RecordError) as caught:
        open_record(encoded, WALL, **options)  # type: ignore[arg-type]
    return caught.value.reason


def test_a_signed_record_opens_to_what_was_signed() -> None:
    record = open_record(_record(seq=7), WALL, expected=ME.id)
    assert (record.id, record.seq, len(record.endpoints)) == (ME.id, 7, 2)
    assert str(record.endpoints[0]) == "192.0.2.1:4242"


def test_each_kind_of_bad_record_has_its_name() -> None:
    good = _record()
    assert _reason(bytes([good[0] ^ 1]) + good[1:]) is RecordReject.FORGED
    assert _reason(_record(issued=WALL - 700)) is RecordReject.EXPIRED
    assert _reason(_record(issued=WALL + 301)) is RecordReject.FUTURE
    assert _reason(good + bytes(MAX_RECORD)) is RecordReject.OVERSIZED
    assert _reason(good[:-1]) is RecordReject.MALFORMED
    assert _reason(good, expected=Identity(bytes(32)).id) is RecordReject.WRONG_ID


@pytest.mark.parametrize("ahead", [301, 86_400, 11 * 86_400, 365 * 86_400])
def test_a_record_that_is_numbered_ahead_of_the_clock_is_refused(ahead: int) -> None:
    assert _reason(_record(seq=int((WALL + ahead) * 1000))) is RecordReject.FUTURE
    assert open_record(_record(seq=int((WALL + 299) * 1000)), WALL)


@pytest.mark.parametrize(("seq", "reason"), [(2**63 - 1, RecordReject.FUTURE), (2**63, RecordReject.MALFORMED)])
def test_a_seq_that_does_not_fit_63_bits_is_malformed(seq: int, reason: RecordReject) -> None:
    body = encode([1, bytes(ME.id), seq, int(WALL * 1000), 600, [], [], []])
    assert _reason(ME.sign(DOMAIN + body) + body) is reason


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({7: ["c" * MAX_CAPABILITY_LENGTH]}, True),
        ({7: ["c" * (MAX_CAPABILITY_LENGTH + 1)]}, False),
        ({7: [b"relay"]}, False),
        ({7: [5]}, False),
        ({3: 2**53}, False),
        ({3: -1}, False),
        ({4: -1}, False),
    ],
    ids=str,
)
def test_fields_that_are_too_long_or_of_another_kind_are_malformed(changes: dict[int, object], good: bool) -> None:
    fields = [1, bytes(ME.id), 1, int(WALL * 1000), 600, [], [], []]
    for place, value in changes.items():
        fields[place] = value
    body = encode(fields)
    encoded = ME.sign(DOMAIN + body) + body
    if good:
        assert open_record(encoded, WALL).capabilities == tuple(changes[7])  # type: ignore[arg-type]
    else:
        assert _reason(encoded) is RecordReject.MALFORMED


def test_another_encoding_of_the_same_record_is_refused_even_when_signed() -> None:
    body = encode([1, bytes(ME.id), 1, int(WALL * 1000), 600, [], [], []])
    assert body[1] == 1
    variant = body[:1] + b"\x18\x01" + body[2:]  # the version as a longer integer than needed
    assert _reason(ME.sign(DOMAIN + variant) + variant) is RecordReject.NOT_CANONICAL


@given(st.binary(max_size=1100))
def test_no_bytes_open_by_chance_or_raise_anything_else(data: bytes) -> None:
    with pytest.raises(RecordError):
        open_record(data, WALL)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_two_records_are_never_both_newer(one: int, other: int) -> None:
    a, b = (open_record(_record(seq=seq), WALL) for seq in (one % 10**12, other % 10**12))
    assert not (newer(a, b) and newer(b, a))
    assert newer(a, b) or newer(b, a) or a.encoded == b.encoded


def test_a_record_with_many_endpoints_fits() -> None:
    places = tuple(Endpoint(Addr(f"2001:db8::{i:x}", 4242)) for i in range(1, 60))
    record = sign_record(ME, seq=1, issued_ms=int(WALL * 1000), ttl=60, endpoints=places)
    assert len(record.encoded) <= MAX_RECORD
    assert open_record(record.encoded, WALL).endpoints


class _Clock:
    def __init__(self, wall: float) -> None:
        self.now = wall

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def test_numbers_rise_over_restarts_and_small_steps_of_the_clock() -> None:
    saved: list[bytes] = []
    first = SeqSource(0, _Clock(WALL), saved.append).next()
    assert first == int(WALL * 1000)
    assert parse_seq(saved[-1]) == first
    stepped_back = SeqSource(first, _Clock(WALL - 60), saved.append)
    assert (stepped_back.next(), stepped_back.next()) == (first + 1, first + 2)
    assert parse_seq(saved[-1]) == first + 2
    with pytest.raises(ValueError, match="junk"):
        parse_seq(b"junk")


@pytest.mark.parametrize("ahead", [301, 365 * 86_400, 10**30])
def test_a_number_from_a_clock_that_was_ahead_is_left_with_a_warning(
    ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = SeqSource(int((WALL + ahead) * 1000), _Clock(WALL), lambda data: None)
    assert source.next() == int(WALL * 1000), "others take nothing that is numbered so far ahead"
    assert "ahead of the clock" in caplog.records[0].getMessage()
    assert source.next() == int(WALL * 1000) + 1
    assert len(caplog.records) == 1


def test_a_clock_that_is_set_right_while_the_node_runs_takes_the_numbers_along() -> None:
    clock = _Clock(WALL + 86_400)
    source = SeqSource(0, clock, lambda data: None)
    ahead = source.next()
    clock.now = WALL
    assert source.next() == int(WALL * 1000) < ahead


def test_a_record_says_of_itself_what_people_and_scripts_read() -> None:
    record = open_record(_record(), WALL)
    assert record.expires_ms == int(WALL * 1000) + 600_000
    found = record.to_json()
    assert (found["id"], found["seq"], found["issued"], found["ttl"]) == (str(ME.id), 1, WALL, 600)
    assert found["endpoints"] == ["192.0.2.1:4242", "192.0.2.2:4242"]
    assert found["kinds"] == ["host", "host"]
