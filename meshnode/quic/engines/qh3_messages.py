"""TLS 1.3 messages and key schedule for qh3, in whole byte strings.

The library writes and reads each field by calls of its own, a block by a context manager: two thirds of a handshake.
What stays the same in this protocol (one cipher suite, one signature algorithm, no tickets) is written once here. The
library's state machine and all its checks go on, on the same objects.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from qh3 import tls

from meshnode.quic.engines.credit import info_of

VERSION = b"\x03\x03"  # of the record layer, which TLS 1.3 leaves where it was
HELLO_FIXED = 34  # bytes of version and random
KEY_SHARE, TRANSPORT_PARAMETERS = 51, 57
SUPPORTED_GROUPS, SIGNATURES, ALPN, PRE_SHARED_KEY, VERSIONS, PSK_MODES = 10, 13, 16, 41, 43, 45
RETRY_CONFIGS = 65037

ZEROS = bytes(32)
EMPTY = sha256().digest()
EARLY = hmac.digest(ZEROS, ZEROS, "sha256")  # without a pre-shared key it is the same for all (RFC 8446 section 7.1)
DERIVED = info_of(b"derived", EMPTY)
BEFORE_HANDSHAKE = hmac.digest(EARLY, DERIVED, "sha256")
FINISHED = info_of(b"finished")
SHORT = "a message ends before its last field"


class Schedule:
    """Key schedule of a handshake with SHA-256, in place of the library's ``KeySchedule`` and its proxy."""

    algorithm, digest_size = 256, 32

    def __init__(self, cipher_suite: Any) -> None:
        self.cipher_suite = cipher_suite[0] if type(cipher_suite) is list else cipher_suite
        if tls.CIPHER_SUITES[self.cipher_suite] != self.algorithm:
            raise ValueError("a cipher suite with another hash than SHA-256")
        self.generation = 0
        self.hash = sha256()
        self.secret = ZEROS

    def select(self, cipher_suite: Any) -> Schedule:
        """Return this schedule: there is but one cipher suite."""
        return self

    def update_hash(self, data: bytes) -> None:
        """Add a message to the transcript."""
        self.hash.update(data)

    def extract(self, key_material: bytes | None = None) -> None:
        """Go to the next of the three secrets: early, handshake, master.

        ``key_material`` is the secret of the key exchange, None where the RFC has zeros.
        """
        self.generation += 1
        if self.generation == 1 and key_material is None:
            self.secret = EARLY
            return
        salt = BEFORE_HANDSHAKE if self.generation == 2 else hmac.digest(self.secret, DERIVED, "sha256")
        self.secret = hmac.digest(salt, key_material or ZEROS, "sha256")

    def derive_secret(self, label: bytes) -> bytes:
        """Return a traffic secret of the transcript so far.

        That is Derive-Secret with the schedule's present secret (RFC 8446 section 7.1).
        """
        return hmac.digest(self.secret, info_of(label, self.hash.digest()), "sha256")

    def certificate_verify_data(self, context: bytes) -> bytes:
        """Return what CertificateVerify signs (section 4.4.3)."""
        return b" " * 64 + context + b"\0" + self.hash.digest()

    def finished_verify_data(self, secret: bytes) -> bytes:
        """Return what Finished proves (section 4.4.4)."""
        return hmac.digest(hmac.digest(secret, FINISHED, "sha256"), self.hash.digest(), "sha256")


class Message:
    """What is written to ``buf`` within it goes into the transcript."""

    __slots__ = ("_buf", "_schedule", "_start")

    def __init__(self, schedule: Schedule, buf: Any) -> None:
        self._schedule, self._buf = schedule, buf

    def __enter__(self) -> None:
        self._start = self._buf.tell()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._schedule.update_hash(self._buf.data_slice(self._start, self._buf.tell()))


# ---- written


