"""The handshake of a modelled link: a greeting each way, until the first 1-RTT packet has come.

Part of ``sim/link.py``. The dialler's Initial carries the knock, the listener's Handshake packet its key; both have
1,200 bytes, and an unproven dialler is answered with at most three times what it sent (RFC 9000 section 8.1).
"""

from __future__ import annotations

from meshnode.identity.node_id import NodeId
from meshnode.quic.packets import CID_LENGTH, MIN_INITIAL, VERSION_1

INITIAL, HANDSHAKE = b"\xc0", b"\xe0"
AMPLIFICATION = 3


class Handshake:
    """State of one end: ``established`` lets 1-RTT packets leave, ``confirmed`` says that one has come."""

    def __init__(self, me: NodeId, host_cid: bytes, now: float) -> None:
        self.peer_key: bytes | None = None
        self.peer_cid = b""
        self.established = False
        self.confirmed = False
        self.due = False  # a greeting is to be sent
        self._me = me
        self._host_cid = host_cid
        self._client = False
        self._token = b""
        self._sent = 0
        self._sent_at = now
        self._unproven = 0  # bytes that a listener may still send before the handshake is done

    def start(self, odcid: bytes, token: bytes) -> None:
        """Be the dialler: greet the listener in the next ``transmit``.

        ``token`` is the knock; ``odcid``, the original destination connection id, names the listener until it answers.
        """
        self._client = self.due = True
        self._token = token
        self.peer_cid = odcid

    def on_packet(self, data: bytes) -> bool:
        """Take the greeting of the other end; True when it establishes this one, the dialler's.

        Any but the first is ignored by the dialler; the listener answers each. Raises IndexError for a packet that is
        cut short.
        """
        at = 6 + data[5]
        scid = data[at + 1 : at + 1 + CID_LENGTH]
        if self._client:
            if self.established or data[:1] != HANDSHAKE or data[6:at] != self._host_cid:
                return False
            self.peer_cid, self.peer_key = scid, data[at + 1 + CID_LENGTH :][:32]
            self.established = True
            self.due = False
            return True
        if data[:1] == INITIAL and not self.confirmed:
            self.peer_cid = scid
            self._unproven += AMPLIFICATION * len(data)
            self.due = True
        return False

    def confirm(self) -> bool:
        """Note the first 1-RTT packet of the peer.

        Returns True when it establishes this end, the listener's; the dialler's was established by the greeting.
        """
        self.confirmed = True
        if self._client:
            return False
        self.established = True
        self.due = False
        return True

    def round_trip(self, now: float) -> float | None:
        """Return the seconds since the greeting.

        None when it was repeated: which of the greetings was answered is not known (Karn's algorithm).
        """
        return now - self._sent_at if self._sent == 1 else None

    def transmit(self, now: float) -> list[bytes]:
        """Return the greeting that is due; nothing while a listener may not send that much."""
        self.due = False
        if not self._client:
            if self._unproven < MIN_INITIAL:
                return []
            self._unproven -= MIN_INITIAL
        self._sent += 1
        self._sent_at = now
        head = bytes([CID_LENGTH]) + self.peer_cid + bytes([CID_LENGTH]) + self._host_cid
        if self._client:
            token = (0x4000 | len(self._token)).to_bytes(2, "big") + self._token
            packet = INITIAL + VERSION_1 + head + token
        else:
            packet = HANDSHAKE + VERSION_1 + head + self._me.raw
        return [packet.ljust(MIN_INITIAL, b"\0")]

    def next_timer(self, pto: float) -> float | None:
        """Return when to greet again, ``pto`` seconds after the last greeting.

        None while a greeting is due, and while a listener may not send that much.
        """
        if self.due or (not self._client and self._unproven < MIN_INITIAL):
            return None
        return self._sent_at + pto

    def repeat(self) -> None:
        """Greet again in the next ``transmit``, a listener only if it may."""
        self.due = self._client or self._unproven >= MIN_INITIAL
