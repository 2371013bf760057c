"""TLS of tunnels: its certificates prove nothing, for both ends prove their keys inside."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from meshnode.base.files import write_atomic
from meshnode.runtime.state_files import set_aside

RECORD = 16_384  # bytes of plaintext in the longest record (RFC 8446 section 5.1)


class TlsEnd:
    """The listener's end of one TLS connection, without a socket.

    That of an event loop has a buffer of 256 kB a connection, of which 70 kB and more come to be resident.
    """

    __slots__ = ("_read", "_tls", "_written", "is_open")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._read, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._read, self._written, server_side=True)
        self.is_open = False  # from the end of the handshake until the client ends the connection

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the socket, and return the plaintext in them, of all records. Raises ssl.SSLError."""
        found: list[bytes] = []
        for start in range(0, len(data), RECORD):  # a BIO keeps the room that it once needed
            self._read.write(data[start : start + RECORD])
            try:
                if not self.is_open:
                    self._tls.do_handshake()
                    self.is_open = True
                while piece := self._tls.read(RECORD):
                    found.append(piece)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLZeroReturnError:
                pass
            self.is_open = False
            break
        return b"".join(found)  # a client may send records of one byte, and what takes them costs more than that

    def send(self, data: bytes) -> bytes:
        """Return the records, with those of the handshake that wait, for the socket. Raises ssl.SSLError."""
        pieces = [self._written.read()]
        for start in range(0, len(data), RECORD):
            self._tls.write(data[start : start + RECORD])
            pieces.append(self._written.read())
        return b"".join(pieces)

    def end(self) -> bytes:
        """Return the last record, which says that no more follows."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._written.read()


def client_context() -> ssl.SSLContext:
    """Return a dialler's context, which takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the relay proves its key inside
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(path: Path) -> ssl.SSLContext:
    """Return a listener's context, with the key and certificate of a PEM file, which is made when there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    if path.exists() and not path.is_file():
        set_aside(path, "it is no file")  # a FIFO would block
    try:
        context.load_cert_chain(path)
    except FileNotFoundError:
        write_atomic(path, _self_signed())
    except OSError as error:  # ssl.SSLError is one
        set_aside(path, error.strerror or str(error))
        write_atomic(path, _self_signed())
    else:
        return context
    context.load_cert_chain(path)
    return context


def _self_signed() -> bytes:
    """Return a key and a certificate in PEM that prove nothing: the node's own key is proven inside."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
