"""Announcements on the local link: when this node sends its own, and what those of others say. Sans-IO.

The messages are unsolicited multicast DNS responses (RFC 6762 section 8.3); there are no queries. A node that arrives
on a link announces itself, and in its announcement, sealed to the mesh, it asks the others to do the same. So a query
cannot be made without the mesh key, and nothing is ever sent for one that was: no pointer, no answer by unicast, and
nothing to a host beyond the link. To those that lack the key an announcement is a name that is never used again and a
text of random bytes, always of the same length. ``runtime/mdns.py`` has the sockets.
"""

from __future__ import annotations

import random
import struct

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_LAN_HEARD, MAX_LAN_TEXT, MAX_NEIGHBOURS, MAX_RECORD, SEAL_WINDOW_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import value
from meshnode.errors import RecordError
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord, open_record
from meshnode.identity.sealing import NONCE_LENGTH, Sealer

MAX_STRING = 255  # RFC 1035 section 3.3.14
FORM = struct.Struct("!BQH")  # flags, Unix microseconds, length of the record; zeros follow it to MAX_RECORD
ASK = 0x01
GAP_S = 0.25  # RFC 6762 section 6: between two answers to hosts that have just come to the link
ANSWER_S = (0.02, 0.12)  # the same section: answers of many hosts are spread
REPEATS_S = (1.0, 2.0)  # section 8.3: at least two announcements, each wait twice the last one
ALONE_S, MAX_ALONE_S = (
    4.0,
    3600.0,
)  # section 5.2: while no other node is heard, asking goes on ever more rarely
ASK_AGAIN_S = 5.0  # between two announcements that callers cause who look for a peer

OVERSIZED = describe("mdns_oversized", "announcements by mDNS dropped: longer than any of this protocol")
FOREIGN = describe("mdns_foreign", "announcements by mDNS dropped: not of this mesh")
STALE = describe(
    "mdns_stale",
    "announcements by mDNS not answered: over 30 s old, or before our time on the link",
)


@value
class Announcement:
    """A record with the time at which it was announced (Unix seconds), and whether others shall announce theirs."""

    record: bytes
    sent: float
    asks: bool


def encode_text(sealed: bytes) -> bytes:
    """Return the rdata of a TXT record: strings of at most 255 bytes, each behind its length.

    The cuts have no meaning; ``decode_text`` joins the strings.
    """
    parts = [sealed[at : at + MAX_STRING] for at in range(0, len(sealed), MAX_STRING)]
    return b"".join(bytes([len(part)]) + part for part in parts)


