"""What is measured of each peer: a key, what it says, its unit's direction, and the goal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        key: Its name in JSON.
        title: What it says, with the unit.
        goal: What the mesh with its default engine is held against, None for information.
        more: Whether more is better.
        of: The goal is so many times the figure of this peer in the same run, instead of a number.
    """

    key: str
    title: str
    goal: float | None = None
    more: bool = False
    of: str = ""


FIGURES = (
    Figure("up", "bulk up, one stream, MB/s", 400, True),
    Figure("up_of_tls", "bulk up, times TLS", 0.8, True),
    Figure("down", "bulk down, one stream, MB/s", 400, True),
    Figure("bulk_cpu", "CPU of the busier end, ms/MB", 2.5),
    Figure("echo_p50", "echo of 64 B, p50, us", 1.25, of="tls"),
    Figure("echo_p99", "echo of 64 B, p99, us", 400),
    Figure("echo_cpu", "CPU an echo, busier end, us", 100),
    Figure("at_once", "64 at once, echoes/s", 70_000, True),
    Figure("each", "64 at once, a stream each, requests/s", 25_000, True),
    Figure("handshakes", "mutual handshakes/s, one by one", 500, True),
    Figure("handshakes_16", "mutual handshakes/s, 16 at once", 900, True),
    Figure("dial_cold", "dial by key, DHT of 8, cold, ms", 8),
    Figure("dial_known", "dial by key, known, ms", 3),
    Figure("kb_few", "KB a connection, 100", 40),
    Figure("kb_many", "KB a connection, 1,000", 40),
    Figure("idle_few", "idle CPU, 20 connections, %", 0.2),
    Figure("idle_many", "idle CPU, 1,000 connections, %", 3),
    Figure("import_ms", "import, ms", 120),
    Figure("first_ms", "process start to first echo, ms", 200),
    Figure("rss", "idle process, MB", 36),
    Figure("tcp_up", "TCP over it, up, MB/s", 300, True),
    Figure("tcp_echo", "TCP over it, echo p50, us", 300),
    Figure("tcp_at_once", "TCP over it, 64 at once, echoes/s", 40_000, True),
    Figure("move_dialler", "dialler moves: silence, ms", 60),
    Figure("move_listener", "listener moves: silence, ms", 60),
    Figure("move_both", "both move: silence, ms", 150),
    Figure("probes", "answered to a stranger's probes, bytes", 0),
)
DEAD = float("inf")  # a stream that a move has ended
OURS = "qh3"  # the column that is held against the goals


def goal_of(figure: Figure, medians: dict[str, dict[str, float]]) -> float | None:
    """Return a figure's goal in this run, None where there is none; ``medians`` are figures by peer."""
    if not figure.of or figure.goal is None:
        return figure.goal
    other = medians.get(figure.of, {}).get(figure.key)
    return None if other is None else figure.goal * other


def met(figure: Figure, value: float, goal: float) -> bool:
    """Return whether a value meets a goal."""
    return value >= goal if figure.more else value <= goal
