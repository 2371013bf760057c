"""Sealed datagrams and knocks: proof of membership and of the sender's key, before anything is parsed.

    0x01 | nonce 24 | SecretBox_K( sender id 32 | time 8 | mac 16 | body )

``K`` is derived from the mesh key and the receiver's id, so a sender that lacks either cannot even tell that a
node is there. ``time`` is Unix microseconds. ``mac`` is a keyed BLAKE2b under the pairwise X25519 key of
sender and receiver over everything else: only these two could have made it. A knock is the same without
the first byte and the body, and with the QUIC original destination connection id under the mac.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct

from nacl.bindings import crypto_secretbox, crypto_secretbox_open
from nacl.exceptions import CryptoError

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Clock, Entropy
from meshnode.base.clock_offset import ClockOffset
from meshnode.base.limits import MAX_SHARED_KEYS, SEAL_WINDOW_S
from meshnode.base.path import Path
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.clock_doubt import ClockDoubt
from meshnode.identity.keys import Identity
from meshnode.identity.mesh_file import KEY_PREFIX
from meshnode.identity.node_id import NodeId, known_id
from meshnode.identity.replay import ReplayGuard
from meshnode.identity.senders import Senders

SEALED = 0x01
NONCE_LENGTH = 24
MAC_LENGTH = 16
INNER = 32 + 8 + MAC_LENGTH
BOX_OVERHEAD = 16
KNOCK_LENGTH = NONCE_LENGTH + BOX_OVERHEAD + INNER  # 96
SEAL_OVERHEAD = 1 + KNOCK_LENGTH  # 97
TIME = struct.Struct("!Q")


class MeshKey:
    """The 32 bytes that make a mesh: secret for a private one, derived from its name for an open one."""

    __slots__ = ("bytes",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise ConfigError(f"a mesh key has 32 bytes, not {len(raw)}")
        self.bytes = raw

    @classmethod
    def from_text(cls, text: str) -> MeshKey:
        """Return the key that a setting means: ``mk-`` and 52 base32 characters are it, other text is a mesh's name.

        A name makes the key of an open mesh: all that know the name are in it. Raises ConfigError for empty text, and
        when text that begins with ``mk-`` is no key.
        """
        if text.startswith(KEY_PREFIX):
            try:
                return cls(base64.b32decode(text[len(KEY_PREFIX) :].upper() + "===="))
            except ValueError as error:
                raise ConfigError("the mesh key is damaged", hint="copy it again, all of it") from error
        if not text:
            raise ConfigError("a mesh needs a name or a key", hint='leave it out for the mesh "open"')
        return cls(hashlib.blake2b(text.encode(), digest_size=32, person=b"mesh-name").digest())

    def __str__(self) -> str:
        return KEY_PREFIX + base64.b32encode(self.bytes).decode().rstrip("=").lower()

    def derive(self, purpose: bytes, data: bytes = b"") -> bytes:
        """Return a 32-byte key for one purpose (at most 16 bytes) and ``data``: BLAKE2b keyed with the mesh key."""
        return hashlib.blake2b(data, key=self.bytes, digest_size=32, person=purpose).digest()


class KeyRing:
    """The mesh key that a node seals with, and all that it opens with: two while the mesh's secret is rotated."""

    def __init__(self, own: NodeId, mesh: MeshKey, also: MeshKey | None = None) -> None:
        keys = (mesh,) if also is None else (mesh, also)
        self.mesh = mesh
        self.outboxes: BoundedDict[NodeId, bytes] = BoundedDict(MAX_SHARED_KEYS)
        self.inboxes = tuple(key.derive(b"mesh-receiver", own.raw) for key in keys)
        self.hints = tuple(key.derive(b"mesh-hint") for key in keys)


def _unbox(box: bytes, nonce: bytes, keys: tuple[bytes, ...]) -> bytes | None:
    """Return what is in a SecretBox of one of these keys; None when it is of none."""
    for key in keys:
        try:
            return crypto_secretbox_open(box, nonce, key)
        except (CryptoError, ValueError, TypeError):
            continue
    return None


