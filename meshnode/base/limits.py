"""Every bound, with the attack that it stops and its arithmetic."""

from __future__ import annotations

# ---- vocabulary
MAX_CBOR_DEPTH = 8  # parser recursion; our deepest message nests 4
MAX_RECORD = 1_000  # bytes; fits a BEP 44 item and, sealed, one 1,280-byte IPv6 packet
MAX_ENDPOINTS = 16  # the most addresses that a liar's record makes us probe
MAX_SCOPES = 4  # links on which one link-local address of a record is tried
MAX_RELAYS = 4
MAX_CAPABILITIES = 8
MAX_CAPABILITY_LENGTH = 24
MAX_WAKE_URL = 200  # bytes of a record that a node with a wake URL has less for addresses, of 1,000
MAX_WAKE_ANSWER = 4_096  # bytes read of the answer to a wake request: a record in base64 is 1,336
MAX_WOKEN = 256  # peers whose last wake request is remembered
WAKE_EVERY_S = 30.0  # between requests for one peer, whatever its programs ask
WAKES_A_MINUTE = 10  # of one node for all peers: records name hosts that are not the mesh's
MAX_RECORD_TTL_S = 86_400  # a stolen, replayed record dies within a day
RECORD_TTL_S = 7_200  # of a record that its node renews in time
MAX_RECORD_FUTURE_S = 300  # clock skew that we forgive; more would let a record outlive its successors
MAX_KNOWN_IDS = 4_096  # NodeId objects that are shared; x about 500 bytes
MAX_OPENED_RECORDS = 2_048  # parsed and verified; x about 3 kB = 6 MB at the very worst
MAX_SHARED_KEYS = 4_096  # x 32 bytes and bookkeeping = about 1 MB of cached X25519 results, and as many of established
#   peers: 2,048 with a connection, some 300 contacts, and seeds

# ---- sealing
SEAL_WINDOW_S = 30.0  # a datagram older or newer than this is dropped
MAX_REPLAY_ENTRIES = 100_000  # nonces remembered a generation; x 2 x about 110 bytes = 22 MB at the very worst;
#   when it is full the window shrinks: at 10,000 a second to 8 s; above 50,000 a second some would be refused
MAX_REPLAY_RESERVED = 512  # a minute, of each established peer: 8 a second; a move takes about 30
MAX_REPLAY_KEPT = 131_072  # of all established ones and of stamps ahead; x 2 x 110 B = 29 MB; more count as others do
MAX_REPLAY_AHEAD = 20_000  # a minute, with stamps ahead of our clock by more than
REPLAY_AHEAD_S = 2.0
CLOCK_MARK_S = 300.0  # between two times on the disk: 288 writes a day; a clock set back by less is not noticed
CLOCK_DOUBT_S = 20.0  # in which nothing answers nor has another time: then a clock that was set back is believed
MAX_REPLAY_FLOORS = 4_096  # senders whose newest stamp is remembered for a clock that is set back; x 2 x 150 B = 1.2 MB
MAX_REPLAY_PER_SENDER = 20_000  # one insider cannot fill the guard: 5 of them would have to
UNCONNECTED_PER_S = 2_000.0  # sealed datagrams of senders without a connection; a STORE costs 100 us: 20 % of a core
UNCONNECTED_BURST = 4_000.0
UNCONNECTED_PER_NETWORK_PER_S = 500.0  # of one /24 or /48: a quarter of what all have, so others enter meanwhile
UNCONNECTED_PER_NETWORK_BURST = 1_000.0  # not more: a burst is work that peers wait for
UNCONNECTED_LITTLE_PER_S = 20.0  # of one network, though others use up the rest: 100 of them together could take it
UNCONNECTED_LITTLE_BURST = 64.0  # a newcomer's first minute: 10 to 30 datagrams, the first of each kind at a cost of 4
UNCONNECTED_PER_ADDRESS_PER_S = 128.0  # one node is behind an address: a lookup sends it 2 or 3, a punch 13 a second
UNCONNECTED_PER_ADDRESS_BURST = 256.0
KNOWN_PER_S = 1_000.0  # of contacts without a connection, which strangers have no part in; x 100 us = 10 % of a core
KNOWN_BURST = 2_000.0
KNOWN_PER_NETWORK_PER_S = 250.0  # of one network of contacts: a quarter; an id becomes a contact with one answer
KNOWN_PER_NETWORK_BURST = 500.0
KNOWN_EACH_PER_S = 64.0  # of one: a lookup sends a contact 2 or 3, a crowd of watches renewed at a move 256
KNOWN_EACH_BURST = 256.0
KNOWN_LITTLE_PER_S = 10.0  # of one network, though others use up the rest: 100 of them together could take it
KNOWN_LITTLE_BURST = 64.0
SEED_PER_S = 256.0  # of each configured seed, whatever others send; 8 hostile ones x 100 us = 20 % of a core
SEED_BURST = 512.0
MAX_SEED_RATES = 64  # seeds whose rate is kept; x about 150 B
NEW_SENDER_COST = 4.0  # tokens for a sender whose key is not cached: X25519 costs 100 us; 500 ids a second at most

