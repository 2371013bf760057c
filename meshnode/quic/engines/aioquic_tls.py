"""aioquic's TLS with this protocol's groups. aioquic has no hybrid: it takes the place of X448, which is not used here.

The three methods that exchange keys are the library's own, with our names where they speak of X448; the library
itself is not changed, for others in the process may use it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from meshnode.quic.engines.key_exchange import (
    HYBRID,
    KEM_CIPHERTEXT,
    KEM_KEY,
    LISTENERS,
    LISTENERS_SECRET,
    NAMES,
    X25519,
    binding_of,
    check_names,
    chosen,
    is_valid,
    rebound,
)
from meshnode.quic.seam import NO_GROUP


class PeerShare:
    """The other end's half of a hybrid key exchange: ML-KEM's part, then the point of X25519."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Hybrid:
    """One end's half: a dialler's when ``encoded`` comes before ``exchange``, else a listener's."""

    def __init__(self) -> None:
        self._point = X25519PrivateKey.generate()
        self._kem: Any = None  # the dialler's
        self._ciphertext = b""  # the listener's

    @classmethod
    def generate(cls) -> Hybrid:
        """Return a new half."""
        return cls()

    def public_key(self) -> Hybrid:
        """Return what ``encode_public_key`` takes."""
        return self

    def encoded(self) -> bytes:
        """Return this end's share: an encapsulation key or a ciphertext, then the point."""
        if not self._ciphertext:
            self._kem = MLKEM768PrivateKey.generate()
            kem: bytes = self._kem.public_key().public_bytes_raw()
        else:
            kem = self._ciphertext
        return kem + self._point.public_key().public_bytes_raw()

    def exchange(self, peer: PeerShare) -> bytes:
        """Return the shared secret, ML-KEM's first.

        Raises ValueError when the other end's share is malformed.
        """
        data = peer.data
        if self._kem is not None:
            secret: bytes = self._kem.decapsulate(data[:KEM_CIPHERTEXT])
        else:
            secret, self._ciphertext = MLKEM768PublicKey.from_public_bytes(data[:KEM_KEY]).encapsulate()
        return secret + self._point.exchange(X25519PublicKey.from_public_bytes(data[-32:]))


def _decode(share: tuple[int, bytes]) -> Any:
    return PeerShare(share[1]) if share[0] == HYBRID else tls.decode_public_key(share)


def _encode(key: Any) -> tuple[int, bytes]:
    return (HYBRID, key.encoded()) if isinstance(key, Hybrid) else tls.encode_public_key(key)


OURS: dict[str, Any] = {
    "Group": SimpleNamespace(X25519=X25519, X448=HYBRID, GREASE=tls.Group.GREASE),
    "decode_public_key": _decode,
    "encode_public_key": _encode,
    "x448": SimpleNamespace(X448PrivateKey=Hybrid, X448PublicKey=PeerShare),
}
CLIENT_HELLO = rebound(tls.Context._client_send_hello, **OURS)


class GroupContext(tls.Context):
    """TLS of one connection that negotiates our groups; ``group`` is the one that was negotiated."""

    group = 0
    binding = b""

    def _setup_traffic_protection(self, direction: Any, epoch: Any, label: bytes) -> None:
        super()._setup_traffic_protection(direction, epoch, label)
        if label == LISTENERS_SECRET:
            secret: Any = self._enc_key if direction == tls.Direction.ENCRYPT else self._dec_key
            self.binding = binding_of(secret)

    def _client_send_hello(self, output_buf: Any) -> None:
        CLIENT_HELLO(self, output_buf)

    def _client_handle_hello(self, input_buf: Any, output_buf: Any) -> None:
        hello = tls.pull_server_hello(input_buf)
        share = hello.key_share
        if share is None or share[0] not in self._supported_groups or not is_valid(share, LISTENERS):
            raise tls.AlertIllegalParameter("ServerHello has a key share that was not asked for")
        rebound(tls.Context._client_handle_hello, **OURS, pull_server_hello=lambda _: hello)(
            self, input_buf, output_buf
        )
        self.group = share[0]

    def _server_handle_hello(self, input_buf: Any, initial_buf: Any, handshake_buf: Any) -> None:
        hello = tls.pull_client_hello(input_buf)
        share = chosen(self._supported_groups, hello.key_share)
        if share is None:
            raise tls.AlertHandshakeFailure(NO_GROUP)
        hello.key_share = [share]
        handle = rebound(tls.Context._server_handle_hello, **OURS, pull_client_hello=lambda _: hello)
        handle(self, input_buf, initial_buf, handshake_buf)
        self.group = share[0]


def take_over(context: Any, groups: tuple[int, ...]) -> None:
    """Make the TLS of a connection that has not begun one that negotiates ``groups``."""
    context.__class__ = GroupContext
    context._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
    context._supported_groups = [*groups]


def peer_key(context: Any) -> bytes | None:
    """Return the raw key (32 bytes) that the listener has proven, None when it is not of a node's kind."""
    certificate = context._peer_certificate
    public = certificate.public_key() if certificate is not None else None
    return public.public_bytes_raw() if isinstance(public, Ed25519PublicKey) else None


def end_handshake(context: Any) -> tuple[str, bytes]:
    """Let go of the secrets of this end, which are used no more; return the name of the group, and the binding."""
    context._x25519_private_key = context._x448_private_key = None
    return NAMES[context.group], context.binding


def check() -> None:
    """Fail at start-up when this aioquic is not the one that this file was written against."""
    check_names("aioquic", tls.Context._client_send_hello, "Group encode_public_key x448")
    both = "decode_public_key x25519 x448"
    check_names("aioquic", tls.Context._client_handle_hello, f"{both} pull_server_hello _setup_traffic_protection")
    check_names(
        "aioquic",
        tls.Context._server_handle_hello,
        f"{both} encode_public_key pull_client_hello _setup_traffic_protection",
    )
