"""Frames by which the control socket carries a stream, both ways, after the answer to ``connect``.

A frame is a length of four bytes, the most significant first, and as many bytes of the stream. The length 0 ends that
direction; ``WHOLE`` from the client ends it too, and says that the client reads no more. A direction that stops without
it was cut off: neither side takes it for an end. The node's last frame is ``WHOLE`` (both directions ended in order) or
``BROKEN``, which is followed by a line with the error as JSON.
"""

from __future__ import annotations

import struct

LENGTH = struct.Struct(">I")
MAX_FRAME = 1 << 18  # bytes of the stream in one frame
END, WHOLE, BROKEN = LENGTH.pack(0), LENGTH.pack(0xFFFFFFFE), LENGTH.pack(0xFFFFFFFF)


def frame(data: bytes) -> bytes:
    """Return the frame of some bytes of a stream.

    ``data`` has 1 to ``MAX_FRAME`` bytes: an empty frame is ``END``, and a longer one is an error to the other side.
    """
    return LENGTH.pack(len(data)) + data