# ---- connections
MAX_CONTROL_FRAME = 16_384  # a Hello with a record and a few grants; more is junk
MAX_CONTROL_QUEUE = 1 << 20  # bytes of control frames that a peer makes this node send and does not take; then it ends
CONTROL_FRAMES_PER_S = (
    2_000.0  # of one peer; x 10 us = 2 % of a core. Honest ones have some hundred: gossip is 600 entries
)
CONTROL_FRAMES_BURST = (
    8_000.0  # what a link that was held up may bring at once; a peer that sends more loses its connection
)
MAX_CHAIN = 4  # grants of a Hello: authority, delegate, invitation, node; x 43 us = 0.2 ms of signatures for a stranger
MAX_POLICY = 65_536  # bytes of a policy's text; parsed when it changes, in some 20 ms
MAX_RULES = 1_000  # of a policy: a decision that is not cached costs 0.3 us a rule
MAX_RULE_ITEMS = 256  # of a list of a rule; patterns among them are tried one by one
POLICY_PART = 12_000  # bytes of a signed policy in a control frame
POLICY_FETCH_S = 2.0  # until a peer that says that it has a newer policy sends a part of it
MAX_POLICY_FETCHES = 16  # policies that come at once; x 64 kB = 1 MB. A liar holds one place for 2 s, then comes last
MAX_LATE_PEERS = 1024  # remembered as ones that did not send the policy that they said they have; x 0.1 kB
POLICY_ASKS_PER_S = 4.0  # parts that one peer may ask for; x 12 kB = 48 kB a second
POLICY_ASKS_BURST = 12.0  # two policies of the longest
MAX_HEARD_GRANTS = 2_048  # nodes whose roles are known by gossip, as many as it stores; x about 1.5 kB = 3 MB
AUDIT_QUEUE = 8_192  # entries that wait for the disk; x about 500 B = 4 MB. More are counted instead
AUDIT_SEGMENT = 1_048_576  # bytes of a segment, some 3,000 entries; then it is sealed
AUDIT_SEGMENTS = 16  # kept: 16 MB. One peer fills them in 50,000 entries, 14 hours at its rate; its refusals are seen
AUDIT_PEER_RATE = 1.0  # entries a second that one peer may cause: it cannot drive what others did out of the log
AUDIT_PEER_BURST = 2_048.0  # as many as it may have streams; what is above is counted, by session
MAX_RULE_NAME = 80  # characters; a refusal may tell it to the peer
MAX_DECISIONS = 8_192  # answers kept; x about 300 B = 2.5 MB. All are forgotten when that is full, or a policy changes
MAX_SERVICE_NAME = 255
MAX_GONE_STREAMS = 1_024  # streams given up here that the peer still sends on; a peer with more of them is cut off
STREAM_HIGH_WATER = 1 << 20  # bytes written and unacknowledged above which a writer waits
STREAM_LOW_WATER = 1 << 19
MAX_UNREAD = 268_435_456  # bytes of all connections that no application has taken: 64 that are full, of 2,048
MAX_DATAGRAM_PAYLOAD = 1_168  # bytes of a DATAGRAM frame's payload: a packet of BASE_MTU less 30, and 2 to spare
MAX_FLOW_DATAGRAM = 1_160  # bytes of one of the application: less its flow's id, 8 bytes at most; every path carries it
MAX_DATAGRAMS_UNSENT = 256  # that wait for the congestion window; x 1,168 = 299 kB a connection
MAX_FLOWS = 1_024  # of datagrams that a peer may open, and that this node may open to it; x 2 kB = 4 MB
DATAGRAM_COST = 64  # bytes that one counts for beside its own: an object and its place in a queue
FLOW_QUEUE = 1 << 20  # bytes of one flow that no application has taken; beyond it the oldest go
MAX_DATAGRAM_QUEUE = 1 << 22  # of all flows of a connection; 2,048 full connections are bounded by MAX_UNREAD
FLOW_SHARE = 1 << 12  # of a flow, whatever the others hold: 3 of full size; 2 x 1,024 flows x 4 kB = 8 MB
OPEN_STREAM = 4_096  # bytes that an open stream counts for beside: 65,536 of all connections; of one it may have 2,048
MAX_BACKLOG = 5_242_880  # bytes of a connection that came and were not delivered, estimated: its window of 4 MB, and
#   some for what is sent again; in fragments of a byte x 12.6 = 66 MB (measured)
MAX_BACKLOGS = 25_165_824  # of all connections: 100 MB a second behind holes for a quarter of one; x 12.6 = 317 MB
SMALL_BACKLOG = 4_096  # that is not looked at; x 12.6, of 2,048 connections = 106 MB
BACKLOG_PER_S = 32.0  # of a connection that is forgiven: 3 MB a day of what no rule thought of
UNREAD_LOOK_S = 1.0  # between looks at them: 2,048 x 0.3 us; at 1 Gbit/s 125 MB more come meanwhile
MAX_EARLY = 262_144  # bytes of one connection before its Hello is verified; x 256 half-open ones = 64 MB
MAX_CRYPTO = 16_384  # bytes of TLS ahead of what has come, holes included; ours are under 3 kB (RFC 9000 section 7.5)
MAX_HOLES = 4_096  # ranges beyond a hole, of all streams of a connection; a window with every second packet lost: 1,750
MAX_UNASKED = 65_536  # bytes in flight beyond twice the widest congestion window; in packets of 36 B, x 290 B = 0.6 MB
MAX_HANDSHAKE = 32_768  # authentic bytes before the handshake is complete: 1,800 in each direction, some of them often
HANDSHAKE_TIMEOUT_S = 5.0  # aioquic has none of its own; of time in which this process runs, and ...
HANDSHAKE_LATE_S = 15.0  # ... at most so long more, in which it does not: 256 half-open ones of 70 KB last 20 s then
HELD_INITIAL_S = 0.3  # how long the losing dial of two simultaneous ones is kept
MAX_FLIGHT = 4  # datagrams kept of it: a ClientHello with a hybrid share takes two of 1,200 bytes
DIAL_WATCH_S = 0.1  # a dial that takes longer watches for a newer record
DIAL_REFRESH_S = 0.4  # period in which an unfinished dial checks for a newer record and asks what became of it
MAX_ARRIVALS_PER_PEER = 4  # half-open connections a peer may cost us, x 70 KB
MAX_HALF_OPEN = 256  # of peers without a connection, by source network; x 70 KB, and 32 KB behind holes in TLS = 26 MB
ACCEPTS_PER_S = 200.0  # first flights of peers without a connection; x 2 ms = 40 % of a core at the very worst
ACCEPTS_BURST = 400.0
ACCEPTS_PER_NETWORK_PER_S = 64.0  # so that 256 places last one network 4 s, a handshake's time
ACCEPTS_PER_NETWORK_BURST = 128.0
ACCEPTS_LITTLE_PER_S = 4.0  # of one network, though others use up the rest: 50 of them together could take it
ACCEPTS_LITTLE_BURST = 8.0
ACCEPTS_KNOWN_PER_S = 50.0  # of contacts and seeds, which strangers have no part in; x 2 ms = 10 % of a core
ACCEPTS_KNOWN_BURST = 100.0
ACCEPTS_KNOWN_EACH_PER_S = 2.0  # of one, and of one network four times as much
ACCEPTS_KNOWN_EACH_BURST = 8.0
ACCEPTS_PER_ADDRESS_PER_S = 8.0  # one node is behind an address: 8 x 2 ms = 2 % of a core for a flood from one socket
ACCEPTS_PER_ADDRESS_BURST = 32.0
JUNK_PER_SOURCE_PER_S = 200.0  # datagrams of one address and port that prove nothing; 1 ms of work a second
JUNK_PER_SOURCE_BURST = 2_000.0  # the window of a bulk transfer, which goes on for a moment after a restart
JUNK_PER_NETWORK_PER_S = 1_000.0  # of one /24 or /48; above it, one such datagram is enough to be refused
JUNK_PER_NETWORK_BURST = 4_000.0
MAX_JUNK_SOURCES = 4_096  # counted and refused; x about 300 B = 1.2 MB
MAX_SESSIONS = 2_048  # peers with state, x 75 KB = 150 MB
MAX_PEERS_ACCEPTED = (
    1_536  # connections that peers began, shared by source network: the rest is for dials and half-open ones
)
MAX_DATAGRAM = 65_507
PACED_FROM = 16  # datagrams in one turn of the loop from which peers take turns: 16 x 0.6 ms = 10 ms at the very worst
PACE_TURN_S = 0.003  # CPU for datagrams until timers, writers and what has come meanwhile have their turn
PACE_QUANTUM_S = 0.0005  # CPU of one peer's turn: 5 to 8 ordinary datagrams
MAX_PACED = 4_096  # datagrams that wait for their turn, and 4 of each of 2,048 peers; x 1.3 kB = 16 MB
MAX_SEALED_S = 1.0  # that a sealed datagram waits for its source's turn: its sender has repeated it by then
MAX_UNCONNECTED = 512  # datagrams of no connection that wait, of each of three kinds; x 1.3 kB = 2 MB; the oldest go
MAX_QUEUED_S = 2.0  # that a datagram of no connection waits, in the kernel or here: its sender has given it up by then
DEAR_DATAGRAM_S = 0.005  # of CPU; an ordinary one costs 0.1 ms, the smallest frames that fill one 0.6
DEAR_DATAGRAMS = 64.0  # of one peer in a burst: 0.3 s of CPU, then its connection ends
DEAR_DATAGRAMS_PER_S = 4.0  # of CPU, not of the clock: those are garbage collections while an honest one is handled
MAX_HELD_DATAGRAMS = 64  # held until an address is validated; x 1,452 B = 93 KB a peer, the oldest go first

