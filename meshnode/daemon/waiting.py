"""Streams and flows that came for a service of an attached program, until the program takes them."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import ATTACHED_TAKE_S, MAX_ATTACHED_WAITING
from meshnode.errors import NotFound

if TYPE_CHECKING:
    from meshnode.daemon.carry import Carried
    from meshnode.daemon.carry_flow import CarriedFlow


class Waiting:
    """At most ``MAX_ATTACHED_WAITING`` streams of all services; the one that waits longest is given up for another."""

    def __init__(self) -> None:
        self._streams: BoundedDict[str, tuple[Carried | CarriedFlow, asyncio.Future[bool]]] = BoundedDict(
            MAX_ATTACHED_WAITING
        )

    def add(self, stream: Carried | CarriedFlow) -> str:
        """Add a stream that has ``ended``; return the word by which it is taken, which no other program can guess."""
        word = secrets.token_hex(16)
        is_taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        pushed_out = self._streams.put(word, (stream, is_taken))
        if pushed_out is not None:
            pushed_out[1][1].set_result(False)
        return word

    async def until_over(self, word: str) -> None:
        """Wait until a stream was taken and is over; or give it up: it was not taken in time, or had to make room."""
        stream, is_taken = self._streams[word]
        assert stream.ended is not None
        try:
            await asyncio.wait([is_taken], timeout=ATTACHED_TAKE_S)
            if is_taken.done() and is_taken.result():
                await stream.ended.wait()
        finally:
            self._streams.pop(word, None)

    def give_up(self, word: str) -> None:
        """Take a stream no more: the program has gone. Does nothing for one that was taken."""
        found = self._streams.pop(word, None)
        if found is not None:
            found[1].set_result(False)

    def take(self, word: str) -> Carried | CarriedFlow:
        """Return a stream that waits, and accept it.

        Raises NotFound.
        """
        found = self._streams.pop(word, None)
        if found is None:
            raise NotFound("that stream waits no longer", hint=f"take it within {ATTACHED_TAKE_S:g} s")
        stream, is_taken = found
        stream.accept()
        is_taken.set_result(True)
        return stream
