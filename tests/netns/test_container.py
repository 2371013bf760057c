"""The container image: built from its Dockerfile, run without rights on a read-only root, healthy, gone on SIGTERM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshnode.identity.keys import Identity
from tests.given_time import eventually, status_of
from tests.live.cli_node import CliNode, stopping
from tests.netns.image import ROOT, VARIABLE, Images, container, inside, why_not

DOCKERFILE = ROOT / "docker" / "Dockerfile"
RECIPE = re.compile(r"^```dockerfile\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_image = pytest.mark.skipif(bool(why_not()), reason=why_not())
UP = ("meshnode", "up", "--json", "--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping")


def test_the_image_has_no_root_user_and_no_unlocked_dependency() -> None:
    text = DOCKERFILE.read_text()
    lines = [line.split(" ", 1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert [what for word, what in lines if word == "USER"] == ["1000:1000"]
    assert [what for word, what in lines if word == "STOPSIGNAL"] == ["SIGTERM"]
    assert "--require-hashes" in text
    assert [what for word, what in lines if word == "ENTRYPOINT"] == ['["meshnode"]']
    drain = re.search(r"MESHNODE_DRAIN=(\d+)", text)
    assert drain is not None
    assert int(drain[1]) < 10, "what an engine waits before it kills"


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(Path(os.environ[VARIABLE]))


@pytest.fixture(scope="module")
def root(images: Images) -> Path:
    """The image's file system."""
    return images.root_of(images.build("meshnode", DOCKERFILE, BASE=images.base()))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What an engine makes of a new volume: a folder of the image's user."""
    folder = tmp_path / "volume"
    folder.mkdir()
    os.chown(folder, 1000, 1000)
    return folder


@contextmanager
def _running(root: Path, volume: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], int, dict[str, str]]]:
    """A container: what runs it, its process 1 as this host numbers it, and its first line."""
    line = container(root, volume, *command)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("{"), "see what it says on stderr"
            [node] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield process, int(node), json.loads(first)
        finally:
            process.kill()


@needs_image
def test_a_node_runs_without_rights_on_a_read_only_root_and_stops_in_order(
    root: Path, volume: Path, tmp_path: Path
) -> None:
    with _running(root, volume, *UP) as (process, node, ready):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{node}/status").read_text().splitlines())
        assert status["NSpid"].split()[-1] == "1"
        assert status["Uid"].split() == ["1000"] * 4
        assert {status[name].strip("0") for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")} == {""}
        assert status["NoNewPrivs"].strip() == "1"
        for place in ("/x", "/opt/meshnode/x", "/usr/x"):
            done = subprocess.run(inside(node, "touch", place), capture_output=True, text=True, check=False)
            assert "Read-only file system" in done.stderr
        health = subprocess.run(
            inside(node, "meshnode", "status", "--check"), capture_output=True, text=True, check=False
        )
        assert (health.returncode, health.stdout) == (0, "ok\n"), health.stderr
        other = CliNode(tmp_path / "other")
        with stopping(other):
            seed = f"{ready['id']}@{ready['endpoints'][0]}"
            other.stop()
            other = CliNode(tmp_path / "other", "--seed", seed)
            assert other.ask("ping", ready["id"], "-c", "1")["rtt_ms"] is not None
            other.stop()
        began = time.monotonic()
        subprocess.run(["kill", "-TERM", str(node)], check=True)
        assert status_of(process, 10) == 0
        assert time.monotonic() - began < 8
    assert {path.name for path in (volume / ".meshnode").iterdir()} >= {"key", "seq"}


@needs_image
def test_a_node_keeps_its_id_in_its_volume_and_reaps_what_health_checks_leave(root: Path, volume: Path) -> None:
    ids = []
    for _ in range(2):
        with _running(root, volume, *UP) as (process, node, ready):
            ids.append(ready["id"])
            subprocess.run(inside(node, "sh", "-c", "sh -c 'sleep 0.2' & sh -c 'sleep 0.1' &"), check=True)
            eventually(lambda: not Path(f"/proc/{node}/task/{node}/children").read_text().split())
            subprocess.run(["kill", "-TERM", str(node)], check=True)
            assert status_of(process, 10) == 0
    assert ids[0] == ids[1]


@needs_image
def test_the_key_of_a_projected_secret_and_a_volume_of_the_group_are_taken(root: Path, volume: Path) -> None:
    """As ``fsGroup`` has them: both belong to root, the volume is the group's to write, the secret its to read."""
    os.chown(volume, 0, 1000)
    volume.chmod(0o2775)
    key = Identity.generate()
    secret = volume / "secret"
    secret.write_text(key.seed.hex())
    os.chown(secret, 0, 1000)
    secret.chmod(0o440)
    with _running(root, volume, "env", "MESHNODE_KEY_FILE=/home/mesh/secret", *UP) as (process, node, ready):
        assert ready["id"] == str(key.id)
        health = subprocess.run(
            inside(node, "meshnode", "status", "--check"), capture_output=True, text=True, check=False
        )
        assert (health.returncode, health.stdout) == (0, "ok\n"), health.stderr
        subprocess.run(["kill", "-TERM", str(node)], check=True)
        assert status_of(process, 10) == 0


@needs_image
def test_the_image_has_no_installer_and_is_small(root: Path) -> None:
    assert not list(root.glob("opt/meshnode/bin/pip*"))
    size = int(
        subprocess.run(
            ["du", "-sm", str(root / "opt/meshnode")], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )
    assert 10 < size < 120, f"{size} MB"


@needs_image
def test_the_two_lines_bring_a_node_into_another_image(
    images: Images, root: Path, volume: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text()
    [recipe] = RECIPE.findall(page)
    assert len(recipe.splitlines()) == 3, "FROM, and two lines"
    file = tmp_path / "Dockerfile"
    text = recipe.replace("python:3.13-slim", images.base()).replace("from=meshnode", "from=localhost/meshnode")
    file.write_text(text)
    other = images.root_of(images.build("other", file, context=tmp_path))
    (other / "home/mesh").mkdir(parents=True)
    with _running(other, volume, "/opt/meshnode/bin/meshnode", *UP[1:]) as (process, node, _):
        subprocess.run(["kill", "-TERM", str(node)], check=True)
        assert status_of(process, 10) == 0
