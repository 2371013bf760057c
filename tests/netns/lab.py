"""A small network of namespaces on this machine, for tests that must cross a real kernel network.

    with Lab() as lab:
        net = lab.switch()
        a = lab.host("a", net, "10.77.0.10/24")
        home = lab.router("home", net, "10.77.0.11/24", inside="10.78.0.1/24")
        b = lab.host("b", home, "10.78.0.2/24", gateway="10.78.0.1")
        a.renumber("10.77.0.20/24")
        home.rebind()

Needs root and iproute2; a router needs nftables and, to rebind, conntrack. Leaving the block, however it is
left, ends the programs and removes the namespaces; what a killed run left behind, the next one removes.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
ECHO_NODE = Path(__file__).with_name("echo_node.py")
PREFIX = "mnlab"
LINE_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
IFACE = "eth0"
BRIDGE = "br0"
PORTS = (20_000, 60_000, 5_000)  # a router's outside port ranges: from, to, size
_labs = itertools.count()


def require(*tools: str) -> None:
    """Skip the test, saying why, where namespaces cannot be had; with CI=true fail instead."""
    import pytest

    reason = missing(*tools)
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the namespace tests, but {reason}", pytrace=False)
        pytest.skip(reason)


def missing(*tools: str) -> str | None:
    """Why there can be no lab here, or None when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft", *tools):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None if done.returncode == 0 else f"network namespaces are refused: {done.stderr.strip()}"


def run(*command: str, stdin: str = "") -> str:
    """Run a command to its end; raises RuntimeError with what it complained of."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Program:
    """A program inside a namespace that prints JSON lines; it should end when its standard input does."""

    def __init__(self, host: Namespace, command: list[str], stderr: Path, env: dict[str, str]) -> None:
        self._name = f"{host.label}: {Path(command[1]).name}"
        self._stderr = stderr
        with stderr.open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", host.name, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout: float = LINE_TIMEOUT_S) -> dict[str, Any]:
        """Return the next JSON line; raises RuntimeError with the program's complaints when there is none."""
        try:
            text = self._lines.get(timeout=timeout)
        except queue.Empty:
            self._fail(f"printed nothing for {timeout:g} s")
        if text is None:
            self._fail(f"ended with status {self._process.wait(STOP_TIMEOUT_S)}")
        found: dict[str, Any] = json.loads(text)
        return found

    def _fail(self, what: str) -> NoReturn:
        raise RuntimeError(f"{self._name} {what}; its last words: {self._stderr.read_text()[-2_000:]}")

    def ask(self, timeout: float = LINE_TIMEOUT_S, **order: Any) -> dict[str, Any]:
        """Write one JSON line to it and return the next one that it prints."""
        self.tell(**order)
        return self.line(timeout)

    def tell(self, **order: Any) -> None:
        """Write one JSON line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, by force when it does not listen."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()


class Namespace:
    """One network namespace, loopback up."""

    def __init__(self, lab: Lab, label: str) -> None:
        self.lab = lab
        self.label = label
        self.name = f"{lab.prefix}-{label}"
        self._programs: list[Program] = []
        run("ip", "netns", "add", self.name)
        try:
            self.ip("link set lo up")
            # addresses are usable at once, so that a late one is no second move
            self.exec("sh", "-c", "for f in default all; do echo 0 >/proc/sys/net/ipv6/conf/$f/accept_dad; done")
        except BaseException:
            self.close()
            raise

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip`` in this namespace, one after the other in one process."""
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines))

    def exec(self, *command: str, stdin: str = "") -> str:
        """Run a command in this namespace to its end."""
        return run("ip", "netns", "exec", self.name, *command, stdin=stdin)

    def start(self, *command: str, env: dict[str, str] | None = None) -> Program:
        """Start a program in this namespace; it ends with the lab."""
        complaints = self.lab.scratch / f"{self.label}.{len(self._programs)}.err"
        program = Program(self, list(command), complaints, env or {})
        self._programs.append(program)
        return program

    def close(self) -> None:
        """End the programs and remove the namespace."""
        for program in self._programs:
            program.stop()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)


