"""Every bound, with the attack that it stops and its arithmetic."""

from __future__ import annotations

# ---- vocabulary
MAX_CBOR_DEPTH = 8  # parser recursion; our deepest message nests 4
MAX_RECORD = 1_000  # bytes; fits a BEP 44 item and, sealed, one 1,280-byte IPv6 packet
MAX_ENDPOINTS = 16  # the most addresses that a liar's record makes us probe
MAX_RELAYS = 4
MAX_CAPABILITIES = 8
MAX_CAPABILITY_LENGTH = 24
MAX_RECORD_TTL_S = 86_400  # a stolen, replayed record dies within a day
MAX_RECORD_FUTURE_S = 300  # clock skew that we forgive; more would let a record outlive its successors
MAX_KNOWN_IDS = 4_096  # NodeId objects that are shared; x about 500 bytes
MAX_OPENED_RECORDS = 2_048  # parsed and verified; x about 3 kB = 6 MB at the very worst
MAX_SHARED_KEYS = 4_096  # x 32 bytes and bookkeeping = about 1 MB of cached X25519 results

# ---- sealing
SEAL_WINDOW_S = 30.0  # a datagram older or newer than this is dropped
MAX_REPLAY_ENTRIES = 100_000  # nonces remembered a generation; x 2 x about 110 bytes = 22 MB at the very worst;
#   when it is full the window shrinks: at 10,000 a second to 10 s
MAX_REPLAY_RESERVED = 512  # a minute, of each peer with a connection: 8 a second; a move takes about 30
MAX_REPLAY_AHEAD = 20_000  # a minute, with stamps ahead of our clock by more than
REPLAY_AHEAD_S = 2.0
MAX_REPLAY_PER_SENDER = 20_000  # one insider cannot fill the guard: 5 of them would have to
NEW_SENDERS_PER_S = 500.0  # X25519 costs 100 us: strangers with the mesh key cost at most 5 % of a core
NEW_SENDERS_BURST = 2_000.0

# ---- connections
MAX_CONTROL_FRAME = 16_384  # a Hello with a record and a few grants; more is junk
MAX_GRANTS = 8
MAX_SERVICE_NAME = 255
MAX_GONE_STREAMS = 1_024  # streams given up here that the peer still sends on; a peer with more of them is cut off
STREAM_HIGH_WATER = 1 << 20  # bytes written and unacknowledged above which a writer waits
STREAM_LOW_WATER = 1 << 19
HANDSHAKE_TIMEOUT_S = 5.0  # aioquic has none of its own
HELD_INITIAL_S = 0.3  # how long the losing dial of two simultaneous ones is kept
DIAL_WATCH_S = 0.1  # a dial that takes longer watches for a newer record
DIAL_REFRESH_S = 0.4  # period in which an unfinished dial checks for a newer record and asks what became of it
MAX_ARRIVALS_PER_PEER = 4  # half-open connections a peer may cost us, x 70 KB
MAX_HALF_OPEN = 256  # of peers without a connection, shared by source network; x 70 KB = 18 MB
ACCEPTS_PER_S = 200.0  # first flights of peers without a connection; x 2 ms = 40 % of a core at the very worst
ACCEPTS_BURST = 400.0
ACCEPTS_PER_NETWORK_PER_S = 64.0  # so that 256 places last one network 4 s, a handshake's time
ACCEPTS_PER_NETWORK_BURST = 128.0
MAX_SESSIONS = 2_048  # peers with state, x 75 KB = 150 MB
MAX_DATAGRAM = 65_507
MAX_HELD_DATAGRAMS = 64  # held until an address is validated; x 1,452 B = 93 KB a peer, the oldest go first

MAX_OBSERVERS = 32  # peers whose view of our address is remembered
OBSERVATION_S = 120.0  # eight keepalives: older views say nothing of the NAT's present mapping
MAX_SENT_ADDRESSES = (
    8_192  # remembered to know which senders came unasked; x about 250 B = 2 MB, then no more is concluded
)
MAX_SENT_PORTS = 64  # of one host; more (a port search) count as all of them
MAX_RECENT_SENDERS = 64  # UDP sources whose last datagram's time is kept
FILTER_SETTLE_S = 600.0  # twice RFC 4787's 5 minutes: what an earlier process opened on our port has closed by then
FILTER_MOVE_S = 5.0  # after a change, what arrives may have been under way to the old place
MAX_NEIGHBOURS = 256  # ids heard by mDNS that are counted; x a pointer to a shared NodeId
MAX_CLOCKS = 64  # peers whose clock is compared with this node's
MAX_DOCTOR_SEEDS = 8  # configured seeds that one diagnosis asks; it would wait no longer, but say too much

