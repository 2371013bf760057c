"""Hosts on a bad day: the disk, the name server, the clock, the user database, an address that comes late, a clone."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from bench import cases
from tests.netns.host_node import HostNode, wait
from tests.netns.lab import Lab, require

pytestmark = pytest.mark.netns


def test_a_node_on_a_full_disk_moves_is_found_and_starts_again() -> None:
    require()
    found = cases.full_disk()
    assert found["refused"] == "no_space"
    assert found["exposes"] == [], "rolled back"
    assert found["published"], "its new record, though it cannot be saved"
    assert (found["echo"], found["again"]) == ("lan", "lan")
    assert all("the disk is full" in text for text in found["degraded"])
    assert found["tracebacks"] == 0


def test_a_disk_that_turns_read_only_stops_nothing_and_is_told() -> None:
    require("nsenter")
    found = cases.read_only_disk()
    assert found["refused"] == 1
    assert found["exposes"] == ["old"]
    assert found["echo"] == "lan"
    assert all("read-only" in text for text in found["degraded"])
    assert (found["again"], found["still"]) == ("lan", ["old"]), "started again there"
    assert found["tracebacks"] == 0


def test_a_disk_that_takes_a_second_and_a_half_for_an_fsync_makes_no_gap() -> None:
    require()
    found = cases.slow_disk(seconds=2.0)
    for report in found.values():
        assert (report["lost"], report["error"]) == (0, None)
        assert report["gap_ms"] < 800, "an fsync takes 1,500"


def test_a_dead_name_server_delays_neither_a_good_seed_nor_the_end() -> None:
    require()
    found = cases.dead_name_server()
    assert found["met_s"] < 4, "the C library gives up after 10 or more"
    assert found["ended_s"] < 4


def test_a_clock_that_was_a_year_ahead_is_suspected_and_its_mend_is_noticed() -> None:
    require()
    found = cases.clock_once_ahead()
    assert found["suspected"], "by the doctor, while no node answers"
    assert found["known_s"] < 15


def test_a_clock_that_jumps_by_an_hour_is_a_problem_at_once_and_none_when_it_is_mended() -> None:
    require()
    assert cases.clock_jumps() == {"right": "ok", "wrong": "problem", "mended": "ok"}


def test_two_hosts_with_one_key_are_told_at_both_and_at_their_peers() -> None:
    require()
    found = cases.cloned_machine(seconds=4.0)
    assert found["told"] == ["seed", "friend", "twin3", "twin4"]
    assert found["logged"] == 4
    assert found["connections_a_s"] < 0.5
    assert found["answers"] > 0


def test_a_forward_begins_when_its_address_comes() -> None:
    require()
    with Lab() as lab:
        host = lab.host("host", lab.switch(), "10.77.0.2/24")
        node = HostNode(host, "--no-mdns")
        host.ip("addr add 10.9.0.1/24 dev eth0")
        node.ask("forward", "10.9.0.1:18001", f"{node.id}/web")
        node.program.stop()
        host.ip("addr del 10.9.0.1/24 dev eth0")
        node.start()
        assert any("10.9.0.1:18001 waits" in text for text in node.ask("status")["degraded"])
        host.ip("addr add 10.9.0.1/24 dev eth0")

        def connects() -> bool:
            try:
                host.inside(lambda: socket.create_connection(("10.9.0.1", 18001), 5)).close()
            except OSError as error:
                raise RuntimeError(error) from error
            return True

        assert wait(connects, 15)
        node.ask("expose", "other", "80")
        assert "18001" in (node.home / "services.json").read_text()
        assert not node.ask("status")["degraded"]


def test_without_a_home_and_a_name_a_user_is_told_what_to_set() -> None:
    require("setpriv")
    with Lab() as lab:
        host = lab.host("host", lab.switch(), "10.77.0.2/24")
        as_number = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # to read this checkout
        bare = [*as_number, *rights, "env", "-i", f"PYTHONPATH={':'.join(filter(None, sys.path))}"]
        for command in (["up"], ["status"], ["id"]):
            done = host.exec("sh", "-c", '"$@" 2>&1 || true', "sh", *bare, sys.executable, "-m", "meshnode", *command)
            assert "this user has no home directory" in done
            assert "MESHNODE_HOME" in done
            assert "Traceback" not in done


def test_an_interface_that_flaps_is_used_within_a_second_of_the_last_flap() -> None:
    require()
    with Lab() as lab:
        switch, _, options = cases.seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options)
        friend.echo(node)
        stream = cases.Stream(lab, node.host, friend.host, lab.scratch / "stream")
        for _ in range(12):
            node.host.ip("link set eth0 down")
            time.sleep(0.15)
            node.host.ip("link set eth0 up", "addr replace 10.77.0.3/24 dev eth0")
            time.sleep(0.15)
        report = stream.watch(3.0)
        assert (report["lost"], report["error"]) == (0, None)
        assert report["gap_ms"] < 1_500, "a second, on a machine that does other work"