class Switch(Namespace):
    """A bridge that hosts plug into."""

    def __init__(self, lab: Lab, label: str) -> None:
        super().__init__(lab, label)
        self._ports = itertools.count()
        self.ip(f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up")

    def plug(self, host: Host) -> None:
        """Lay a cable from a new port to the host's interface."""
        port = f"port{next(self._ports)}"
        run(
            *("ip", "link", "add", port, "netns", self.name, "type", "veth"),
            *("peer", "name", IFACE, "netns", host.name),
        )
        self.ip(f"link set {port} master {BRIDGE} up")


class Host(Namespace):
    """A host with one interface."""

    def __init__(self, lab: Lab, label: str, switch: Switch, address: str, gateway: str | None = None) -> None:
        super().__init__(lab, label)
        self._gateway = gateway
        switch.plug(self)
        self.ip(f"link set {IFACE} up", *self._address(address))

    def _address(self, address: str) -> list[str]:
        self.address = address
        lines = [f"addr add {address} dev {IFACE}"]
        if self._gateway is not None:
            lines.append(f"route add default via {self._gateway}")
        return lines

    def _renumbering(self, address: str) -> list[str]:
        return [f"addr flush dev {IFACE}", *self._address(address)]

    def renumber(self, address: str) -> None:
        """Lose the address and take a new one: what moving to another network looks like to a program."""
        renumber({self: address})

    def link_down(self) -> None:
        """Pull the cable."""
        self.ip(f"link set {IFACE} down")

    def link_up(self, address: str) -> None:
        """Plug in again, under a new address."""
        # a route by a gateway can only be added to a link that is up
        self.ip(f"addr flush dev {IFACE}", f"link set {IFACE} up", *self._address(address))


def renumber(moves: dict[Host, str]) -> None:
    """Renumber several hosts at the same moment: each ``ip`` has entered its namespace and waits for its lines."""
    waiting = [
        subprocess.Popen(
            ["ip", "-n", host.name, "-batch", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for host in moves
    ]
    time.sleep(0.01)
    for process, (host, address) in zip(waiting, moves.items(), strict=True):
        assert process.stdin is not None
        process.stdin.write("\n".join(host._renumbering(address)) + "\n")
        process.stdin.close()
        process.stdin = None
    for process, host in zip(waiting, moves, strict=True):
        complaint = process.communicate(timeout=10)[1]
        if process.returncode != 0:
            raise RuntimeError(f"cannot renumber {host.label}: {complaint.strip()}")


class Router(Host, Switch):
    """A NAT router: a host outside, a switch inside. Unasked packets from outside are dropped silently."""

    def __init__(self, lab: Lab, label: str, switch: Switch, outside: str, inside: str) -> None:
        Namespace.__init__(self, lab, label)
        self._gateway = None
        self._ports = itertools.count()
        self._ranges = itertools.cycle(range(*PORTS))
        switch.plug(self)
        self.ip(
            f"link set {IFACE} up",
            *self._address(outside),
            f"link add {BRIDGE} type bridge mcast_snooping 0",
            f"addr add {inside} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        self.exec("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._masquerade()

    def _masquerade(self) -> None:
        first = next(self._ranges)
        unasked = f'iifname "{IFACE}" ct state new drop'
        rules = [
            "flush ruleset",
            "table ip lab {",
            "chain out { type nat hook postrouting priority srcnat;",
            f'oifname "{IFACE}" meta l4proto udp masquerade to :{first}-{first + PORTS[2] - 1}; }}',
            f"chain input {{ type filter hook input priority filter; {unasked}; }}",
            f"chain forward {{ type filter hook forward priority filter; {unasked}; }}",
            "}",
        ]
        self.exec("nft", "-f", "-", stdin="\n".join(rules) + "\n")

    def mappings(self) -> set[str]:
        """The outside ports in use now."""
        flows = self.exec("conntrack", "-L", "-p", "udp")
        # a flow is told twice, there and back; the way back ends at the outside port
        return {line.rpartition("dport=")[2].split()[0] for line in flows.splitlines() if "dport=" in line}

    def rebind(self) -> None:
        """Forget every mapping; each flow gets a new outside port, as when a router restarts."""
        self._masquerade()
        self.exec("conntrack", "-F")


class Lab:
    """Makes namespaces and removes them."""

    def __init__(self) -> None:
        self.prefix = f"{PREFIX}-{os.getpid()}-{next(_labs)}"
        self._all: list[Namespace] = []

    def __enter__(self) -> Lab:
        _remove_orphans()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{self.prefix}-")
        self.scratch = Path(self._scratch.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in reversed(self._all):
            namespace.close()
        self._scratch.cleanup()
        left = [name for name in _namespaces() if name.startswith(f"{self.prefix}-")]
        for name in left:  # whose constructor failed
            run("ip", "netns", "del", name)

    def switch(self, label: str = "switch") -> Switch:
        """Make a switch."""
        made = Switch(self, label)
        self._all.append(made)
        return made

    def host(self, label: str, switch: Switch, address: str, gateway: str | None = None) -> Host:
        """Make a host on a switch, or on a router's inside."""
        made = Host(self, label, switch, address, gateway)
        self._all.append(made)
        return made

    def router(self, label: str, switch: Switch, outside: str, inside: str) -> Router:
        """Make a NAT router; it is the switch of the hosts inside, and ``inside`` is their gateway."""
        made = Router(self, label, switch, outside, inside)
        self._all.append(made)
        return made


def _namespaces() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line]


def _remove_orphans() -> None:
    for name in _namespaces():
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == PREFIX and pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class EchoMesh:
    """A seed, a listener that echoes and a dialler that counts, each in its own namespace."""

    NET = "10.77.0"

    def __init__(self, lab: Lab, *, nat: bool = False) -> None:
        from signal import SIGUSR1, SIGUSR2

        self._reset, self._report = SIGUSR1, SIGUSR2
        self._numbers = itertools.cycle(range(20, 250))
        self.switch = lab.switch()
        seed = lab.host("seed", self.switch, f"{self.NET}.2/24")
        self.listener = lab.host("listener", self.switch, self.fresh())
        self.router: Router | None = None
        if nat:
            self.router = lab.router("router", self.switch, self.fresh(), inside="10.78.0.1/24")
            self.dialler = lab.host("dialler", self.router, "10.78.0.2/24", gateway="10.78.0.1")
        else:
            self.dialler = lab.host("dialler", self.switch, self.fresh())
        ready = self._start(seed, "listen", "--seed-role").line()
        at = f"{ready['id']}@{ready['endpoints'][0]}"
        ready = self._start(self.listener, "listen", "--seed", at).line()
        self._counter = self._start(self.dialler, "dial", "--seed", at, ready["id"])
        self._counter.line()
        time.sleep(1.0)  # past the joining traffic

    def _start(self, host: Host, *args: str) -> Program:
        home = host.lab.scratch / host.label
        return host.start(sys.executable, str(ECHO_NODE), args[0], "--home", str(home), *args[1:])

    def fresh(self) -> str:
        """An address that nobody has."""
        return f"{self.NET}.{next(self._numbers)}/24"

    def move(self, *hosts: Host) -> None:
        """Renumber the hosts at the same moment."""
        renumber({host: self.fresh() for host in hosts})

    def reset(self) -> None:
        """Forget what was measured so far."""
        self._counter.signal(self._reset)
        self._counter.line()

    def report(self, settle: float = 0.8, patience: float = 5.0) -> dict[str, Any]:
        """Return what the dialler measured since the reset, once the replies flow again or patience ends."""
        time.sleep(settle)
        deadline = time.monotonic() + patience
        while True:
            self._counter.signal(self._report)
            found = self._counter.line()
            if found["in_flight"] < 10 or found["error"] or time.monotonic() > deadline:
                return found
            time.sleep(0.1)