def decode_text(text: bytes) -> bytes:
    """Join the strings of a TXT rdata; what is cut short is left out."""
    parts, at = [], 0
    while at < len(text):
        size = text[at]
        parts.append(text[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(parts)


def seal_announcement(sealer: Sealer, said: Announcement) -> bytes:
    """Seal to every member of the mesh; the length is always the same."""
    plain = FORM.pack(ASK if said.asks else 0, int(said.sent * 1e6), len(said.record))
    return sealer.encrypt_hint(plain + said.record.ljust(MAX_RECORD, b"\0"))


def open_announcement(sealer: Sealer, sealed: bytes) -> Announcement | None:
    """Open what ``seal_announcement`` made; None when it is damaged or not of this mesh."""
    plain = sealer.decrypt_hint(sealed)
    if plain is None or len(plain) < FORM.size:
        return None
    flags, sent, length = FORM.unpack_from(plain)
    record = plain[FORM.size : FORM.size + length]
    if length > MAX_RECORD or len(record) < length:
        return None
    return Announcement(record, sent / 1e6, bool(flags & ASK))


class Asking:
    """The waits between announcements that ask: two short ones on a new link, then ever longer ones while alone."""

    def __init__(self) -> None:
        self.is_alone = True
        self._alone_wait = ALONE_S
        self._series: list[float] = []

    def begin(self) -> None:
        """Begin again, as on a new link."""
        self._series = [*REPEATS_S]
        self.is_alone, self._alone_wait = True, ALONE_S

    def next_wait(self) -> float | None:
        """Return how long to wait before this node asks again; None when it need not, for others were heard."""
        if self._series:
            return self._series.pop(0)
        if not self.is_alone:
            return None
        wait, self._alone_wait = self._alone_wait, min(2 * self._alone_wait, MAX_ALONE_S)
        return wait


class Lan:
    """What one node announces on its links, and the nodes that it heard there.

    ``next_deadline`` says when ``take`` has something to send. ``now`` is monotonic seconds, ``wall`` Unix seconds.
    """

    def __init__(self, own: NodeId, sealer: Sealer, rng: random.Random, metrics: Metrics) -> None:
        self._own = own
        self._sealer = sealer
        self._rng = rng
        self._metrics = metrics
        self._heard: BoundedDict[bytes, None] = BoundedDict(MAX_LAN_HEARD)
        self._known: BoundedDict[NodeId, None] = BoundedDict(MAX_NEIGHBOURS)
        self._record: EndpointRecord | None = None
        self._asking = Asking()
        self._due: float | None = None
        self._asks = False
        self._last = float("-inf")
        self._since = float("-inf")  # when this node came to its present links
        self._asked = float("-inf")

    def __len__(self) -> int:
        return len(self._known)

    # ---- what this node says

    def publish(self, record: EndpointRecord, now: float) -> bool:
        """Announce a newer record: once when its addresses are the same, else as on a new link; then return True."""
        before, self._record = self._record, record
        if before is not None and before.endpoints == record.endpoints:
            self._soon(now)
            return False
        self.moved(now)
        return True

    def moved(self, now: float) -> None:
        """Begin as on a new link: announce at once and three times, and ask who is there."""
        self._asking.begin()
        self._asks = True
        self._last, self._since = float("-inf"), now
        self._soon(now)

    def ask(self, now: float) -> None:
        """Ask the others for their announcements, for a caller that looks for one of these nodes."""
        if now - self._asked >= ASK_AGAIN_S:
            self._asked = now
            self._asks = True
            self._soon(now)

    def _soon(self, at: float) -> None:
        at = max(at, self._last + GAP_S)
        if self._due is None or at < self._due:
            self._due = at

    def next_deadline(self) -> float | None:
        """Return when the next announcement is due; None while there is nothing to say."""
        return self._due if self._record is not None else None

    def take(self, now: float, wall: float) -> bytes | None:
        """Return the TXT rdata to multicast now, under a name that was never used; None when none is due."""
        if self._record is None or self._due is None or now < self._due:
            return None
        said = Announcement(self._record.encoded, wall, self._asks)
        self._last, self._due, self._asks = now, None, False
        if said.asks:
            self._ask_again(now)
        return encode_text(seal_announcement(self._sealer, said))

    def _ask_again(self, now: float) -> None:
        wait = self._asking.next_wait()
        if wait is not None:
            self._asks = True
            self._due = now + wait

    # ---- what others say

    def hear(self, text: bytes, now: float, wall: float) -> bytes | None:
        """Take the TXT rdata that a link brought; return the record to hand on, unverified.

        None for what is too long, of another mesh, this node's own, or known already. When its sender asks, this node's
        announcement follows within 120 ms, at most four times a second; not when it is older than this node's time on
        the link, for a stranger may have recorded it (and this node has asked itself since).
        """
        if len(text) > MAX_LAN_TEXT:
            self._metrics.count(OVERSIZED)
            return None
        sealed = decode_text(text)
        nonce = sealed[:NONCE_LENGTH]
        if nonce in self._heard:
            return None
        said = open_announcement(self._sealer, sealed)
        if said is None:
            self._metrics.count(FOREIGN)
            return None
        self._heard[nonce] = None
        try:
            peer = open_record(said.record, wall).id
        except RecordError:
            return said.record  # not answered; the resolver counts the reason
        if peer == self._own:
            return None
        self._known[peer] = None
        self._asking.is_alone = False
        age = wall - said.sent
        if said.asks and (abs(age) > SEAL_WINDOW_S or now - age < self._since):
            self._metrics.count(STALE)
        elif said.asks:
            self._soon(now + self._rng.uniform(*ANSWER_S))
        return said.record
