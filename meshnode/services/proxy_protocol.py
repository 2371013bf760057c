"""The PROXY protocol, version 2, by which a target learns before the first byte which node calls.

After HAProxy's specification (proxy-protocol.txt, section 2.2): the addresses are the overlay's, the ports 0, and TLVs
of the custom range carry the caller's id, name and roles.
"""

from __future__ import annotations

from ipaddress import IPv6Address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21  # version 2, and the command
UNSPEC, TCP_IPV6 = 0x00, 0x21
ID, NAME, ROLES = 0xE0, 0xE1, 0xE2  # PP2_TYPE_MIN_CUSTOM and on
MAX_TLV = 1_024  # bytes of one; roles that do not fit are left out

FOR_CHECKS = SIGNATURE + bytes([LOCAL, UNSPEC, 0, 0])  # a connection of this node's own


def proxy_header(caller: IPv6Address, own: IPv6Address, id: str, name: str, roles: tuple[str, ...]) -> bytes:
    """Return what comes before a caller's bytes: its overlay address and this node's, and which node it is."""
    texts = [(ID, id), (NAME, name), (ROLES, ",".join(roles))]
    tlvs = b"".join(_tlv(kind, text.encode()) for kind, text in texts if text)
    body = caller.packed + own.packed + bytes(4) + tlvs
    return SIGNATURE + bytes([PROXY, TCP_IPV6]) + len(body).to_bytes(2, "big") + body


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value if len(value) <= MAX_TLV else b""
