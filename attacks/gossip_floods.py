"""A member that floods gossip with entries of throw-away origins over its own link: what others lose by it."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from contextlib import ExitStack
from types import TracebackType

from attacks import Row
from attacks.bystanders import bystanders
from attacks.lab import Member, mesh, settled
from meshnode.base.wire import encode
from meshnode.config import Config
from meshnode.gossip import Kind
from meshnode.gossip.entry import sign_entry
from meshnode.gossip.messages import Eager, encode_message
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import CONTROL_STREAM
from meshnode.quic.hello import Frame
from meshnode.sdk.node import Node, runtime_of

STORE, INTAKE = "gossip/dissemination/places.py", "gossip/dissemination/intake.py"
ROWS = {
    "services": Row(
        6, "high", "member: 2,430 entries of 45 throw-away ids over its link", STORE,
        "honest services left of 5 on another node", 0, 5, more=True,
    ),
    "services_many": Row(
        6, "high", "member: entries of 10,000 ids as fast as one link takes", STORE,
        "honest services left of 5 on another node", 0, 5, more=True,
    ),
    "services_links": Row(
        6, "high", "member: entries of 10,000 ids over three links at once", STORE,
        "honest services left of 5 on another node", 0, 5, more=True,
    ),
    "cpu": Row(
        12, "medium", "member: entries of ever new origins, 1,000/s", INTAKE,
        "CPU of the node a second", None, 0.25, "s",
    ),
    "goodput": Row(
        12, "medium", "member: entries of ever new origins, 2,000/s at most", INTAKE,
        "a member's goodput, of the control's", 0.0, 0.5, more=True,
    ),
    "moves": Row(
        12, "medium", "member: entries of ever new origins, 2,000/s at most", INTAKE,
        "a peer's move, of the control's", None, 2.0,
    ),
    "keepalives": Row(
        12, "medium", "member: entries of ever new origins, 2,000/s at most", INTAKE,
        "a peer's sealed echo, of the control's", None, 2.0,
    ),
    "newcomers": Row(
        12, "medium", "member: entries of ever new origins, 2,000/s at most", INTAKE,
        "a newcomer's first echo, of the control's", None, 5.0,
    ),
}  # fmt: skip
A_FRAME = 9  # entries in a message
QUEUED = 200_000  # bytes unsent above which the attacker waits


def throw_away(names: int, ahead_ms: int = 250_000) -> list[bytes]:
    """Return announcements of a new origin with the numbers that would win by age: dated ahead, and long-lived."""
    origin, at = Identity.generate(), int(time.time() * 1000) + ahead_ms
    value = encode([0, 0, 5, {"m" * 100: "x" * 100}])
    return [
        sign_entry(origin, kind=Kind.SERVICE, name=f"x{n}", seq=at, issued_ms=at, ttl=86_400, value=value).encoded
        for n in range(names)
    ]


class Insider:
    """A process that is a member, and sends entries of ``names`` each of ever new origins to a seed.

    It stops after ``ids`` origins, or with its context. With ``sends`` False it makes them only: the control.
    """

    def __init__(self, seed: Member, names: int, *, ids: int = 1 << 30, rate: float = 1e9, sends: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._sent = context.Value("Q", 0, lock=False)
        arguments = (seed.at, names, ids, rate, sends, self._sent)
        self._process = context.Process(target=_attack, args=arguments, daemon=True)

    def __enter__(self) -> Insider:
        self._process.start()
        if not settled(lambda: self.sent, lambda sent: sent > 0, 20.0):
            self._process.kill()
            raise RuntimeError("the flood could not begin")
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def rate(self) -> float:
        """Entries a second that were made and, unless it is the control, sent."""
        return self.sent / max(time.monotonic() - self._began, 0.001)

    @property
    def sent(self) -> int:
        """Entries that were sent so far."""
        return int(self._sent.value)


def _attack(seed: str, names: int, ids: int, rate: float, sends: bool, sent: object) -> None:
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(
            _flood(Config(home=home, listen="127.0.0.1:0", seeds=(seed,), mdns=False), names, ids, rate, sends, sent)
        )


async def _flood(config: Config, names: int, ids: int, rate: float, sends: bool, sent: object) -> None:
    async with Node(config) as node:
        stack = runtime_of(node).stack
        peer = NodeId.parse(config.seeds[0].partition("@")[0])
        await node.connect(peer)
        while stack.gossip is None or peer not in stack.gossip.core.hyparview.active:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        began, count = time.monotonic(), 0
        for _ in range(ids):
            entries = throw_away(names)
            for begin in range(0, names, A_FRAME):
                frame = tuple((1, entry) for entry in entries[begin : begin + A_FRAME])
                connection = stack.context.peers.connection(peer)
                if connection is None:
                    return
                if sends:
                    connection.send_frame(Frame.GOSSIP, encode_message(Eager(b"", frame)))
                count += len(frame)
                while connection.streams.queued(CONTROL_STREAM) > QUEUED:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            sent.value = count  # type: ignore[attr-defined]
            await asyncio.sleep(max(0.0, count / rate - (time.monotonic() - began)))
        await asyncio.sleep(3600)


def _services_left(names: int, ids: int, seconds: float, links: int = 1) -> float:
    """Return how many of the five services of one member another one still lists."""
    with mesh(2) as (_, seed, (member, other)):
        for number in range(5):
            member.ask("expose", name=f"svc{number}", target="tcp://127.0.0.1:1", allow=["any"])

        def left() -> float:
            listed = other.run("services", "--json").stdout
            return sum(f'"svc{number}"' in listed for number in range(5))

        settled(left, lambda found: found == 5, 20.0)
        with ExitStack() as running:
            insiders = [running.enter_context(Insider(seed, names, ids=ids // links)) for _ in range(links)]
            settled(
                lambda: sum(each.sent for each in insiders), lambda sent: sent >= names * ids // links * links, seconds
            )
            time.sleep(min(seconds, 8.0))
            return left()


def _cpu(seconds: float = 4.0) -> float:
    """Return the CPU seconds a second that a flood costs a node which does nothing else."""
    with mesh(1) as (_, seed, _), Insider(seed, 9, rate=1_000):
        used, began = seed.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (seed.cpu_s() - used) / (time.monotonic() - began)


def run(short: bool) -> dict[str, float]:
    """Hide services from a member; then flood a node while another one downloads from it."""
    figures = {"services": _services_left(54, 45, 10.0)}
    if not short:
        figures["cpu"] = _cpu()
        figures["services_links"] = _services_left(1, 10_000, 30.0, links=3)
        figures["services_many"] = _services_left(1, 10_000, 30.0)
        with bystanders() as around:
            victim = around.victim
            found = around.compare(lambda to: Insider(victim, 9, rate=2_000, sends=to == victim.address))
        figures["goodput"] = found.goodput
        figures |= {f"{what}s": found.times(what) for what in ("move", "keepalive", "newcomer")}
    return figures
