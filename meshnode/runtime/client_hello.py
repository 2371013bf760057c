"""The server name of a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), read before anything is answered.

Strangers' bytes: nothing here raises. A name that is not there yet is b"" and ``None`` means that it never will be.
"""

from __future__ import annotations

HEADER_LENGTH = 5  # of a TLS record (RFC 8446 section 5.1)
MAX_HELLO = 4_096  # a dialler sends about 600 bytes, 1,900 with a hybrid key share; parsing takes 0.3 ms at worst
MAX_EXTENSIONS = 64  # a dialler sends 13


class _Short(Exception):
    """More bytes are needed."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise _Short
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """Bytes behind their length, which itself has ``size`` bytes."""
        return self.take(self.number(size))

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def record_length(header: bytes) -> int | None:
    """Return the bytes of the TLS record that begins with these ``HEADER_LENGTH`` bytes, the header included.

    None when it is no handshake record, or longer than ``MAX_HELLO``.
    """
    length = HEADER_LENGTH + int.from_bytes(header[3:5], "big")
    return length if header[0] == 0x16 and header[1] == 3 and length <= MAX_HELLO else None


def server_name(data: bytes) -> str | None:
    """Return the server name of a ClientHello, "" while more bytes are needed.

    Args:
        data: The first bytes of the TCP connection. The ClientHello must be within one TLS record.

    Returns:
        None for anything else: another record or message, more than ``MAX_HELLO`` bytes, no server_name extension, a
        name that is not ASCII.
    """
    if len(data) > MAX_HELLO:
        return None
    try:
        extensions = _extensions(data)
        return _named_in(extensions) if extensions is not None else None
    except _Short:
        return ""
    except UnicodeDecodeError:
        return None


def _extensions(data: bytes) -> _Reader | None:
    record = _Reader(data)
    if record.number(1) != 0x16 or record.number(1) != 3:
        return None
    record.take(1)
    hello = _Reader(record.take(min(record.number(2), record.left)))
    if hello.number(1) != 1:
        return None
    body = _Reader(hello.block(3))
    body.take(2 + 32)
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        body.block(width)
    return _Reader(body.block(2))


def _named_in(extensions: _Reader) -> str | None:
    for _ in range(MAX_EXTENSIONS):
        if not extensions.left:
            break
        kind = extensions.number(2)
        value = _Reader(extensions.block(2))
        if kind == 0:
            names = _Reader(value.block(2))
            return names.block(2).decode("ascii") if names.number(1) == 0 else None
    return None
