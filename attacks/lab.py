"""Live nodes under attack: each a process on loopback, a stream between two of them, and what its users notice."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from meshnode.daemon.client import call
from meshnode.daemon.request import build
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.engines import VARIABLE as ENGINE
from tests.homes import make_home

LOST_S = 20.0  # what an echo, a move or a newcomer counts that did not succeed
SOURCE = """
import socket, sys, threading, time
size, pause = int(sys.argv[1]), float(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0), backlog=50)
print(listener.getsockname()[1], flush=True)
def serve(sock):
    data = bytes(size)
    try:
        while True:
            sock.sendall(data)
            time.sleep(pause)
    except OSError:
        sock.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Member:
    """One ``meshnode up`` process (``seed`` with that command), without mDNS, in a home of its own."""

    def __init__(
        self, home: Path, *args: str, command: str = "up", listen: str = "127.0.0.1:0", engine: str = ""
    ) -> None:
        self.home = home
        make_home(home)
        self._engine = engine or os.environ.get(ENGINE, "")
        self._command = [sys.executable, "-m", "meshnode", command, "--home", str(home), "--json", "--no-mdns"]
        self._command += ["--listen", listen, *args]
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start the process, again after ``stop``. Raises RuntimeError when it is not ready in time."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
        if self._engine:
            env[ENGINE] = self._engine
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a node did not start: {Path(log.name).read_text()[-500:]}")
        ready = json.loads(line)
        self.id = NodeId.parse(ready["id"])
        host, _, port = ready["endpoints"][0].rpartition(":")
        self.address = (host, int(port))

    def __enter__(self) -> Member:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def at(self) -> str:
        """What ``--seed`` takes."""
        return f"{self.id}@{self.address[0]}:{self.address[1]}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Return the first answer to a request over the control socket. Raises MeshError as its command fails."""
        return next(iter(call(self.home, build(method, arguments))))

    def run(self, *args: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line with this home."""
        command = [sys.executable, "-m", "meshnode", *args, "--home", str(self.home)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)

    def counters(self) -> dict[str, int]:
        """Return the node's counters."""
        counters: dict[str, int] = self.ask("status")["counters"]
        return counters

    def rss_mb(self) -> float:
        """Return the resident memory in MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Return how many descriptors are open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Stream:
    """TCP through ``expose`` and ``forward``, from a source process beside ``sender`` to this process.

    ``size`` bytes are written, then the source pauses: by default as much as goes, and with a pause a trickle that
    shows gaps.
    """

    def __init__(self, sender: Member, receiver: Member, size: int = 65_536, pause: float = 0.0) -> None:
        name = f"src{size}"
        command = [sys.executable, "-c", SOURCE, str(size), str(pause)]
        self._source = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._source.stdout is not None
        port = int(self._source.stdout.readline())
        sender.ask("expose", name=name, target=f"tcp://127.0.0.1:{port}", allow=["any"])
        answer = receiver.ask("forward", listen="127.0.0.1:0", to=f"{sender.id}/{name}")
        host, _, forwarded = str(answer["listen"]).rpartition(":")
        self._socket = socket.create_connection((host, int(forwarded)), timeout=LOST_S)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._source.kill()
        self._source.wait()

    def goodput(self, seconds: float) -> float:
        """Return MB/s that arrive for so long. Raises ConnectionError when the stream ends."""
        buffer = bytearray(1 << 18)
        self._socket.settimeout(seconds + 1)
        began, count = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            try:
                got = self._socket.recv_into(buffer)
            except TimeoutError:
                break
            if not got:
                raise ConnectionError("the stream ended")
            count += got
        return count / (time.monotonic() - began) / 1e6

    def longest_gap(self, seconds: float) -> float:
        """Return the longest silence in seconds, while this process reads for so long; ``LOST_S`` when it ends."""
        buffer = bytearray(1 << 18)
        self._socket.settimeout(LOST_S)
        began = last = time.monotonic()
        gap = 0.0
        while last - began < seconds:
            try:
                if not self._socket.recv_into(buffer):
                    return LOST_S
            except TimeoutError:
                return LOST_S
            now = time.monotonic()
            last, gap = now, max(gap, now - last)
        return gap


def move_time(mover: Member, trickle: Stream, seconds: float = 2.0) -> float:
    """Return the longest silence of a trickle in seconds, when one of its ends moves to another port."""
    trickle.longest_gap(0.3)  # what has waited
    mover.ask("rebind", address="127.0.0.1:0")
    return trickle.longest_gap(seconds)


def keepalive_time(member: Member, peer: Member, count: int = 5) -> float:
    """Return the median round trip in seconds of sealed echoes to a peer; a lost one counts ``LOST_S``."""
    answers = [_echo(member, peer) for _ in range(count)]
    return statistics.median(answers)


def _echo(member: Member, peer: Member) -> float:
    try:
        found = member.ask("ping", id=str(peer.id), count=1)["rtt_ms"]
    except MeshError:
        return LOST_S
    return LOST_S if found is None else found / 1000


def newcomer_time(root: Path, peer: Member, *args: str, listen: str = "127.0.0.1:0") -> float:
    """Return how long a node that has just started takes to reach a peer, in seconds; ``LOST_S`` when it does not."""
    with tempfile.TemporaryDirectory(dir=root) as folder, Member(Path(folder) / "new", *args, listen=listen) as new:
        began = time.monotonic()
        return LOST_S if _echo(new, peer) >= LOST_S else time.monotonic() - began


@contextmanager
def mesh(count: int = 2, engine: str = "") -> Iterator[tuple[Path, Member, list[Member]]]:
    """Yield a folder, a seed, and members that know it; all end with the context, and have this engine."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        root = Path(folder)
        seed = running.enter_context(Member(root / "seed", command="seed", engine=engine))
        members = [
            running.enter_context(Member(root / f"m{n}", "--seed", seed.at, engine=engine)) for n in range(count)
        ]
        yield root, seed, members


def settled(read: Callable[[], float], want: Callable[[float], bool], seconds: float = 5.0) -> float:
    """Read a figure until it is as wanted, or the time is over; returns the last one."""
    until = time.monotonic() + seconds
    while not want(figure := read()) and time.monotonic() < until:
        time.sleep(0.05)
    return figure


def close_all(sockets: list[socket.socket]) -> None:
    """Close sockets that may be closed already."""
    for sock in sockets:
        with suppress(OSError):
            sock.close()
