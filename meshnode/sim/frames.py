"""The frames of a modelled link: plain structs behind a packet's header, see ``sim/link.py``."""

from __future__ import annotations

import struct

HEADER = struct.Struct("!B8sII")  # 0x40, dcid, number, the oldest number still in flight
RANGE = struct.Struct("!II")  # ACK is kind, count and so many ranges
DATA = struct.Struct("!BIQH")  # kind, stream, offset, length
LIMIT = struct.Struct("!BIQ")  # kind, stream or 0, value
CLOSE = struct.Struct("!BiH")  # kind, code, length of the reason
ACK, STREAM, STREAM_FIN, RESET, STOP, MAX_STREAM, MAX_DATA, MAX_STREAMS, PING, DONE, GOODBYE, DATAGRAM = range(1, 13)
PING_FRAME = LIMIT.pack(PING, 0, 0)
DONE_FRAME = LIMIT.pack(DONE, 0, 0)
TAG = bytes(16)  # what an AEAD would add, so that sizes are QUIC's
