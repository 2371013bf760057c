"""Connections that others make this node open take none of the reserved descriptors, and blame no target for that."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from meshnode.runtime.host_names import connect_tcp
from meshnode.services.ends import End
from meshnode.services.health import NO_VERDICT, accepts
from meshnode.services.udp import connected


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is opened from now on has one of the last descriptors."""
    monkeypatch.setattr("meshnode.runtime.descriptors.is_reserved", lambda sock: True)


async def test_a_target_is_not_even_connected_to(exhausted: None) -> None:
    """A slow target would hold a descriptor of each caller until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(OSError, match="Too many open files") as caught:
            await connect_tcp(*server.getsockname())
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(OSError, match="Too many open files"):
            await connected(End(*server.getsockname(), udp=True))


async def test_a_check_that_could_not_be_made_says_nothing_of_the_target(exhausted: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await accepts(End(*server.getsockname())) == NO_VERDICT
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        assert await accepts(End("", 0, path)) == NO_VERDICT