# ---- relays
MAX_RELAY_FLOWS = 16_384  # pairs of which a relay remembers that they talk; x about 150 B
RELAY_BURST_S = 0.5  # a client may be this far ahead of its rate
RELAY_CONSENT_S = 30.0  # both ends must have sent the other something within this time to be introduced
RELAY_INTRODUCE_S = 1.0  # at most one introduction a second and pair: 24 probes each
INTRODUCED_AGAIN_S = 0.8  # of a peer, by whichever relay: an introduction costs 24 probes to each candidate
HOME_RELAYS = 2  # named in our record
MAX_RELAYS_HELD = 6  # reservations that this node holds: 2 at home, and those that peers' records name
MAX_RELAYS_LOST = 64  # relays remembered as lost, with when each is tried again; x about 150 B
RELAY_RETRY_S = 15.0  # after a refusal or a failed dial

# ---- port mappings
MAX_ROUTE_TABLE = 1 << 20  # characters read at every change: 8,000 routes; a host with more is no client of a router
MAX_PORTMAP_ROUTES = 5  # one IPv4 route, and pinholes for four of this node's IPv6 addresses
MAX_PORTMAP_LEAVING = 8  # mappings being given back at once, after as many changes of port in two seconds
PORTMAP_ROUTERS = 16  # routers whose clock is remembered
PORTMAP_LIFETIME_S = 7_200  # asked for; what a crash leaves behind is gone after it
PORTMAP_MAX_LIFETIME_S = (
    86_400  # believed at most (RFC 6887 section 15): a router that says more is asked again in a day
)
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
MAX_SEARCH_BOOK = 256  # peers and hosts remembered for these pauses; x about 200 B
MAX_SIDES_KEPT = 16  # sockets that won, x one path in use; the oldest goes back to its relay

# ---- tunnels
TUNNEL_KNOCK_S = 5.0  # for the first flight, for TLS, and for the WebSocket: each stage ends or the connection does
TUNNEL_IDLE_S = 40.0  # without a datagram of this node, which is more than two keepalives: given up
TUNNEL_RETRY_S = 2.0  # between attempts to open one
MAX_TUNNEL_PENDING = 128  # TCP connections that have not knocked yet, shared by source network; x a socket
MAX_TUNNEL_WAKES = 8  # looks at an unfinished ClientHello where the kernel does not wait for SO_RCVLOWAT
TUNNEL_ACCEPT_PAUSE_S = 1.0  # after descriptors ran out: an accept that fails at once would spin
MAX_TUNNELS_PER_MEMBER = 4  # one in use, and those that a move left behind until they are idle
MAX_TUNNEL_CLIENTS = 512  # by network; x about 330 KB: asyncio's TLS buffer is 256 KB (measured); 169 MB at worst
MAX_TUNNEL_BACKLOG = 512  # datagrams waiting for a WebSocket; the rest is dropped, which QUIC takes for congestion
MAX_TUNNEL_BUFFER = 512_000  # bytes in a transport's buffer above which datagrams are dropped

# ---- discovery
MAX_CACHED_RECORDS = 4_096  # x about 1.5 KB
MAX_PENDING_RESOLVES = 1_024
RESOLVE_TIMEOUT_S = 5.0
RETRY_LOOKUP_S = 0.25  # pause before an empty lookup that a caller still waits for is repeated
SEEK_S = 2.0  # between lookups of a peer that went silent; a lookup is 20 to 30 requests, its watches are 3
MAX_SOUGHT = 256  # silent peers whose last lookup is remembered

# ---- dht
DHT_MAX_BODY = 1_105  # + 97 sealing + 25 relay frame + 48 IPv6 and UDP = 1,275: under every path's 1,280
DHT_MAX_CONTACTS = 16  # in an answer: 16 x 51 B fits a body; a liar fills no more than that of a lookup's queue
DHT_MAX_LOOKUP_RPCS = 120  # a lookup led astray costs 120 x 1.3 kB = 156 kB, then ends
DHT_MAX_LOOKUP_QUEUE = 1_024  # contacts a lookup remembers: 120 answers x 16 would be 1,920
DHT_LOOKUP_DEADLINE_S = 12.0  # hostile or dead answers never hold a lookup longer
DHT_MAX_LOOKUPS = 64  # at once; x about 100 kB
DHT_MAX_CALLS = 1_024  # outstanding requests; x about 2 kB with the body kept for retransmission
DHT_MAX_PROBES = 64  # pings that strangers' requests make us send at once
DHT_MAX_HINTS = 256  # addresses waiting to be pinged
DHT_MAX_SEEDS = 8  # configured seeds that get every STORE and WATCH
DHT_MAX_PER_SUBNET = 2  # a /24 or /48 in a crowded bucket: an eclipse needs as many networks as it needs ids
DHT_MAX_STORED = 4_096  # records; x 1.5 kB = 6 MB
DHT_MAX_STORED_SEED = 65_536  # a seed's: 98 MB at the very worst
DHT_MAX_STORED_PER_ADDRESS = 128  # first stores from one IP address; one host fills 3 % of the store
DHT_UPDATES_PER_KEY = 32.0  # newer records of one key in a burst; a flooding owner wakes no watcher more often
DHT_UPDATES_PER_KEY_PER_S = 4.0
DHT_MAX_VERIFIED = 4_096  # record bytes whose signature is known to be good; x 1.5 kB
DHT_MAX_WATCH_S = 90  # a watcher that died is pushed to for this time at most
DHT_MAX_WATCHES = 8_192  # x about 300 B
DHT_MAX_WATCHES_PER_SENDER = 256
DHT_MAX_WATCHES_PER_KEY = 128  # one newer record makes at most 128 x 4 datagrams
DHT_MAX_WATCHED = 1_024  # ids that we watch ourselves
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
GOSSIP_MAX_PER_ORIGIN = 64  # stored entries of one origin and kind: it fills 3 % of a kind at most
GOSSIP_MAX_FLOORS = 4_096  # keys whose last seq is remembered after the entry expired; x about 200 B
GOSSIP_ORIGIN_RATE = 20.0  # entries a second of one origin: 20 x 43 us = 0.1 % of a core to verify
GOSSIP_ORIGIN_BURST = 100.0  # all of its stored entries at once, when a partition heals
GOSSIP_OWN_SHARE = 0.8  # of these rates that a node allows itself, so that no honest node is over them elsewhere
GOSSIP_ORIGIN_BYTES = 65_536.0  # bytes a second of one origin that we pass on
GOSSIP_ORIGIN_BYTES_BURST = 524_288.0
GOSSIP_MAX_ORIGINS = 4_096  # rates kept; x about 400 B; the longest unheard goes first: its bucket is full again