MAX_OBSERVERS = 32  # peers whose view of our address is remembered
OBSERVATION_S = 120.0  # eight keepalives: older views say nothing of the NAT's present mapping
SEEN_PER_S, SEEN_BURST = 0.2, 8.0  # own records because a peer sees another address: it may lie; a move makes 2
MAX_SENT_ADDRESSES = (
    8_192  # remembered to know which senders came unasked; x about 250 B = 2 MB, then no more is concluded
)
MAX_SENT_PORTS = 64  # of one host; more (a port search) count as all of them
MAX_RECENT_SENDERS = 64  # UDP sources whose last datagram's time is kept
FILTER_SETTLE_S = 600.0  # twice RFC 4787's 5 minutes: what an earlier process opened on our port has closed by then
FILTER_MOVE_S = 5.0  # after a change, what arrives may have been under way to the old place
MAX_NEIGHBOURS = 256  # ids heard by mDNS that are counted; x a pointer to a shared NodeId
MAX_LAN_TEXT = 1_100  # bytes of an announcement by mDNS; ours have 1,056, and with the header fit one packet
MAX_LAN_HEARD = 512  # announcements of members that are not opened again, nor answered; x about 150 B
MAX_CLOCKS = 64  # peers whose clock is compared with this node's
MAX_DOCTOR_SEEDS = 8  # configured seeds that one diagnosis asks; it would wait no longer, but say too much

MAX_OWN_SEQS = 256  # numbers of this node's records that are known as its own; a move is one
MAX_BOOTS_PEERS = 1_024  # peers whose processes are told apart; x about 300 B
MAX_BOOTS = 4  # processes of one peer

# ---- the log
LOG_KIND_BURST = 100.0  # lines that one line of code logs at once, whatever caused them, and then ...
LOG_KIND_RATE = 0.2  # ... one in 5 s: 17,280 a day of at most 2 kB each is 35 MB, whatever other nodes do
MAX_LOG_KINDS = 1_024  # x about 400 B; a node has about a hundred
LOG_PEER_BURST = 20.0  # lines that one peer causes at once: a reconnection is three
LOG_PEER_RATE = 1 / 30  # and a second after that: a peer that comes and goes without end costs 300 kB a day
LOG_BURST = 300.0  # of all peers together: a mesh of a hundred that starts
LOG_RATE = 1.0  # as many ids as a liar can make cost 9 MB a day
MAX_LOG_PEERS = 1_024  # whose rate is kept; x about 250 B

