"""qh3's TLS with this protocol's parameters: our groups, our transport parameters, as many streams."""

from __future__ import annotations

import hmac
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from qh3 import tls
from qh3.quic.tls_bridge import QuicTlsBridge

from meshnode.quic.engines import qh3_messages as messages
from meshnode.quic.engines.common import CONNECTION_WINDOW, STREAM_WINDOW, STREAMS
from meshnode.quic.engines.credit import info_of, varint
from meshnode.quic.engines.key_exchange import (
    LISTENERS,
    LISTENERS_SECRET,
    F,
    binding_of,
    check_names,
    chosen,
    is_valid,
    rebound,
)
from meshnode.quic.seam import MAX_DATAGRAM_FRAME, NO_GROUP

UNIDIRECTIONAL = 8  # granted, so that a peer that opens one hears that this protocol has none

KEY, IV, HP = (info_of(b"quic " + label, size=size) for label, size in ((b"key", 16), (b"iv", 12), (b"hp", 16)))

# transport parameters (RFC 9000 section 18.2)
ODCID = 0x00
IDLE_TIMEOUT = 0x01
RESET_TOKEN = 0x02
MAX_DATA = 0x04
MAX_STREAM_DATA = (0x05, 0x06, 0x07)
MAX_STREAMS_BIDI = 0x08
MAX_STREAMS_UNI = 0x09
OWN_CID = 0x0F
DATAGRAM_FRAME = 0x20  # RFC 9221 section 3


class Checked(NamedTuple):
    """A hello whose key shares were checked, and its bytes: what the library is given in place of the message."""

    hello: Any
    data: bytes


CODECS: dict[str, Any] = {
    "_build_grease_ech_extension": bytes,  # a key pair made for an extension that is sent to no node
    "KeySchedule": messages.Schedule,
    "KeyScheduleProxy": messages.Schedule,
    "pull_certificate": messages.pull_certificate,
    "pull_certificate_verify": messages.pull_certificate_verify,
    "pull_client_hello": attrgetter("hello"),
    "pull_encrypted_extensions": messages.pull_encrypted_extensions,
    "pull_finished": messages.pull_finished,
    "pull_server_hello": attrgetter("hello"),
    "push_certificate": messages.push_certificate,
    "push_certificate_verify": messages.push_certificate_verify,
    "push_client_hello": messages.push_client_hello,
    "push_encrypted_extensions": messages.push_encrypted_extensions,
    "push_finished": messages.push_finished,
    "push_message": messages.Message,
    "push_server_hello": messages.push_server_hello,
}


def _faster(function: F) -> F:
    """Return a step of the library's state machine that reads and writes with ``qh3_messages``."""
    return rebound(function, **CODECS)


CLIENT_HANDLE_HELLO: Any = _faster(tls.Context._client_handle_hello)
SERVER_HANDLE_HELLO: Any = _faster(tls.Context._server_handle_hello)


class GroupContext(tls.Context):
    """TLS of one connection that keeps to its groups; ``group`` is the one that was negotiated.

    Shares of a wrong size would make the core panic, and the library's listener takes any group that it knows.
    """

    group = 0
    binding = b""

    def _setup_traffic_protection(self, direction: Any, epoch: Any, label: bytes) -> None:
        super()._setup_traffic_protection(direction, epoch, label)
        if label == LISTENERS_SECRET:
            secret: Any = self._enc_key if direction == tls.Direction.ENCRYPT else self._dec_key
            self.binding = binding_of(secret)

    _client_send_hello = _faster(tls.Context._client_send_hello)
    _client_handle_encrypted_extensions = _faster(tls.Context._client_handle_encrypted_extensions)
    _client_handle_certificate = _faster(tls.Context._client_handle_certificate)
    _client_handle_certificate_verify = _faster(tls.Context._client_handle_certificate_verify)
    _client_handle_finished = _faster(tls.Context._client_handle_finished)
    _server_handle_finished = _faster(tls.Context._server_handle_finished)

    def _client_handle_hello(self, input_buf: Any, output_buf: Any) -> None:
        hello = messages.pull_server_hello(input_buf)
        share = hello.key_share
        if share is None or share[0] not in self._supported_groups or not is_valid(share, LISTENERS):
            raise tls.AlertIllegalParameter("ServerHello has a key share that was not asked for")
        CLIENT_HANDLE_HELLO(self, Checked(hello, input_buf.data), output_buf)
        self.group = share[0]

    def _server_handle_hello(self, input_buf: Any, *buffers: Any) -> None:
        hello = messages.pull_client_hello(input_buf)
        share = chosen(self._supported_groups, hello.key_share)
        if share is None:
            raise tls.AlertHandshakeFailure(NO_GROUP)
        hello.key_share = [share]
        SERVER_HANDLE_HELLO(self, Checked(hello, input_buf.data), *buffers)
        self.group = share[0]


