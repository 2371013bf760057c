"""SOCKS5 of the proxy, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import MeshError, NotFound, ServiceNotFound, Unsupported
from meshnode.services.proxy.clients import SocksClient
from meshnode.services.proxy.socks5 import REFUSED_4, Command, Handshake, Reply, Request, reply

GREETING = bytes([5, 1, 0])


def request(kind: int, address: bytes, port: int = 80, command: int = 1) -> bytes:
    return bytes([5, command, 0, kind]) + address + port.to_bytes(2, "big")


def named(name: bytes, port: int = 80, command: int = 1) -> bytes:
    return request(3, bytes([len(name)]) + name, port, command)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_name_is_asked_for_however_the_bytes_are_cut(step: int) -> None:
    asked = bytes([5, 2, 2, 0]) + named(b"web.laptop.mesh", 8080)
    handshake = Handshake()
    for at in range(0, len(asked) - 1, step):
        handshake.receive(asked[at : min(at + step, len(asked) - 1)])
        assert not handshake.is_over
    handshake.receive(asked[-1:] + b"first data")
    assert handshake.request == Request(Command.CONNECT, "web.laptop.mesh", 8080)
    assert handshake.output == bytes([5, 0])
    assert handshake.rest == b"first data"
    handshake.receive(GREETING + named(b"other.mesh"))
    assert handshake.request.host == "web.laptop.mesh", "what comes later is no request"


@pytest.mark.parametrize(
    ("sent", "host"),
    [
        (request(1, bytes([192, 0, 2, 7])), "192.0.2.7"),
        (request(4, bytes([0xFD]) + bytes(14) + b"\x01"), "fd00::1"),
    ],
)
def test_an_address_is_asked_for_as_text(sent: bytes, host: str) -> None:
    handshake = Handshake()
    handshake.receive(GREETING + sent)
    assert handshake.request == Request(1, host, 80)


@pytest.mark.parametrize(
    ("sent", "output", "error"),
    [
        (b"\x05\x01\x02", b"\x05\xff", "authentication"),
        (b"\x05\x00", b"\x05\xff", "authentication"),
        (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00", REFUSED_4, "version 4"),
        (b"\x06", b"", "version 6"),
        (GREETING + b"\x04\x01\x00\x01aaaabb", b"\x05\x00" + reply(Reply.FAILED), "malformed"),
        (GREETING + b"\x05\x01\x01\x01aaaabb", b"\x05\x00" + reply(Reply.FAILED), "malformed"),
        (GREETING + request(2, b"xxxx"), b"\x05\x00" + reply(Reply.ADDRESS_NOT_SUPPORTED), "type 2"),
        (GREETING + named(b""), b"\x05\x00" + reply(Reply.ADDRESS_NOT_SUPPORTED), "no length"),
        (GREETING + named(b"web.laptop.mesh\0.evil"), b"\x05\x00" + reply(Reply.ADDRESS_NOT_SUPPORTED), "characters"),
        (GREETING + named(b"a\r\nb.mesh"), b"\x05\x00" + reply(Reply.ADDRESS_NOT_SUPPORTED), "characters"),
        (GREETING + named("lapt\xf6p.mesh".encode()), b"\x05\x00" + reply(Reply.ADDRESS_NOT_SUPPORTED), "characters"),
    ],
)
def test_what_is_no_request_is_answered_and_over(sent: bytes, output: bytes, error: str) -> None:
    handshake = Handshake()
    handshake.receive(sent)
    assert bytes(handshake.output) == output
    assert error in handshake.error
    assert handshake.is_over
    handshake.receive(GREETING + named(b"web.laptop.mesh"))
    assert handshake.request is None, "nothing after it counts"
    assert bytes(handshake.output) == output


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_no_bytes_raise_and_the_cut_of_them_means_nothing(parts: list[bytes]) -> None:
    one, many = Handshake(), Handshake()
    one.receive(b"".join(parts))
    for part in parts:
        many.receive(part)
    assert (one.request, one.error, one.output) == (many.request, many.error, many.output)


@pytest.mark.parametrize(
    ("command", "error", "code"),
    [
        (Command.BIND, None, Reply.COMMAND_NOT_SUPPORTED),
        (9, None, Reply.COMMAND_NOT_SUPPORTED),
        (Command.CONNECT, NotFound("x"), Reply.HOST_UNREACHABLE),
        (Command.CONNECT, ServiceNotFound("x"), Reply.REFUSED),
    ],
)
def test_a_request_that_leads_nowhere_has_a_code_for_it(command: int, error: MeshError | None, code: int) -> None:
    client = SocksClient()
    client.receive(GREETING + named(b"web.laptop.mesh", command=command))
    client.to_send()
    if error is None:
        with pytest.raises(Unsupported) as refused:
            _ = client.wanted
        error = refused.value
    else:
        assert client.wanted == ("web.laptop.mesh", 80)
    assert client.refused(error) == bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
