"""Real programs through the mesh while both of their hosts move, in namespaces: what each of them notices.

``./dev bench programs``, as root. A server on one host, its client on another, both of them moved at once again and
again while the client runs; the program knows nothing of the mesh but the address of a forward. Reconnects are the
connections that the service has had beyond those which the program opens when nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.programs import command_line, libraries
from bench.programs.stage import SHORT, Outcome, Play, Stage, Work, absent
from tests.netns.lab import Lab

__all__ = ["SHORT", "Work", "faults", "run"]


@dataclass(frozen=True, slots=True)
class Program:
    """A row of the table; ``needs`` are programs, and modules with a ``:`` before."""

    name: str
    play: Callable[[Stage], Play]
    needs: tuple[str, ...]


POSTGRES = ("postgres", "initdb", "setpriv")
PROGRAMS = (
    Program("curl", command_line.curl, ("curl",)),
    Program("git clone, HTTP", command_line.git_http, ("git",)),
    Program("git clone, ssh", command_line.git_ssh, ("git", "ssh", "sshd")),
    Program("scp", command_line.scp, ("scp", "sshd")),
    Program("psql", command_line.psql, ("psql", *POSTGRES)),
    Program("pgbench", command_line.pgbench, ("pgbench", "psql", *POSTGRES)),
    Program("redis-cli", command_line.redis_cli, ("redis-cli", "redis-server")),
    Program("redis-benchmark -c 200", command_line.redis_benchmark, ("redis-benchmark", "redis-server")),
    Program("mosquitto_pub, mosquitto_sub", command_line.mosquitto, ("mosquitto", "mosquitto_pub", "mosquitto_sub")),
    Program("dig", command_line.dig, ("dig", ":dnslib")),
    Program("WebSocket", libraries.websocket, (":websockets",)),
    Program("gRPC", libraries.grpc, (":grpc",)),
    Program("curl, server-sent events", libraries.sse, ("curl", ":fastapi", ":uvicorn")),
    Program("FastAPI by httpx2", libraries.fastapi, (":fastapi", ":uvicorn", ":httpx2")),
    Program("MCP tool call", libraries.mcp, (":mcp",)),
)


def run(work: Work, only: str = "") -> Iterator[dict[str, Any]]:
    """Yield a row a program: ``moves``, ``errors``, ``reconnects``, ``lost``, ``seconds`` and ``figure``.

    Where a program is not installed the row has ``missing`` instead.
    """
    with Lab() as lab:
        stage = Stage(lab, work)
        try:
            for program in PROGRAMS:
                if only in program.name:
                    lacks = absent(program.needs)
                    found = {"missing": lacks} if lacks else measured(stage, program.play(stage))
                    yield {"program": program.name, **found}
        finally:
            stage.close()


def measured(stage: Stage, play: Play) -> dict[str, Any]:
    """Set a program up, run it, and have it judged."""
    done, moves, more = stage.run(next(play))
    try:
        play.send(done)
    except StopIteration as end:
        outcome: Outcome = end.value
    else:
        raise RuntimeError("a program has one client")
    return {
        "moves": moves,
        "errors": int(bool(done.complaint)),
        "reconnects": more if outcome.reconnects is None else outcome.reconnects,
        "lost": outcome.lost,
        "seconds": round(done.seconds, 1),
        "figure": outcome.figure,
        **({"complaint": done.complaint} if done.complaint else {}),
    }


def faults(row: dict[str, Any], work: Work) -> int:
    """Return what went wrong in a row: errors, reconnects, what is lost, and the moves that it did not live to see."""
    counts = [int(row[what]) for what in ("errors", "reconnects", "lost", "moves")]
    return sum(map(abs, counts[:3])) + work.moves - counts[3]
