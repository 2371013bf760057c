"""Tables of messages: from a number to a class, its fields and its handler.

On the wire a message is the canonical CBOR array ``[number, field, ...]``. Every field is bounded by its codec, so that
the cores need not check again. A number stands for its message for ever: never changed, never given to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from meshnode.base.limits import MAX_CONTROL_FRAME
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_flag, as_list, as_number, decode, encode

M = TypeVar("M")


class UnknownMessage(WireError):
    """A message of a number that a later version may have added: to be ignored."""


class Codec(NamedTuple):
    """One attribute of a message as one or more elements of the array, named for the reference page.

    ``parse`` takes as many elements as there are names and raises WireError for anything out of bounds.
    """

    names: tuple[str, ...]
    elements: Callable[[Any], list[object]]
    parse: Callable[..., Any]


def _as_it_is(value: Any) -> list[object]:
    return [value]


@value
class Row:
    """One kind of message: its class, its attributes in the order of the wire, and the method that handles it.

    ``handler`` is a path from the object that dispatches (``"hyparview.on_join"``); ``neighbours_only`` drops the
    message when it comes from any other peer; ``check`` raises WireError when fields contradict each other.
    """

    kind: type[Any]
    codecs: Mapping[str, Codec]
    handler: str
    neighbours_only: bool = False
    check: Callable[[Any], None] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the elements behind the number, in order."""
        return tuple(name for codec in self.codecs.values() for name in codec.names)


class MessageTable(Generic[M]):
    """Encodes, decodes and dispatches the messages of one protocol."""

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self.rows = rows
        self.numbers = {row.kind: number for number, row in rows.items()}
        self._handlers = {row.kind: attrgetter(row.handler) for row in rows.values()}
        self._lengths = {number: len(row.fields) + 1 for number, row in rows.items()}

    def encode(self, message: M) -> bytes:
        """Return the canonical bytes of a message."""
        number = self.numbers[type(message)]
        elements: list[object] = [number]
        for attribute, codec in self.rows[number].codecs.items():
            elements += codec.elements(getattr(message, attribute))
        return encode(elements)

    def decode(self, data: bytes) -> M:
        """Parse one message of at most ``MAX_CONTROL_FRAME`` bytes.

        Raises WireError when it is malformed or a field is out of bounds; its subclass UnknownMessage for a number that
        is not in the table.
        """
        elements = decode(data, MAX_CONTROL_FRAME)
        if not isinstance(elements, list) or not elements or type(elements[0]) is not int:
            raise WireError("not an array with a number")
        row = self.rows.get(elements[0])
        if row is None:
            raise UnknownMessage("an unknown number")
        if len(elements) != self._lengths[elements[0]]:
            raise WireError("wrong number of fields")
        values, at = [], 1
        for codec in row.codecs.values():
            values.append(codec.parse(*elements[at : at + len(codec.names)]))
            at += len(codec.names)
        message: M = row.kind(*values)
        if row.check is not None:
            row.check(message)
        return message

    def handler(self, owner: object, message: M) -> Callable[..., None]:
        """Return the method that handles a message.

        ``owner`` is the object that dispatches, from which the row's path starts.
        """
        bound: Callable[..., None] = self._handlers[type(message)](owner)
        return bound


# ---- codecs


def number(name: str, last: int, first: int = 0) -> Codec:
    """An integer of ``first`` to ``last``."""
    return Codec((name,), _as_it_is, lambda value: as_number(value, first, last))


def flag(name: str) -> Codec:
    """A boolean."""
    return Codec((name,), _as_it_is, as_flag)


def octets(name: str, longest: int) -> Codec:
    """Bytes, at most ``longest``."""
    return Codec((name,), _as_it_is, lambda value: as_bytes(value, 0, longest))


def ids(name: str, length: int, most: int, *, least: int = 0) -> Codec:
    """``least`` to ``most`` ids of ``length`` bytes, joined."""
    return Codec(
        (name,), lambda items: [b"".join(items)], lambda value: cut(as_bytes(value, 0, most * length), length, least)
    )


# ---- for codecs of protocols


def pairs_of(value: object, most: int) -> list[tuple[object, object]]:
    """Return a flat list ``[a, b, a, b, ...]`` of at most ``most`` pairs as pairs.

    Raises WireError.
    """
    flat = as_list(value, 2 * most)
    if len(flat) % 2:
        raise WireError("half of a pair is missing")
    return list(zip(flat[::2], flat[1::2], strict=True))


def cut(data: bytes, length: int, least: int = 0) -> tuple[bytes, ...]:
    """Cut joined parts of ``length`` bytes each.

    Raises WireError when a part is cut short, or there are fewer than ``least``.
    """
    if len(data) % length or len(data) < least * length:
        raise WireError("ids are cut short")
    return tuple(data[i : i + length] for i in range(0, len(data), length))
