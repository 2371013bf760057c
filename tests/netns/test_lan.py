"""Two hosts on a LAN, no route out, no flags."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.netns import lab

pytestmark = pytest.mark.netns


def test_first_ping_by_key_on_a_lan_without_a_route(tmp_path: Path) -> None:
    lab.require()
    names = [f"mnlan{tmp_path.name[-4:]}{i}".replace("_", "") for i in (1, 2)]
    nodes = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        add = [
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            names[1],
        ]
        subprocess.run(add, check=True)
        for number, name in enumerate(names, 1):
            subprocess.run(["ip", "-n", name, "addr", "add", f"10.78.0.{number}/24", "dev", "eth0"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
        started = time.monotonic()
        meshnode = [sys.executable, "-m", "meshnode"]
        for name in names:
            command = ["ip", "netns", "exec", name, *meshnode, "up", "--json", "--home", str(tmp_path / name)]
            nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        ready = [json.loads(node.stdout.readline()) for node in nodes]  # type: ignore[union-attr]
        command = [*meshnode, "ping", ready[1]["id"], "-c", "1", "--json", "--home", str(tmp_path / names[0])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        seconds = time.monotonic() - started
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["path"] == "lan"
        assert seconds < 8, "4 s on a quiet machine"
        print(f"first ping {seconds:.2f} s from both starts")
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(5)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
