"""Wake URLs: one narrow form, and which hosts and addresses a node may call."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.base.limits import MAX_WAKE_URL
from meshnode.base.wake_url import WakeUrl, parse_wake_url
from meshnode.config import Config
from meshnode.errors import ConfigError
from meshnode.identity.keys import Identity
from meshnode.identity.record import open_record, sign_record
from meshnode.runtime.waking import Permission

WALL = 1_800_000_000.0


def test_a_wake_url_is_a_host_a_port_and_a_path() -> None:
    assert parse_wake_url("https://fn.example.org/") == WakeUrl("fn.example.org", 443, "/")
    assert parse_wake_url("https://a-b.c:8443/x/y?z=1&q=%2F") == WakeUrl("a-b.c", 8443, "/x/y?z=1&q=%2F")
    assert parse_wake_url("https://192.0.2.1/") == WakeUrl("192.0.2.1", 443, "/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://example.org/",
        "https://example.org",
        "https:///x",
        "https://Example.org/",
        "https://user@example.org/",
        "https://example.org@evil.org/",
        "https://example.org\\@evil.org/",
        "https://example.org#@evil.org/",
        "https://example.org/#x",
        "https://example.org/ x",
        "https://example.org/\r\nHost: x",
        "https://example.org:0/",
        "https://example.org:65536/",
        "https://example.org:/",
        "https://[::1]/",
        "https://-a.org/",
        "https://a..org/",
        "https://a.org./",
        "https://exämple.org/",
        "https://example.org/\u2028",
        "https://example.org/\n",
        "https://a.org/" + "x" * MAX_WAKE_URL,
    ],
)
def test_every_other_form_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_wake_url(text)
    if text:
        with pytest.raises(ConfigError, match="wakes"):
            Config(home=tmp_path, wake=text)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/33", "10.0.0.1/8", "https://example.org/", "a b", "a:0", "a:65536", "*.example.org"]
)
def test_what_is_neither_a_host_nor_a_network_is_no_permission(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wake_allow"):
        Config(home=tmp_path, wake_allow=(text,))


@pytest.mark.parametrize(
    ("allowed", "url", "may"),
    [
        ("fn.example.org", "https://fn.example.org/", True),
        ("fn.example.org", "https://fn.example.org:8443/", False),
        ("fn.example.org:8443", "https://fn.example.org:8443/", True),
        ("fn.example.org:8443", "https://fn.example.org/", False),
        ("fn.example.org:443", "https://fn.example.org/", True),
        (".example.org:443", "https://fn.example.org:443/x", True),
        ("example.org", "https://fn.example.org/", False),
        (".example.org", "https://fn.example.org/", True),
        (".example.org", "https://a.fn.example.org/", True),
        (".example.org", "https://example.org/", False),
        (".example.org", "https://badexample.org/", False),
        ("any", "https://fn.example.org/", True),
        ("any", "https://fn.example.org:22/", False),
        ("10.0.0.0/8", "https://10.0.0.1/", False),
    ],
)
def test_only_named_hosts_and_ports_may_be_called(allowed: str, url: str, may: bool) -> None:
    assert Permission((allowed,)).has_host(parse_wake_url(url)) is may


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
        ),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
        *("::", "::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001::1"),
    ],
)
def test_no_address_but_a_public_one_is_called_unless_its_network_is_named(address: str) -> None:
    assert not Permission(("any",)).has_address(address)
    assert not Permission(("any", "192.168.0.0/24")).has_address(address)


def test_public_addresses_and_those_in_a_named_network_are_called() -> None:
    assert Permission(("any",)).has_address("93.184.216.34")
    assert Permission(("any",)).has_address("2606:2800:220:1::1")
    named = Permission(("any", "10.1.0.0/16", "fd00::/8"))
    assert named.has_address("10.1.2.3")
    assert named.has_address("::ffff:10.1.2.3")
    assert named.has_address("fd00::1")
    assert not named.has_address("10.2.0.1")


def test_a_record_carries_the_url_and_no_longer_one() -> None:
    url = "https://example.org/".ljust(MAX_WAKE_URL, "x")
    for text, valid in ((f"wake:{url}", True), (f"wake:{url}x", False), ("x" * 25, False)):
        record = sign_record(
            Identity(bytes(32)), seq=1, issued_ms=int(WALL * 1000), ttl=60, endpoints=(), capabilities=("seed", text)
        )
        if valid:
            assert open_record(record.encoded, WALL).wake == url
        else:
            with pytest.raises(ValueError):
                open_record(record.encoded, WALL)
