"""DNS of the mesh as dig asks it, and connections by the addresses that it tells."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from tests.given_time import HANG_S
from tests.live.cli_node import CliNode, clean_environment, run, stopping

pytestmark = pytest.mark.skipif(
    shutil.which("dig") is None or shutil.which("curl") is None, reason="it is dig and curl that ask"
)


class Site(http.server.BaseHTTPRequestHandler):
    """Tells which of several sites it is."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.name)  # type: ignore[attr-defined]

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Zone:
    """A node with two sites, and one with a proxy that answers DNS."""

    there: CliNode
    here: CliNode
    proxy: str
    dns: str

    def dig(self, *args: str) -> str:
        """Return what dig prints."""
        host, _, port = self.dns.rpartition(":")
        line = ["dig", f"@{host}", "-p", port, "+tries=1", "+time=8", *args]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=HANG_S).stdout

    def address(self, name: str) -> str:
        """Return the one address of a name."""
        found = self.dig("+short", name, "AAAA").split()
        assert len(found) == 1, found
        return found[0]

    def curl(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        """Run curl through the proxy, which is given an address."""
        kept = {name: value for name, value in clean_environment().items() if "proxy" not in name.lower()}
        line = ["curl", "-sS", "-m", "20", "--noproxy", "", *args]
        return subprocess.run(line, capture_output=True, timeout=HANG_S, check=False, env=kept)


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zone]:
    home = tmp_path_factory.mktemp("zone")
    sites = []
    for name in (b"one", b"two"):
        site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
        site.name = name  # type: ignore[attr-defined]
        threading.Thread(target=site.serve_forever, daemon=True).start()
        sites.append(site)
    there = CliNode(home / "there", "--name", "laptop", command="seed")
    here = CliNode(home / "here", seed=there)
    with stopping(here, there):
        for name, site in zip(("one", "two"), sites, strict=True):
            there.ask("expose", name, str(site.server_address[1]), "--allow", "any")
        there.ask("expose", "http", str(sites[0].server_address[1]), "--allow", "any")
        found = here.ask("proxy", "127.0.0.1:0", "--dns", "127.0.0.1:0")
        yield Zone(there, here, found["listen"], found["dns"])
    for site in sites:
        site.shutdown()
        site.server_close()


def test_a_node_has_the_address_that_id_prints(zone: Zone) -> None:
    address = zone.there.ask("id")["address"]
    for name in ("laptop.mesh", "LAPTOP.mesh.", f"{zone.there.id}.mesh"):
        assert IPv6Address(zone.address(name)) == IPv6Address(address)


def test_addresses_lead_to_the_node_and_to_each_of_its_services(zone: Zone) -> None:
    for name, body in (("laptop.mesh", b"one"), ("one.laptop.mesh", b"one"), (f"two.{zone.there.id}.mesh", b"two")):
        address = zone.address(name)
        for way in (["--socks5", zone.proxy], ["-x", zone.proxy], ["-p", "-x", zone.proxy]):
            assert zone.curl(*way, f"http://[{address}]/").stdout == body
            assert zone.curl(*way, "--connect-to", f"{name}:80:[{address}]:80", f"http://{name}/").stdout == body


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("laptop.mesh", "A", "NOERROR"),
        ("mesh", "SOA", "NOERROR"),
        ("nobody.mesh", "AAAA", "NXDOMAIN"),
        ("example.org", "AAAA", "REFUSED"),
        ("example.org", "A", "REFUSED"),
    ],
)
def test_what_has_no_address_says_why(zone: Zone, name: str, kind: str, status: str) -> None:
    said = zone.dig(name, kind)
    assert f"status: {status}," in said
    assert "ANSWER: 0," in said


def test_an_address_that_no_program_was_told_leads_nowhere(zone: Zone) -> None:
    done = zone.curl("-x", zone.proxy, "-i", "http://[fd00::1]/")
    assert done.stdout.startswith(b"HTTP/1.1 403 ")
    assert zone.curl("--socks5", zone.proxy, "http://[fd00::1]/").returncode == 97


def test_a_page_with_its_own_name_rebound_to_an_address_does_not_get_in(zone: Zone) -> None:
    address = zone.address("laptop.mesh")
    for way in (["--socks5", zone.proxy], ["-p", "-x", zone.proxy]):
        good = zone.curl(*way, "-H", "Host: laptop.mesh", f"http://[{address}]/")
        assert good.stdout == b"one"
        bad = zone.curl(*way, "-H", "Host: evil.example", f"http://[{address}]/")
        assert (bad.returncode != 0, bad.stdout) == (True, b"")


def test_what_is_no_query_gets_no_answer_and_the_next_one_does(zone: Zone) -> None:
    host, _, port = zone.dns.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1.0)
        for junk in (b"", b"x", b"\0\1\x81\0" + bytes(8), bytes(600), b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\x1c\0\1"):
            client.sendto(junk, (host, int(port)))
        with suppress(TimeoutError):
            assert client.recv(600) == b"nothing"
    assert zone.address("laptop.mesh")


def test_it_answers_on_loopback_alone(zone: Zone) -> None:
    for where in ("0.0.0.0:0", "[::]:0", "unix:/tmp/x"):
        assert zone.here.error("proxy", "0", "--public", "--dns", where)["code"] == "config_error"
    assert len(zone.here.run("proxy", "--json").stdout.splitlines()) == 1, "no proxy without its DNS"
    assert zone.here.error("proxy", "0", "--dns", zone.dns)["code"] == "address_in_use"


def test_it_is_kept_over_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("again")
    node = CliNode(home)
    with stopping(node):
        told = node.ask("proxy", "0", "--dns", "[::1]:0")
    node = CliNode(home)
    with stopping(node):
        assert {**node.ask("proxy"), **told} == node.ask("proxy")
        assert node.ask("proxy", told["listen"], "--dns", told["dns"]) == told
        assert run(home, "unproxy", told["listen"]).returncode == 0
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
            free.bind(("::1", int(told["dns"].rpartition(":")[2])))
