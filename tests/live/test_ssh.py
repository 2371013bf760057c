"""The page on ssh: its commands as they are written, with the ssh and sshd of this host."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.given_time import HANG_S, GivenTime, eventually, output_of
from tests.live.cli_node import CliNode, clean_environment, stopping

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "ssh.md").read_text()
COMMANDS = re.findall(r"^    ((?:meshnode|ssh|scp|git) .+)$", PAGE, re.MULTILINE)
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
SFTP = shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="unshare(1) and sshd as Linux has them"),
    pytest.mark.skipif(
        SSHD is None or SFTP is None or shutil.which("ssh") is None, reason="openssh-server and openssh-client"
    ),
    pytest.mark.skipif(shutil.which("git") is None, reason="git"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of a host and a user, and an account's home with a repository."""
    path = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path / name)], check=True)
    shutil.copy(path / "user.pub", path / "authorized_keys")
    for name in ("account", "desk-files"):
        (path / name).mkdir()
    subprocess.run(["git", "init", "-q", "--bare", str(path / "account" / "project.git")], check=True)
    return path


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """The port of an sshd on loopback that lets in this user by its key, into a home of the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
    (folder / "shell").write_text(f'#!/bin/sh\ncd {folder}/account\neval "$SSH_ORIGINAL_COMMAND"\n')
    (folder / "shell").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {number}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n"
        f"ForceCommand {folder}/shell\nSubsystem sftp {SFTP}\n"
    )
    line = f"exec {SSHD} -D -e -f {folder}/sshd_config"
    if os.geteuid() == 0:  # as root it wants /run/sshd, which the system's own start would make: in a namespace here
        line = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && {line}"
        command = ["unshare", "--mount", "sh", "-c", line]
    else:
        command = ["sh", "-c", line]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        clock = GivenTime()
        while process.poll() is None and clock.left_of(10) > 0:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.05)
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"sshd does not start here: {process.stderr.read().strip()[:200]}")
        yield number
    finally:
        process.terminate()
        process.communicate()


def test_the_commands_of_the_page_work_as_they_are_written(folder: Path, port: int) -> None:
    block = re.search(r"```ssh-config\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    (folder / "ssh_config").write_text(
        block[1] + f"Host *\n    IdentityFile {folder}/user\n    IdentitiesOnly yes\n    LogLevel ERROR\n"
        f"    UserKnownHostsFile {folder}/known_hosts\n    StrictHostKeyChecking accept-new\n"
    )
    laptop = CliNode(folder / "laptop", "--name", "laptop", command="seed")
    desk = CliNode(folder / "desk", "--name", "desk", seed=laptop)
    files = folder / "desk-files"
    (files / "notes.txt").write_text("remember\n")
    ssh = shutil.which("ssh")
    for name, program in (("ssh", ssh), ("scp", shutil.which("scp"))):
        (files / name).write_text(f'#!/bin/sh\nexec {program} -F {folder}/ssh_config "$@"\n')
        (files / name).chmod(0o755)
    path = os.pathsep.join([str(files), str(Path(sys.executable).parent), os.environ["PATH"]])

    def do(line: str, home: Path) -> str:
        line = line.replace(" 22 ", f" {port} ").replace("me@", f"{getpass.getuser()}@")
        env = clean_environment(MESHNODE_HOME=str(home), PATH=path, GIT_SSH_COMMAND=f"ssh -F {folder}/ssh_config")
        done = subprocess.run(
            line, shell=True, cwd=files, env=env, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    with stopping(desk, laptop):
        eventually(lambda: laptop.run("resolve", "desk", "--json").returncode == 0)
        exposed, plain, uptime, copy, clone, carried = COMMANDS
        do(exposed, laptop.home)
        assert do(plain + " echo arrived", desk.home) == "arrived\n"
        assert do(uptime.replace(" uptime", " echo by the file"), desk.home) == "by the file\n"
        do(copy, desk.home)
        assert (folder / "account" / "notes.txt").read_text() == "remember\n"
        do(clone, desk.home)
        assert (files / "project" / ".git").is_dir()
        laptop.ask("expose", "web", str(port), "--allow", "any")
        (files / "request.http").write_text("")
        do(carried, desk.home)
        assert (files / "answer.http").read_text().startswith("SSH-2.0-"), "sshd greets first"
        moving = subprocess.Popen(
            [
                str(files / "ssh"),
                f"{getpass.getuser()}@laptop.mesh",
                "for n in 1 2 3 4 5 6; do echo $n; sleep 0.3; done",
            ],
            env=clean_environment(MESHNODE_HOME=str(desk.home), PATH=path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert moving.stdout is not None
        assert moving.stdout.readline() == "1\n"
        laptop.ask("rebind")
        desk.ask("rebind")
        assert output_of(moving, 20)[0] == "2\n3\n4\n5\n6\n"
        assert moving.returncode == 0