# ---- grants
MAX_GRANT = 1_024  # bytes; x MAX_CHAIN = 4 KB of a Hello's 16
MAX_LINEAGE = 8  # of a renewed grant: the first one or its ticket, and replaced keys; x 34 B
MAX_ROLES = 8
MAX_SERVICE_PATTERNS = 8
MAX_SERVICE_PATTERN = 64  # characters
MAX_INVITE_USES = 10_000  # keys that are remembered of one invitation; x about 200 B = 2 MB
MAX_OPENED_GRANTS = 2_048  # parsed and verified; x about 2.5 kB = 5 MB at the very worst
MAX_TICKET = 12_288  # characters; a usual one has 700, the longest chain with eight seeds 7,000
MAX_TICKET_SEEDS = 8
MAX_SUCCESSORS = 1_024  # keys that were replaced, x about 300 B; and grants to keys that had come otherwise, x 1.5 kB
MAX_REASON = 120  # characters
MAX_REVOCATION = 5_120  # bytes: the longest chain and a reason; the authority's have some 150
MAX_REVOCATIONS = 4_096  # of the authority, which is no attacker; x 700 B = 3 MB, and 1.1 MB on disk
MAX_OTHER_REVOCATIONS = 256  # of all delegates, and of keys about themselves; x 5 kB = 1.3 MB
MAX_REVOCATIONS_SHARE = 32  # of them with one first grant: a ticket makes any number of keys that revoke themselves
REVOCATION_PAGE = 12_000  # bytes of statements in one control frame
REVOCATIONS_PER_S = 50.0  # statements that one peer may have verified; x 5 signatures of 43 us = 1 % of a core
REVOCATIONS_BURST = 4_500.0  # a whole set, at 43 us each: 0.2 s of CPU, once
REVOCATION_ASKS_PER_S = 2.0  # buckets that one peer may ask for; x 300 kB at the very worst
REVOCATION_ASKS_BURST = 48.0  # a whole set three times
REVOCATIONS_LOOK_S = 60.0  # between comparisons with all neighbours
AWAY_S = 300.0  # after which a node that starts may have missed revocations: twice the marks of its clock, and a reboot
HELD_STREAMS = 256  # that wait for the first word of revocations, each with its window: 256 x 64 kB = 16 MB
HELD_STREAMS_OF_PEER = 32  # of them; the others are for seven more peers
REVOCATION_QUORUM = 3  # peers that tell a node that was away what is revoked, all that are connected in any case
REVOCATION_SEEDS = 4  # configured seeds that it dials for it
REVOCATION_LOOKUPS = 16  # of the DHT at once, a quarter of DHT_MAX_LOOKUPS; an opener needs two for each of its grants
MAX_INVITED = 16_384  # keys that joined by the authority's invitations, while these hold; x 150 B on disk: 2.5 MB
MAX_INVITED_OTHERS = 8_192  # by invitations of delegates, which make any number; 3.7 MB in all, below MAX_STATE
MAX_INVITED_SHARE = 2_048  # of them of delegates with one first grant: four have to work together to fill the places
MAX_RENEWERS = 16  # peers that are known to renew grants, and are dialled for it
RENEWALS_PER_S = 0.1  # that one peer is answered; x 0.1 ms
RENEWALS_BURST = 4.0
MAX_ROTATION = 192  # bytes of the next mesh key, signed
GRANTS_PER_S = 0.1  # chains on one live connection; x 0.2 ms of signatures
GRANTS_BURST = 4.0
MAX_GRACE_S = 90 * 86_400.0  # in which a replaced key counts too; as long as a grant, by default
GRANT_SKEW_S = 60.0  # clocks differ so much; an expired grant is of use for no longer

# ---- relays
MAX_RELAY_FLOWS = 64  # peers of a client of which a relay remembers that they talk; x about 150 B and client
RELAY_BURST_S = 0.5  # a client may be this far ahead of its rate
RELAY_CONSENT_S = 30.0  # both ends must have sent the other something within this time to be introduced
RELAY_INTRODUCE_S = 1.0  # at most one introduction a second and pair: 24 probes each
INTRODUCED_AGAIN_S = 0.8  # of a peer, by whichever relay: an introduction costs 24 probes to each candidate
HOME_RELAYS = 2  # named in our record
MAX_RELAYS_NAMED = 6  # reservations at relays that peers' records name, beside 3 to 6 of its own; shared by network
MAX_RELAYS_LOST = 64  # relays remembered as lost, with when each is tried again; x about 150 B
RELAY_RETRY_S = 15.0  # after a refusal or a failed dial

# ---- files of a home
MIN_DESCRIPTORS = 32  # a node at rest has 12 to 17; of the others one in four is kept for what must go on
MAX_SETTINGS = 1 << 20  # characters of a key or settings file: a device that never ends in its place filled the memory

# ---- port mappings
MAX_ROUTE_TABLE = 1 << 20  # characters read at every change: 8,000 routes; a host with more is no client of a router
MAX_PORTMAP_ROUTES = 5  # one IPv4 route, and pinholes for four of this node's IPv6 addresses
MAX_PORTMAP_LEAVING = 8  # mappings being given back at once, after as many changes of port in two seconds
PORTMAP_ROUTERS = 16  # routers whose clock is remembered
PORTMAP_LIFETIME_S = 7_200  # asked for; what a crash leaves behind is gone after it
PORTMAP_MAX_LIFETIME_S = 86_400  # believed at most (RFC 6887 section 15): one that says more is asked again in a day
PORTMAP_MIN_LIFETIME_S = 10  # a grant for less is none: renewing it would be a request every few seconds for ever
PORTMAP_RENEW_GAP_S = 4.0  # between two renewals of what we hold (RFC 6887 section 11.2.1), even if restarts are forged
PORTMAP_FIRST_TRY_S = 0.25  # until a request is repeated; doubled each time
PORTMAP_TRIES = 3  # 1.75 s in all; then the next protocol
PORTMAP_REST_S = 900.0  # after no protocol gave anything: 10 datagrams in a quarter of an hour
PORTMAP_REFUSED_S = 86_400  # a PCP error says itself for how long; at most this
PORTMAP_RECHECK_S = 60.0  # interfaces that come and go, or forged announcements, renew a vain search no sooner
PORTMAP_ANNOUNCE_SPREAD_S = 5.0  # all hosts of a link hear of the router's restart at the same moment
PORTMAP_WITHDRAW_S = 0.5  # a node's end waits no longer for the router
MAX_PCP = 1_100  # bytes; RFC 6887 section 7
MAX_SSDP = 2_048  # bytes of an answer to a search; usual are 300 to 500
MAX_URL = 512  # characters
MAX_UPNP_REPLY = 65_536  # bytes of HTTP head and XML; usual descriptions have 3,000 to 12,000
MAX_XML_DEPTH = 32  # a description needs 9
MAX_UPNP_SERVICES = 4  # WAN connections tried
UPNP_PORTS = 4  # AddPortMapping requests for one mapping, over conflicts and odd routers
UPNP_SEARCH_S = (1.5, 2.5)  # waits after each search
UPNP_EXCHANGE_S = 4.0  # one HTTP exchange, connecting included; a router that drips bytes holds a task no longer
UPNP_LEASE_S = (
    1_200  # short, since no announcement tells of a restart: it is noticed at the renewal, in 10 to 13 minutes
)

