"""Properties of the one signed form: what is opened was signed, byte for byte, by that key and for that domain."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshnode.base.wire import encode
from meshnode.identity.envelope import (
    SIGNATURE_LENGTH,
    EnvelopeError,
    EnvelopeReject,
    open_envelope,
    sign_envelope,
    verify_envelope,
)
from meshnode.identity.keys import Identity

ONE, OTHER = Identity(bytes(range(32))), Identity(bytes(32))
MOST = 4_096
quick = settings(max_examples=200, derandomize=True)

scalars = st.one_of(st.integers(-(2**64), 2**64 - 1), st.binary(max_size=40), st.text(max_size=20), st.booleans())
items = st.recursive(st.one_of(scalars, st.none()), lambda inner: st.lists(inner, max_size=4), max_leaves=12)
domains = st.binary(min_size=1, max_size=30)


def _reason(encoded: bytes, most: int = MOST) -> EnvelopeReject:
    with pytest.raises(EnvelopeError) as caught:
        open_envelope(encoded, most)
    return caught.value.reason


@quick
@given(items, domains, domains)
def test_what_is_opened_was_signed_by_this_key_for_this_domain(item: object, domain: bytes, another: bytes) -> None:
    assume(domain != another)
    encoded = sign_envelope(ONE, domain, item, MOST)
    assert open_envelope(encoded, MOST) == item
    assert verify_envelope(ONE.id, domain, encoded)
    assert not verify_envelope(OTHER.id, domain, encoded)
    assert not verify_envelope(ONE.id, another, encoded)
    assert encoded == ONE.sign(domain + encode(item)) + encode(item), "the layout"


@quick
@given(items, domains, st.data())
def test_an_envelope_with_one_bit_changed_does_not_verify(item: object, domain: bytes, data: st.DataObject) -> None:
    encoded = bytearray(sign_envelope(ONE, domain, item, MOST))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not verify_envelope(ONE.id, domain, bytes(encoded))


@quick
@given(items)
def test_the_bound_holds_to_the_byte_on_both_sides(item: object) -> None:
    size = SIGNATURE_LENGTH + len(encode(item))
    encoded = sign_envelope(ONE, b"domain", item, size)
    assert open_envelope(encoded, size) == item
    assert _reason(encoded, size - 1) is EnvelopeReject.OVERSIZED
    with pytest.raises(EnvelopeError, match=f"at most {size - 1} bytes, not {size}") as caught:
        sign_envelope(ONE, b"domain", item, size - 1)
    assert caught.value.reason is EnvelopeReject.OVERSIZED


@quick
@given(st.lists(st.integers(0, 23), max_size=6))
def test_another_encoding_of_a_value_has_a_reason_of_its_own(numbers: list[int]) -> None:
    padded = b"\x98" + bytes([len(numbers)]) + bytes(numbers)  # a length in one byte more than it needs
    assert cbor2.loads(padded) == numbers
    assert _reason(bytes(SIGNATURE_LENGTH) + padded) is EnvelopeReject.NOT_CANONICAL


@quick
@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda body: bytes(SIGNATURE_LENGTH) + body)))
def test_bytes_that_no_key_signed_raise_nothing_but_the_error(data: bytes) -> None:
    try:
        open_envelope(data, 150)
    except EnvelopeError as error:
        assert (error.reason is EnvelopeReject.OVERSIZED) == (len(data) > 150)
    else:
        assert encode(open_envelope(data, 150)) == data[SIGNATURE_LENGTH:]
    assert not verify_envelope(ONE.id, b"domain", data)


@pytest.mark.parametrize("size", [0, 1, SIGNATURE_LENGTH])
def test_a_signature_without_a_body_is_malformed(size: int) -> None:
    assert _reason(bytes(size)) is EnvelopeReject.MALFORMED
