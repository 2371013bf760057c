"""The measurements: each starts a server and a client of one peer, gives orders, and returns figures by key.

A measurement that fails leaves its figures out and says why; the next one starts again.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench import loads
from bench.peers import namespaces, probes
from bench.peers.environments import ROOT, Peer, UnavailableError, command
from bench.peers.programs import PeerFailedError, Program, rss_mb

HOST = "127.0.0.1"
SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done in one measurement; ``dear`` is how many rounds those take that only wait."""

    rounds: int = 5
    dear: int = 3
    megabytes: int = 64
    echoes: int = 2000
    at_once: int = 20_000
    each: int = 2048
    handshakes: int = 96
    many: int = 1000
    window: float = 10.0
    moves: int = 3


SHORT = Work(1, 1, 24, 500, 5000, 512, 48, 0, 5.0, 1)


class Subject:
    """One peer with its command and the amounts."""

    def __init__(self, peer: Peer, work: Work, start: tuple[str, ...]) -> None:
        self.peer, self.work, self.start = peer, work, start

    def program(self, *args: str) -> Program:
        """Start its program in a role."""
        return Program([*self.start, *args], self.peer.variables(), ROOT)

    @contextmanager
    def pair(self, role: str = "serve") -> Iterator[tuple[Program, Program, dict[str, Any]]]:
        """Run a server and a client; the last is what the server says of itself."""
        with self.program(*([role, HOST] if role == "serve" else [role])) as server:
            ready = server.line()
            with self.program("client") as client:
                yield server, client, ready


class _Cpu:
    """CPU of both ends since it was made; the busier counts."""

    def __init__(self, *programs: Program) -> None:
        self._before = {program.pid: loads.cpu_s(program.pid) for program in programs}

    def busier(self) -> float:
        return max(loads.cpu_s(pid) - before for pid, before in self._before.items())


Found = dict[str, float]


def _echo(subject: Subject) -> Found:
    with subject.pair() as (server, client, ready):
        client.ask("connect", at=ready["at"])
        cpu = _Cpu(server, client)
        found = client.ask("echo", count=subject.work.echoes)
        return {"echo_p50": found["p50"], "echo_p99": found["p99"], "echo_cpu": cpu.busier() / found["done"] * 1e6}


def _bulk(subject: Subject) -> Found:
    megabytes = subject.work.megabytes
    with subject.pair() as (server, client, ready):
        client.ask("connect", at=ready["at"])
        cpu = _Cpu(server, client)
        up = client.ask("up", megabytes=megabytes)["MBps"]
        used = cpu.busier() * 1000 / (megabytes * 1.048576)
        return {"up": up, "bulk_cpu": used, "down": client.ask("down", megabytes=megabytes)["MBps"]}


def _at_once(subject: Subject) -> Found:
    with subject.pair() as (_, client, ready):
        client.ask("connect", at=ready["at"])
        return {"at_once": client.ask("at_once", count=subject.work.at_once)["per_s"]}


def _each(subject: Subject) -> Found:
    with subject.pair() as (_, client, ready):
        client.ask("connect", at=ready["at"])
        return {"each": client.ask("each", count=subject.work.each)["per_s"]}


def _handshakes(subject: Subject) -> Found:
    with subject.pair() as (_, client, ready):
        order = {"at": ready["at"], "count": subject.work.handshakes}
        return {
            "handshakes": client.ask("handshakes", at_once=1, **order)["per_s"],
            "handshakes_16": client.ask("handshakes", at_once=16, **order)["per_s"],
        }


def _dial(subject: Subject) -> Found:
    with subject.pair("dht") as (_, client, ready):
        found = client.ask("dial", at=ready["at"])
        return {"dial_cold": found["cold"], "dial_known": found["known"]}


def _idle(program: Program, window: float) -> float:
    time.sleep(SETTLE_S)
    before = loads.cpu_s(program.pid)
    time.sleep(window)
    return (loads.cpu_s(program.pid) - before) / window * 100


def _peers(subject: Subject) -> Found:
    with subject.pair() as (server, client, ready):
        client.ask("peers", at=ready["at"], count=20)
        return {"idle_few": _idle(server, subject.work.window)}


def _held(subject: Subject) -> Found:
    found: Found = {}
    with subject.pair() as (server, client, ready):
        client.ask("hold", at=ready["at"], count=4)
        time.sleep(1.0)
        before = rss_mb(server.pid)
        for key, count in (("kb_few", 100), ("kb_many", subject.work.many)):
            if count:
                client.ask("hold", patience=300.0, at=ready["at"], count=4 + count)
                time.sleep(1.0)
                found[key] = (rss_mb(server.pid) - before) * 1000 / count
        if subject.work.many:
            found["idle_many"] = _idle(server, subject.work.window)
    return found