# ---- port search (paths/search.py: the odds)
SEARCH_SIDES = 256  # sockets that the symmetric end opens for 3 s, x 1 probe of 129 B = 33 kB to the peer
SEARCH_PROBES = 1_024  # ports that the other end tries in 1.9 s, x 129 B = 132 kB: 0.55 Mbit/s while it lasts
SEARCH_AFTER_S = 0.3  # after the ordinary probes of both ends began: four each have failed
SEARCH_WAIT_S = 3.0  # then the sockets that did not win are closed
SEARCH_FRESH_S = 6.0  # a relay has introduced the two within this time
SEARCH_AGAIN_S = 4.0  # between searches for one peer, and at one host: 33 kB/s there at the very worst
SEARCH_TRIES = 4  # searches without a result in one connection: all four miss in 0.017 ** 4
SEARCH_REST_S = 600.0  # after as many at one host, whichever peers asked: 528 kB there in ten minutes
MAX_SEARCH_BOOK = 256  # peers and hosts remembered for these pauses; x about 200 B
MAX_SIDES_KEPT = 16  # sockets that won, x one path in use; the oldest goes back to its relay
MAX_UPLINKS, MAX_UPLINK_TARGETS = 2, 4  # sockets at other addresses of this host; x 4 candidates of a peer's 24

# ---- listeners: tunnels, forwards and the control socket together
MAX_ACCEPTED = 8_192  # TCP connections that are open, at most half of them of one network; x a socket and its buffers
RESERVED_DESCRIPTORS = 64  # or a quarter of all: for the control socket, moves and state files when the rest is in use
ACCEPT_PAUSE_S = 1.0  # after descriptors ran out: an accept that fails at once would spin
MAX_CONTROL_SILENT = 32  # control connections that have asked nothing yet; the longest silent goes
MAX_CONTROL = 1_280  # that are answered at once: 1,024 streams of attached programs and commands; x about 20 kB = 26 MB
MAX_ATTACHED_WAITING = 512  # streams that came for services of attached programs, and were not taken yet
ATTACHED_TAKE_S = 10.0  # until such a program takes one; then its opener finds the service unavailable
CONTROL_REQUEST_S = 10.0  # until a control connection has asked

# ---- the proxy for programs of this host
MAX_PROXY_CLIENTS = 1_024  # connections one proxy carries at once, shared by source network and host
MAX_PROXY_SILENT = 128  # connections that have not asked yet; the longest silent goes: x 16 kB = 2 MB
PROXY_REQUEST_S = 10.0  # until a connection has asked, however slowly it does
MAX_PROXY_HEAD = 16_384  # bytes of a request's or a response's line and headers
MAX_UDP_DESTINATIONS = 64  # flows of one client of the proxy; the one used longest ago goes
MAX_UDP_WAITING = 16  # datagrams for one of them while it is opened; the oldest goes
UDP_IDLE_S = 120.0  # without a datagram in either direction: twice the least of RFC 4787, section 4.3
MAX_PROXY_ADDRESSES = 4_096  # names whose addresses programs were told; x about 600 B = 2.5 MB
MAX_DNS_PENDING = 256  # questions whose node is being looked for, 4 s at most; the oldest goes: x about 4 kB = 1 MB

# ---- tunnels
TUNNEL_KNOCK_S = 5.0  # for the first flight, for TLS, and for the WebSocket: each stage ends or the connection does
TUNNEL_IDLE_S = 40.0  # without a datagram of this node, which is more than two keepalives: given up
TUNNEL_RETRY_S = 2.0  # between attempts to open one
MAX_TUNNEL_PENDING = 128  # TCP connections that have not knocked yet, shared by source network; x a socket
TUNNEL_EMPTY_PER_S = 4.0  # frames of a WebSocket that bring no datagram: nodes send none, and each costs 15 us ...
TUNNEL_EMPTY_BURST = 64.0  # ... of 6 bytes: 400 kB a second of them took the whole core
MAX_TUNNEL_WAKES = 8  # looks at an unfinished ClientHello where the kernel does not wait for SO_RCVLOWAT
MAX_TUNNELS_OUT = 64  # being opened or open at once, so that records which name ever new ones open few connections
TUNNEL_DIALS_PER_HOST = 3.0  # TCP connections to a host where no node has answered by a tunnel yet, and ...
TUNNEL_DIALS_PER_HOST_S = 1 / 30  # ... so many a second after that, whichever records name it; x 1 kB of TCP and TLS
TUNNEL_DIALS_PER_PEER = 6.0  # to hosts that one peer's records name; a record has two
TUNNEL_DIALS_PER_PEER_S = 1 / 10
TUNNEL_DIALS_BURST = 64.0  # to all such hosts: ids are free, and each could name another victim
TUNNEL_DIALS_PER_S = 1.0
MAX_TUNNEL_HOSTS = 4_096  # whose rate is kept, and as many peers; x about 250 B: above 1 a second, over an hour of them
MAX_PROVEN_TUNNELS = 1_024  # that answered, by network; x about 500 B
MAX_TUNNELS_PER_MEMBER = 4  # one in use, and those that a move left behind until they are idle
MAX_TUNNEL_CLIENTS = 512  # by network; x about 73 kB (measured); 37 MB at worst
MAX_TUNNEL_BACKLOG = 512  # datagrams waiting for a WebSocket; the rest is dropped, which QUIC takes for congestion
MAX_TUNNEL_BUFFER = 512_000  # bytes in a transport's buffer above which datagrams are dropped

