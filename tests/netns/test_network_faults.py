"""A network that misbehaves for a while, and hosts that lack something: streams go on, and nodes are found."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import cases
from tests.given_time import status_of
from tests.netns.host_node import HostNode, wait
from tests.netns.lab import ROOT, Host, Lab, require

pytestmark = pytest.mark.netns

OTHER = "10.77.0.44/24"
UDP_ECHO = (
    "import socket\n"
    "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "sock.bind(('127.0.0.1', 18000))\n"
    "while True: sock.sendto(*sock.recvfrom(1_000))"
)


def _rules(host: Host, rule: str = "") -> None:
    host.exec("nft", "-f", "-", stdin=f"flush ruleset\n{rule}\n")


def _hook(hook: str, rule: str) -> str:
    return f"table inet faults {{ chain c {{ type filter hook {hook} priority 0; {rule}; }}\n}}"


class Link:
    """Two hosts with a stream between them."""

    def __init__(self, lab: Lab) -> None:
        self.switch = lab.switch()
        self.here, self.there = (lab.host(label, self.switch, f"10.77.0.{n}/24") for n, label in ((2, "a"), (3, "b")))
        self.stream = cases.Stream(lab, self.there, self.here, lab.scratch / "stream")


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    require()
    with Lab() as lab:
        yield Link(lab)


def _refused_sending(link: Link) -> None:
    _rules(link.here, _hook("output", "meta l4proto udp drop"))  # sendmsg says EPERM
    time.sleep(1.0)
    _rules(link.here)


def _port_unreachable(link: Link) -> None:
    _rules(link.there, _hook("input", "meta l4proto udp reject with icmpx port-unreachable"))
    time.sleep(1.0)
    _rules(link.there)


def _prohibited(link: Link) -> None:
    _rules(link.there, _hook("input", "meta l4proto udp reject with icmpx admin-prohibited"))
    time.sleep(1.0)
    _rules(link.there)


def _stolen_address(link: Link) -> None:
    """Another machine of the LAN answers ARP for the address of one end."""
    link.here.ip("neigh replace 10.77.0.3 lladdr 02:00:00:00:00:99 nud permanent dev eth0")
    time.sleep(1.0)
    link.here.ip("neigh del 10.77.0.3 dev eth0")


def _address_away(link: Link) -> None:
    link.there.ip("addr del 10.77.0.3/24 dev eth0")
    time.sleep(1.0)
    link.there.ip("addr add 10.77.0.3/24 dev eth0")


def _new_lease(link: Link) -> None:
    link.there.ip(f"addr add {OTHER} dev eth0")
    time.sleep(1.0)
    link.there.ip("addr del 10.77.0.3/24 dev eth0")  # and, by the kernel's rule, others of its subnet
    link.there.ip(f"addr replace {OTHER} dev eth0")


def _interface_made_anew(link: Link) -> None:
    link.there.ip("link del eth0")
    link.switch.plug(link.there)
    link.there.ip("link set eth0 up", "addr add 10.77.0.55/24 dev eth0")


def _containers(link: Link) -> None:
    for number in range(8):
        link.there.ip(f"link add veth{number} type veth peer name peer{number}", f"link set veth{number} up")
        time.sleep(0.1)
        link.there.ip(f"link del veth{number}")


def _destroy_sockets(host: Host) -> None:
    """Do what a VPN does that begins, or ends: destroy the sockets of all programs (SOCK_DESTROY)."""
    if not host.exec("ss", "--kill", "--udp", "--all", "--numeric", "--no-header"):
        pytest.skip("this kernel destroys no sockets (CONFIG_INET_DIAG_DESTROY)")


def _sockets_destroyed(link: Link) -> None:
    for host in (link.here, link.there):
        _destroy_sockets(host)
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("event", "is_cut"),
    [
        (_refused_sending, True),
        (_port_unreachable, True),
        (_prohibited, True),
        (_stolen_address, True),
        (_address_away, True),
        (_new_lease, False),
        (_interface_made_anew, True),
        (_containers, False),
        (_sockets_destroyed, False),
    ],
)
def test_a_stream_outlives_what_happens_to_a_network(link: Link, event: Callable[[Link], None], is_cut: bool) -> None:
    link.stream.watch(0.3)
    begun = time.monotonic()
    event(link)
    cut_ms = (time.monotonic() - begun) * 1_000 if is_cut else 0.0
    report = link.stream.watch(2.0, reset=False)
    assert (report["lost"], report["reordered"], report["error"]) == (0, 0, None)
    assert report["gap_ms"] < cut_ms + 1_000


def test_a_node_at_its_limit_of_descriptors_keeps_its_streams_and_tells_its_next_address() -> None:
    require("prlimit")
    with Lab() as lab:
        switch, _, options = cases.seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options)
        friend.echo(node)
        pid = node.program.pid
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={used}:"], check=True)  # not one is left
        node.host.renumber("10.77.0.33/24")
        assert friend.echo(node)["path"] == "lan"
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=1024:"], check=True)
        wait(lambda: any(text.startswith("10.77.0.33") for text in node.ask("status")["endpoints"]))
        assert "Traceback" not in node.said()


def test_a_node_whose_socket_was_destroyed_is_reached_at_the_port_that_its_record_names() -> None:
    require("ss")
    with Lab() as lab:
        switch, seed, options = cases.seed_in(lab)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options)
        seed.echo(node)

        def port() -> str:
            (line,) = node.host.exec("ss", "--udp", "--all", "--numeric", "--no-header").splitlines()
            return line.split()[3].rpartition(":")[2]

        for _ in range(3):
            before = port()
            _destroy_sockets(node.host)
            node.echo(seed)
            assert port() == before
            assert {text.rpartition(":")[2] for text in node.ask("status")["endpoints"]} == {before}
        wait(lambda: node.ask("status")["counters"]["udp_ended"] == 3)
        assert seed.echo(node)["path"] == "lan"


BANNER = (
    "import socket\n"
    "server = socket.create_server(('127.0.0.1', 18000))\n"
    "while True: server.accept()[0].sendall(b'banner')"
)


def _carries(host: Host, at: tuple[str, int], first: bytes = b"") -> bool:
    """Return whether a connection of a host's program is carried to what sends a banner."""

    def read() -> bool:
        with socket.create_connection(at, 10) as sock:
            sock.sendall(first)
            found = b""
            while b"banner" not in found and (more := sock.recv(1_000)):
                found += more
            return b"banner" in found

    return host.inside(read)