def _start(subject: Subject) -> Found:
    found: Found = {}
    with subject.program("serve", HOST) as server:
        ready = server.line()
        time.sleep(SETTLE_S)
        found["rss"] = rss_mb(server.pid)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            with subject.program("first", ready["at"]) as client:
                client.line()
                times.append((time.perf_counter() - started) * 1000)
        found["first_ms"] = statistics.median(times)
    if subject.peer.imports:
        code = f"import time; t = time.perf_counter(); import {subject.peer.imports}; print(time.perf_counter() - t)"
        done = subprocess.run(
            [subject.start[0], "-c", code], capture_output=True, text=True, check=True, env=subject.peer.variables()
        )
        found["import_ms"] = float(done.stdout) * 1000
    return found


def _tcp(subject: Subject) -> Found:
    with subject.pair() as (_, client, ready):
        client.ask("through", at=ready["at"], port=ready["port"])
        return {
            "tcp_echo": client.ask("echo", count=subject.work.echoes)["p50"],
            "tcp_at_once": client.ask("at_once", count=subject.work.at_once)["per_s"],
            "tcp_up": client.ask("up", megabytes=subject.work.megabytes)["MBps"],
        }


def _probes(subject: Subject) -> Found:
    with subject.program("serve", HOST) as server:
        return {"probes": probes.answered(server.line()["at"], stream=subject.peer.name in ("tcp", "tls"))}


def _moves(subject: Subject) -> Found:
    return namespaces.moves(subject.peer, subject.start, subject.work.moves)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement, the figures that it gives, and whether it is one of the dear ones."""

    take: Callable[[Subject], Found]
    keys: tuple[str, ...]
    dear: bool = False


MEASUREMENTS = (
    Measurement(_echo, ("echo_p50", "echo_p99", "echo_cpu")),
    Measurement(_bulk, ("up", "bulk_cpu", "down")),
    Measurement(_at_once, ("at_once",)),
    Measurement(_each, ("each",)),
    Measurement(_handshakes, ("handshakes", "handshakes_16")),
    Measurement(_start, ("import_ms", "first_ms", "rss")),
    Measurement(_tcp, ("tcp_up", "tcp_echo", "tcp_at_once")),
    Measurement(_dial, ("dial_cold", "dial_known")),
    Measurement(_probes, ("probes",), dear=True),
    Measurement(_peers, ("idle_few",), dear=True),
    Measurement(_held, ("kb_few", "kb_many", "idle_many"), dear=True),
    Measurement(_moves, ("move_dialler", "move_listener", "move_both"), dear=True),
)


@dataclass(slots=True)
class Column:
    """What is known of one peer: its figures of every round, and why some are not there.

    ``reason`` says why there is none at all.
    """

    name: str
    values: dict[str, list[float]]
    missing: dict[str, str]
    reason: str = ""

    def medians(self) -> dict[str, float]:
        """Return the median of each figure."""
        return {key: statistics.median(values) for key, values in self.values.items()}


def _take(measurement: Measurement, subject: Subject, column: Column) -> None:
    try:
        found = measurement.take(subject)
    except (PeerFailedError, OSError, subprocess.SubprocessError, RuntimeError) as error:
        for key in measurement.keys:
            column.missing[key] = str(error) or type(error).__name__
        return
    for key, value in found.items():
        column.values.setdefault(key, []).append(value)


def run(
    peers: tuple[Peer, ...],
    work: Work,
    say: Callable[[str], None],
    measurements: tuple[Measurement, ...] = MEASUREMENTS,
) -> list[Column]:
    """Measure all peers, round by round, each measurement on every peer before the next, and return their columns."""
    columns = [Column(peer.name, {}, {}) for peer in peers]
    subjects: list[tuple[Subject, Column]] = []
    for peer, column in zip(peers, columns, strict=True):
        say(f"{peer.name}: preparing")
        try:
            subjects.append((Subject(peer, work, command(peer)), column))
        except UnavailableError as error:
            column.reason = "; ".join(filter(None, (str(error), peer.note)))
    for turn in range(work.rounds):
        for measurement in measurements:
            if measurement.dear and turn >= work.dear:
                continue
            say(f"round {turn + 1} of {work.rounds}: {', '.join(measurement.keys)}")
            for subject, column in subjects:
                _take(measurement, subject, column)
    for column in columns:
        if not column.values and not column.reason:
            column.reason = next(iter(column.missing.values()), "nothing was measured")
    return columns
