"""Which first bytes of a client may pass to an address of the mesh: a page with a rebound name is to be kept out."""

from __future__ import annotations

import pytest

from meshnode.base.limits import MAX_PROXY_HEAD
from meshnode.services.proxy.host_guard import HostGuard, judge


def head(host: str, line: str = "GET / HTTP/1.1") -> bytes:
    return f"{line}\r\nAccept: */*\r\nHost: {host}\r\nOrigin: http://x\r\n\r\n".encode()


@pytest.mark.parametrize(
    "host", ["web.laptop.mesh", "LAPTOP.mesh:8080", "[fd00::7]", "[fd00::7]:80", "192.0.2.7:1080", "laptop.mesh."]
)
def test_a_request_for_the_mesh_passes(host: str) -> None:
    assert judge(head(host)) is True
    assert HostGuard().feed(head(host)) == head(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost", "laptop.mesh.evil.example", ""])
@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "foo /x HTTP/1.1"])
def test_a_request_for_another_host_does_not_however_it_is_cut(host: str, line: str) -> None:
    data = head(host, line)
    assert judge(data) is False
    for step in (1, 3, 20):
        guard = HostGuard()
        with pytest.raises(ConnectionResetError):
            assert not any(guard.feed(data[at : at + step]) for at in range(0, len(data), step))


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"EHLO laptop\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET key\r\n",
        b"HELLO\n",
        b"a" * 100,
    ],
)
def test_other_protocols_pass_at_once(data: bytes) -> None:
    assert judge(data) is True
    assert HostGuard().feed(data) == data


def test_a_request_without_a_host_passes_and_one_with_two_passes_if_both_may() -> None:
    assert judge(b"GET / HTTP/1.0\r\n\r\n") is True
    assert judge(b"GET / HTTP/1.1\r\nHost: a.mesh\r\nhost :evil.example\r\n\r\n") is False


def test_it_is_open_until_the_head_is_whole_and_at_its_bound_it_does_not_pass() -> None:
    for data in (b"", b"GET", b"GET /", b"GET / HTTP/1.", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a.mesh\r\n"):
        assert judge(data) is None, data
    assert judge(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_PROXY_HEAD) is False
    assert judge(b"GET /" + b"a" * MAX_PROXY_HEAD) is False


def test_what_comes_behind_the_head_is_not_looked_at_and_an_end_before_is_passed_on() -> None:
    guard = HostGuard()
    first = head("a.mesh")
    assert (guard.feed(first[:9]), guard.feed(first[9:]), guard.is_decided) == (b"", first, True)
    assert guard.feed(head("evil.example")) == head("evil.example")
    early = HostGuard()
    assert (early.feed(b"GET"), early.feed(b"")) == (b"", b"GET")