class Sealer:
    """Seals to and unseals from any peer of one mesh. ``drops`` counts what was refused, by reason."""

    def __init__(self, identity: Identity, mesh: MeshKey, clock: Clock, entropy: Entropy, *, born: float) -> None:
        self.drops: dict[str, int] = {}
        self.repeated: NodeId | None = (
            None  # the sender whose datagram came again, if that is why the last one was dropped
        )
        self.slowed = False  # True when the last one was dropped because there are too many of such senders
        self._identity = identity
        self._clock = clock
        self._entropy = entropy
        self._born = born
        self._ring = KeyRing(identity.id, mesh)
        self._guard = ReplayGuard(born)
        self.senders = Senders()
        self.doubt = ClockDoubt()
        self.skew = ClockOffset()

    def on_clock_set(self, step: float) -> None:
        """Take note that the wall clock was set by so many seconds: offsets from before say nothing now.

        The time of this process's begin moves along, or datagrams would count as older than the process.
        """
        self._born += step
        self.skew.clear()

    @property
    def mesh(self) -> MeshKey:
        """The key of the mesh that this node seals with."""
        return self._ring.mesh

    def use_keys(self, mesh: MeshKey, also: MeshKey | None) -> None:
        """Seal with ``mesh`` from now on, and open what is sealed with either."""
        self._ring = KeyRing(self._identity.id, mesh, also)

    def keep_key(self, peer: NodeId) -> None:
        """Keep the key of a peer that has a connection now, so that its proofs cost no X25519 from here on."""
        self._identity.shared_key(peer, established=True)

    # ---- sealed datagrams

    def seal(self, peer: NodeId, body: bytes) -> bytes:
        """Return the datagram that only ``peer`` accepts, ``SEAL_OVERHEAD`` bytes longer than ``body``."""
        return bytes([SEALED]) + self._close(peer, b"seal", body)

    def unseal(self, data: bytes, source: Path | None = None) -> tuple[NodeId, bytes] | None:
        """Return the proven sender and the body of a sealed datagram; ``source`` is where it came from.

        None, after counting the reason in ``drops``, when it is cut short, for another node or mesh, older or newer
        than ``SEAL_WINDOW_S``, not by the sender it names, or a replay (then ``repeated`` is its sender).
        """
        if len(data) < SEAL_OVERHEAD or data[0] != SEALED:
            return self._drop("seal_short")
        self.repeated = None
        return self._open(data[1:], b"seal", "seal", source)

    # ---- knocks

    def knock(self, peer: NodeId, odcid: bytes) -> bytes:
        """Return the 96-byte token for an Initial with this original destination connection id."""
        return self._close(peer, b"knock" + odcid, b"")

    def claimed_sender(self, token: bytes) -> NodeId | None:
        """Return the sender that a knock names, without any proof of it; None when it is for another node or mesh.

        It costs a tenth of ``check_knock``, and counts nothing.
        """
        plain = _unbox(token[NONCE_LENGTH:], token[:NONCE_LENGTH], self._ring.inboxes)
        return known_id(plain[:32]) if plain is not None and len(plain) == INNER else None

    def check_knock(self, token: bytes, odcid: bytes, source: Path | None = None) -> NodeId | None:
        """Return the proven sender of a knock for this connection id; ``source`` is where it came from.

        None, after counting the reason in ``drops``; a knock counts once, as a sealed datagram does.
        """
        if len(token) != KNOCK_LENGTH:
            self._drop("knock_short")
            return None
        opened = self._open(token, b"knock" + odcid, "knock", source)
        return opened[0] if opened is not None else None

    # ---- what any member may read

    def encrypt_hint(self, body: bytes) -> bytes:
        """Encrypt for every member of the mesh (mDNS): proves membership, not the sender; 40 bytes longer."""
        nonce = self._entropy(NONCE_LENGTH)
        return nonce + crypto_secretbox(body, nonce, self._ring.hints[0])

    def decrypt_hint(self, data: bytes) -> bytes | None:
        """Return what a member passed to ``encrypt_hint``; None when it is not of this mesh, or damaged."""
        return _unbox(data[NONCE_LENGTH:], data[:NONCE_LENGTH], self._ring.hints)

    # ---- the construction

    def _close(self, peer: NodeId, context: bytes, body: bytes) -> bytes:
        nonce = self._entropy(NONCE_LENGTH)
        me = self._identity.id
        stamp = TIME.pack(int(self._clock.wall() * 1e6))
        linked, home = self.senders.standing(peer)
        key = self._identity.shared_key(peer, established=linked or home is not None)
        mac = _mac(key, nonce, me, peer, stamp, context, body)
        ring = self._ring
        box = ring.outboxes.get(peer)
        if box is None:
            box = ring.outboxes[peer] = ring.mesh.derive(b"mesh-receiver", bytes(peer))
        return nonce + crypto_secretbox(me.raw + stamp + mac + body, nonce, box)

    def _open(self, data: bytes, context: bytes, name: str, source: Path | None) -> tuple[NodeId, bytes] | None:
        """Check box, time, rate, mac and nonce, in this order: X25519 comes behind all that is cheaper.

        The nonce is noted last, when the mac holds.
        """
        nonce = data[:NONCE_LENGTH]
        plain = _unbox(data[NONCE_LENGTH:], nonce, self._ring.inboxes)
        if plain is None:
            return self._drop(f"{name}_box")
        if len(plain) < INNER:
            return self._drop(f"{name}_short")
        stamp, mac, body = plain[32:40], plain[40:56], plain[56:]
        wall = self._clock.wall()
        sent = TIME.unpack(stamp)[0] / 1e6
        if abs(wall - sent) > SEAL_WINDOW_S or sent < self._born:
            return self._drop_stale(f"{name}_stale", sent - wall)
        sender = known_id(plain[:32])
        linked, home = self.senders.standing(sender)
        has_key = self._identity.knows(sender)
        pays_later = home is not None and has_key  # its proof costs a hash, and then it cannot be another that pays
        if not ((linked and has_key) or pays_later) and not self._take(source, has_key):
            return self._drop(f"{name}_rate")
        try:
            key = self._identity.pairwise_key(sender)
            authentic = hmac.compare_digest(mac, _mac(key, nonce, sender, self._identity.id, stamp, context, body))
        except InvalidId:
            authentic = False
        if not authentic:
            return self._drop(f"{name}_mac")
        if pays_later and not self.senders.take_known(sender, home, self._clock.monotonic()):
            home = None  # no more than a stranger
            if not self._take(source, has_key):
                return self._drop(f"{name}_rate")
        if self.doubt.refuses(sent, body):
            return self._drop(f"{name}_doubt")
        established = linked or home is not None
        self._identity.remember_key(sender, key, established=established)  # only now: what is unproven pushes out none
        refused = self._guard.admit(sender, nonce, sent, wall, established=established)
        if refused:
            return self._drop_known(f"{name}_", refused, sender)
        self.skew.proven(sender, sent - wall, self._clock.monotonic())
        return sender, body

    def _take(self, source: Path | None, has_key: bool) -> bool:
        """True when a datagram that has proven nothing is not too many, of where it came from and in all."""
        return self.senders.take_stranger(source, has_key, self._clock.monotonic())

    def _drop_stale(self, reason: str, offset: float) -> tuple[NodeId, bytes] | None:
        if abs(offset) > SEAL_WINDOW_S:  # one from before this process began says nothing of clocks
            self.skew.stale(offset, self._clock.monotonic())
        return self._drop(reason)

    def _drop_known(self, name: str, refused: str, sender: NodeId) -> tuple[NodeId, bytes] | None:
        self.repeated = sender if refused == "replay" else None
        return self._drop(name + refused)

    def _drop(self, reason: str) -> tuple[NodeId, bytes] | None:
        """Count a datagram that is refused, and return what ``_open`` returns for it: None."""
        self.slowed = reason.endswith("_rate")
        self.drops[reason] = self.drops.get(reason, 0) + 1
        return None


def _mac(
    key: bytes, nonce: bytes, sender: NodeId, receiver: NodeId, stamp: bytes, context: bytes, body: bytes
) -> bytes:
    message = b"".join((nonce, sender.raw, receiver.raw, stamp, bytes([len(context)]), context, body))
    return hashlib.blake2b(message, key=key, digest_size=MAC_LENGTH, person=b"mesh-mac").digest()
