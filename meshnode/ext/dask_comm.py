"""Dask's messages on a mesh stream."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from distributed.comm import utils
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol.utils import pack_frames, unpack_frames

from meshnode.errors import MeshError

LENGTH = struct.Struct("<Q")


_from_frames: Any = utils.from_frames  # they have no types
_to_frames: Any = utils.to_frames


class MeshComm(Comm):
    """A stream that carries Dask's messages: a length of 8 bytes, then the frames as Dask packs them."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, local: str, peer: str, deserialize: bool
    ) -> None:
        super().__init__(deserialize)
        self._reader, self._writer = reader, writer
        self._local_addr, self._peer_addr = local, peer
        self.ended = asyncio.Event()

    @property
    def local_address(self) -> str:
        """The address of this end."""
        return self._local_addr

    @property
    def peer_address(self) -> str:
        """The address of the other end, with its proven id."""
        return self._peer_addr

    async def read(self, deserializers: Any = None) -> Any:
        """Return the next message.

        Raises CommClosedError.
        """
        try:
            (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            frames = unpack_frames(await self._reader.readexactly(size))
        except (MeshError, OSError, asyncio.IncompleteReadError, ValueError, IndexError, struct.error) as error:
            self.abort()
            raise CommClosedError(str(error)) from error
        except BaseException:
            self.abort()  # in the middle of a message
            raise
        return await _from_frames(frames, self.deserialize, deserializers, self.allow_offload)

    async def write(self, msg: Any, serializers: Any = None, on_error: str | None = "message") -> int:
        """Send a message, and return its size.

        Raises CommClosedError.
        """
        context = {"sender": self.local_info, "recipient": self.remote_info, **self.handshake_options}
        frames = await _to_frames(
            msg, allow_offload=self.allow_offload, serializers=serializers, on_error=on_error, context=context
        )
        data = pack_frames(frames)
        try:
            self._writer.write(LENGTH.pack(len(data)) + data)
            await self._writer.drain()
        except (MeshError, OSError) as error:
            self.abort()
            raise CommClosedError(str(error)) from error
        return len(data)

    async def close(self) -> None:
        """Close the stream; what was written is delivered."""
        self.ended.set()
        self._writer.close()

    def abort(self) -> None:
        """Drop the stream."""
        self.ended.set()
        self._writer.transport.abort()

    def closed(self) -> bool:
        """Return whether it is over."""
        return self.ended.is_set() or self._writer.is_closing()
