"""What a server answers to a stranger that has no key and knows no protocol: three datagrams, or a few bytes of TCP."""

from __future__ import annotations

import os
import re
import socket
import time

WAIT_S = 1.0
UNKNOWN_VERSION = b"\xc0" + b"\x1a\x2a\x3a\x4a" + b"\x08" + bytes(8) + b"\x08" + bytes(8)


def _initial() -> bytes:
    """Return the first datagram of a QUIC client that knows no more than the address."""
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    client = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3", "bench"]))
    client.connect(("127.0.0.1", 4433), now=time.monotonic())
    return client.datagrams_to_send(now=time.monotonic())[0][0]


def where(at: str) -> tuple[str, int]:
    """Return the host and port in what a server says of itself."""
    found = re.search(r"(\d+\.\d+\.\d+\.\d+)(?::|/udp/)(\d+)", at)
    assert found is not None, at
    return found[1], int(found[2])


def _of_stream(host: str, port: int) -> int:
    with socket.create_connection((host, port), timeout=WAIT_S) as sock:
        sock.sendall(os.urandom(64))
        count = 0
        try:
            while data := sock.recv(1 << 16):
                count += len(data)
        except OSError:
            pass
        return count


def answered(at: str, *, stream: bool) -> int:
    """Return the bytes that come back."""
    host, port = where(at)
    if stream:
        return _of_stream(host, port)
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for probe in (os.urandom(64), UNKNOWN_VERSION.ljust(1200, b"\0"), _initial()):
            sock.sendto(probe, (host, port))
        until = time.monotonic() + WAIT_S
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                count += len(sock.recv(1 << 16))
            except OSError:
                break
    return count