def block(width: int, *parts: bytes) -> bytes:
    """Return a block with its length before it."""
    data = b"".join(parts)
    return len(data).to_bytes(width, "big") + data


def numbers(values: Sequence[int]) -> bytes:
    """Return numbers of 16 bits."""
    return b"".join(value.to_bytes(2, "big") for value in values)


def extension(kind: int, *parts: bytes) -> bytes:
    """Return an extension of a message."""
    return kind.to_bytes(2, "big") + block(2, *parts)


def _protocols(names: Sequence[str]) -> bytes:
    return block(2, *(block(1, name.encode("ascii")) for name in names))


@lru_cache(maxsize=16)
def _offer(
    suites: tuple[int, ...], signatures: tuple[int, ...], protocols: tuple[str, ...], groups: tuple[int, ...]
) -> tuple[bytes, bytes]:
    """Return what stands in all ClientHellos before and behind the extensions' length."""
    return block(2, numbers(suites)) + b"\1\0", b"".join(
        (
            extension(SIGNATURES, block(2, numbers(signatures))),
            extension(ALPN, _protocols(protocols)),
            extension(PSK_MODES, b"\1\1"),
            extension(VERSIONS, block(1, numbers((tls.TLS_VERSION_1_3,)))),
            extension(SUPPORTED_GROUPS, block(2, numbers(groups))),
        )
    )


def push_client_hello(buf: Any, hello: Any) -> None:
    """Write a ClientHello: what this protocol needs, without values that stand for nothing (RFC 8701).

    All but the random, the key shares and the transport parameters is the same in every connection.
    """
    suites, fixed = _offer(
        tuple(hello.cipher_suites),
        tuple(hello.signature_algorithms),
        tuple(hello.alpn_protocols),
        tuple(hello.supported_groups),
    )
    shares = b"".join(group.to_bytes(2, "big") + block(2, share) for group, share in hello.key_share)
    others = dict(hello.other_extensions)
    extensions = (
        fixed,
        extension(KEY_SHARE, block(2, shares)),
        extension(TRANSPORT_PARAMETERS, others[TRANSPORT_PARAMETERS]),
    )
    start = VERSION + hello.random + block(1, hello.legacy_session_id) + suites
    buf.push_bytes(b"\1" + block(3, start, block(2, *extensions)))


def push_server_hello(buf: Any, hello: Any) -> None:
    """Write a ServerHello."""
    group, share = hello.key_share
    extensions = (
        extension(VERSIONS, hello.supported_version.to_bytes(2, "big")),
        extension(KEY_SHARE, group.to_bytes(2, "big"), block(2, share)),
    )
    chosen = hello.cipher_suite.to_bytes(2, "big") + hello.compression_method.to_bytes(1, "big")
    start = VERSION + hello.random + block(1, hello.legacy_session_id) + chosen
    buf.push_bytes(b"\2" + block(3, start, block(2, *extensions)))


def push_encrypted_extensions(buf: Any, extensions: Any) -> None:
    """Write EncryptedExtensions."""
    found = [extension(ALPN, _protocols([extensions.alpn_protocol]))]
    found += (extension(kind, value) for kind, value in extensions.other_extensions)
    buf.push_bytes(b"\x08" + block(3, block(2, *found)))


def push_certificate(buf: Any, certificate: Any) -> None:
    """Write a Certificate."""
    entries = (block(3, data) + block(2, extensions) for data, extensions in certificate.certificates)
    buf.push_bytes(b"\x0b" + block(3, block(1, certificate.request_context), block(3, *entries)))


def push_certificate_verify(buf: Any, verify: Any) -> None:
    """Write a CertificateVerify."""
    buf.push_bytes(b"\x0f" + block(3, verify.algorithm.to_bytes(2, "big"), block(2, verify.signature)))


def push_finished(buf: Any, finished: Any) -> None:
    """Write a Finished."""
    buf.push_bytes(b"\x14" + block(3, finished.verify_data))


# ---- read


