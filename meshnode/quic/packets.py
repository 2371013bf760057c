"""The little of a QUIC packet that is read before any key is known (RFC 8999, RFC 9000 section 17).

Nothing here raises, whatever the bytes: these functions see every stranger's datagram.
"""

from __future__ import annotations

CID_LENGTH = 8  # of the connection ids that we issue; fixed, so a short header can be routed
MAX_CID_LENGTH = 20
VERSION_1 = b"\x00\x00\x00\x01"
MIN_INITIAL = 1200  # RFC 9000 section 14.1
LONG = 0x80
FIXED = 0x40
FORM = LONG | FIXED  # the bits that tell a 1-RTT packet (FIXED alone) from all others


def dcid_of(datagram: bytes) -> bytes | None:
    """Return the destination connection id of the datagram's first packet.

    For a short header those are the 8 bytes behind the first, whatever they are (RFC 8999 section 5.2). None when the
    datagram is cut short, or the id is longer than the 20 bytes of version 1.
    """
    if not datagram:
        return None
    if datagram[0] & LONG:
        if len(datagram) < 7:
            return None
        length = datagram[5]
        if length > MAX_CID_LENGTH or len(datagram) < 7 + length:
            return None
        return datagram[6 : 6 + length]
    return datagram[1 : 1 + CID_LENGTH] if len(datagram) > CID_LENGTH else None


def is_short(datagram: bytes) -> bool:
    """Return whether a datagram has the short header of a 1-RTT packet, with a whole connection id of this node."""
    return len(datagram) > CID_LENGTH and datagram[0] & FORM == FIXED


def acceptable(datagram: bytes) -> bool:
    """Return whether a datagram may be fed to an engine.

    False for other versions, Version Negotiation and Retry, none of which this protocol uses, for a short header
    without the fixed bit, and for an empty datagram.
    """
    first = datagram[0] if datagram else 0
    if not first & LONG:
        return bool(first & FIXED)
    return datagram[1:5] == VERSION_1 and first & 0x70 != 0x70


def is_initial(datagram: bytes) -> bool:
    """Return whether a datagram begins with an Initial packet (RFC 9000 section 17.2.2)."""
    return bool(datagram) and datagram[0] & 0xF0 == 0xC0


def is_v1_initial(datagram: bytes) -> bool:
    """Return whether a datagram is a version 1 Initial of at least 1,200 bytes (RFC 9000 section 14.1).

    Nothing else may begin a connection: a smaller one could make a listener send more than it received.
    """
    return len(datagram) >= MIN_INITIAL and datagram[0] & 0xF0 == 0xC0 and datagram[1:5] == VERSION_1


def initial_token(datagram: bytes) -> bytes | None:
    """Return the token of an Initial, None when it is empty or the header is cut short.

    Only lengths of one and two bytes are read (RFC 9000 section 16): a knock has 96 bytes, and no other token counts.
    """
    if len(datagram) < 8:
        return None
    at = 6 + datagram[5]  # behind the destination connection id
    if at >= len(datagram):
        return None
    at += 1 + datagram[at]  # behind the source connection id
    if at + 2 > len(datagram):
        return None
    size = datagram[at]
    if size >> 6 == 0:
        at += 1
    elif size >> 6 == 1:
        size = (size & 0x3F) << 8 | datagram[at + 1]
        at += 2
    else:
        return None
    token = datagram[at : at + size]
    return token if size and len(token) == size else None