# ---- discovery
MAX_CACHED_RECORDS = 4_096  # x about 1.5 KB
MAX_PENDING_RESOLVES = 1_024
RESOLVE_TIMEOUT_S = 5.0
RETRY_LOOKUP_S = 0.25  # pause before an empty lookup that a caller still waits for is repeated
SEEK_S = 2.0  # between lookups of a peer that went silent; a lookup is 20 to 30 requests, its watches are 3
RECORDS_PER_S = 2.0  # newer records of one live peer that are taken; x 4 ms = 1 % of a core, and 32 probes
RECORDS_BURST = 8.0  # a move makes two or three
MAX_SOUGHT = 256  # silent peers whose last lookup is remembered

# ---- dht
ID_PRICE_BITS = 12  # of a test that costs 50 us: 4,096 keys, 0.3 s of CPU for its owner, 0.2 s for a faster program
MAX_PRICED_IDS = 16_384  # ids that were tested; x about 150 B
DHT_MAX_BODY = 1_105  # + 97 sealing + 25 relay frame + 48 IPv6 and UDP = 1,275: under every path's 1,280
DHT_MAX_CONTACTS = 16  # in an answer: 16 x 51 B fits a body; a liar fills no more than that of a lookup's queue
DHT_MAX_LOOKUP_RPCS = 120  # a lookup led astray costs 120 x 1.3 kB = 156 kB, then ends; half for each of its paths
DHT_MAX_LOOKUP_QUEUE = 1_024  # contacts a lookup remembers: 120 answers x 16 would be 1,920; by halves too
DHT_LOOKUP_DEADLINE_S = 12.0  # hostile or dead answers never hold a lookup longer
DHT_MAX_LOOKUPS = 64  # at once; x about 100 kB
DHT_MAX_CALLS = 1_024  # outstanding requests; x about 2 kB with the body kept for retransmission
DHT_MAX_PROBES = 64  # pings to strangers at once, and strangers to be pinged soon: each shared by source network
DHT_MAX_HINTS = 256  # addresses waiting to be pinged
DHT_MAX_SEEDS = 8  # configured seeds that get every STORE and WATCH
DHT_MAX_LIARS = 1_024  # nodes that lied and are no contacts for a time; x about 150 B; ids with a price are not free
DHT_MAX_PER_SUBNET = 2  # a /24 or /48 in a crowded bucket: an eclipse needs as many networks as it needs ids
DHT_MAX_STORED = 4_096  # records; x 1.8 kB = 7 MB. Half for established owners, the rest shared by source network
DHT_MAX_STORED_SEED = 100_000  # a seed's; x 1.8 kB = 180 MB at the very worst, 100 MB from one network
DHT_STORE_TURNOVER = 256.0  # of a full store's largest host, each in the place of another of its own; the rest of its
DHT_STORE_TURNOVER_PER_S = 20.0  # flood is refused in microseconds, and 30,000 nodes behind one address renew theirs
DHT_UPDATES_PER_KEY = 32.0  # newer records of one key in a burst; a flooding owner wakes no watcher more often
DHT_UPDATES_PER_KEY_PER_S = 4.0
DHT_MAX_OFFERS = 4_096  # of services and names; x 2 kB = 8 MB, at the very worst 12. Half for priced origins
DHT_MAX_OFFERS_SEED = 32_768  # a seed's; x 2 kB = 66 MB, at the very worst 94
DHT_OFFERS_OF_KEY = 64  # origins of one service or name, half of them priced: ids are free, and so are names
DHT_OFFERS_OF_ORIGIN = 64  # as many as gossip stores of one origin and kind
DHT_OFFER_BUNDLE = 600  # bytes of them in an answer of 1,105: 4 usual ones, and 8 contacts beside; 16 answers have 64
DHT_MAX_VERIFIED = 4_096  # record bytes whose signature is known to be good; x 1.5 kB
DHT_MAX_WATCH_S = 90  # a watcher that died is pushed to for this time at most
DHT_MAX_WATCHES = 8_192  # x about 2 kB = 16 MB. Half for established watchers, the rest shared by source network
DHT_MAX_WATCHES_PER_SENDER = 256  # then its oldest goes
DHT_MAX_WATCHES_PER_KEY = 128  # one newer record makes at most 128 x 4 datagrams
DHT_MAX_WATCHED = 1_024  # ids that we watch ourselves, half of them peers that came by themselves
DHT_MAX_PUSHES = 1_024  # unacknowledged at once