class Fields:
    """The blocks of a message, from its start; what is too short or too long ends the handshake (decode_error)."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        Raises AlertDecodeError when there are fewer.
        """
        at = self._at
        self._at = end = at + size
        if end > len(self._data):
            raise tls.AlertDecodeError(SHORT)
        return self._data[at:end]

    def number(self, size: int) -> int:
        """Return the next number."""
        return int.from_bytes(self.take(size), "big")

    def block(self, width: int) -> bytes:
        """Return the next block, whose length is a number of ``width`` bytes before it.

        Raises AlertDecodeError when it ends behind the message.
        """
        start = self._at + width
        self._at = end = start + int.from_bytes(self._data[self._at : start], "big")
        if start > len(self._data) or end > len(self._data):
            raise tls.AlertDecodeError(SHORT)
        return self._data[start:end]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data) - self._at)

    def more(self) -> bool:
        """Return whether anything is left."""
        return self._at < len(self._data)

    def end(self) -> None:
        """Check that nothing is left.

        Raises AlertDecodeError when something is.
        """
        if self._at != len(self._data):
            raise tls.AlertDecodeError("extra bytes at the end of a block")


def _body(buf: Any, kind: int) -> Fields:
    """Return a message's body; ``buf`` has that message and nothing else."""
    head = buf.pull_bytes(4)
    if head[0] != kind:
        raise tls.AlertDecodeError(f"a message of type {head[0]} where {kind} was expected")
    return Fields(buf.pull_bytes(int.from_bytes(head[1:], "big")))


def extensions_of(data: bytes) -> dict[int, bytes]:
    """Return a message's extensions in their order.

    Raises AlertIllegalParameter for one that comes twice (RFC 8446 section 4.2), AlertDecodeError for one cut short.
    """
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        value = at + 4
        kind, at = int.from_bytes(data[at : at + 2], "big"), value + int.from_bytes(data[at + 2 : value], "big")
        if value > end or at > end:
            raise tls.AlertDecodeError("an extension ends behind its message")
        if kind in found:
            raise tls.AlertIllegalParameter("an extension comes twice")
        found[kind] = data[value:at]
    return found


def _whole(data: bytes, width: int) -> bytes:
    """Return the one block that there is."""
    if len(data) < width or int.from_bytes(data[:width], "big") != len(data) - width:
        raise tls.AlertDecodeError("a block has not the length that it says")
    return data[width:]


def _numbers(data: bytes) -> list[int]:
    if len(data) % 2:
        raise tls.AlertDecodeError("a list of numbers ends within one")
    return [first << 8 | second for first, second in zip(data[::2], data[1::2], strict=True)]


def _names(data: bytes) -> list[str]:
    fields, found = Fields(_whole(data, 2)), []
    while fields.more():
        found.append(fields.block(1).decode("ascii", "replace"))
    return found


def pull_client_hello(buf: Any) -> Any:
    """Read a ClientHello: what a listener of this protocol looks at.

    ``buf`` has the message and nothing else. Raises an Alert of the library for a message that is not well formed.
    """
    fields = _body(buf, tls.HandshakeType.CLIENT_HELLO)
    start = fields.take(HELLO_FIXED)
    if start[:2] != VERSION:
        raise tls.AlertDecodeError("ClientHello version is not 1.2")
    session, suites, methods = fields.block(1), fields.block(2), fields.block(1)
    found = extensions_of(fields.block(2))
    fields.end()
    if PRE_SHARED_KEY in found and next(reversed(found)) != PRE_SHARED_KEY:
        raise tls.AlertIllegalParameter("PreSharedKey is not the last extension")
    hello = tls.ClientHello(start[2:], session, _numbers(suites), list(methods))
    if KEY_SHARE in found:
        shares, hello.key_share = Fields(_whole(found[KEY_SHARE], 2)), []
        while shares.more():
            hello.key_share.append((shares.number(2), shares.block(2)))
    hello.supported_versions = _numbers(_whole(found[VERSIONS], 1)) if VERSIONS in found else None
    hello.signature_algorithms = _numbers(_whole(found[SIGNATURES], 2)) if SIGNATURES in found else None
    hello.supported_groups = _numbers(_whole(found[SUPPORTED_GROUPS], 2)) if SUPPORTED_GROUPS in found else None
    hello.psk_key_exchange_modes = list(_whole(found[PSK_MODES], 1)) if PSK_MODES in found else None
    hello.alpn_protocols = _names(found[ALPN]) if ALPN in found else None
    if TRANSPORT_PARAMETERS in found:
        hello.other_extensions.append((TRANSPORT_PARAMETERS, found[TRANSPORT_PARAMETERS]))
    return hello


