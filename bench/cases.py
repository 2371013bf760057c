"""Bad days of a host, over namespaces of this machine: a disk that fails, a clock, a name server, a cloned machine.

``python -m bench.cases``, as root; prints JSON. What takes longer than a test should is measured here alone.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.netns.host_node import HostNode, wait
from tests.netns.lab import ECHO_NODE, ROOT, Host, Lab, Program, missing, run

FAULTY = ROOT / "tests" / "netns" / "faulty"
YEAR_S = 365 * 86_400
SEED = "10.77.0.1"


def faulty(**what: object) -> dict[str, str]:
    """Return the environment of a process with these faults (``tests/netns/faulty``)."""
    return {"PYTHONPATH": f"{FAULTY}:{ROOT}", **{f"FAULTY_{name}": str(value) for name, value in what.items()}}


def seed_in(lab: Lab) -> tuple[Any, HostNode, tuple[str, ...]]:
    """Return a network, a seed on it, and the options of nodes that begin with it."""
    switch = lab.switch()
    seed = HostNode(lab.host("seed", switch, f"{SEED}/24"), "--listen", "0.0.0.0:4242", "--no-mdns")
    return switch, seed, ("--no-mdns", "--seed", f"{seed.id}@{SEED}:4242")


@contextmanager
def small_disk(path: Path, size: str = "160k") -> Iterator[Path]:
    """A file system of its own at ``path``."""
    path.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path))
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


@contextmanager
def etc_of(host: Host, **files: str) -> Iterator[None]:
    """Give a host files of its own in /etc (ip-netns(8)): ``hosts``, ``resolv`` and ``nsswitch``."""
    folder = Path("/etc/netns") / host.name
    folder.mkdir(parents=True)
    paths = [folder / (name if name == "hosts" else f"{name}.conf") for name in files]
    try:
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text)
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
        folder.rmdir()


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


class Stream:
    """A stream of numbers at 100 Hz from one host to another and back."""

    def __init__(self, lab: Lab, there: Host, here: Host, home: Path, env: dict[str, str] | None = None) -> None:
        listen = there.start(sys.executable, str(ECHO_NODE), "listen", "--home", str(home), env=env)
        ready = listen.line(60)
        at = next(text for text in ready["endpoints"] if text.startswith("10."))
        self._dial: Program = here.start(
            *(sys.executable, str(ECHO_NODE), "dial", "--home", str(lab.scratch / f"{here.label}.dial")),
            *("--seed", f"{ready['id']}@{at}", "--flow", "echo", ready["id"]),
        )
        self._dial.line(60)

    def watch(self, seconds: float, *, reset: bool = True) -> dict[str, Any]:
        """Return what the stream did in this time, or since the last time: ``gap_ms``, ``lost``, ``error``."""
        if reset:
            self._dial.signal(signal.SIGUSR1)
            self._dial.line()
        time.sleep(seconds)
        self._dial.signal(signal.SIGUSR2)
        return self._dial.line()


def slow_disk(pause: float = 1.5, seconds: float = 4.0) -> dict[str, Any]:
    """Move a node whose fsync takes ``pause`` seconds; the gaps of a stream to it, still and at the move."""
    with Lab() as lab:
        switch = lab.switch()
        here, there = lab.host("here", switch, "10.77.0.2/24"), lab.host("there", switch, "10.77.0.3/24")
        stream = Stream(lab, there, here, lab.scratch / "slow", faulty(FSYNC_S=pause))
        still = stream.watch(seconds)
        there.renumber("10.77.0.33/24")
        return {"still": still, "move": stream.watch(seconds)}


def full_disk() -> dict[str, Any]:
    """Fill a node's disk, move the node, start it again: what it says, and how soon others reach it."""
    with Lab() as lab, small_disk(lab.scratch / "disk") as disk:
        switch, _, options = seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options, home=disk)
        friend.echo(node)
        fill(disk)
        refused = node.call("expose", "web", "80", "--allow", "any")
        node.host.renumber("10.77.0.33/24")
        record = wait(lambda: _names(friend.ask("resolve", node.id), "10.77.0.33"))
        found: dict[str, Any] = {
            "refused": json.loads(refused.stdout or refused.stderr)["error"]["code"],
            "published": bool(record),
            "degraded": wait(lambda: node.ask("status")["degraded"]),
            "exposes": node.ask("status")["exposes"],
            "echo": friend.echo(node)["path"],
        }
        node.program.stop()
        node.start()
        found["again"] = friend.echo(node)["path"]
        (disk / "filler").unlink()
        wait(lambda: not node.ask("status")["degraded"])
        found["tracebacks"] = node.said().count("Traceback")
        return found


def _names(resolved: dict[str, Any], host: str) -> bool:
    return any(text.startswith(host) for text in resolved["record"]["endpoints"])