def _listens(host: Host, port: int) -> bool:
    found = host.exec("ss", "--tcp", "--listening", "--numeric", "--no-header", "sport", "=", str(port))
    return found.startswith("LISTEN")


def _dns_query(id: str) -> bytes:
    """Return a question for the address of a node (RFC 1035 section 4.1)."""
    name = bytes([len(id)]) + id.encode() + b"\4mesh\0"
    return b"\0\7\1\0\0\1\0\0\0\0\0\0" + name + b"\0\x1c\0\1"


def _heard(host: Host, port: int, data: bytes) -> bool:
    """Return whether a UDP port of a host's loopback answers."""

    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.sendto(data, ("127.0.0.1", port))
            try:
                return bool(sock.recv(1_000))
            except OSError:
                return False

    return host.inside(ask)


def test_what_listens_goes_on_where_it_was_when_the_system_has_ended_its_sockets() -> None:
    require("ss")
    with Lab() as lab:
        switch, seed, options = cases.seed_in(lab)
        host = lab.host("node", switch, "10.77.0.3/24")
        node = HostNode(host, "--listen", "0.0.0.0:4343", *options, env={"MESHNODE_RELAY": "on"})
        seed.host.start(sys.executable, "-c", UDP_ECHO)
        seed.ask("expose", "echo", "udp://127.0.0.1:18000", "--allow", "any")
        seed.host.start(sys.executable, "-c", BANNER)
        seed.ask("expose", "web", "tcp://127.0.0.1:18000", "--allow", "any")
        node.ask("forward", "127.0.0.1:18001", f"{seed.id}/web")
        node.ask("forward", "udp://127.0.0.1:18002", f"{seed.id}/echo")
        node.ask("proxy", "127.0.0.1:18003", "--dns", "127.0.0.1:18004")
        connect = b"CONNECT web.%b.mesh:80 HTTP/1.1\r\nHost: web\r\n\r\n" % seed.id.encode()
        for _ in range(2):
            _destroy_sockets(host)
            host.exec("ss", "--kill", "--tcp", "--listening", "--numeric", "--no-header")
            node.echo(seed)
            assert _carries(host, ("127.0.0.1", 18001))
            assert _carries(host, ("127.0.0.1", 18003), connect)
            assert _listens(host, 4343)
            wait(lambda: _heard(host, 18002, b"x"))
            assert _heard(host, 18004, _dns_query(seed.id))
        assert node.ask("status")["counters"]["accept_ended"] == 6, "and none spins"