def pull_server_hello(buf: Any) -> Any:
    """Read a ServerHello.

    Raises an Alert for one that is not well formed; whether a value was asked for is the library's to check.
    """
    fields = _body(buf, tls.HandshakeType.SERVER_HELLO)
    start = fields.take(HELLO_FIXED)
    if start[:2] != VERSION:
        raise tls.AlertDecodeError("ServerHello version is not 1.2")
    hello = tls.ServerHello(start[2:], fields.block(1), fields.number(2), fields.number(1))
    found = extensions_of(fields.block(2))
    fields.end()
    if KEY_SHARE in found:
        share = Fields(found[KEY_SHARE])
        hello.key_share = share.number(2), share.block(2)
        share.end()
    for kind, name in ((VERSIONS, "supported_version"), (PRE_SHARED_KEY, "pre_shared_key")):
        if kind in found:
            value = Fields(found[kind])
            setattr(hello, name, value.number(2))
            value.end()
    return hello


def pull_encrypted_extensions(buf: Any) -> Any:
    """Read EncryptedExtensions.

    Of those that this protocol does not have nothing is kept. Raises an Alert when they are not well formed.
    """
    fields = _body(buf, tls.HandshakeType.ENCRYPTED_EXTENSIONS)
    found = extensions_of(fields.block(2))
    fields.end()
    read = tls.EncryptedExtensions(retry_configs=found.get(RETRY_CONFIGS))
    if ALPN in found:
        names = _names(found[ALPN])
        if len(names) != 1:
            raise tls.AlertDecodeError("not one protocol was chosen")
        read.alpn_protocol = names[0]
    if TRANSPORT_PARAMETERS in found:
        read.other_extensions.append((TRANSPORT_PARAMETERS, found[TRANSPORT_PARAMETERS]))
    return read


def pull_certificate(buf: Any) -> Any:
    """Read a Certificate.

    Raises an Alert for one that is not well formed, or has no entry (RFC 8446 section 4.4.2.4).
    """
    fields = _body(buf, tls.HandshakeType.CERTIFICATE)
    context, entries, found = fields.block(1), Fields(fields.block(3)), []
    fields.end()
    while entries.more():
        found.append((entries.block(3), entries.block(2)))
    if not found:
        raise tls.AlertDecodeError("a Certificate without a certificate")
    return tls.Certificate(context, found)


def pull_certificate_verify(buf: Any) -> Any:
    """Read a CertificateVerify."""
    fields = _body(buf, tls.HandshakeType.CERTIFICATE_VERIFY)
    verify = tls.CertificateVerify(fields.number(2), fields.block(2))
    fields.end()
    return verify


def pull_finished(buf: Any) -> Any:
    """Read a Finished."""
    fields = _body(buf, tls.HandshakeType.FINISHED)
    return tls.Finished(fields.rest())


class Secret(NamedTuple):
    """Keys of one direction and encryption level, as the library's ``QuicTlsTrafficSecret``."""

    direction: Any
    epoch: Any
    cipher_suite: Any
    version: int
    key: bytes
    iv: bytes
    hp: bytes
    secret: bytes