def read_only_disk() -> dict[str, Any]:
    """Have a node's disk turn read-only, as after an error: what still works."""
    with Lab() as lab, small_disk(lab.scratch / "disk") as disk:
        switch, _, options = seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options, home=disk)
        node.ask("expose", "old", "80", "--allow", "any")
        friend.echo(node)
        # in the node's own view of the file systems, for `ip netns exec` gives it one
        inside = ("nsenter", "-t", str(node.program.pid), "-m", "mount")
        run(*inside, "--bind", str(disk), str(disk))
        run(*inside, "-o", "remount,bind,ro", str(disk))
        refused = node.call("expose", "new", "80", "--allow", "any")
        node.host.renumber("10.77.0.33/24")
        wait(lambda: _names(friend.ask("resolve", node.id), "10.77.0.33"))
        found = {
            "refused": refused.returncode,
            "exposes": [each["name"] for each in node.ask("status")["exposes"]],
            "echo": friend.echo(node)["path"],
            "degraded": wait(lambda: node.ask("status")["degraded"]),
        }
        run(*inside, "-o", "remount,bind,rw", str(disk))
        wait(lambda: not node.ask("status")["degraded"])
        node.program.stop()
        run("mount", "-o", "remount,ro", str(disk))
        node.start()
        found["again"] = friend.echo(node)["path"]
        found["still"] = [each["name"] for each in node.ask("status")["exposes"]]
        node.program.stop(10.0)
        found["tracebacks"] = node.said().count("Traceback")
        return found


def dead_name_server() -> dict[str, Any]:
    """Start beside a name server that drops all; seconds until the seed with an address is met, and until an end."""
    with Lab() as lab:
        switch, seed, options = seed_in(lab)
        silent = lab.host("names", switch, "10.77.0.53/24")
        silent.exec("nft", "-f", "-", stdin="table ip f { chain i { type filter hook input priority 0; drop; }\n}")
        host = lab.host("node", switch, "10.77.0.3/24")
        with etc_of(host, resolv="nameserver 10.77.0.53\n", nsswitch="hosts: files dns\n"):
            node = HostNode(host, "--seed", f"{seed.id}@dead.example:4242", *options)
            begun = time.monotonic()
            wait(lambda: node.ask("status")["peers"])
            met = time.monotonic() - begun
            begun = time.monotonic()
            node.program.stop(30.0)
            return {"met_s": round(met, 2), "ended_s": round(time.monotonic() - begun, 2)}


def clock_once_ahead() -> dict[str, Any]:
    """Run a node with its clock a year ahead, set it right while it runs; seconds until its service is known."""
    with Lab() as lab:
        switch, _, options = seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        offset = lab.scratch / "offset"
        offset.write_text(str(YEAR_S))
        host = lab.host("node", switch, "10.77.0.3/24")
        node = HostNode(host, *options, env=faulty(CLOCK=offset))
        node.ask("expose", "web", "80", "--allow", "any")
        suspected = any(
            f["topic"] == "clock" and f["level"] == "problem"
            for f in json.loads(node.call("doctor").stdout.splitlines()[-1])["findings"]
        )
        spare = lab.scratch / "spare"
        spare.write_text("0")
        spare.replace(offset)
        begun = time.monotonic()
        wait(lambda: friend.call("services", "web").stdout.count(node.id))
        known = time.monotonic() - begun
        host.renumber("10.77.0.33/24")
        wait(lambda: _names(friend.ask("resolve", node.id), "10.77.0.33"))
        return {"suspected": suspected, "known_s": round(known, 2)}


def clock_jumps() -> dict[str, Any]:
    """Have the clock of a running node jump an hour ahead, and back; the levels of the doctor's findings on it."""
    with Lab() as lab:
        switch, _, options = seed_in(lab)
        offset = lab.scratch / "offset"
        offset.write_text("0")
        node = HostNode(lab.host("node", switch, "10.77.0.3/24"), *options, env=faulty(CLOCK=offset))
        wait(lambda: node.ask("status")["peers"])

        def clock() -> str:
            findings = json.loads(node.call("doctor").stdout.splitlines()[-1])["findings"]
            return str(next(each["level"] for each in findings if each["topic"] == "clock"))

        found = {}
        for name, ahead in (("right", "0"), ("wrong", "3600"), ("mended", "0")):
            offset.write_text(ahead)
            time.sleep(2.0)
            found[name] = clock()
        return found


def cloned_machine(seconds: float = 20.0) -> dict[str, Any]:
    """Run two hosts with one key; which nodes tell, and new connections a second at a friend of theirs."""
    key = {"MESHNODE_KEY": "22" * 32}
    with Lab() as lab:
        switch, seed, options = seed_in(lab)
        friend = HostNode(lab.host("friend", switch, "10.77.0.2/24"), *options)
        twins = [HostNode(lab.host(f"twin{n}", switch, f"10.77.0.{n}/24"), *options, env=key) for n in (3, 4)]
        friend.echo(twins[0])
        nodes = [seed, friend, *twins]

        def told() -> list[str]:
            return [n.host.label for n in nodes if any("same key" in text for text in n.ask("status")["degraded"])]

        wait(lambda: len(told()) == len(nodes))
        before, begun = friend.ask("status")["counters"]["connections"], time.monotonic()
        answers = 0
        while time.monotonic() < begun + seconds:
            answers += friend.call("ping", twins[0].id, "-c", "1").returncode == 0
        made = friend.ask("status")["counters"]["connections"] - before
        return {
            "told": told(),
            "logged": sum("same key" in node.said() for node in nodes),
            "connections_a_s": round(made / (time.monotonic() - begun), 2),
            "answers": answers,
        }


CASES = (slow_disk, full_disk, read_only_disk, dead_name_server, clock_once_ahead, clock_jumps, cloned_machine)


def main() -> None:
    """Print the results, or why there are none."""
    reason = missing()
    if reason is not None:
        raise SystemExit(f"bench.cases: {reason}")
    wanted = [case for case in CASES if case.__name__ in sys.argv[1:]] or CASES
    print(json.dumps({case.__name__: case() for case in wanted}, indent=2))


if __name__ == "__main__":
    main()
