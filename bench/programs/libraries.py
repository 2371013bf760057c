"""Programs that use libraries of Python, and the agent's tool call."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.programs.stage import TALK, Client, Done, Outcome, Play, Stage


def _numbers(done: Done, count: int, what: str) -> Outcome:
    """Every number has to come once, in order."""
    got = [line for line in done.out.split() if line.isdigit()]
    lost = 0 if got == [str(n) for n in range(count)] else count - len(set(got)) or 1
    return Outcome(lost, f"{len(got)} {what}")


def websocket(stage: Stage) -> Play:
    """Echo a message each 20 ms."""
    port, count = stage.serve("websocket", *TALK, "websocket", "{port}"), stage.work.steps
    done = yield Client([*TALK, "use_websocket", port, str(count)], "websocket", 1)
    return _numbers(done, count, "echoes of one WebSocket")


def grpc(stage: Stage) -> Play:
    """Send messages both ways on one call."""
    port, count = stage.serve("grpc", *TALK, "grpc", "{port}"), stage.work.steps
    done = yield Client([*TALK, "use_grpc", port, str(count)], "grpc", 1)
    return _numbers(done, count, "messages of one call")


def _web(stage: Stage) -> str:
    return stage.serve("app", *TALK, "web", "{port}")


def sse(stage: Stage) -> Play:
    """Read server-sent events with curl."""
    port, count = stage.once(_web), stage.work.steps
    done = yield Client(["curl", "-sSfN", f"http://127.0.0.1:{port}/events/{count}"], "app", 1)
    told = "\n".join(line[6:] for line in done.out.splitlines() if line.startswith("data: "))
    return _numbers(Done(told, done.complaint, done.seconds, done.megabytes), count, "events of one answer")


def fastapi(stage: Stage) -> Play:
    """Ask a FastAPI app by httpx2 and its adapter, beside an answer of 50 MB."""
    stage.once(_web)
    count = stage.work.steps
    home = str(stage.home(stage.client))
    done = yield Client([*TALK, "use_httpx2", home, "app", str(count)], "app", 2)
    numbers, _, size = done.out.partition("bytes ")
    missing = 50_000_000 - int(size or 0)
    found = _numbers(Done(numbers, done.complaint, done.seconds, done.megabytes), count, "requests beside 50 MB")
    return Outcome(found.lost + missing, found.figure)


def mcp(stage: Stage) -> Play:
    """Call a tool that takes a minute, of a server on stdin and stdout."""
    log, seconds = stage.scratch / "sessions", stage.work.call_s
    command = [sys.executable, "-m", "meshnode", "--home", str(stage.home(stage.server)), "mcp", "serve"]
    stage.start("tools", *command, "--name", "tools", "--allow", "any", "--", *TALK, "tools", str(log))
    _until_served(stage)
    every = (seconds - 2) / stage.work.moves
    home = str(stage.home(stage.client))
    use = Client([*TALK, "use_tools", home, "server/tools", str(seconds)], "tools", 0, every_s=every)
    done = yield use
    lost = 0 if done.out.startswith("done ") else 1
    sessions = len(log.read_text().splitlines())
    return Outcome(lost, f"the call took {done.out[5:].strip()} s", reconnects=sessions - 1)


def _until_served(stage: Stage) -> None:
    log = Path(stage.scratch / "tools.log")
    for _ in range(200):
        if "tools" in log.read_text():
            return
        stage.server.exec("sleep", "0.1")
    raise RuntimeError(f"mcp serve does not start: {log.read_text()[-500:]}")
