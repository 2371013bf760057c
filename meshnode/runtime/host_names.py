"""Lookup of host names, and TCP connections to them: each name has a thread of its own.

The C library waits up to 30 s for a name server that is dead, and cannot be stopped. In the loop's default executor it
would delay other names (there are few threads) and the end of the program, which waits for that executor. Here a caller
that is cancelled goes at once, and the thread ends by itself, or with the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from meshnode.runtime.background import begin, os_error
from meshnode.runtime.descriptors import unreserved

FIRST_ADDRESS_S = 2.0  # for each address of a name but the last: one that leads nowhere must not take all of the time
ALL_BUT_LAST_S = 4.0  # for those together: a tunnel has 5 s for its first flight, however many the addresses

_running: dict[str, Future[list[str]]] = {}  # lookups that have not ended, by name; bounded by the names in use

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # a child has none of the threads that would end them


async def look_up(host: str) -> list[str]:
    """Return the IP addresses of a host, the preferred first; an address is returned unchanged.

    Callers that ask for a name at the same time share one lookup. Raises OSError.
    """
    with suppress(OSError):
        # as bytes: of a str the interpreter makes a name by IDNA first, whose tables are 3 ms to load
        return _resolve(host.encode() if host.isascii() else host, socket.AI_NUMERICHOST)
    future = _running.get(host)
    if future is None:
        future = _running[host] = Future()
        future.set_running_or_notify_cancel()  # a caller that is cancelled cancels no other
        try:
            begin(_work, host, future)
        except RuntimeError as error:
            del _running[host]
            raise OSError(f"no thread for the lookup of {host}: {error}") from error
    return await asyncio.wrap_future(future)


def _work(host: str, future: Future[list[str]]) -> None:
    try:
        found = _resolve(host)
    except Exception as error:
        _running.pop(host, None)
        future.set_exception(os_error(error))
    else:
        _running.pop(host, None)
        future.set_result(found)


def _resolve(host: str | bytes, flags: int = 0) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=flags)
    except UnicodeError as error:  # no name at all, as one with an empty or overlong part
        raise OSError(socket.EAI_NONAME, "not a host name") from error
    return list(dict.fromkeys(str(item[4][0]) for item in found))


async def connect_tcp(host: str, port: int) -> socket.socket:
    """Return a TCP socket that is connected to the first address of ``host`` that answers.

    It is the caller's to close. Raises OSError: of the lookup, or of the last address.
    """
    addresses = await look_up(host)
    wait = min(FIRST_ADDRESS_S, ALL_BUT_LAST_S / len(addresses))
    for address in addresses[:-1]:
        try:
            async with asyncio.timeout(wait):
                return await connect_address(address, port)
        except OSError:  # TimeoutError is one
            continue
    return await connect_address(addresses[-1], port)


async def connect_address(address: str, port: int, own: str = "") -> socket.socket:
    """Return a TCP socket that is connected to an IP address, from the address ``own`` of this host where it is given.

    It is the caller's to close. Raises OSError.
    """
    family, _, _, _, place = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )[0]
    sock = unreserved(socket.socket(family, socket.SOCK_STREAM))  # before it waits: a slow target may hold thousands
    try:
        sock.setblocking(False)
        if own:
            sock.bind((own, 0))
        await _answered(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


async def _answered(sock: socket.socket, place: Any) -> None:
    """Connect a socket that does not block.

    uvloop's ``sock_connect`` resolves the address by threads of libuv, which aborts the process where none is to be
    had (``ulimit -u``, a container's limit of pids). Raises OSError.
    """
    with suppress(BlockingIOError):
        sock.connect(place)
        return
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(sock, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(sock)
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