def test_a_move_behind_a_flood_of_interface_events_is_noticed() -> None:
    require()
    with Lab() as lab:
        switch, seed, options = cases.seed_in(lab)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options)
        seed.echo(node)
        node.program.signal(signal.SIGSTOP)  # it reads no event meanwhile
        for do in ("add", "del"):
            lines = (f"addr {do} 10.9.{i // 250}.{i % 250 + 1}/32 dev lo\n" for i in range(1_000))
            node.host.exec("ip", "-batch", "-", stdin="".join(lines))
        node.program.signal(signal.SIGCONT)
        node.echo(seed)
        time.sleep(1.0)
        node.host.renumber("10.77.0.33/24")
        wait(lambda: any(text.startswith("10.77.0.33:") for text in node.ask("status")["endpoints"]), 10)
        seed.echo(node, 10)


def test_without_ipv6_in_one_of_the_hosts_mdns_and_echoes_work() -> None:
    require()
    with Lab() as lab:
        switch = lab.switch()
        hosts = [lab.host(label, switch, f"10.77.0.{n}/24") for n, label in ((2, "a"), (3, "b"))]
        for scope in ("all", "default", "lo"):
            hosts[1].exec("sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        a, b = map(HostNode, hosts)
        assert a.echo(b, 20)["path"] == "lan"
        assert b.echo(a, 20)["path"] == "lan"


def test_without_proc_a_node_works() -> None:
    require("unshare")
    with Lab() as lab:
        switch, seed, options = cases.seed_in(lab)
        host = lab.host("node", switch, "10.77.0.3/24")
        home = lab.scratch / "bare"
        bare = host.start(
            *("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
            *(sys.executable, "-m", "meshnode", "up", "--json", "--home", str(home), *options),
        )
        peer = bare.line(60)["id"]
        done = seed.call("ping", peer, "-c", "1")
        assert json.loads(done.stdout.splitlines()[-1])["rtt_ms"] is not None


@pytest.mark.parametrize("mask", ["000", "077"])
def test_whatever_the_umask_the_home_is_its_owners_alone(tmp_path: Path, mask: str) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "meshnode", "up", "--json", "--no-mdns", "--listen", "127.0.0.1:0"]
    node = subprocess.Popen(
        ["sh", "-c", f'umask {mask}; exec "$@"', "sh", *command, "--home", str(home)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert node.stdout is not None
        assert json.loads(node.stdout.readline())["ready"]
        asked = [sys.executable, "-m", "meshnode", "expose", "x", "80", "--home", str(home)]
        subprocess.run(asked, check=True, capture_output=True, cwd=ROOT)
        assert {file.name for file in home.iterdir()} >= {"key", "lock", "services.json", "control.sock"}
        assert [file.name for file in (home, *home.iterdir()) if file.lstat().st_mode & 0o077] == []
    finally:
        node.terminate()
        status_of(node, 20)


def test_a_seeds_name_with_a_dead_ipv6_address_is_joined_by_its_ipv4_one() -> None:
    require()
    with Lab() as lab:
        switch, seed, _ = cases.seed_in(lab)
        host = lab.host("node", switch, "10.77.0.3/24")
        host.ip("addr add 2001:db8:1::3/64 dev eth0", "route add default via 2001:db8:1::1")
        with cases.etc_of(host, hosts=f"127.0.0.1 localhost\n2001:db8::99 seed.example\n{cases.SEED} seed.example\n"):
            node = HostNode(host, "--no-mdns", "--seed", f"{seed.id}@seed.example:4242")
            begun = time.monotonic()
            wait(lambda: node.ask("status")["peers"])
        assert time.monotonic() - begun < 5


def test_a_node_without_udp_that_moves_is_back_by_a_tunnel_from_its_new_address() -> None:
    require()
    with Lab() as lab:
        switch = lab.switch()
        at = lab.host("seed", switch, f"{cases.SEED}/24")
        seed = HostNode(at, "--listen", "0.0.0.0:4242", "--no-mdns", env={"MESHNODE_RELAY": "on"})
        host = lab.host("node", switch, "10.77.0.3/24")
        _rules(host, _hook("output", "meta l4proto udp drop"))
        node = HostNode(host, "--no-mdns", "--seed", f"{seed.id}@{cases.SEED}:4242")
        node.echo(seed)
        for last in (33, 34):
            host.renumber(f"10.77.0.{last}/24")
            node.echo(seed, 10.0)


def test_a_seed_with_an_ipv4_address_is_reached_from_a_network_of_ipv6_alone_that_translates() -> None:
    require()
    with Lab() as lab:
        switch = lab.switch()
        at = lab.host("seed", switch, f"{cases.SEED}/24")
        at.ip("addr add 64:ff9b::a4d:1/96 dev eth0", "route add 2001:db8:1::/64 dev eth0")  # as behind a translator
        seed = HostNode(at, "--listen", "[::]:4242", "--no-mdns")
        host = lab.host("node", switch, "10.77.0.3/24")
        host.ip("addr del 10.77.0.3/24 dev eth0", "addr add 2001:db8:1::3/64 dev eth0", "route add ::/0 dev eth0")
        with cases.etc_of(host, hosts="127.0.0.1 localhost\n64:ff9b::c000:aa ipv4only.arpa\n"):
            node = HostNode(host, "--no-mdns", "--seed", f"{seed.id}@{cases.SEED}:4242")
            wait(lambda: node.ask("status")["peers"])


@pytest.mark.parametrize("listen", ["[::]:4242", "0.0.0.0:4242"])
def test_a_seed_is_reached_at_its_second_address_from_behind_a_nat_and_at_the_first_when_that_is_cut_off(
    listen: str,
) -> None:
    require()
    with Lab() as lab:
        switch = lab.switch()
        at = lab.host("seed", switch, f"{cases.SEED}/24")
        at.ip("addr add 10.77.0.9/24 dev eth0", "route add default via 10.77.0.254")
        seed = HostNode(at, "--listen", listen, "--no-mdns")
        home = lab.router("home", switch, "10.77.0.20/24", inside="10.78.0.1/24")
        host = lab.host("node", home, "10.78.0.2/24", "10.78.0.1")
        node = HostNode(host, "--no-mdns", "--seed", f"{seed.id}@10.77.0.9:4242")
        wait(lambda: node.ask("status")["peers"])
        node.echo(seed)
        cut = _hook("forward", "ip saddr 10.77.0.9 drop; ip daddr 10.77.0.9 drop")
        home.exec("nft", "-f", "-", stdin=f"{cut}\n")
        node.echo(seed, 20.0)
