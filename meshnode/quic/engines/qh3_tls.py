"""qh3's TLS with this protocol's parameters: our groups, our transport parameters, as many streams."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from qh3 import tls
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsTrafficSecret

from meshnode.quic.engines.common import CONNECTION_WINDOW, STREAM_WINDOW, STREAMS
from meshnode.quic.engines.credit import expand, varint
from meshnode.quic.engines.key_exchange import (
    LISTENERS,
    LISTENERS_SECRET,
    binding_of,
    check_names,
    chosen,
    is_valid,
    rebound,
)
from meshnode.quic.seam import MAX_DATAGRAM_FRAME, NO_GROUP

UNIDIRECTIONAL = 8  # granted, so that a peer that opens one hears that this protocol has none

LABELS = ((b"quic key", 16), (b"quic iv", 12), (b"quic hp", 16))  # RFC 9001 section 5.1, for AES-128-GCM

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

    def _client_handle_hello(self, input_buf: Any, output_buf: Any) -> None:
        hello = tls.pull_server_hello(input_buf)
        share = hello.key_share
        if share is None or share[0] not in self._supported_groups or not is_valid(share, LISTENERS):
            raise tls.AlertIllegalParameter("ServerHello has a key share that was not asked for")
        rebound(tls.Context._client_handle_hello, pull_server_hello=lambda _: hello)(self, input_buf, output_buf)
        self.group = share[0]

    def _server_handle_hello(self, input_buf: Any, *buffers: Any) -> None:
        hello = tls.pull_client_hello(input_buf)
        share = chosen(self._supported_groups, hello.key_share)
        if share is None:
            raise tls.AlertHandshakeFailure(NO_GROUP)
        hello.key_share = [share]
        rebound(tls.Context._server_handle_hello, pull_client_hello=lambda _: hello)(self, input_buf, *buffers)
        self.group = share[0]


class KeyOnlyTls(QuicTlsBridge):
    """QuicTlsBridge with our groups and short transport parameters; ``secrets`` are those of 1-RTT packets."""

    def __init__(self, configuration: Any, **named: Any) -> None:
        self.secrets: dict[tls.Direction, bytes] = {}
        super().__init__(configuration, **named)
        context: Any = self.tls
        context.__class__ = GroupContext
        context._supported_groups = [*configuration.groups]

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
        if epoch is tls.Epoch.ONE_RTT:
            self.secrets[direction] = secret
        key, iv, hp = (expand(secret, label, size) for label, size in LABELS)
        self._traffic_secrets.append(
            QuicTlsTrafficSecret(direction, epoch, cipher_suite, self.version, key, iv, hp, secret)
        )


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


def check() -> None:
    """Fail at start-up when this qh3 has not the functions that ``GroupContext`` stands on."""
    check_names("qh3", tls.Context._client_handle_hello, "pull_server_hello")
    check_names("qh3", tls.Context._client_handle_finished, "_setup_traffic_protection")
    check_names("qh3", tls.Context._server_handle_hello, "pull_client_hello _setup_traffic_protection")
