"""Files in a directory that is this user's own: checked before anything is written there, replaced atomically.

Each write opens the directory, checks the opened one, and works relative to its descriptor; a temporary file has a
random name and is made with O_EXCL and O_NOFOLLOW. So a link or a directory that another user put in the way leads no
write elsewhere, whenever it was put there.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshnode.base.refusals import as_user, in_shell, user_name
from meshnode.errors import ConfigError

MAX_FOLDER = 50  # bytes; a folder and a socket in it have up to 50 more, and 107 is the most that a path may have
PIPE_S = 5.0  # without a byte
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def read_given(path: Path, limit: int, wait: float = PIPE_S) -> tuple[bytes, int]:
    """Return up to ``limit`` bytes of a file that a person has named, and its mode.

    A pipe, as a shell's ``<(...)``, or a device is waited for ``wait`` seconds at most. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO waits for a writer otherwise
    except ValueError as error:  # a zero byte, which no name has
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    try:
        mode, data = os.fstat(fd).st_mode, b""
        while len(data) < limit:
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and not select.select([fd], [], [], wait)[0]:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
            piece = os.read(fd, limit - len(data))
            if not piece:
                break
            data += piece
        return data, mode
    except IsADirectoryError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def write_given(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that a person has named, wherever this user may write, also where others may.

    A file is replaced by the whole of the new one, and a symbolic link by a file; a device, a pipe or standard output
    is written to. Raises OSError: nothing was changed.
    """
    import secrets  # 2 ms, which commands that write nothing do not spend

    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            path.write_bytes(data)
            return
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        _create(temporary, data, mode)
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def without_tilde(path: Path | str) -> Path:
    """Return a path with ``~`` and ``~USER`` replaced.

    Raises ConfigError.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        hint = "write the path from the root, or ./~NAME for a file that is called so"
        raise ConfigError(f"{path}: no such user has a home directory", hint=hint) from error


def short_folder() -> str:
    """Return the directory for temporary files, or ``/tmp`` where its path is too long for a socket in it."""
    import tempfile

    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= MAX_FOLDER else "/tmp"


def make_private(folder: Path) -> None:
    """Make a directory with its parents, each that is missing with mode 0700 whatever the umask.

    Raises OSError.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            with suppress(FileExistsError):  # another process was faster
                path.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))


def why_unsafe(folder: Path) -> tuple[str, str] | None:
    """Return why files in ``folder`` would not be this user's own, and what to do; None when they are.

    That is when it, or a symbolic link that it is, belongs to another user than this one or root, and when others may
    write in it. Only a volume (``is_volume``) may be shared: its mode is not this user's to change.
    """
    try:
        link, found = folder.lstat(), folder.stat()
    except OSError:
        return None  # there is nothing to be misled by; making or opening it says more
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
        owner = user_name(link.st_uid)
        return f"{folder} is a symbolic link of user {owner}", "remove it, or use another --home"
    return _why_unsafe(folder, found)


def is_volume(folder: Path) -> bool:
    """True when others may write in a directory that root made for programs like this one.

    Such is a volume in a container: of a group that this user is in, as Kubernetes makes it, or a mount of its own.
    """
    try:
        found = folder.stat()
    except OSError:
        return False
    return bool(found.st_mode & 0o022) and _is_of_root(folder, found)


def _why_unsafe(folder: Path, found: os.stat_result) -> tuple[str, str] | None:
    if found.st_uid != os.geteuid() and not _is_of_root(folder, found):
        return f"{folder} belongs to user {user_name(found.st_uid)}", as_user(found.st_uid, folder)
    if found.st_mode & 0o022 and not _is_of_root(folder, found):
        mode = f"{found.st_mode & 0o777:o}"
        return f"others may write in {folder} (mode {mode}), so its files are not safe", f"chmod 700 {in_shell(folder)}"
    return None


def _is_of_root(folder: Path, found: os.stat_result) -> bool:
    """True when root gave this directory to this process; the directory of all users (sticky, as /tmp) is not meant."""
    if found.st_uid != 0 or found.st_mode & stat.S_ISVTX:
        return False
    if os.geteuid() == 0:
        return bool(found.st_mode & stat.S_ISGID) or os.path.ismount(folder)
    return os.access(folder, os.W_OK)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a directory for work relative to its descriptor.

    Raises PermissionError: it is unsafe; and OSError.
    """
    unsafe = why_unsafe(folder)
    follow = 0 if folder.is_symlink() else os.O_NOFOLLOW  # a link that was there passed the check of its owner
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
    try:
        unsafe = unsafe or _why_unsafe(folder, os.fstat(fd))
        if unsafe is not None:
            raise PermissionError(errno.EPERM, unsafe[0], str(folder))
        yield fd
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data`` so that a crash leaves either the old or the new file.

    Args:
        path: The file; its directory must exist, and gets a hidden temporary file for the moment.
        data: All of the new contents, on the disk (fsync) before the old ones go.
        mode: Permissions, subject to the umask.

    Raises:
        OSError: Nothing was changed, and the temporary file is gone. PermissionError also when the directory is not
            this user's own.
    """
    import secrets  # 2 ms, which commands that write nothing do not spend

    temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _named(path), opened(path.parent) as folder:
        fd = os.open(temporary, flags, mode, dir_fd=folder)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        with suppress(OSError):  # some file systems sync no directory; the file itself is on the disk
            os.fsync(folder)


def create_secret(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a new file (0600) wherever this user may, and never through a link; a file that is there goes on demand.

    Raises FileExistsError, also for a device or a pipe, and OSError; nothing is left then.
    """
    with suppress(FileNotFoundError):
        if replace and stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
            path.unlink()
    _create(path, data, 0o600)


def _create(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def open_lock(path: Path) -> int:
    """Open the file of a lock, made (0600) if need be, and never through a symbolic link. Raises OSError.

    On a read-only disk one that is there is opened for reading, which is enough for a lock.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with _named(path), opened(path.parent) as folder:
        try:
            return os.open(path.name, flags | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EROFS or not path.exists():
                raise
            return os.open(path.name, flags | os.O_RDONLY, dir_fd=folder)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors name the file in full: system calls relative to a directory name it alone, or not at all."""
    try:
        yield
    except OSError as error:
        if error.filename is None or not os.path.isabs(error.filename):
            error.filename, error.filename2 = str(path), None
        raise


def remove_temporary(folder: Path) -> int:
    """Remove the temporary files that processes which died have left, and return their number.

    Only for a process that holds the directory's lock.
    """
    removed = 0
    with suppress(OSError), opened(folder) as fd:
        for name in os.listdir(fd):
            if TEMPORARY.fullmatch(name):
                with suppress(OSError):
                    os.unlink(name, dir_fd=fd)
                    removed += 1
    return removed