# ---- gossip: entries
GOSSIP_MAX_ENTRY = 4_096  # bytes, signature and all; four fit a frame
GOSSIP_MAX_STORED_ENTRY = 1_536  # of a kind that is stored: a record of 1,000 bytes and what is around it
GOSSIP_MAX_NAME = 64  # characters of an entry's name
GOSSIP_MAX_TTL_S = 86_400  # a stolen, replayed entry dies within a day
GOSSIP_MAX_FUTURE_S = 300  # clock skew that we forgive, of issue times and of seqs (which are wall milliseconds)
GOSSIP_MAX_FLEETING_TTL_S = 60  # of kinds that are not stored: no longer than a seen id is remembered
GOSSIP_MAX_OPENED = 64  # entries parsed and verified last, in each of 5 caches; x at most 5 kB = 1.6 MB
GOSSIP_MAX_STORED = 2_048  # of each of 16 kinds: x about 1 kB = 2 MB; 512 hostile members could fill all, 50 MB
GOSSIP_LISTED = 256  # members that all know, besides seeds and what offers something: 256 x 0.5 kB to a joining node
GOSSIP_MAX_PER_ORIGIN = 64  # stored entries of one origin and kind: it fills 3 % of a kind at most
GOSSIP_PLACES_OF_STANDING = 16  # of an origin that is connected: 64 such fill the last eighths that newcomers cannot
GOSSIP_MAX_GIVEN_UP = 8_192  # ids of newcomers that gave way, which are not asked for again; x about 100 B
GOSSIP_MAX_FLOORS = 4_096  # keys whose last seq is remembered when the entry has gone; x 200 B; those given up apart
GOSSIP_ORIGIN_RATE = 20.0  # entries a second of one origin: 20 x 43 us = 0.1 % of a core to verify
GOSSIP_ORIGIN_BURST = 100.0  # all of its stored entries at once, when a partition heals
GOSSIP_INTAKE_RATE = 200.0  # entries a second of all links: x 0.1 to 0.3 ms each = 6 % of a core
GOSSIP_INTAKE_BURST = 2_048.0  # all that a joining node has to hear, as a rule: 0.6 s at the very worst
GOSSIP_INTAKE_PACE = 1_000.0  # the same burst, spread: at most so many a second, and
GOSSIP_INTAKE_STEP = 32.0  # so many at once: the event loop is held up by 10 ms at the very worst
GOSSIP_STANDING_RATE = 200.0  # the same, of origins with standing alone, when the others have spent the budget
GOSSIP_STANDING_BURST = 100.0
GOSSIP_LINK_RATE = 600.0  # entries a second that one link may push: more than an honest node takes and passes on;
GOSSIP_LINK_BURST = 4_096.0  # to receive and drop them costs 0.04 ms each: 3 % of a core. Above it the link is cut off
GOSSIP_MAX_WAITING = 256  # entries of a link and rank that wait for their turn; x 2 ranks x 8 links x 1 kB = 4 MB
GOSSIP_OWN_SHARE = 0.8  # of these rates that a node allows itself, so that no honest node is over them elsewhere
GOSSIP_ORIGIN_BYTES = 65_536.0  # bytes a second of one origin that we pass on
GOSSIP_ORIGIN_BYTES_BURST = 524_288.0
GOSSIP_MAX_ORIGINS = 4_096  # rates kept; x about 400 B; the longest unheard goes first: its bucket is full again

# ---- gossip: membership
GOSSIP_MAX_ACTIVE = 8  # links; we look for more below 6 and take them up to 8
GOSSIP_KEPT_CHOSEN = 3  # neighbours that a node chose itself and that no request by others pushes out: no eclipse
GOSSIP_MAX_LEAVES = 256  # linked here, beside the active view; x some 40 kB of a connection = 10 MB
GOSSIP_MAX_PASSIVE = 30  # x a record of at most 1 kB = 30 kB
GOSSIP_MAX_CONTACTS = 8  # in a shuffle: 8 x 1,035 B fit a frame; a liar replaces at most 8 of our 30 a shuffle
GOSSIP_MAX_WALKS = 256  # shuffles on their way through us; x about 150 B
GOSSIP_MAX_SEEDS = 8  # configured seeds that are looked for again
GOSSIP_MAX_PENDING = 8  # links that we are opening for the active view
GOSSIP_WALK_RATE = 32.0  # walks a second that one neighbour may cause: 32 kB passed on, or 4 that end with a dial
GOSSIP_WALK_BURST = 128.0  # a contact node under a crowd of joins passes on so many at once
GOSSIP_MAX_PROBES = 32  # probes for others and of samples at once, each at most 3 datagrams of 130 B
GOSSIP_MAX_SUSPECTS = 1_024  # x about 400 B; shared by links, and a half is for those with standing here
GOSSIP_MAX_ACCUSERS = 3  # stored and remembered for one suspect, drawn by lot: they shorten the wait as far as it goes
GOSSIP_MAX_ACCUSATIONS = 4_096  # stored; x about 600 B = 2.5 MB; both halves of 1,000 nodes accuse 3 x 500 of the other
GOSSIP_MAX_LOST = 256  # gone members that are tried again, so that a partition heals; x a record = 256 kB
GOSSIP_MAX_STANDINGS = 256  # peers with a black mark; x about 100 B
GOSSIP_BAN_S = 600.0  # no link with a liar for this time

# ---- gossip: dissemination
GOSSIP_MAX_SEEN = 8_192  # ids in each of two generations; x about 100 B = 1.6 MB
GOSSIP_SEEN_S = 90.0  # lifetime of a generation that is not full: longer than a fleeting entry lives
GOSSIP_MAX_RECENT = 1_048_576  # bytes of payloads kept to answer GRAFT
GOSSIP_MAX_EARLY = 1_024  # payloads that reconciliation brought before the tree did; x about 100 B
GOSSIP_MAX_MISSING = 4_096  # announced ids that we wait for, shared by link; a liar's go after 4 announcers
GOSSIP_MAX_ANNOUNCERS = 4  # of one missing id
GOSSIP_MAX_IDS = 1_024  # in an IHAVE, GRAFT or WANT: 9 kB
GOSSIP_MAX_HOPS = 64  # a liar's larger number means no more than this
GOSSIP_FRAME = 14_000  # bytes of entries in one message; a control frame holds 16,384
GOSSIP_QUEUE = 65_536  # bytes unsent on a link above which gossip for it is dropped, and reconciled when it drains
GOSSIP_MAX_SYNC = 49_152  # bytes sent in answer to one request
GOSSIP_SYNC_RATE = 8.0  # reconciliations a second that one neighbour may begin, each 12 kB of ids; an honest one 4
GOSSIP_SYNC_BURST = 16.0
GOSSIP_MAX_TELL_IDS = 1_500  # 12 kB
GOSSIP_MAX_GIVEN = 2_048  # ids sent to a neighbour unasked, which are not sent again; x about 100 B x 8 neighbours
MAX_UNANSWERED_PINGS = 1_024  # echoes, and the signs of life that gossip asks for; x about 400 B
GOSSIP_MAX_ANSWERED = 1_024  # nodes remembered that were connected or answered a probe; x a pointer to a shared NodeId
GOSSIP_MAX_OFFERS = 8  # contacts of the DHT tried at once when no neighbour is left

