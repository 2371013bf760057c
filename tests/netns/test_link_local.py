"""A cable between two hosts, no router and no DHCP: link-local IPv6 addresses are all that there is."""

from __future__ import annotations

import pytest

from tests.netns.host_node import HostNode, wait
from tests.netns.lab import Host, Lab, require

pytestmark = pytest.mark.netns


def _hosts(lab: Lab) -> list[Host]:
    switch = lab.switch()
    hosts = [lab.host(label, switch, f"10.77.0.{number}/24") for number, label in enumerate("ab", 10)]
    for host in hosts:
        host.ip("addr flush dev eth0 scope global")
    return hosts


def test_two_hosts_that_have_link_local_addresses_alone_reach_each_other() -> None:
    require()
    with Lab() as lab:
        a, b = (HostNode(host) for host in _hosts(lab))
        assert a.echo(b, 15)["path"] == "lan"
        assert all(text.startswith("[fe80::") for text in a.ask("status")["endpoints"])


def test_a_containers_bridge_does_not_hide_the_cable() -> None:
    require()
    with Lab() as lab:
        hosts = _hosts(lab)
        for host in hosts:
            host.ip(
                "link add link eth0 name cable0 type macvlan",  # counts as hardware, which the lab's eth0 does not
                "link set cable0 up",
                "link add docker0 type bridge",
                "addr add 172.17.0.1/16 dev docker0",
                "link add cable type veth peer name inside",
                "link set cable master docker0",
                "link set cable up",
                "link set inside up",
                "link set docker0 up",
            )
        a, b = (HostNode(host) for host in hosts)
        assert a.echo(b, 15)["path"] == "lan"
        assert b.echo(a, 15)["path"] == "lan"


def test_nodes_that_start_before_their_only_addresses_are_checked_find_each_other() -> None:
    require()
    with Lab() as lab:
        hosts = _hosts(lab)
        for host in hosts:
            host.exec("sh", "-c", "cd /proc/sys/net/ipv6/conf/eth0 && echo 1 >accept_dad && echo 5 >dad_transmits")
            host.ip("link set eth0 down", "link set eth0 up", f"addr add fd77::{ord(host.label):x}/64 dev eth0")
            host.exec("sh", "-c", "while ! grep -q eth0 /proc/net/if_inet6; do sleep 0.1; done")
        nodes = [HostNode(host) for host in hosts]
        assert "tentative" in hosts[0].exec("ip", "addr", "show", "dev", "eth0")
        # "direct" until the node has seen that its own address on that network is checked
        wait(lambda: nodes[0].echo(nodes[1], 20)["path"] == "lan")
