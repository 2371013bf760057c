"""The seed's runbook: its commands as they are written, by root, on a host of the test's own.

That host is a mount and a network namespace with /etc copied, and /opt and /var/lib empty: the user that the runbook
makes and what it installs are gone afterwards. Left out are pip (the project is put in its place) and systemctl (the
unit's command is run instead).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "bootstrap" / "RUNBOOK.md").read_text()
TOOLS = ("unshare", "useradd", "runuser", "ip", "mount")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a host of its own needs root on Linux"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
]

HOST = f"""
set -eu
ip link set lo up
mkdir etc opt lib
cp -a /etc/. etc/
mkdir -p opt/meshnode/bin opt/python opt/site opt/project
mount --bind etc /etc
mount --bind {sys.base_prefix} opt/python
mount --bind {sysconfig.get_path("purelib")} opt/site
mount --bind {ROOT} opt/project
mount --rbind opt /opt
mount --bind lib /var/lib
cat >/opt/meshnode/bin/meshnode <<'END'
#!/bin/sh
export PYTHONPATH=/opt/project:/opt/site LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
exec /opt/python/bin/{Path(os.path.realpath(sys.executable)).name} -m meshnode "$@"
END
chmod -R a+rX /opt/meshnode /var/lib
chmod a+x /opt/meshnode/bin/meshnode
cd /opt/project
"""


def commands(step: int) -> list[str]:
    """The commands of a step, in their order."""
    found = re.search(rf"^{step}\. (.*?)(?=^\d\. |^$)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [" ".join(text.split()) for text in re.findall(r"`([^`]* [^`]*)`", found[1])]


def test_the_steps_of_the_runbook_work_as_root_types_them(tmp_path: Path) -> None:
    make_user, make_home = commands(2)
    settings = commands(3)[0]
    unit, *_ = commands(5)
    status = commands(6)[0]
    assert make_user.startswith("useradd ")
    assert status.startswith("runuser ")
    service = (ROOT / "bootstrap" / "meshnode-seed.service").read_text()
    start = re.search(r"^ExecStart=(.+)$", service, re.MULTILINE)
    assert start is not None
    script = (
        HOST
        + f"""
{make_user}
{make_home}
{settings}
mkdir -p /etc/systemd/system
{unit}
runuser -u meshnode -- {start[1]} >"$OLDPWD/node.log" 2>&1 &
node=$!
for i in $(seq 100); do {status} >/dev/null 2>&1 && break; kill -0 $node || break; sleep 0.1; done
cat "$OLDPWD/node.log" >&2
{status}
/opt/meshnode/bin/meshnode status --home /var/lib/meshnode || echo "for root: $?"
kill $node
wait $node || true
"""
    )
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"[a-z2-7]{52}\n  address   fd", done.stdout)
    assert "for root: 1" in done.stdout, "a home answers its own user alone"
    assert "sudo -u meshnode meshnode --home /var/lib/meshnode" in done.stderr
