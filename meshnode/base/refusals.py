"""What an error of the operating system means to a person: plain words, and something that helps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from meshnode.errors import MeshError

FULL = (errno.ENOSPC, errno.EDQUOT)
FIRST_FREE_PORT = 1024  # ports below need root or CAP_NET_BIND_SERVICE

REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space there"),
    errno.EDQUOT: ("the disk quota is used up", "free some space there"),
    errno.EROFS: ("the file system is read-only", "choose a --home on a disk that can be written"),
    errno.EISDIR: ("it is a directory", "name a file, or move it away"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another --home"),
    errno.EEXIST: ("a file is there instead of a directory", "choose another --home"),
    errno.ENOENT: ("there is no such file", "check the path"),
    errno.EMFILE: ("no file descriptors are left", "raise the limit (ulimit -n 4096) and start again"),
    errno.ENFILE: ("no file descriptors are left on this host", "end other programs"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter --home"),
    errno.ELOOP: ("it is a symbolic link, or one in a circle", "remove it"),
    errno.ETIMEDOUT: ("it is a pipe or a device, and nothing comes of it", "name a file"),
    errno.EIO: ("the disk fails", "check the disk; the system's log says more"),
    errno.ESTALE: ("the network file system was remounted", "start again"),
}
LISTEN_REASONS = {
    errno.EADDRINUSE: (
        "another program has that port",
        "choose another port, or end that program (ss -lntup names it)",
    ),
    errno.EADDRNOTAVAIL: ("this host has no such address", "use an address of this host (ip address shows them)"),
    errno.EAFNOSUPPORT: (
        "addresses of that kind are not to be had here",
        "where there is no IPv6 use an IPv4 address, as in 0.0.0.0:4242; without IPv4 one as in [::]:4242",
    ),
}


def refusal(error: OSError, path: Path | str | None = None) -> tuple[str, str]:
    """Return why the system refused something with a file, and what to do about it."""
    where = path if path is not None else error.filename
    if error.errno in (errno.EACCES, errno.EPERM):
        return _not_permitted(Path(os.fsdecode(where)) if where is not None else None)
    if where is not None and (link := _dead_link(Path(os.fsdecode(where)))) is not None:
        return f"{link} is a link to {os.readlink(link)}, which is not there", "mount or make that, or remove the link"
    words = (error.strerror or str(error) or type(error).__name__).lower()
    return REASONS.get(error.errno or 0, (words, "check the disk and the rights of the home directory"))


def _dead_link(path: Path) -> Path | None:
    """Return the symbolic link on a path that leads nowhere; None without one."""
    return next((place for place in (path, *path.parents) if place.is_symlink() and not place.exists()), None)


def listen_refusal(error: OSError, port: int) -> tuple[str, str]:
    """Return why nothing can listen at an address with that port, and what to do about it."""
    if error.errno in (errno.EACCES, errno.EPERM) and 0 < port < FIRST_FREE_PORT:
        low = f"ports below {FIRST_FREE_PORT} are for root"
        return low, f"choose a port from {FIRST_FREE_PORT} on, or run the node as root"
    words = (error.strerror or "no such address").lower()
    return LISTEN_REASONS.get(error.errno or 0, (words, "use an address of this host, as in 127.0.0.1:8080"))


def refused(error: OSError) -> MeshError:
    """Return what the system refused as an error with a hint.

    Its code is ``no_space`` when the disk is full.
    """
    reason, hint = refusal(error)
    where = os.fsdecode(error.filename) if error.filename is not None else ""
    told = MeshError(reason if where in reason else f"{where}: {reason}", hint=hint)
    if error.errno in FULL:
        told.code = "no_space"
    return told


def user_name(uid: int) -> str:
    """Return the name of a user, or the number when it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def in_shell(path: Path | str) -> str:
    """Return a path as it is typed in a shell: a hint is to be copied."""
    from shlex import quote

    return quote(os.fsdecode(path))


def as_user(uid: int, home: Path) -> str:
    """Return the hint for what belongs to another user."""
    name = user_name(uid)
    if os.geteuid() == 0:
        return f"run it as that user: sudo -u {name} meshnode --home {in_shell(home)} ..."
    return f"run it as {name}, or use another --home"


def _not_permitted(path: Path | None) -> tuple[str, str]:
    """Name the owner of the nearest thing on the path that can be looked at."""
    for place in (path, *path.parents) if path is not None else ():
        try:
            owner = place.stat().st_uid
        except OSError:
            continue
        if owner != os.geteuid():
            name, me = user_name(owner), user_name(os.geteuid())
            whole = place if place.is_dir() else place.parent  # the other files in it are hardly one's own
            return f"{place} belongs to user {name}", f"run it as {name}, or: chown -R {me} {in_shell(whole)}"
        return "its mode forbids it", f"chmod u+rwX {in_shell(place)}"
    return "it is not permitted", "choose another --home"
