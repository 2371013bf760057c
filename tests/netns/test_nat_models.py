"""The kernel's NATs and the simulated ones are the same NATs: what passes through the one passes through the other.

One table of probe scripts (tests/sim/nat_probes.py) runs on both.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import product

import pytest

from tests.netns import natlab
from tests.netns.lab import ECHO_NODE
from tests.netns.nat_bench import LabBench, Servers, Site
from tests.netns.natlab import NatLab, inside_of, rehome, udp_socket
from tests.sim.nat_probes import HAIRPIN, KINDS, OVERLOADED, PUNCH, SCRIPTS, TIMEOUTS, play
from tests.sim.sim_bench import SimBench

pytestmark = pytest.mark.netns
HTTP = b"CONNECT 198.51.100.7:8443 HTTP/1.1\r\nHost: 198.51.100.7:8443\r\n"


class Field:
    """Every kind of NAT twice, on one switch, and the servers."""

    def __init__(self, lab: NatLab, *, hairpin: bool = False, timeout: float | None = None, twice: bool = True) -> None:
        self.lab = lab
        self.switch = lab.switch()
        self.servers = Servers(lab, self.switch)
        self.sites: dict[tuple[str, int], Site] = {}
        self.seconds: dict[str, float] = {}
        for number, (kind, side) in enumerate(product(KINDS, (0, 1) if twice else (0,))):
            started = time.monotonic()
            nat = lab.nat_site(
                f"{kind[:8]}{side}",
                self.switch,
                kind,
                f"198.51.100.{11 + number}/24",
                hairpin=hairpin,
                timeout=timeout,
            )
            self.seconds[kind] = time.monotonic() - started
            self.sites[kind, side] = Site(lab, nat)

    def close(self) -> None:
        """Close the sockets."""
        for one in (self.servers, *self.sites.values()):
            one.close()


@contextmanager
def _field(**options: object) -> Iterator[Field]:
    with NatLab() as lab, closing(Field(lab, **options)) as field:  # type: ignore[arg-type]
        yield field


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    natlab.require()
    with _field() as made:
        print("seconds to set up one site:", {kind: round(took, 2) for kind, took in made.seconds.items()})
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_and_kernel_nat_agree(field: Field, kind: str) -> None:
    for script, (steps, _) in SCRIPTS.items():
        with closing(LabBench(field.servers, field.sites[kind, 0])) as bench:
            assert play(steps, bench) == play(steps, SimBench(kind)), script


@pytest.mark.parametrize(("left", "right"), list(product(KINDS, KINDS)))
def test_the_same_pairs_can_punch_a_hole(field: Field, left: str, right: str) -> None:
    with closing(LabBench(field.servers, field.sites[left, 0], field.sites[right, 1])) as bench:
        assert play(PUNCH, bench) == play(PUNCH, SimBench(left, right))


def test_masquerading_is_the_linux_model_also_where_two_hosts_share_a_port(field: Field) -> None:
    for steps in (*OVERLOADED, *(steps for steps, _ in SCRIPTS.values())):
        with closing(LabBench(field.servers, field.sites["port_restricted", 0])) as bench:
            assert play(steps, bench) == play(steps, SimBench("linux")), steps


def test_hairpinning_agrees() -> None:
    natlab.require()
    steps, _ = HAIRPIN
    with _field(hairpin=True, twice=False) as field:
        for kind in KINDS:
            with closing(LabBench(field.servers, field.sites[kind, 0])) as bench:
                assert play(steps, bench) == play(steps, SimBench(kind, hairpin=True)), kind
                assert play(steps, bench).text != play(steps, SimBench(kind)).text or kind == "symmetric"


def test_timeouts_agree() -> None:
    natlab.require()
    with _field(timeout=3.0, twice=False) as field:
        cases = list(product(KINDS, TIMEOUTS.values()))
        # all at once, for most of it is waiting
        with ThreadPoolExecutor(len(cases)) as pool:
            benches = [LabBench(field.servers, field.sites[kind, 0], timeout=3.0) for kind, _ in cases]
            found = list(pool.map(lambda case, bench: play(case[1][0], bench), cases, benches))
        for bench in benches:
            bench.close()
        for (kind, (steps, _)), outcome in zip(cases, found, strict=True):
            assert outcome == play(steps, SimBench(kind)), (kind, steps)


def test_two_homes_behind_one_carrier_agree_with_the_model() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        with closing(Servers(lab, switch)) as servers:
            for number, (carrier, hairpin) in enumerate(
                (("full_cone", False), ("full_cone", True), ("symmetric", False))
            ):
                front = lab.nat_site(
                    f"cgn{number}",
                    switch,
                    carrier,
                    f"198.51.100.{20 + number}/24",
                    inside="100.64.0.1/24",
                    hairpin=hairpin,
                )
                homes = [
                    Site(
                        lab,
                        lab.nat_site(
                            f"home{number}{side}",
                            front,
                            "port_restricted",
                            f"100.64.0.1{side}/24",
                            gateway="100.64.0.1",
                        ),
                    )
                    for side in (1, 2, 78)
                ]
                with closing(homes[0]), closing(homes[1]):
                    for script in ("a>s1 x>s1 a>x@s1 x>a@s1 a>x@s1", "a>s1 s1>a@s1 s2>a@s1 t>a@s1", "a>s1 a>s2 a>t"):
                        # the model's homes hairpin or not together with their carrier: no script tries the carrier's
                        model = SimBench("port_restricted", "port_restricted", carrier=carrier, hairpin=hairpin)
                        with closing(LabBench(servers, homes[0], homes[1])) as bench:
                            assert play(script, bench) == play(script, model), (carrier, hairpin, script)


def test_where_udp_is_blocked_tcp_still_goes_out_and_through_a_proxy_with_credentials() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        with closing(Servers(lab, switch)) as servers:
            site = Site(lab, lab.nat_site("walled", switch, "blocked_udp", "198.51.100.11/24"))
            proxy = lab.host("proxy", switch, "198.51.100.30/24")
            program = lab.connect_proxy(proxy, credentials="user:secret", rate=1_000_000)
            with closing(site), closing(_echo_server(servers)):
                site.fence.sendto(b"lost", ("198.51.100.7", 7999))
                with closing(_dial(site, ("198.51.100.7", 8443))) as direct:
                    direct.sendall(b"over TCP")
                    assert direct.recv(100) == b"over TCP"
                with closing(_dial(site, ("198.51.100.30", 3128))) as stranger:
                    stranger.sendall(HTTP + b"\r\n")
                    assert stranger.recv(1000).startswith(b"HTTP/1.1 407 ")
                assert program.line() == {"status": 407, "to": "198.51.100.7:8443"}
                with closing(_dial(site, ("198.51.100.30", 3128))) as tunnel:
                    tunnel.sendall(HTTP + b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n")
                    assert tunnel.recv(1000).startswith(b"HTTP/1.1 200 ")
                    started = time.monotonic()
                    assert _round_trip(tunnel, bytes(150_000)) == 150_000
                    assert time.monotonic() - started > 0.25, "twice 150 kB at 1 MB/s"
                servers.fence.setblocking(False)
                with pytest.raises(BlockingIOError):
                    servers.fence.recv(100)


def _dial(site: Site, to: tuple[str, int]) -> socket.socket:
    return inside_of(site.host, lambda: socket.create_connection(to, timeout=10))


def _round_trip(stream: socket.socket, data: bytes) -> int:
    sender = threading.Thread(target=stream.sendall, args=(data,))
    sender.start()
    count = 0
    while count < len(data) and (piece := stream.recv(65_536)):
        count += len(piece)
    sender.join()
    return count


def _echo_server(servers: Servers) -> socket.socket:
    listener = inside_of(servers.host, lambda: socket.create_server(("198.51.100.7", 8443)))

    def echo(stream: socket.socket) -> None:
        with stream:
            while data := stream.recv(65_536):
                stream.sendall(data)

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_a_network_without_multicast_still_carries_unicast() -> None:
    natlab.require()
    with NatLab() as lab:
        site = lab.nat_site("quiet", lab.switch(), "port_restricted", "198.51.100.11/24")
        one, two = (lab.host(f"h{n}", site, f"10.0.0.{n}/24", gateway="10.0.0.1") for n in (2, 3))
        heard = []
        with closing(udp_socket(one, "10.0.0.2", 5353)) as sender, closing(udp_socket(two, "0.0.0.0", 5353)) as hears:
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("10.0.0.3")
            hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            hears.settimeout(10)
            sender.sendto(b"up", ("10.0.0.3", 5353))
            assert hears.recv(100) == b"up"  # a bridge forwards nothing to a port whose link has just come up
            for quiet in (False, True):
                if quiet:
                    site.no_multicast()
                sender.sendto(b"to all", ("224.0.0.251", 5353))
                sender.sendto(b"to one", ("10.0.0.3", 5353))  # the fence: it comes after the other, or alone
                while (data := hears.recv(100)) != b"to one":
                    heard.append((quiet, data))
        assert heard == [(False, b"to all")]


def test_an_open_site_is_reached_at_its_own_addresses_and_a_renumbered_one_at_its_new_one() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        with closing(Servers(lab, switch)) as servers:
            free = lab.nat_site("open", switch, "open", "198.51.100.11/24", inside="198.51.100.129/25")
            host = lab.host("free", free, "198.51.100.130/25", gateway="198.51.100.129")
            with closing(udp_socket(host, "198.51.100.130", 5000)) as socket_inside:
                socket_inside.settimeout(10)
                servers.fence.sendto(b"unasked", ("198.51.100.130", 5000))
                assert socket_inside.recvfrom(100) == (b"unasked", ("198.51.100.7", 7999))
            for kind in ("full_cone", "symmetric"):
                nat = lab.nat_site(kind[:5], switch, kind, "198.51.100.12/24")
                with closing(Site(lab, nat)) as site:
                    servers.fence.settimeout(10)
                    for outside in ("198.51.100.12", "198.51.100.13"):
                        if outside != nat.outside:
                            nat.renumber(f"{outside}/24")
                        site.fence.sendto(b"hello", ("198.51.100.7", 7999))
                        assert servers.fence.recvfrom(100)[1][0] == outside
                    assert len(nat.mappings()) == 1
                    nat.rebind()
                    assert nat.mappings() == set()
                nat.link_down()


def test_two_hosts_change_places_at_the_same_moment() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        with closing(Servers(lab, switch)) as servers:
            servers.fence.settimeout(10)
            sites = [
                lab.nat_site(f"site{n}", switch, kind, f"198.51.100.1{n}/24")
                for n, kind in enumerate(("port_restricted", "full_cone"))
            ]
            hosts = [lab.host(f"host{n}", sites[n], "10.0.0.2/24", gateway="10.0.0.1") for n in (0, 1)]
            with closing(udp_socket(hosts[0], "0.0.0.0", 5000)) as one, closing(udp_socket(hosts[1], "", 5000)) as two:

                def seen() -> list[str]:
                    found = []
                    for each in (one, two):
                        each.sendto(b"where am I", ("198.51.100.7", 7999))
                        found.append(servers.fence.recvfrom(100)[1][0])
                    return found

                assert seen() == ["198.51.100.10", "198.51.100.11"]
                started = time.monotonic()
                rehome({hosts[n]: (sites[1 - n], "10.0.0.2/24", "10.0.0.1") for n in (0, 1)})
                print(f"change of places: {time.monotonic() - started:.2f} s")
                assert seen() == ["198.51.100.11", "198.51.100.10"], "the sockets moved with their hosts"


def test_nodes_at_sites_with_one_numbering_talk_to_a_node_outside() -> None:
    natlab.require()
    with NatLab() as lab:
        switch = lab.switch()
        outside = lab.host("outside", switch, "198.51.100.7/24")
        node = [sys.executable, str(ECHO_NODE)]
        ready = outside.start(*node, "listen", "--seed-role", "--home", str(lab.scratch / "outside")).line()
        seed = f"{ready['id']}@{ready['endpoints'][0]}"
        dialled = []
        for number, kind in enumerate(("full_cone", "symmetric")):
            site = lab.nat_site(f"site{number}", switch, kind, f"198.51.100.1{number}/24")
            host = lab.host(f"host{number}", site, "10.0.0.2/24", gateway="10.0.0.1")
            home = str(lab.scratch / host.label)
            dialled.append(host.start(*node, "dial", "--home", home, "--seed", seed, ready["id"]))
        for program in dialled:
            program.line()
        time.sleep(0.5)  # of counting at 100 Hz
        for program in dialled:
            program.signal(signal.SIGUSR2)
            found = program.line()
            assert found["error"] is None
            assert found["replies"] > 0
            assert found["lost"] == found["reordered"] == 0