# ---- directory and names
SERVICE_MAX_VALUE = 1_024  # bytes of an announcement; 2,048 of a kind x 1.1 kB = 2.3 MB
SERVICE_MAX_META = 16  # pairs of an instance's metadata
SERVICE_MAX_META_TEXT = 128  # characters of a key, and of a value
SERVICE_MAX_OWN = 48  # announced by one node: gossip stores 64 entries of an origin; topics need 12, others 4
OFFERS_BY_GOSSIP = 512  # services, or names, that all nodes keep: above it they are published in the DHT too
OFFERS_TOLD = 640  # services, or names, that gossip tells, at worst twice as many: x 0.4 kB each 20 minutes = 0.2 kB/s
DHT_MAX_OFFERS_FOUND = 512  # that the DHT told and gossip has not; x about 900 B; and names whose last search is known
MAX_OFFER_SEARCHES = 16  # in the DHT at once; x 30 requests: a program that asks for ever new names waits
DIRECTORY_MAX_OFFERS = 2_560  # instances remembered, all that gossip and the DHT told; x about 900 B = 2.3 MB
DIRECTORY_MAX_SHUNNED = 1_024  # instances that failed a short time ago; x about 150 B
DIRECTORY_MAX_STICKY = 256  # names whose last instance is remembered
NAMES_MAX_CLAIMS = 2_560  # claims remembered, all that gossip and the DHT told; x about 300 B
NAMES_MAX_RIVALS = 8  # claims of one name that are remembered: a crowd of claimants costs 8 x 300 B, the earliest stay
NAMES_MAX_PINS = 4_096  # names that were used here; x about 100 B on disk; the longest unused go first

# ---- topics
TOPIC_MAX_NAME = 64  # characters
TOPIC_MAX_DATA = 3_072  # bytes of a message: with its signature and fields it fits an entry of 4,096
TOPIC_MAX_JOINED = 12  # topics of one node: a subscription is a stored entry, and 12 + 48 services + 4 = 64
TOPIC_MAX_SUBSCRIBERS = 2_048  # known of all topics together, as many as gossip stores; x about 200 B
TOPIC_MAX_LINKS = 16  # peers of one topic's tree that we serve: 16 x 1 kB x 400 a second = 6.4 MB/s at the very worst
TOPIC_RATE = 400.0  # messages a second of one origin that we pass on; each costs 43 us to verify: 2 % of a core
TOPIC_BURST = 800.0
TOPIC_BYTES = 1_048_576.0  # bytes a second of one origin
TOPIC_BYTES_BURST = 2_097_152.0
TOPIC_TOTAL_RATE = 2_000.0  # messages a second of one topic, all origins: many ids of one liar cost 9 % of a core
TOPIC_TOTAL_BURST = 4_000.0
TOPIC_LINK_RATE = 100.0  # of each link besides, which a flood over another cannot take; x 16 x 43 us = 7 % of a core
TOPIC_LINK_BURST = 400.0
TOPIC_LINK_MOST = 5_000.0  # more than 2,000 + 16 x 100 + its own, which is all that a node takes and passes on: cut off
TOPIC_LINK_MOST_BURST = 20_000.0  # what a link's full queue, 1 MB, may bring at once
TOPIC_MAX_ORIGINS = 512  # of one topic whose rate and seq are remembered; x about 650 B; the longest unheard go first
TOPIC_PUBLISH_RATE = 300.0  # our own, below what others allow us: publish() waits
TOPIC_PUBLISH_BURST = 100.0
TOPIC_PUBLISH_BYTES = 786_432.0
TOPIC_MAX_HOLES = 1_024  # missing seqs of one origin that may still come; x about 100 B; more count as lost at once
TOPIC_MAX_SOURCES = 1_024  # payloads of which a topic remembers which peer was first; x about 150 B
TOPIC_QUEUE = 1_024  # messages that an application has not read; the oldest go first, and are counted
TOPIC_LINK_WINDOW = 65_536  # unacknowledged bytes of a link above which payloads for it wait: 640 kB/s at 100 ms
TOPIC_LINK_MARK = 32_768  # bytes that wait for a link above which publishers do too
TOPIC_LINK_QUEUE = 1_048_576  # bytes that may wait for a link, and be unacknowledged; x 16 links a topic
TOPIC_MAX_FRAME = 16_384  # bytes of one message between members: four payloads
TOPIC_FRAMES_PER_S = 5_000.0  # messages of one peer between members, of all topics; x 10 us = 5 % of a core
TOPIC_FRAMES_BURST = 20_000.0  # 1 MB of small ones that waited for a link; then the stream is ended
TOPIC_MAX_REPLAY = 64  # messages kept for late joiners, and ...
TOPIC_MAX_REPLAY_BYTES = 131_072  # ... their bytes

# ---- paths
BASE_MTU = 1200  # RFC 9000 section 14: every path carries it
LOOPBACK_MTU = 4_000  # within a host. More saves little: qh3's pacer counts and delays a small packet as a whole one
MAX_PROVEN_ADDRESSES = 16_384  # that answered; x about 400 B = 7 MB, shared by network: 2,048 peers with 8 each
MAX_CREDIT_HOSTS = 8_192  # that have not, with what each may be sent; x about 700 B = 6 MB, shared by network
MAX_ASKED = 4_096  # sources that ask a second address of this host, and as many proven; x about 600 B, by network
CREDIT_LIFE_S = 3.0  # after the last datagram of a host: what would go later answers nothing any more
HOST_ALLOWANCE = 12_000  # bytes of dials and probes to a host that never answered: one initial window (RFC 9002) ...
HOST_ALLOWANCE_PER_S = 1_500.0  # ... and these a second, over all peers, ports and protocols together
MAX_HOST_ALLOWANCES = 64  # of a host: one more for each address there that answered, so that nodes may share it
MAX_MOVED_PADDED = 2  # probes that tell of a move by each path are as long as a packet: each earns three in return
KEEPALIVE_S = 15.0  # shorter than the usual 30 s of a NAT's UDP mapping
MAX_CANDIDATES = 24  # addresses a peer may have us probe
MAX_PATH_HISTORY = 32
MAX_PROBES_OUT = 512  # unanswered probes remembered per peer
MAX_SAVED_CONTACTS = 256  # enough to find the mesh again; 16 KB on disk
