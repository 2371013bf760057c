"""Two hosts that move and a seed that stays, in namespaces: programs on one use servers on the other."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from meshnode.demo.netns import renumber
from tests.live import cli_node
from tests.netns.lab import Host, Lab

NET = "10.77.0"
READY_S = 30.0
LONGEST_S = 240.0
NOT_ROOT = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
T = TypeVar("T")
TALK = [sys.executable, "-m", "bench.programs.talk"]


@dataclass(frozen=True, slots=True)
class Work:
    """How often the hosts move while each program runs, and how much each does."""

    moves: int = 10
    every_s: float = 0.7
    megabytes: int = 600
    call_s: float = 60.0  # of the one long call
    short: bool = False

    @property
    def steps(self) -> int:
        """How many steps of 20 ms outlast the moves."""
        return round((self.moves * self.every_s + 2) / 0.02)


SHORT = Work(moves=3, every_s=0.5, megabytes=60, call_s=4.0, short=True)


@dataclass(frozen=True, slots=True)
class Client:
    """A program to be run on the client's host: its command line, and the connections it opens when nothing moves."""

    command: list[str]
    service: str
    connections: int
    every_s: float | None = None  # between moves; None: as the work has it
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """How it ended."""

    out: str
    complaint: str
    seconds: float
    megabytes: float  # that passed through the forward


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the program made of it: bytes (or messages) that are missing, and its own figure."""

    lost: int
    figure: str
    reconnects: int | None = None  # where the service's connections do not tell


Play = Generator[Client, Done, Outcome]


def absent(needs: tuple[str, ...]) -> str:
    """Return which programs, or modules with a ``:`` before the name, this machine lacks; "" for none."""

    def is_there(need: str) -> bool:
        return bool(importlib.util.find_spec(need[1:]) if need.startswith(":") else which(need))

    return ", ".join(need.lstrip(":") for need in needs if not is_there(need))


def which(program: str) -> str | None:
    """Return where a program is; servers are often outside of PATH."""
    found = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    return shutil.which(program) or shutil.which(program, path=":".join(["/usr/sbin:/sbin:/usr/lib/openssh", *found]))


class Stage:
    """The mesh: two hosts, their nodes, and what was started on them."""

    def __init__(self, lab: Lab, work: Work) -> None:
        self.work = work
        self.scratch = lab.scratch
        self._numbers = itertools.cycle(range(20, 250))
        self._ports = itertools.count(7000)
        self._servers: list[subprocess.Popen[bytes]] = []
        self._made: dict[str, Any] = {}
        switch = lab.switch()
        seed = lab.host("seed", switch, f"{NET}.2/24")
        self.server = lab.host("server", switch, self._fresh())
        self.client = lab.host("client", switch, self._fresh())
        ready = self._node(seed, "seed")
        at = ["--seed", f"{ready['id']}@{ready['endpoints'][0]}"]
        self.id: str = self._node(self.server, "up", "--name", "server", *at)["id"]
        self._node(self.client, "up", "--name", "client", *at)

    def _node(self, host: Host, *args: str) -> dict[str, Any]:
        line = [sys.executable, "-m", "meshnode", "--home", str(self.home(host)), *args, "--json", "--no-mdns"]
        return host.start(*line).line(READY_S)

    def _fresh(self) -> str:
        return f"{NET}.{next(self._numbers)}/24"

    def home(self, host: Host) -> Path:
        """Return the home of a host's node."""
        return self.scratch / f"home-{host.label}"

    def ask(self, host: Host, *args: str) -> list[dict[str, Any]]:
        """Return what a command of meshnode prints, which must succeed."""
        done = cli_node.run(self.home(host), *args, "--json")
        if done.returncode != 0:
            raise RuntimeError(f"meshnode {' '.join(args)}: {done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def folder(self, name: str) -> Path:
        """Return a new folder, which programs that are not root may use."""
        made = self.scratch / name
        made.mkdir(mode=0o777)
        made.chmod(0o777)
        self.scratch.chmod(0o755)
        return made

    def serve(self, name: str, *command: str, port: int = 0, udp: bool = False) -> str:
        """Start a server on its host's loopback, expose and forward it; returns the port of the forward.

        ``{port}`` in the command is the server's.
        """
        port = port or next(self._ports)
        self.start(name, *(word.replace("{port}", str(port)) for word in command))
        self._wait(name, port, udp)
        scheme = "udp" if udp else "tcp"
        self.ask(self.server, "expose", name, f"{scheme}://127.0.0.1:{port}", "--allow", "any")
        listen = ("udp://" if udp else "") + f"127.0.0.1:{port}"
        self.ask(self.client, "forward", listen, f"server/{name}")
        return str(port)

    def once(self, make: Callable[[Stage], T]) -> T:
        """Return what ``make`` has made for an earlier program, or make it."""
        if make.__name__ not in self._made:
            self._made[make.__name__] = make(self)
        found: T = self._made[make.__name__]
        return found

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program on the server's host; it ends with the stage."""
        with (self.scratch / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.server.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_root()
            )
        self._servers.append(process)
        return process

    def _wait(self, name: str, port: int, udp: bool) -> None:
        """Wait until something has the port, as the kernel tells it."""
        kind = "-lnuH" if udp else "-lntH"
        end = time.monotonic() + READY_S
        while f":{port} " not in self.server.exec("ss", kind):
            if time.monotonic() > end or self._servers[-1].poll() is not None:
                raise RuntimeError(f"{name} does not start: {(self.scratch / f'{name}.log').read_text()[-1_000:]}")
            time.sleep(0.05)

    def opened(self, service: str) -> tuple[int, int]:
        """Return the connections that a service has had, and the bytes of both directions."""
        for one in self.ask(self.server, "exposes"):
            if one["name"] == service:
                usage = one["usage"]
                return usage["opened"], usage["bytes_in"] + usage["bytes_out"]
        return 0, 0

    def move(self) -> None:
        """Give both hosts other addresses at the same moment."""
        renumber({self.server: self._fresh(), self.client: self._fresh()})

    def run(self, client: Client) -> tuple[Done, int, int]:
        """Run a program to its end while both hosts move; how it ended, the moves, and its reconnects."""
        before, bytes_before = self.opened(client.service)
        every = client.every_s or self.work.every_s
        out, err = (self.scratch / name for name in ("client.out", "client.err"))
        started, moves = time.monotonic(), 0
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                self.client.command(*client.command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=_root(),
                env=cli_node.clean_environment(**client.env),
            )
            try:
                while moves < self.work.moves and not _ended(process, started + every * (moves + 0.5)):
                    self.move()
                    moves += process.poll() is None
                _ended(process, started + LONGEST_S)
            finally:
                process.kill()
                process.wait()
        seconds = time.monotonic() - started
        after, bytes_after = self.opened(client.service)
        complaint = ""
        if process.returncode != 0:
            complaint = f"exit code {process.returncode}: {err.read_text(errors='replace').strip()[-300:]}"
        done = Done(out.read_text(errors="replace"), complaint, seconds, (bytes_after - bytes_before) / 1e6)
        return done, moves, after - before - client.connections

    def close(self) -> None:
        """End the servers."""
        for process in self._servers:
            process.terminate()
        for process in self._servers:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ended(process: subprocess.Popen[bytes], until: float) -> bool:
    """Wait until a moment at most; True when the program has ended."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _root() -> Path:
    """Return the folder that has this package."""
    return Path(__file__).resolve().parents[2]