class KeyOnlyTls(QuicTlsBridge):
    """QuicTlsBridge with our groups and short transport parameters; ``sent_secret`` is that of 1-RTT packets sent."""

    def __init__(self, configuration: Any, **named: Any) -> None:
        self.sent_secret = b""
        super().__init__(configuration, **named)
        context: Any = self.tls
        context.__class__ = GroupContext
        context._supported_groups = [*configuration.groups]
        context._supported_versions = [tls.TLS_VERSION_1_3]

    def serialize_transport_parameters(self) -> bytes:
        """Return what this end declares; all but the ids is the same for every connection."""
        found = _shared(self.configuration.idle_timeout) + _parameter(OWN_CID, self.local_initial_source_connection_id)
        if self.configuration.is_client:
            return found
        odcid = self.original_destination_connection_id or b""
        return found + _parameter(ODCID, odcid) + _parameter(RESET_TOKEN, self.stateless_reset_token or b"")

    def _on_traffic_secret(
        self, direction: tls.Direction, epoch: tls.Epoch, cipher_suite: tls.CipherSuite, secret: bytes
    ) -> None:
        if direction is tls.Direction.ENCRYPT and epoch is tls.Epoch.ONE_RTT:
            self.sent_secret = secret
        # RFC 9001 section 5.1, for AES-128-GCM
        key, iv = hmac.digest(secret, KEY, "sha256")[:16], hmac.digest(secret, IV, "sha256")[:12]
        hp = hmac.digest(secret, HP, "sha256")[:16]
        made: Any = messages.Secret(direction, epoch, cipher_suite, self.version, key, iv, hp, secret)
        self._traffic_secrets.append(made)


@lru_cache(maxsize=64)
def _shared(idle_timeout: float) -> bytes:
    timeout = int(idle_timeout * 1000) if idle_timeout < 1e12 else 0
    return b"".join(
        (
            _number(IDLE_TIMEOUT, timeout),
            _number(MAX_DATA, CONNECTION_WINDOW),
            *(_number(kind, STREAM_WINDOW) for kind in MAX_STREAM_DATA),
            _number(MAX_STREAMS_BIDI, STREAMS),
            _number(MAX_STREAMS_UNI, UNIDIRECTIONAL),
            _number(DATAGRAM_FRAME, MAX_DATAGRAM_FRAME),
        )
    )


def _number(kind: int, value: int) -> bytes:
    return _parameter(kind, varint(value))


def _parameter(kind: int, value: bytes) -> bytes:
    return varint(kind) + varint(len(value)) + value


NEEDED = {
    "_client_handle_certificate": "pull_certificate",
    "_client_handle_certificate_verify": "pull_certificate_verify certificate_verify_data",
    "_client_handle_encrypted_extensions": "pull_encrypted_extensions _setup_traffic_protection",
    "_client_handle_finished": "pull_finished push_finished push_message _setup_traffic_protection",
    "_client_handle_hello": "pull_server_hello select",
    "_client_send_hello": "_build_grease_ech_extension KeyScheduleProxy push_client_hello push_message",
    "_server_handle_finished": "pull_finished",
    "_server_handle_hello": (
        "KeySchedule pull_client_hello push_certificate push_certificate_verify push_encrypted_extensions "
        "push_finished push_message push_server_hello _setup_traffic_protection"
    ),
}


def check() -> None:
    """Fail at start-up when this qh3 has not the functions that ``GroupContext`` stands on."""
    for name, names in NEEDED.items():
        check_names("qh3", getattr(tls.Context, name), names)
