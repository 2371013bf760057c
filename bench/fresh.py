"""``./dev`` on a fresh Debian: a chroot with python3 and git and nothing else, once as root and once as a user.

Debian's python3 has no ensurepip. Root gets the package; a user gets the one line to type, and a set-up that works
after it. Of this machine the chroot gets what its pip needs to reach an index: settings and certificates.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = "bookworm"
PACKAGES = "python3,git,ca-certificates"
ROOT = Path(__file__).parent.parent
USER = 1000
PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "/root/.config/pip/pip.conf", "/root/.pip/pip.conf")
PIP_NETWORK = {"index-url", "proxy", "cert", "trusted-host", "timeout", "retries"}


def missing() -> str | None:
    """Return why this machine cannot run it, or None."""
    if os.geteuid():
        return "it needs root"
    absent = [tool for tool in ("debootstrap", "unshare", "chroot", "git") if shutil.which(tool) is None]
    return f"it needs {' and '.join(absent)}" if absent else None


class Chroot:
    """A fresh system under a folder, without a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        settings = configparser.RawConfigParser()
        settings.read(PIP_FILES)
        for section in settings.sections():
            for option in set(settings.options(section)) - PIP_NETWORK:  # folders and files that are not there
                settings.remove_option(section, option)
        with (root / "etc/pip.conf").open("w") as file:
            settings.write(file)

    def clone(self, where: str, owner: int) -> None:
        """Put a clone of this project's last commit there."""
        target = self.root / where.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, target], check=True)
        subprocess.run(["chown", "-R", f"{owner}:{owner}", target.parent], check=True)

    def run(self, command: str, where: str, user: int) -> tuple[int, str, float]:
        """Return exit code, output and seconds of a shell command as that user."""
        enter = (
            'mount -t proc proc "$1/proc" && exec chroot --userspec="$2:$2" "$1" /usr/bin/env -i '
            'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$3" LANG=C.UTF-8 sh -c "$4"'
        )
        home = "/root" if user == 0 else str(Path(where).parent)
        script = f"cd {where} && {command}"
        started = time.monotonic()
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        done = subprocess.run(
            [*alone, "sh", "-c", enter, "sh", str(self.root), str(user), home, script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        return done.returncode, done.stdout, time.monotonic() - started


def runbook() -> str:
    """Return the seed runbook's numbered commands as one script; the unit's command is run in place of systemd's.

    Rules of the firewall are left out: the chroot shares the network of this machine.
    """
    steps = re.findall(r"^\d\. .*?(?=^\d\. |^Check)", (ROOT / "bootstrap/RUNBOOK.md").read_text(), re.M | re.S)
    commands = [re.sub(r"\s+", " ", command) for step in steps for command in re.findall(r"`([^`]+ [^`]+)`", step)]
    unit = (ROOT / "bootstrap/meshnode-seed.service").read_text()
    start = re.findall(r"^(?:User|ExecStart)=(.*)", unit, re.M)
    *steps_before, status = [command for command in commands if not command.startswith(("system", "nft", "include"))]
    daemon = f"setpriv --reuid {start[0]} --regid {start[0]} --clear-groups env HOME=/nonexistent {start[1]}"
    answered = f"for second in 1 2 3 4 5 6 7 8 9 10; do sleep 1; {status} && break; done; echo status: $?"
    return "set -e; " + "; ".join([*steps_before, f"{daemon} &", answered]).replace("&;", "&")


def run() -> dict[str, float]:
    """Return what came of each step: 1 for as it should be, else 0; and the seconds of root's first demo."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Chroot(Path(folder, "root"))
        fresh.clone("/home/user/meshnode", USER)
        fresh.clone("/srv/root/meshnode", 0)
        found: dict[str, float] = {}

        def step(name: str, held: bool, output: str) -> None:
            found[name] = float(held)
            if not held:
                print(f"fresh: {name}:\n{output[-3000:]}", file=sys.stderr)

        for attempt in ("first", "second"):  # the second meets what the first left behind
            code, output, _ = fresh.run("./dev demo", "/home/user/meshnode", USER)
            lines = [line for line in output.splitlines() if "apt-get install -y python3-venv" in line]
            left, _, _ = fresh.run("test -e .venv", "/home/user/meshnode", USER)
            held = code == 1 and len(lines) == 1 and left != 0
            step(f"a user's {attempt} try: one line says what to type", held, output)
        code, output, found["seconds"] = fresh.run("./dev demo", "/srv/root/meshnode", 0)
        step("root: ./dev demo installs what is missing and runs", code == 0, output)
        code, output, _ = fresh.run("./dev demo", "/home/user/meshnode", USER)
        step("the user again, the package being there: ./dev demo", code == 0, output)
        code, output, _ = fresh.run("./dev test -q tests/unit/test_dev.py", "/home/user/meshnode", USER)
        step("the user: ./dev test", code == 0, output)
        code, output, _ = fresh.run(runbook(), "/srv/root/meshnode", 0)
        step("the runbook's commands as written; status by root", code == 0 and "status: 0" in output, output)
        return found


if __name__ == "__main__":
    print(json.dumps(run()))