# ---- gossip: membership
GOSSIP_MAX_ACTIVE = 8  # links; we look for more below 6 and take them up to 8
GOSSIP_MAX_PASSIVE = 30  # x a record of at most 1 kB = 30 kB
GOSSIP_MAX_CONTACTS = 8  # in a shuffle: 8 x 1,035 B fit a frame; a liar replaces at most 8 of our 30 a shuffle
GOSSIP_MAX_WALKS = 256  # shuffles on their way through us; x about 150 B
GOSSIP_MAX_SEEDS = 8  # configured seeds that are looked for again
GOSSIP_MAX_PENDING = 8  # links that we are opening for the active view
GOSSIP_WALK_RATE = 32.0  # walks a second that one neighbour may cause: 32 kB passed on, or 4 that end with a dial
GOSSIP_WALK_BURST = 128.0  # a contact node under a crowd of joins passes on so many at once
GOSSIP_MAX_PROBES = 32  # probes for others and of samples at once, each at most 3 datagrams of 130 B
GOSSIP_MAX_SUSPECTS = 1_024  # x about 400 B; accusations of more are ignored until some end
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
GOSSIP_MAX_MISSING = 4_096  # announced ids that we wait for; a liar's are forgotten after 4 announcers
GOSSIP_MAX_ANNOUNCERS = 4  # of one missing id
GOSSIP_MAX_IDS = 1_024  # in an IHAVE, GRAFT or WANT: 9 kB
GOSSIP_MAX_HOPS = 64  # a liar's larger number means no more than this
GOSSIP_FRAME = 14_000  # bytes of entries in one message; a control frame holds 16,384
GOSSIP_QUEUE = 65_536  # bytes unsent on a link above which gossip for it is dropped, and reconciled when it drains
GOSSIP_MAX_SYNC = 49_152  # bytes sent in answer to one request
GOSSIP_MAX_TELL_IDS = 1_500  # 12 kB
MAX_UNANSWERED_PINGS = 1_024  # echoes, and the signs of life that gossip asks for; x about 400 B
GOSSIP_MAX_OFFERS = 8  # contacts of the DHT tried at once when no neighbour is left

# ---- directory and names
SERVICE_MAX_VALUE = 1_024  # bytes of an announcement; 2,048 of a kind x 1.1 kB = 2.3 MB
SERVICE_MAX_META = 16  # pairs of an instance's metadata
SERVICE_MAX_META_TEXT = 128  # characters of a key, and of a value
SERVICE_MAX_OWN = 48  # announced by one node: gossip stores 64 entries of an origin; topics need 12, others 4
DIRECTORY_MAX_OFFERS = 2_048  # instances remembered, as many as gossip stores; x about 900 B = 1.8 MB
DIRECTORY_MAX_SHUNNED = 1_024  # instances that failed a short time ago; x about 150 B
DIRECTORY_MAX_STICKY = 256  # names whose last instance is remembered
NAMES_MAX_CLAIMS = 2_048  # claims remembered, as many as gossip stores; x about 300 B
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
TOPIC_MAX_REPLAY = 64  # messages kept for late joiners, and ...
TOPIC_MAX_REPLAY_BYTES = 131_072  # ... their bytes

# ---- paths
BASE_MTU = 1200  # RFC 9000 section 14: every path carries it
INITIAL_WINDOW = 12_000  # bytes to an unproven address after a fresh sealed MOVED: 10 packets, one round trip
KEEPALIVE_S = 15.0  # shorter than the usual 30 s of a NAT's UDP mapping
MAX_CANDIDATES = 24  # addresses a peer may have us probe
MAX_PATH_HISTORY = 32
MAX_PROBES_OUT = 512  # unanswered probes remembered per peer
MAX_SAVED_CONTACTS = 256  # enough to find the mesh again; 16 KB on disk
