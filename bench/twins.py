"""Two processes with one key, as of a container that was started twice: how soon one stands down; do they flap?

``python -m bench.twins [SECONDS]``: three real processes, a seed and the two; for each rule (``newest``, ``first``) the
seconds from the second one's start to the end of the dispute, then a minute in which nothing may change.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.revocation import echo_all
from meshnode.daemon.client import call
from meshnode.daemon.requests.node import Status
from tests.live.cli_node import CliNode, stopping

KEY = "ab" * 32
MODES = ("newest", "first")
DECIDE_S = 10.0  # after which it counts as not decided
STEP_S = 0.02


def _status(node: CliNode) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(call(node.home, Status(), 10.0)))
    return found


def _twin(folder: Path, name: str, mode: str, seed: CliNode) -> CliNode:
    home = folder / name
    home.mkdir(mode=0o700)
    (home / "meshnode.toml").write_text(f'duplicate = "{mode}"\nkey = "{KEY}"\n')
    (home / "meshnode.toml").chmod(0o600)
    return CliNode(home, seed=seed)


def _stream(seed: CliNode, stays: CliNode, echo: int) -> socket.socket:
    """A stream of the seed to the one that stays, through an exposed service."""
    stays.ask("expose", "echo", f"tcp://127.0.0.1:{echo}", "--allow", "any")
    port = int(seed.ask("forward", "127.0.0.1:0", f"{stays.id}/echo")["listen"].rpartition(":")[2])
    tcp = socket.create_connection(("127.0.0.1", port), 10)
    tcp.settimeout(10)
    return tcp


def run(mode: str, watched_s: float) -> dict[str, Any]:
    """Start both, and return when it was decided and what changed in the time that was watched.

    Returns:
        ``decided_s``; ``flaps``: how often afterwards the answer to which one stays changed, or a connection of the
        seed with that key began or ended; ``echoes`` and ``lost`` of a stream to the one that stays.
    """
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as echo:
        threading.Thread(target=echo_all, args=(echo,), daemon=True).start()
        folder = Path(name)
        seed = CliNode(folder / "seed", command="seed")
        with stopping(seed):
            first = _twin(folder, "one", mode, seed)
            with stopping(first):
                assert seed.ask("ping", first.id, "-c", "1")["rtt_ms"] is not None
                newest = _twin(folder, "other", mode, seed)
                began = time.monotonic()
                with stopping(newest):
                    stays, loser = (newest, first) if mode == "newest" else (first, newest)
                    while not _status(loser)["stood_down"] and time.monotonic() < began + DECIDE_S:
                        time.sleep(STEP_S)
                    decided = time.monotonic() - began
                    return {"mode": mode, "decided_s": round(decided, 2)} | _watch(
                        seed, stays, loser, echo.getsockname()[1], watched_s
                    )


def _watch(seed: CliNode, stays: CliNode, loser: CliNode, echo: int, watched_s: float) -> dict[str, Any]:
    short = stays.id[:8]
    echoes = lost = flaps = 0
    with _stream(seed, stays, echo) as tcp:
        end, last = time.monotonic() + watched_s, (False, True)
        before = _links(seed, short)
        while time.monotonic() < end:
            now = (bool(_status(stays)["stood_down"]), bool(_status(loser)["stood_down"]))
            flaps += now != last
            last = now
            with suppress(OSError):
                tcp.sendall(b"x")
                echoes += 1
                lost += tcp.recv(1) != b"x"
            time.sleep(0.1)
        flaps += _links(seed, short) - before
    return {"watched_s": watched_s, "flaps": flaps, "echoes": echoes, "lost": lost}


def _links(seed: CliNode, short: str) -> int:
    """Return how many connections with a key began or ended, by the seed's log."""
    lines = seed.log.splitlines()
    return sum(f"{short}: connect" in line for line in lines)


if __name__ == "__main__":
    for each in MODES:
        print(json.dumps(run(each, float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)), flush=True)
