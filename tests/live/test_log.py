"""The log: it says what happens to a node, each peer has a rate in it, and a reader that stops stops no node."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode import PolicyDenied
from meshnode.base.limits import LOG_BURST, LOG_PEER_BURST
from meshnode.base.metrics import Metrics
from meshnode.daemon.log import MAX_LINES, LogWriter
from meshnode.identity.keys import Identity
from meshnode.runtime.journal import Journal
from meshnode.trust.decision import Decision
from meshnode.trust.policy import Act
from tests.conftest import MakeNode, echo
from tests.given_time import HANG_S, status_of, within

PIPE_SIZE = 4_096
REFUSAL = Decision(False, None, None, "no rule")


def _small_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("meshnode", logging.INFO, __file__, 1, text, None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe is set on Linux only")
@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_nothing_reads_delays_no_line_and_what_is_lost_is_told(blocking: bool) -> None:
    read, write = _small_pipe()
    os.set_blocking(write, blocking)
    handler = LogWriter(write)
    for number in range(3 * MAX_LINES):
        handler.handle(_record(f"line {number}"))  # would never return if it waited for the pipe
    text = b""
    while b"are lost" not in text:
        text += os.read(read, 65_536)
        handler.handle(_record("more"))
    assert b"line 0\n" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe is set on Linux only")
def test_a_node_answers_and_ends_though_its_log_goes_to_a_full_pipe(tmp_path: Path) -> None:
    read, write = _small_pipe()
    os.write(write, bytes(PIPE_SIZE))
    command = [sys.executable, "-m", "meshnode", "--home", str(tmp_path)]
    node = subprocess.Popen(
        [*command, "up", "--json", "--no-mdns", "--listen", "127.0.0.1:0", "--verbose"],
        stdout=subprocess.PIPE,
        stderr=write,
    )
    os.close(write)
    try:
        assert node.stdout is not None
        assert json.loads(node.stdout.readline())["ready"]
        for _ in range(3):
            done = subprocess.run([*command, "status", "--json"], capture_output=True, timeout=HANG_S, check=True)
            assert json.loads(done.stdout)["uptime_s"] > 0
        node.terminate()
        assert status_of(node, 30) == 0
    finally:
        node.kill()
        node.wait()
        os.close(read)


async def test_the_log_says_what_happens_to_a_node(make_node: MakeNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "meshnode")
    hub = await make_node()
    friend = await make_node(seed=hub, gossip=False)
    await friend.ping(hub.id)
    closed = await make_node(allow=(str(hub.id),))
    with pytest.raises(PolicyDenied):
        stranger = await make_node(seed=closed, gossip=False)
        await stranger.connect(closed.id)
    hub.serve("private", echo, allow=[closed.id])
    with pytest.raises(PolicyDenied):
        await friend.open(hub.id, "private")
    await friend.rebind("127.0.4.78:0")
    await friend.close()
    await _until(caplog, f"{friend.id.short}: connection is over")
    for said in (
        f"node {hub.id.short} runs at 127.0.0.1:",
        f"{hub.id.short}: connected (dialled)",
        f"{hub.id.short}: path 127.0.0.1:",
        f"{stranger.id.short}: connection refused",
        f"{friend.id.short}: service private refused",
        "this node moved: it is at 127.0.4.78:",
        f"node {friend.id.short} stops",
    ):
        assert said in caplog.text


async def _until(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with within(15):
        while text not in caplog.text:  # noqa: ASYNC110 - a log announces nothing
            await asyncio.sleep(0.01)


def test_no_peer_fills_the_log_nor_do_all_of_them_together(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "meshnode")
    now, metrics = 0.0, Metrics()
    journal = Journal(metrics, lambda: now)
    one = Identity.generate().id
    for _ in range(1_000):
        journal.on_refused(one, Act.CONNECT, "", REFUSAL)
    assert len(caplog.records) == LOG_PEER_BURST
    for _ in range(500):
        journal.on_refused(Identity.generate().id, Act.CONNECT, "", REFUSAL)
    assert len(caplog.records) == LOG_BURST
    assert metrics.counters["log_left_out"] == 1_500 - LOG_BURST
    caplog.clear()
    now = 86_400.0
    journal.on_refused(one, Act.CONNECT, "", REFUSAL)
    assert len(caplog.records) == 1, "later it is heard again"
