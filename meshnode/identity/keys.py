"""Ed25519 key pairs: signing (RFC 8032), verifying, and the pairwise X25519 keys (RFC 7748) that seal datagrams."""

from __future__ import annotations

import os

from nacl.bindings import (
    crypto_box_beforenm,
    crypto_sign,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_SHARED_KEYS
from meshnode.errors import InvalidId
from meshnode.identity.node_id import KEY_LENGTH, NodeId


class Identity:
    """A node's key pair.

    A node makes and keeps its own in ``HOME/key``; programs need this class only to make keys elsewhere.

    Args:
        seed: 32 secret bytes, from which both keys follow.

    Attributes:
        id: The public key.
        seed: The secret.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_LENGTH:
            raise ValueError(f"a key seed has {KEY_LENGTH} bytes, not {len(seed)}")
        public, self._secret = crypto_sign_seed_keypair(seed)
        self.seed = seed
        self.id = NodeId(public)  # not the shared object: for a key with a price thousands are tried
        self._curve = crypto_sign_ed25519_sk_to_curve25519(self._secret)
        self._shared: BoundedDict[NodeId, bytes] = BoundedDict(MAX_SHARED_KEYS)  # least recently used goes
        self._kept: BoundedDict[NodeId, bytes] = BoundedDict(MAX_SHARED_KEYS)  # of established peers: ids are free

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> Identity:
        """Make a new key pair.

        Args:
            entropy: Returns so many random bytes; ``os.urandom`` by default.

        Returns:
            The pair.
        """
        return cls(entropy(KEY_LENGTH))

    def __repr__(self) -> str:
        return f"Identity({self.id.short}…)"

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature (RFC 8032) of ``message``.

        The message must begin with a domain of its own, so that no signature counts for another kind of message.
        """
        return crypto_sign(message, self._secret)[:64]

    def knows(self, peer: NodeId) -> bool:
        """Return whether the pairwise key with a peer is at hand.

        Args:
            peer: The other node.

        Returns:
            True when the key is cached, so that using it costs no X25519.
        """
        return peer in self._kept or peer in self._shared

    def shared_key(self, peer: NodeId, *, established: bool = False) -> bytes:
        """Return the 32-byte static X25519 key with ``peer``; ``peer`` computes the same from our public key.

        It takes 100 us, so it is cached (``remember_key``). Raises InvalidId when the peer's id is no point of the
        curve, or one of small order.
        """
        key = self.pairwise_key(peer)
        self.remember_key(peer, key, established=established)
        return key

    def pairwise_key(self, peer: NodeId) -> bytes:
        """Return the same without remembering it: for a peer that has proven nothing yet.

        Raises InvalidId.
        """
        key = self._kept.get(peer) or self._shared.get(peer)
        if key is None:
            try:
                curve = crypto_sign_ed25519_pk_to_curve25519(peer.raw)
                key = crypto_box_beforenm(curve, self._curve)
            except (CryptoError, RuntimeError) as error:
                raise InvalidId("that key is not a point of the curve") from error
        return key

    def remember_key(self, peer: NodeId, key: bytes, *, established: bool = False) -> None:
        """Keep the pairwise key of a peer; of ``MAX_SHARED_KEYS`` the least recently used goes.

        Keys of established peers are kept apart, where no crowd of new ids can push them out.
        """
        (self._kept if established else self._shared).put(peer, key)


def verify(signer: NodeId, message: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` is ``signer``'s over ``message``.

    Never raises: False for a signature of another length, and for an id that is no point of the curve.
    """
    if len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, signer.raw)
    except (CryptoError, ValueError, RuntimeError):
        return False
    return True
