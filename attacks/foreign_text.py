"""Hostile text: a peer whose metadata, messages and close reason hold what a terminal obeys."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from attacks import Row
from attacks.lab import Member
from meshnode import Config, Node
from meshnode.quic.connection import Connection
from meshnode.quic.hello import CloseCode, Hello
from meshnode.sdk.node import runtime_of

EVIL = "\x1b]0;x\x07\nforged\x9b\u202e"
OBEYED = ("\x1b", "\x07", "\x9b", "\u202e", "\nforged")
ROWS = {
    "commands": Row(
        15, "medium", "member: control characters and newlines in metadata and close reasons", "foreign_text.py",
        "commands whose output has them raw", 3, 0,
    ),
    "log": Row(
        15, "medium", "member: the same in the reason why a forward fails", "base/log_lines.py",
        "lines of the log with them, or forged", 1, 0,
    ),
}  # fmt: skip


def _refuse(self: object, connection: Connection, hello: Hello) -> None:
    connection.close(CloseCode.PROTOCOL, f"bye {EVIL}")


def _raw(text: str) -> bool:
    return any(found in text for found in OBEYED)


async def _attack(root: Path) -> dict[str, float]:
    with Member(root / "victim", command="seed") as victim:
        config = Config(
            home=root / "foe", listen="127.0.0.1:0", mdns=False, seeds=(victim.at,), port_mapping=False, dht=False
        )
        async with Node(config) as node:

            async def serve(reader: object, writer: object, peer: object) -> None: ...

            await node.connect(victim.id)
            node.serve("web", serve, allow=("any",), announce=True, meta={f"k{EVIL}": EVIL})
            await asyncio.sleep(1.0)
            forward = await asyncio.to_thread(victim.ask, "forward", listen="127.0.0.1:0", to=f"{node.id}/web")
            shown = [await asyncio.to_thread(victim.run, *words) for words in (["services"], ["peers"])]
            runtime = runtime_of(node)
            with (
                patch("meshnode.stack.admission.Admission.on_hello", _refuse),
                patch("meshnode.stack.dialing.Dialing.connect", lambda self, peer, now, answer: None),
            ):
                connection = runtime.stack.sessions[victim.id].connection
                assert connection is not None
                connection.close(CloseCode.PROTOCOL, "bye")
                runtime.driver.pump()
                await asyncio.sleep(0.5)
                host, _, port = str(forward["listen"]).rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                with suppress(OSError):
                    await asyncio.wait_for(reader.read(1), 10)
                writer.close()
                for words in (["ping", str(node.id), "-c", "1"], ["doctor", str(node.id)]):
                    shown.append(await asyncio.to_thread(victim.run, *words))
        log = (root / "victim.log").read_text()
    lines = [line for line in log.splitlines() if _raw(line) or line.startswith("forged")]
    return {"commands": sum(_raw(done.stdout + done.stderr) for done in shown), "log": len(lines)}


def run(short: bool) -> dict[str, float]:
    """Attack one node."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_attack(Path(folder)))
