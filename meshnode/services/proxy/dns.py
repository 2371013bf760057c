"""The DNS zone ``mesh`` (RFC 1035), without I/O: a query in, an answer out; dnslib has the format.

It answers for this zone alone and asks no other server. A name that means a node has one AAAA record and no other;
answers are shorter than 512 bytes, so that none is ever truncated.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from dnslib import AAAA, EDNS0, OPCODE, QTYPE, RCODE, RR, SOA, DNSError, DNSHeader, DNSQuestion, DNSRecord
from dnslib.buffer import BufferError
from dnslib.label import DNSBuffer, DNSLabel

from meshnode.base.value import frozen
from meshnode.errors import InvalidId, MeshError, NotFound
from meshnode.identity.mesh_host import MeshHost, parse_host

ZONE = "mesh."
TTL_S = 30  # of an answer: a name may mean another node after `meshnode forget`
NEGATIVE_TTL_S = 5  # of none: the node may be there in a moment
MAX_QUERY = 512  # bytes; a question has 271 at most, and options some
MAX_LABEL, MAX_NAME = 63, 255  # bytes
UDP_SIZE = 1_232  # that this end takes, in EDNS
BADVERS = 16  # its four low bits are in the header, the others in the OPT record (RFC 6891, section 6.1.3)
VERSION = 6  # where an OPT record with the root's name has the version of EDNS; there is no other than 0
IN, ANY_CLASS = 1, 255


@frozen
class Query:
    """A question for the zone.

    Attributes:
        record: The query as it came, for the answer.
        host: What is asked for: a node and maybe a service of it; None for the zone itself.
    """

    record: DNSRecord
    host: MeshHost | None


def read_query(data: bytes) -> Query | bytes | None:
    """Return the question of a datagram, or the answer where there is nothing to look up, or None to drop it.

    What is no query is dropped, answers too: two programs that answer each other would never end.
    """
    record = _parse(data)
    if record is None:
        return None
    refusal = _refusal(record)
    if refusal is not None:
        return _answer(record, refusal)
    name = str(record.q.qname).lower()
    if name == ZONE:
        return Query(record, None)
    if not name.endswith("." + ZONE):
        return _answer(record, RCODE.REFUSED)
    try:
        return Query(record, parse_host(name))
    except InvalidId:
        return _answer(record, RCODE.NXDOMAIN)


def _parse(data: bytes) -> DNSRecord | None:
    """Return the header and the question of a query; the rest of it counts for nothing, but whether it has EDNS."""
    if not 12 <= len(data) <= MAX_QUERY:
        return None
    try:
        buffer = DNSBuffer(data)
        header = DNSHeader.parse(buffer)
        if header.qr:
            return None
        questions = [DNSQuestion.parse(buffer)] if header.q == 1 else []
        if any(not _is_name(question.qname) for question in questions):
            return None
        extra = [EDNS0(version=_edns_version(buffer))] if header.ar and _has_edns(buffer) else []
    except (DNSError, BufferError, ValueError):
        return None
    return DNSRecord(header, questions=questions, ar=extra)


def _is_name(name: DNSLabel) -> bool:
    """Return whether a name can be written again (RFC 1035, section 2.3.4); dnslib reads longer ones too."""
    return all(len(part) <= MAX_LABEL for part in name.label) and sum(len(part) + 1 for part in name.label) < MAX_NAME


def _has_edns(buffer: DNSBuffer) -> bool:
    """Return whether the next record is an OPT record, as it is in every query that has one."""
    rest: bytes = buffer.data[buffer.offset : buffer.offset + 3]
    return rest == b"\0\0\x29"


def _edns_version(buffer: DNSBuffer) -> int:
    version: bytes = buffer.data[buffer.offset + VERSION : buffer.offset + VERSION + 1]
    return version[0] if version else 0


def _refusal(record: DNSRecord) -> int | None:
    if any(option.edns_ver for option in record.ar):
        return BADVERS
    if record.header.opcode != OPCODE.QUERY:
        return int(RCODE.NOTIMP)
    if len(record.questions) != 1:
        return int(RCODE.FORMERR)
    return None if record.q.qclass in (IN, ANY_CLASS) else int(RCODE.REFUSED)


def answer_with(query: Query, address: IPv6Address | None) -> bytes:
    """Return the answer to a question for a name that exists, and has an address or (the zone) none."""
    if address is None or query.record.q.qtype not in (QTYPE.AAAA, QTYPE.ANY):
        return _answer(query.record, RCODE.NOERROR)
    found = RR(query.record.q.qname, QTYPE.AAAA, rdata=AAAA(str(address)), ttl=TTL_S)
    return _answer(query.record, RCODE.NOERROR, found)


def answer_without(query: Query, error: MeshError) -> bytes:
    """Return the answer to a question for a name that means no node: it does not exist, or that is not sure."""
    return _answer(query.record, RCODE.NXDOMAIN if isinstance(error, NotFound) else RCODE.SERVFAIL)


def _answer(asked: DNSRecord, code: int, found: RR | None = None) -> bytes:
    """Return an answer; one without a record, but from the zone, says how long that holds (RFC 2308)."""
    header = DNSHeader(id=asked.header.id, qr=1, opcode=asked.header.opcode, rd=asked.header.rd, rcode=code & 15)
    extra = [EDNS0(udp_len=UDP_SIZE, ext_rcode=code >> 4)] if asked.ar else []
    answer = DNSRecord(header, questions=asked.questions, ar=extra)
    is_of_zone = code in (RCODE.NOERROR, RCODE.NXDOMAIN)
    header.aa = int(is_of_zone)
    if found is not None:
        answer.add_answer(found)
    elif is_of_zone:
        times = (1, NEGATIVE_TTL_S, NEGATIVE_TTL_S, NEGATIVE_TTL_S, NEGATIVE_TTL_S)
        answer.add_auth(RR(ZONE, QTYPE.SOA, rdata=SOA("local." + ZONE, "local." + ZONE, times), ttl=NEGATIVE_TTL_S))
    return bytes(answer.pack())
