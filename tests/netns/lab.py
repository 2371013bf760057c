"""A small network of namespaces on this machine, for tests that must cross a real kernel network.

    with Lab() as lab:
        net = lab.switch()
        a = lab.host("a", net, "10.77.0.10/24")
        home = lab.router("home", net, "10.77.0.11/24", inside="10.78.0.1/24")
        b = lab.host("b", home, "10.78.0.2/24", gateway="10.78.0.1")
        a.renumber("10.77.0.20/24")
        home.rebind()

The namespaces are meshnode/cli/netns.py's, as in the demo; the lab adds routers and programs. Needs root and
iproute2; a router needs nftables and, to rebind, conntrack. Leaving the block, however it is left, ends the
programs and removes the namespaces; what a killed run left behind, the next one removes.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from meshnode.demo import netns
from meshnode.demo.netns import BRIDGE, IFACE, Namespace, Network, renumber
from meshnode.demo.netns import run as run
from tests.homes import make_home

ROOT = Path(__file__).resolve().parents[2]
ECHO_NODE = Path(__file__).with_name("echo_node.py")
PREFIX = "mnlab"
LINE_TIMEOUT_S = 120.0  # however busy the machine is
STOP_TIMEOUT_S = 3.0
PORTS = (20_000, 60_000, 5_000)  # a router's outside port ranges: from, to, size


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
    return netns.missing("nft", *tools)


class Program:
    """A program inside a namespace that prints JSON lines; it should end when its standard input does."""

    def __init__(self, host: Namespace, command: list[str], stderr: Path, env: dict[str, str]) -> None:
        self._name = f"{host.label}: {Path(command[1]).name}"
        self._stderr = stderr
        with stderr.open("wb") as log:
            self._process = subprocess.Popen(
                host.command(*command),
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

    @property
    def pid(self) -> int:
        """Its process id, as this process sees it."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def stop(self, patience: float = STOP_TIMEOUT_S) -> None:
        """End it, by force when it does not listen within ``patience`` seconds."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()


class _Runs(Namespace):
    """A namespace that programs of the tests run in."""

    def __init__(self, lab: Lab, *args: Any) -> None:
        self.lab = lab
        super().__init__(lab, *args)

    @property
    def _programs(self) -> list[Program]:
        return self.lab.programs.setdefault(self.name, [])

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
        super().close()


class Switch(_Runs, netns.Switch):
    """A bridge that hosts plug into."""


class Host(_Runs, netns.Host):
    """A host with one interface."""


class Router(Host, Switch):
    """A NAT router: a host outside, a switch inside. Unasked packets from outside are dropped silently."""

    def __init__(self, lab: Lab, label: str, switch: Switch, outside: str, inside: str) -> None:
        self.lab = lab
        Namespace.__init__(self, lab, label)
        self._gateway = None
        self._own = inside.partition("/")[0]
        self._ports = itertools.count()
        self._ranges = itertools.cycle(range(*PORTS))
        self._forward: tuple[int, str] | None = None
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
        unasked = f'iifname "{IFACE}" ct state new ct status & dnat == 0 drop'
        rules = [
            "flush ruleset",
            "table ip lab {",
            "chain out { type nat hook postrouting priority srcnat;",
            f'oifname "{IFACE}" meta l4proto udp masquerade to :{first}-{first + PORTS[2] - 1}; }}',
            f"chain input {{ type filter hook input priority filter; {unasked}; }}",
            f"chain forward {{ type filter hook forward priority filter; {unasked}; }}",
        ]
        if self._forward is not None:
            port, to = self._forward
            rules.append(f"chain in {{ type nat hook prerouting priority dstnat; udp dport {port} dnat to {to}; }}")
        self.exec("nft", "-f", "-", stdin="\n".join([*rules, "}"]) + "\n")

    def forward(self, port: int, to: str) -> None:
        """Map an outside port to ``HOST:PORT`` inside, for any source; in place of the mapping before."""
        self._forward = (port, to)
        self._masquerade()

    def mappings(self) -> set[str]:
        """The outside ports in use now."""
        lines = self.exec("conntrack", "-L", "-p", "udp").splitlines()
        # hosts ask the router itself for port mappings: that goes nowhere outside
        flows = [line for line in lines if "dport=" in line and f" dst={self._own} " not in line]
        # a flow is told twice, there and back; the way back ends at the outside port
        return {line.rpartition("dport=")[2].split()[0] for line in flows if " dst=239." not in line}

    def rebind(self) -> None:
        """Forget every mapping; each flow gets a new outside port, as when a router restarts.

        A forwarded port becomes another too: nothing comes in at the old one any more.
        """
        if self._forward is not None:
            self._forward = (self._forward[0] + 1, self._forward[1])
        self._masquerade()
        self.exec("conntrack", "-F")


class Lab(Network):
    """Makes namespaces and removes them."""

    def __init__(self) -> None:
        super().__init__(PREFIX)
        self.programs: dict[str, list[Program]] = {}  # by the name of their namespace

    def __enter__(self) -> Self:
        super().__enter__()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{self.prefix}-")
        self.scratch = Path(self._scratch.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._scratch.cleanup()

    def switch(self, label: str = "switch") -> Switch:
        """Make a switch."""
        made = Switch(self, label)
        self._all.append(made)
        return made

    def host(self, label: str, switch: netns.Switch, address: str, gateway: str | None = None) -> Host:
        """Make a host on a switch, or on a router's inside."""
        made = Host(self, label, switch, address, gateway)
        self._all.append(made)
        return made

    def router(self, label: str, switch: Switch, outside: str, inside: str) -> Router:
        """Make a NAT router; it is the switch of the hosts inside, and ``inside`` is their gateway."""
        made = Router(self, label, switch, outside, inside)
        self._all.append(made)
        return made


