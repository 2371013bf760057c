"""The container image where no engine runs: built by buildah with chroot isolation, on a base by debootstrap, and run
in namespaces of its own, as ``docker run --read-only --cap-drop ALL --tmpfs /tmp -v VOLUME:/home/mesh`` does.

All is kept in the folder that ``TEST_IMAGE_FOLDER`` names, so a second run takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIABLE = "TEST_IMAGE_FOLDER"
TOOLS = ("buildah", "debootstrap", "unshare", "setpriv", "nsenter")
SUITE = "trixie"  # whose Python is 3.13, as in the Dockerfile's base
PACKAGES = "python3,python3-venv,ca-certificates"
# the root file system read-only, a volume of the user's, and nothing that a container does not have
ENTER = """
set -eu
root=$1 volume=$2
shift 2
mount --bind "$root" "$root"
mount --bind "$volume" "$root/home/mesh"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid 1000 --regid 1000 --clear-groups --bounding-set=-all --inh-caps=-all \
    --no-new-privs env -i "PATH=/opt/meshnode/bin:/usr/bin:/bin" HOME=/home/mesh MESHNODE_HOME=/home/mesh/.meshnode \
    MESHNODE_DRAIN=8 PYTHONUNBUFFERED=1 "$@"
"""


def why_not() -> str:
    """Return why the image cannot be built here; "" when it can."""
    if not os.environ.get(VARIABLE):
        return f"takes minutes and a mirror of Debian: set {VARIABLE} to a folder for it"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class Images:
    """The images in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def buildah(self, *args: str) -> str:
        """Run buildah on this folder's images; return what it prints."""
        line = ["buildah", "--storage-driver", "vfs", "--root", str(self.folder / "store")]
        line += ["--runroot", str(self.folder / "run"), *args]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def base(self) -> str:
        """Return the name of a small image with Python, which is made when there is none yet."""
        name = "localhost/python-base"
        if name not in self.buildah("images", "--format", "{{.Name}}").splitlines():
            root = self.folder / "base"
            shutil.rmtree(root, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1200)
            (root / "usr/bin/python").symlink_to("python3")
            container = self.buildah("from", "scratch")
            self.buildah("add", "-q", container, str(root), "/")
            self.buildah("commit", "-q", container, name)
            self.buildah("rm", container)
            shutil.rmtree(root)
        return name

    def build(self, name: str, file: Path, *, context: Path = ROOT, **arguments: str) -> str:
        """Build a Dockerfile; return the image's name."""
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        certificates = "/etc/ssl/certs:/etc/ssl/certs:ro"  # those of this host, which may have a proxy of its own
        options = ["--isolation", "chroot", "--format", "docker", "-v", certificates, *given]
        self.buildah("build", *options, "-f", str(file), "-t", name, str(context))
        return f"localhost/{name}"

    def root_of(self, image: str) -> Path:
        """Return a file system of an image, unpacked."""
        return Path(self.buildah("mount", self.buildah("from", image)))


def container(root: Path, volume: Path, *command: str) -> list[str]:
    """Return the command that runs another one in an image, as its user, as process 1."""
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
    return [*line, str(root), str(volume), *command]


def inside(node: int, *command: str) -> list[str]:
    """Return the command that runs another one beside process 1 of a container, as ``docker exec`` does."""
    env = [text for text in Path(f"/proc/{node}/environ").read_text().split("\0") if text]
    enter = ["nsenter", "--target", str(node), "--mount", "--pid", "--root", "--wd"]
    return [*enter, "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "env", "-i", *env, *command]
