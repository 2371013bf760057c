"""Secrets of a running node, with a real process: in no argument, answer, log or core dump."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.identity.mesh_file import make_mesh_key, read_mesh_key
from meshnode.identity.sealing import MeshKey
from tests.given_time import HANG_S, status_of

COMMAND = [sys.executable, "-m", "meshnode"]
SEED, PASSPHRASE = bytes(range(32)), "correct horse battery"


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_no_secret_is_in_an_argument_an_answer_the_log_or_a_core_dump(tmp_path: Path) -> None:
    mesh, home = tmp_path / "mesh.key", tmp_path / "home"
    make_mesh_key(mesh)
    text = read_mesh_key(mesh)
    raw = MeshKey.from_text(text).bytes
    secrets = [form for data in (SEED, raw) for form in (data.hex(), base64.b64encode(data).decode(), repr(data)[2:-1])]
    secrets += [text, text.removeprefix("mk-"), PASSPHRASE]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    env |= {"MESHNODE_KEY": SEED.hex(), "MESHNODE_PASSPHRASE": PASSPHRASE}
    command = [*COMMAND, "--home", str(home)]
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(
            [*command, "up", "-v", "--mesh", f"@{mesh}", "--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
        )
        try:
            assert node.stdout is not None
            shown = [node.stdout.readline() for _ in range(4)]
            for asked in (["status"], ["status", "--json"], ["doctor", "--json"], ["peers"], ["resolve", "x" * 52]):
                found = subprocess.run([*command, *asked], capture_output=True, text=True, env=env, timeout=HANG_S)
                shown += [found.stdout, found.stderr]
            arguments = Path(f"/proc/{node.pid}/cmdline").read_text()
            limits = Path(f"/proc/{node.pid}/limits").read_text()
        finally:
            node.terminate()
            status_of(node, 30)
    assert json.loads(shown[6])["id"]
    shown += [arguments, (tmp_path / "log").read_text()]
    assert [secret for secret in secrets for part in shown if secret in part] == []
    assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]
