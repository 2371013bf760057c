"""Hello and Welcome: a proof for one listener and one connection, and frames cut from a stream."""

from __future__ import annotations

import pytest

from meshnode.base.limits import MAX_CHAIN, MAX_CONTROL_FRAME
from meshnode.base.wire import WireError, encode
from meshnode.identity.keys import Identity
from meshnode.quic.hello import (
    DOMAIN,
    Frame,
    FrameReader,
    frame,
    make_hello,
    make_welcome,
    open_hello,
    open_welcome,
)

DIALLER, LISTENER, OTHER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
ODCID, BOOT, BINDING = b"12345678", b"bootboot", bytes(range(32))


def hello(**changes: object) -> list[object]:
    """The fields of a Hello, with something about it changed."""
    options = {"boot": BOOT, "record": b"record", "grants": ()} | {
        k: v for k, v in changes.items() if k in ("boot", "grants")
    }
    made = make_hello(
        changes.get("me", DIALLER),  # type: ignore[arg-type]
        changes.get("listener", LISTENER.id),  # type: ignore[arg-type]
        changes.get("odcid", ODCID),  # type: ignore[arg-type]
        changes.get("key", bytes(LISTENER.id)),  # type: ignore[arg-type]
        changes.get("binding", BINDING),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )
    return FrameReader().feed(made)[0]


def opened(fields: list[object]) -> object:
    """What the listener makes of it, when the knock named the dialler."""
    return open_hello(fields, LISTENER.id, DIALLER.id, ODCID, BINDING)


def test_a_hello_opens_to_what_was_said() -> None:
    found = open_hello(hello(grants=(b"a", b"b")), LISTENER.id, DIALLER.id, ODCID, BINDING)
    assert (found.boot, found.record, found.grants) == (BOOT, b"record", (b"a", b"b"))


@pytest.mark.parametrize(
    "changes",
    [
        {"me": OTHER},
        {"listener": OTHER.id},
        {"odcid": b"87654321"},
        {"odcid": b""},
        {"key": bytes(OTHER.id)},
        {"binding": bytes(32)},
        {"boot": b"short"},
        {"grants": (b"",) * (MAX_CHAIN + 2)},  # a chain, and a succession
    ],
    ids=str,
)
def test_a_hello_made_for_anything_else_is_worthless(changes: dict[str, object]) -> None:
    with pytest.raises(WireError):
        opened(hello(**changes))


def test_a_hello_that_is_passed_on_under_another_name_is_refused() -> None:
    """A listener that replays its dialler's Hello to a third node is found out twice: by the knock and by the key."""
    fields = hello(listener=OTHER.id, key=bytes(OTHER.id))
    with pytest.raises(WireError):
        opened(fields)
    with pytest.raises(WireError):
        open_hello(hello(), LISTENER.id, OTHER.id, ODCID, BINDING)


def test_no_bit_of_a_hello_can_be_changed() -> None:
    fields = hello()
    for place in (1, 2, 3):
        raw = fields[place]
        assert isinstance(raw, bytes)
        for at in range(len(raw)):
            changed = list(fields)
            changed[place] = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            with pytest.raises(WireError):
                opened(changed)


@pytest.mark.parametrize(
    "fields",
    [
        [1],
        [1, 2, 3, 4],
        [1, b"", b"", b""],
        [1, bytes(DIALLER.id), b"", b"", b""],
        [1, bytes(DIALLER.id), b"", None],
        [1, "text", b"", b""],
    ],
    ids=str,
)
def test_a_hello_of_the_wrong_shape_is_a_wire_error(fields: list[object]) -> None:
    with pytest.raises(WireError):
        opened(fields)


@pytest.mark.parametrize(
    "body", [5, [], [BOOT, b""], [BOOT, b"", 5], [BOOT, b"", ["x"]], [BOOT, "x", []], [None, b"", []]], ids=str
)
def test_a_properly_signed_hello_of_the_wrong_content_is_a_wire_error(body: object) -> None:
    inner = encode(body)
    signed = DOMAIN + bytes(DIALLER.id) + bytes(LISTENER.id) + bytes([len(ODCID)]) + ODCID + bytes(LISTENER.id) + inner
    with pytest.raises(WireError):
        opened([1, bytes(DIALLER.id), inner, DIALLER.sign(signed)])


@pytest.mark.parametrize("fields", [[2], [2, BOOT], [2, b"short", b""], [2, BOOT, "x"], [2, 1, b""], [2, BOOT, b"", 1]])
def test_a_welcome_of_the_wrong_shape_is_a_wire_error(fields: list[object]) -> None:
    with pytest.raises(WireError):
        open_welcome(fields)


def test_a_welcome_opens_to_what_was_said() -> None:
    found = open_welcome(FrameReader().feed(make_welcome(BOOT, b"record"))[0])
    assert (found.boot, found.record) == (BOOT, b"record")


def test_frames_that_come_byte_by_byte_or_all_at_once_are_the_same_frames() -> None:
    data = make_welcome(BOOT, b"r") + frame(Frame.RECORD, b"one") + frame(Frame.RECORD, b"two")
    reader = FrameReader()
    slow = [fields for byte in data for fields in reader.feed(bytes([byte]))]
    assert slow == FrameReader().feed(data)
    assert [fields[0] for fields in slow] == [2, 3, 3]


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x81\x61a", b"\x01", b"\xff", b"\xa0", b"\x81\x18\x03", b"\x81\xf5"])
def test_a_frame_that_is_no_array_with_a_kind_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        FrameReader().feed(len(body).to_bytes(2, "big") + body)


def test_an_oversized_frame_is_refused_before_it_is_kept() -> None:
    with pytest.raises(WireError):
        FrameReader().feed((MAX_CONTROL_FRAME + 1).to_bytes(2, "big"))