class EchoMesh:
    """A seed, a listener and a dialler, each in its own namespace, and numbers that flow between the last two.

    ``nat`` names the end that is behind a NAT router, ``dialler`` or ``listener``; neither has a way in, unless
    ``mapped``: the listener's router then forwards a port. ``flow`` and ``bulk`` are echo_node.py's.
    """

    NET = "10.77.0"
    PORT = 4242

    def __init__(
        self, lab: Lab, *, nat: str | None = None, mapped: bool = False, flow: str = "echo", bulk: bool = False
    ) -> None:
        from signal import SIGUSR1, SIGUSR2

        self._reset, self._report = SIGUSR1, SIGUSR2
        self._numbers = itertools.cycle(range(20, 250))
        self.switch = lab.switch()
        self.router: Router | None = None
        if nat is not None:
            self.router = lab.router("router", self.switch, self.fresh(), inside="10.78.0.1/24")
        seed = lab.host("seed", self.switch, f"{self.NET}.2/24")
        self.listener = self._host(lab, "listener", natted=nat == "listener")
        self.dialler = self._host(lab, "dialler", natted=nat == "dialler")
        ready = self._start(seed, "listen", "--seed-role").line()
        at = f"{ready['id']}@{ready['endpoints'][0]}"
        where = []
        if mapped and self.router is not None:
            self.router.forward(self.PORT, f"10.78.0.2:{self.PORT}")
            outside = self.router.address.partition("/")[0]
            where = ["--listen", f"10.78.0.2:{self.PORT}", "--advertise", f"{outside}:{self.PORT}"]
        listener = self._start(self.listener, "listen", "--seed", at, *where)
        more = ["--bulk"] if bulk else []
        dialler = self._start(self.dialler, "dial", "--seed", at, "--flow", flow, *more, listener.line()["id"])
        dialler.line()
        self._counter = listener if flow == "up" else dialler
        time.sleep(1.0)  # past the joining traffic

    def _host(self, lab: Lab, label: str, *, natted: bool) -> Host:
        if natted:
            assert self.router is not None
            return lab.host(label, self.router, "10.78.0.2/24", gateway="10.78.0.1")
        return lab.host(label, self.switch, self.fresh())

    def _start(self, host: Host, *args: str) -> Program:
        home = host.lab.scratch / host.label
        make_home(home)
        return host.start(sys.executable, str(ECHO_NODE), args[0], "--home", str(home), *args[1:])

    def fresh(self) -> str:
        """An address that no host has."""
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
