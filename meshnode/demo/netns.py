"""A small network of Linux network namespaces: hosts on a switch, each with one interface and its own address.

    with Network("meshdemo") as net:
        switch = net.switch()
        a = net.host("a", switch, "10.76.0.10/24")
        renumber({a: "10.76.0.20/24"})

Needs root and iproute2's ``ip``; see ``missing``. Leaving the block, however it is left, kills what runs in the
namespaces and removes them; what a killed run left behind, the next one with the same name removes. The traffic
stays on this machine: a namespace has no route out.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

IFACE = "eth0"
BRIDGE = "br0"
CLONE_NEWNET = 0x40000000
COMMAND_TIMEOUT_S = 30.0
_networks = itertools.count()
T = TypeVar("T")


def missing(*tools: str) -> str | None:
    """Return why there can be no namespaces here; None when there can.

    Needed are Linux, root, ``ip`` and the ``tools`` named; then one namespace is made and removed for a test.
    """
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", *tools):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    probe = f"meshprobe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None if done.returncode == 0 else f"network namespaces are refused: {done.stderr.strip()}"


def run(*command: str, stdin: str = "") -> str:
    """Run a command to its end; returns its standard output.

    Raises RuntimeError with its error output when it fails, subprocess.TimeoutExpired after ``COMMAND_TIMEOUT_S``.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Namespace:
    """One network namespace, loopback up."""

    def __init__(self, net: Network, label: str) -> None:
        self.label = label
        self.name = f"{net.prefix}-{label}"
        run("ip", "netns", "add", self.name)
        try:
            self.ip("link set lo up")
            # addresses are usable at once, so that a late one is no second move
            self.exec("sh", "-c", "for f in default all; do echo 0 >/proc/sys/net/ipv6/conf/$f/accept_dad; done")
        except BaseException:
            self.close()
            raise

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip`` in this namespace, one after the other in one process.

        The first that fails ends it: the following ones are not run. Raises RuntimeError.
        """
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines))

    def exec(self, *command: str, stdin: str = "") -> str:
        """Run a command in this namespace to its end, as ``run`` does."""
        return run(*self.command(*command), stdin=stdin)

    def command(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` in this namespace.

        ``ip`` replaces itself by the command, so the process id is that of the command.
        """
        return ["ip", "netns", "exec", self.name, *command]

    def inside(self, action: Callable[[], T]) -> T:
        """Call ``action`` in this namespace, in this process: a socket that it makes stays there.

        It runs in a thread of its own and blocks the caller. Its result is returned, what it raises is raised; OSError
        when the namespace cannot be entered.
        """
        found: list[T] = []
        failed: list[BaseException] = []

        def enter() -> None:  # a thread of its own, for a thread that entered a namespace is of no other use
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path("/run/netns", self.name).open() as handle:
                    if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")
                found.append(action())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def close(self) -> None:
        """Kill what runs in the namespace and remove it."""
        remove(self.name)


class Switch(Namespace):
    """A bridge that hosts plug into."""

    def __init__(self, net: Network, label: str) -> None:
        super().__init__(net, label)
        self._ports = itertools.count()
        self.ip(f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up")

    def plug(self, host: Namespace) -> None:
        """Connect a new port to the host's interface by a veth pair."""
        port = f"port{next(self._ports)}"
        run(
            *("ip", "link", "add", port, "netns", self.name, "type", "veth"),
            *("peer", "name", IFACE, "netns", host.name),
        )
        self.ip(f"link set {port} master {BRIDGE} up")


class Host(Namespace):
    """A host with one interface."""

    def __init__(self, net: Network, label: str, switch: Switch, address: str, gateway: str | None = None) -> None:
        super().__init__(net, label)
        self._gateway = gateway
        switch.plug(self)
        self.ip(f"link set {IFACE} up", *self._address(address))

    def _address(self, address: str) -> list[str]:
        self.address = address
        lines = [f"addr add {address} dev {IFACE}"]
        if self._gateway is not None:
            lines.append(f"route add default via {self._gateway}")
        return lines

    def renumbering(self, address: str) -> list[str]:
        """Return the lines of ``ip`` that take the address away and give another, with its prefix length.

        ``address`` is the new one from now on, whether or not the lines are run.
        """
        return [f"addr flush dev {IFACE}", *self._address(address)]

    def renumber(self, address: str) -> None:
        """Replace the address: what moving to another network looks like to a program."""
        renumber({self: address})

    def link_down(self) -> None:
        """Set the interface down, as when a cable is pulled.

        Its routes are gone too.
        """
        self.ip(f"link set {IFACE} down")

    def link_up(self, address: str) -> None:
        """Set the interface up, under a new address."""
        # a route by a gateway can only be added to a link that is up
        self.ip(f"addr flush dev {IFACE}", f"link set {IFACE} up", *self._address(address))


def renumber(moves: dict[Any, str]) -> None:
    """Renumber several hosts at the same moment.

    ``moves`` gives each host its new address, with its prefix length. Each ``ip`` has entered its namespace before the
    first gets its lines, so they are about 1 ms apart. Raises RuntimeError.
    """
    waiting = [
        subprocess.Popen(
            ["ip", "-n", host.name, "-batch", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for host in moves
    ]
    time.sleep(0.01)
    for process, (host, address) in zip(waiting, moves.items(), strict=True):
        assert process.stdin is not None
        process.stdin.write("\n".join(host.renumbering(address)) + "\n")
        process.stdin.close()
        process.stdin = None
    for process, host in zip(waiting, moves, strict=True):
        complaint = process.communicate(timeout=10)[1]
        if process.returncode != 0:
            raise RuntimeError(f"cannot renumber {host.label}: {complaint.strip()}")


class Network:
    """Namespaces called ``NAME-PID-N-LABEL``, removed at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.prefix = f"{name}-{os.getpid()}-{next(_networks)}"
        self._all: list[Namespace] = []

    def __enter__(self) -> Self:
        remove_orphans(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in reversed(self._all):
            namespace.close()
        for name in existing():  # whose constructor failed
            if name.startswith(f"{self.prefix}-"):
                remove(name)

    def switch(self, label: str = "switch") -> Switch:
        """Make a switch.

        ``label`` has to be new in this network. Raises RuntimeError.
        """
        made = Switch(self, label)
        self._all.append(made)
        return made

    def host(self, label: str, switch: Switch, address: str, gateway: str | None = None) -> Host:
        """Make a host on a switch.

        ``address`` has its prefix length; ``gateway`` gives a default route, else there is none. ``label`` has to be
        new in this network. Raises RuntimeError.
        """
        made = Host(self, label, switch, address, gateway)
        self._all.append(made)
        return made


def existing() -> list[str]:
    """Return the names of all namespaces."""
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line]


def remove(name: str) -> None:
    """Kill what runs in a namespace and remove it; one that does not exist is no error.

    A process that lived on would keep the namespace alive. This process itself is spared.
    """
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for pid in listed.split():
        if int(pid) == os.getpid():
            continue
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def remove_orphans(prefix: str) -> None:
    """Remove the namespaces of ``Network(prefix)`` in processes that have ended.

    A process is taken for alive while its id is in use.
    """
    for name in existing():
        first, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if first == prefix and pid.isdigit() and not Path("/proc", pid).exists():
            remove(name)
