"""The part of an engine that no QUIC library brings along: windows, errors, and the check of private attributes.

An engine is one file beside this one. It ends in ``FACTORY``, an ``EngineFactory`` (``quic/seam.py``), and has one
line in ``ENGINES`` (``engines/__init__.py``).
"""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Mapping
from typing import Any

from meshnode.errors import StreamLimitError
from meshnode.quic.packets import CID_LENGTH
from meshnode.quic.seam import ALPN, IDLE, LOCAL, WRONG_KEY, EngineEvent, Terminated

STREAM_WINDOW = 1 << 21
CONNECTION_WINDOW = 1 << 22
STREAMS = 2048  # open at once, each way: more than one service serves and has waiting, so that others have room too
UNPROVEN = (0x100 + 42, 0x100 + 43, 0x100 + 51)  # TLS alerts: bad or unsupported certificate, signature does not hold
MICROSECOND = 1e-6  # a timer is asked for this much late: one that fires exactly on time can spin
MAINLINE = (b"1:", b"2:")  # behind the byte "d" these would look like a Mainline DHT message on a shared socket
LONGEST_IDLE_S = 1e9  # 30 years, for "never": it is sent in milliseconds, as a whole number of 62 bits (RFC 9000 16)
IDLE_REASON = "Idle timeout"  # as aioquic and its forks say it
NO_EVENTS: tuple[EngineEvent, ...] = ()


def routable_cid(cid: bytes) -> bytes:
    """Return ``cid``, changed in its first byte when a shared socket would take it for a Mainline DHT message."""
    return b"\0" + cid[1:] if cid[:2] in MAINLINE else cid


def settings(is_client: bool, idle_timeout: float) -> dict[str, Any]:
    """Return the arguments of a ``QuicConfiguration`` that aioquic and its forks share.

    ``verify_mode`` is CERT_NONE because there is no CA: the certificate's key is the node's, and the connection
    compares it with the dialled one. Both libraries check CertificateVerify whatever the mode.
    """
    return {
        "alpn_protocols": [ALPN],
        "connection_id_length": CID_LENGTH,
        "idle_timeout": min(idle_timeout, LONGEST_IDLE_S),
        "is_client": is_client,
        "max_data": CONNECTION_WINDOW,
        "max_stream_data": STREAM_WINDOW,
        "verify_mode": ssl.CERT_NONE,
    }


def check_stream_limit(opened: int, granted: int) -> None:
    """Raise StreamLimitError when all ``granted`` bidirectional streams are ``opened``."""
    if opened >= granted:
        raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")


class PeerFault(ValueError):
    """What the peer does wrong, noticed while this node sends."""


def engine_failure(error: BaseException) -> Terminated:
    """Return the end of a connection whose library raised ``error`` while it sent: a fault of this node's own."""
    return Terminated(LOCAL, f"this node's own QUIC engine failed: {error!r}"[:200], False)


def protocol_violation(error: BaseException) -> Terminated:
    """Return the end of a connection whose peer sent bytes that made the library raise ``error``."""
    return Terminated(LOCAL, f"the peer broke the protocol: {error!r}"[:200], False)


def unproven() -> Terminated:
    """Return the end of a dialled connection whose listener holds another key than its certificate's."""
    return Terminated(WRONG_KEY, "the peer could not prove its certificate's key", False)


def ended_locally(reason: str) -> Terminated:
    """Return the end of a connection that the library closed for ``reason``, an idle timeout included."""
    if reason == IDLE_REASON:
        return Terminated(IDLE, "nothing was heard for too long", False)
    return Terminated(LOCAL, reason, False)


def check_attributes(library: str, holder: object, names: Mapping[str, str]) -> None:
    """Fail at start-up, with names, when a library lacks private attributes that this project touches.

    ``names`` maps a dotted path from ``holder`` ("" for itself) to the attributes needed there, separated by spaces; a
    method is followed by the parameters that are given by name, as ``lost(now,space)``.
    Raises ImportError, so that the engine counts as not installed.
    """
    missing = []
    for path, needed in names.items():
        place: object = holder
        for step in path.split(".") if path else ():
            place = getattr(place, step, None)
        missing += [f"{path}.{what}".lstrip(".") for what in needed.split() if not _has(place, what)]
    if missing:
        raise ImportError(
            f"this {library} lacks {', '.join(missing)}; install a version that meshnode's requirements allow"
        )


def _has(place: object, what: str) -> bool:
    name, _, given = what.rstrip(")").partition("(")
    if not hasattr(place, name):
        return False
    return not given or set(given.split(",")) <= set(inspect.signature(getattr(place, name)).parameters)
