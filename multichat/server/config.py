"""The settings and timeouts of a server: defaults, with the reason for each.  Pure."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import msgspec

from multichat.errors import InvalidName
from multichat.protocol.framing import clean
from multichat.protocol.messages import MAX_NAME_CHARACTERS, Directed, Limits, Said
from multichat.protocol.names import parse_person_name
from multichat.web.config import WebConfig
from multichat.web.forwarded import Proxies

__all__ = [
    "DRAIN_SECONDS",
    "MAX_CLIENTS_PER_ADDRESS",
    "MAX_DRAIN_SECONDS",
    "MAX_FREE_WAIT_SECONDS",
    "MAX_PASSWORD_CHARACTERS",
    "AccountLimits",
    "Filter",
    "Filtered",
    "Joining",
    "LogMessages",
    "Message",
    "Registration",
    "Renaming",
    "ReplayLimits",
    "ServerConfig",
    "ServerTimeouts",
    "Setting",
    "Slow",
]

Message: TypeAlias = Said | Directed
"""A message to a room or to one client, before it is delivered."""


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """A client asks to enter the room called *text*; it is in *room* now, and called *name*."""

    client: int
    name: str
    room: str
    text: str


class Renaming(msgspec.Struct, frozen=True, kw_only=True):
    """A client in *room*, which is called *name* now, asks for the name *text*."""

    client: int
    name: str
    room: str
    text: str


Filtered: TypeAlias = Message | Joining | Renaming
"""The types that a filter may receive."""

Filter: TypeAlias = Callable[[Message], Filtered | Awaitable[Filtered | None] | None]
"""A function that gets each message before it is published.

Returns the message, a changed one, or None to reject it; may be an async function.  With
`ServerConfig.filter_joins` it gets each `Joining` and `Renaming`, too, and returns the same.
"""

# The maximum wait of one publish in a room in which all members are slow but still receive bytes.
MAX_FREE_WAIT_SECONDS = 30.0

# A company, a campus or a mobile network may share one address; an attacker with one address gets
# at most an eighth of the server.
MAX_CLIENTS_PER_ADDRESS = 128

# A third of it lets the balancer notice, and in the other ten seconds 1,000 clients reconnect to
# the other nodes, 100 a second.  With the grace period it is less than the 30 seconds that
# container managers wait before they kill.
DRAIN_SECONDS = 15.0

# A day.
MAX_DRAIN_SECONDS = 86_400

# Short enough for any line that a client may send.
MAX_PASSWORD_CHARACTERS = 1024


class Slow(enum.Enum):
    """What a room does when the send queues of members are full."""

    WAIT = "wait"  # wait for a bounded time, then replay the rest at the pace of each
    DROP = "drop"  # the members miss messages and get their number
    DISCONNECT = "disconnect"  # the members are disconnected at once


class LogMessages(enum.Enum):
    """What is logged of messages."""

    ALL = "all"
    NONE = "none"  # only who sent a message, where and when


class Registration(enum.Enum):
    """Who can create accounts."""

    OPEN = "open"  # everybody, for their own name
    CLOSED = "closed"  # the operator, at the console or on the command line


def _expected(value: Any, default: Any) -> str:
    """Return the expected kind of *value* if it differs from that of *default*; otherwise ""."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match default:
        case bool():
            return "" if isinstance(value, bool) else "True or False"
        case enum.Enum():
            members = ", ".join(map(str, type(default)))
            return "" if isinstance(value, type(default)) else f"one of {members}"
        case int():
            return "" if is_number and isinstance(value, int) else "an integer"
        case float():
            return "" if is_number else "a number"
        case tuple():
            is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
            return "" if is_sequence else "a tuple"
    return "" if default is None or isinstance(value, type(default)) else type(default).__name__


def _check_kind(name: str, value: Any, default: Any) -> None:
    if expected := _expected(value, default):
        raise ValueError(f"{name} must be {expected}")


def _check_bounds(limits: Any, *, at_least: int, may_be_0: tuple[str, ...] = ()) -> None:
    for each in fields(limits):
        value = getattr(limits, each.name)
        _check_kind(each.name, value, each.default)
        lowest = 0 if each.name in may_be_0 else at_least
        if not value >= lowest:  # also refuses NaN
            bound = f"at least {lowest}" if lowest else "0 or more"
            raise ValueError(f"{each.name} must be {bound}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTimeouts:
    """Timeouts that an operator need not choose, in seconds.

    Raises `ValueError` for a negative value.
    """

    # Seconds for which input is discarded after the goodbye, before the connection is closed: data
    # that arrives after a close makes the kernel send a reset, which discards what the client has
    # not read yet.
    linger: float = 1.0

    # Seconds that an address waits after its first wrong password; the delay doubles with each
    # further one.  It is short, so that a typing mistake does not cost much.
    first_attempt_delay: float = 0.5

    # The longest of these delays, in seconds: it allows 450 attempts an hour.
    # `multichat.server.password_attempts` limits the total number.
    max_attempt_delay: float = 8.0

    # Seconds without an attempt after which an address's wrong passwords are forgotten.
    forget_attempts: float = 600.0

    # Seconds for which a disconnected client can resume its session, and for which an address that
    # sent the right password is remembered: a laptop may be closed overnight.
    session: float = 24 * 3600.0

    # The maximum time, in seconds, between the start of a drain and its first goodbye, which is at
    # most a third of the drain: in 5 seconds a balancer that checks every second notices that it
    # must not send new clients here, even if it requires three failed checks.
    drain_pause: float = 5.0

    def __post_init__(self) -> None:
        _check_bounds(self, at_least=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayLimits:
    """Sizes of replays to clients that are behind.

    Raises `ValueError` for a size below 1, except for *ring_bytes*, which may be 0.
    """

    # The maximum of bytes that a replay puts into a send queue, so that answers and private
    # messages still fit.
    queue_bytes: int = 256 * 1024

    # Bytes of the newest messages that a room keeps in memory besides its journal: a few reads of a
    # fast sender, or a day of a quiet room.
    ring_bytes: int = 1024 * 1024

    # Messages in a page of older ones.  A page begins where a replay is, ends at a multiple of this
    # number, and has at most half the size of a batch before it is encoded.
    page_messages: int = 500

    def __post_init__(self) -> None:
        _check_bounds(self, at_least=1, may_be_0=("ring_bytes",))


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountLimits:
    """The limits of accounts, and the cost of hashing a passphrase.

    Raises `ValueError` for a negative value.
    """

    # The total number of accounts: they are in memory, with 0.5 KiB each.
    max_accounts: int = 10_000

    # Accounts that one address may register in an hour.
    hourly: int = 3

    # argon2id as OWASP recommends it: 30 ms of one processor and 19 MiB for each login.
    hash_kib: int = 19 * 1024
    hash_passes: int = 2

    def __post_init__(self) -> None:
        _check_bounds(self, at_least=0)


# An eighth of the memory: besides its queues and buffers, an idle connection takes 11 KiB, and one
# with the tasks of a slow client 20.  A server with little memory still accepts some.
CONNECTIONS_PER_MIB = 8
_MIN_CONNECTIONS = 128

# A page of 128 KiB, encoded for both protocols.  Clients that resume together are at
# most a few pages apart.
_CACHED_PAGE_BYTES = 512 * 1024
_MAX_PAGES = 32


_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Metadata of a field of `ServerConfig`: its bounds, and the option that sets it.

    A value must be *at_least* and *at_most* a number, or *positive*.  With *help* there
    is an option, whose value is multiplied by *unit* and is at least *option_at_least*;
    *shown_default* describes the default where the value itself does not.
    """

    help: str = ""
    at_least: int | None = None
    at_most: int | None = None
    positive: bool = False
    unit: int = 1
    option_at_least: int | None = None
    shown_default: str = ""


def _setting(default: Any, help_: str = "", **described: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(help=help_, **described)})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of a server, with the defaults of the command line.

    Raises `ValueError` for an invalid value.
    """

    # The longest line that a client may send, in bytes, without its line end.  Enough for a pasted
    # stack trace, while a thousand clients that stall in the middle of a line fit in 64 MiB.
    max_line_bytes: int = _setting(64 * 1024, "Longest line accepted, in bytes.", at_least=1)

    # Batches that a client's send queue holds; it is also limited to 4 MiB.  Enough for 64 reads
    # from one sender, or one word each from 64 people, before anybody waits.
    send_queue_batches: int = _setting(64, "Size of a client's send queue, in batches.", at_least=1)

    # What a room does when a member's send queue is full.  By default nothing is lost and nobody
    # waits for long.
    slow: Slow = _setting(  # noqa: RUF009 - a field
        Slow.WAIT,
        "What to do when a client's send queue is full: let the sender wait for a bounded time and "
        "then replay the rest at the client's pace, drop messages and tell the client how many, or "
        "disconnect the client.",
    )

    # Seconds for which a room waits for slow clients at a stretch; then it continues, and the rest
    # is replayed to them.  Long enough for a phone to change its cell.
    slow_timeout_seconds: float = _setting(
        2.0, "Seconds that slow clients may keep a room waiting at a stretch.", at_least=0
    )

    # Seconds after which a client that is behind and takes nothing is disconnected.  Long enough to
    # carry a laptop to another room.
    stall_timeout_seconds: float = _setting(
        300.0,
        "Disconnect a client that is behind and takes nothing for this many seconds.",
        positive=True,
    )

    # Clients that may be connected at once, further limited by `max_connections`.  About what the
    # usual limit of 1,024 open files allows.
    max_clients: int = _setting(
        1024, "Maximum number of clients, at most 8 for each MiB of --memory.", at_least=1
    )

    # Clients that may be connected from one address; 0 is no limit.  An IPv6 /64 counts as one
    # address, because one customer gets that much.  None means `MAX_CLIENTS_PER_ADDRESS`, but no
    # limit for loopback, from which proxies and tunnels connect.  Clients of Unix sockets are not
    # limited.
    max_clients_per_address: int | None = _setting(
        None,
        "Maximum number of clients from one IPv4 address, or one IPv6 /64; 0: no limit.",
        at_least=0,
        shown_default=f"{MAX_CLIENTS_PER_ADDRESS}, no limit for loopback",
    )

    # Messages or other requests that a client may send per second; above this it is read more
    # slowly and loses nothing.  None is no limit: on a private network, a build log is not a flood.
    rate: float | None = _setting(
        None,
        "Messages per second accepted from a client; a faster one is slowed down.",
        positive=True,
        shown_default="no limit",
    )

    # With `rate`, messages that a client may send at once: a paste of 500 lines arrives without a
    # pause.
    burst: int = _setting(500, "With --rate, messages accepted at once.", at_least=1)

    # Bytes that a client may send per second, whatever they contain; above this it is read more
    # slowly.  One read is always accepted at once.  None is no limit.
    byte_rate: float | None = _setting(
        None,
        "Bytes per second accepted from a client; a faster one is slowed down.",
        positive=True,
        shown_default="no limit",
    )

    # Bytes held for rooms, sessions and clients together; the properties below name the parts.
    # Half of a small machine: 1,024 clients that are all in the middle of a long line fit in the
    # part for clients.
    memory_bytes: int = _setting(
        512 * _MIB,
        "MiB of memory for messages (half of it), sessions and clients; above this, old messages "
        "and sessions are deleted and the slowest client is disconnected.",
        at_least=0,
        unit=_MIB,
        option_at_least=4,
    )

    # Seconds after which a client that sends nothing but pings is disconnected.  None is never:
    # people who only read may be silent for days, and TCP itself detects dead peers.
    idle_seconds: float | None = _setting(
        None,
        "Disconnect a client that is idle for this many seconds; pings do not count.",
        positive=True,
        shown_default="never",
    )

    # The password that every client must send before anything else.  None: no password is required.
    password: str | None = field(default=None, repr=False)

    # Seconds that a client has for the password: enough to type one.
    auth_seconds: float = _setting(10.0, positive=True)

    # Seconds that a client has for the TLS handshake: enough for a slow phone.
    handshake_seconds: float = _setting(10.0, positive=True)

    # Functions that each message passes through, in this order.
    filters: tuple[Filter, ...] = ()

    # Seconds that the filters may take for each message; after that the message is published
    # unchanged, because a filter that hangs must not silence the chat.
    filter_seconds: float = _setting(1.0, positive=True)

    # Whether the filters also get each `Joining` and `Renaming`.  Not by default: a filter that
    # changes or rejects texts must be written to expect names.
    filter_joins: bool = _setting(False, "Pass joins and renames through --filter, too.")

    # Rooms that may be open at once: more than anybody looks through.  An open room costs what its
    # members cost.
    max_rooms: int = _setting(1024, "Maximum number of rooms.", at_least=1)

    # New rooms that one address may open per hour; over loopback, one client, and over a Unix
    # socket, one user.  A person needs a few, and a journal keeps each room forever.
    max_new_rooms: int = _setting(
        100, "Rooms that nobody has used before which one address may open an hour.", at_least=1
    )

    # Rooms that one client may be in at once, which only programs can (JSON): more than anybody
    # follows.
    max_rooms_per_client: int = _setting(32, "Rooms that a client may be in at once.", at_least=1)

    # Whether clients of the text protocol get notices of joins, leaves and renames.  Not by
    # default: such a client gets nothing that it did not ask for.  Clients of the JSON protocol are
    # always told.
    announce: bool = _setting(
        False, "Tell clients of the text protocol (nc), too, who joins and leaves."
    )

    # Messages of one client that are logged per second, and ten times as many at once; the others
    # are counted.  A paste of 500 lines is logged in full, and a client that floods for a day fills
    # a gigabyte.  None is no limit.
    log_rate: float | None = _setting(
        100.0,
        "Messages of a client logged per second; the others are counted. 0: no limit.",
        positive=True,
        option_at_least=0,
    )

    # Whether the line about a new client has its address.  Not by default: a log need
    # not hold personal data.  Connections that were refused are always logged with theirs.
    log_addresses: bool = _setting(False, "Log the addresses of clients that connect.")

    # Whether what people write is logged: messages, topics, announcements, and the reasons of kicks
    # and bans.  The specification logs it; where that is too much, everything else still is.
    log_messages: LogMessages = _setting(  # noqa: RUF009 - a field
        LogMessages.ALL, "Log what people write, or only who wrote something, and where."
    )

    # Disconnected clients that can resume their session: ten times as many as may be connected.  A
    # session takes 0.6 KiB, or 4 to 15 with 256 nonces; `sessions_bytes` limits them, too.
    max_sessions: int = _setting(
        10_000,
        "Maximum number of disconnected clients that can resume their session.",
        at_least=1,
    )

    # Seconds after a lost connection for which a client keeps its name and the others are not told
    # that it left: the time to notice the loss and to connect again.
    away_seconds: float = _setting(
        5.0,
        "Seconds to wait for a client to reconnect before others are told that it left.",
        at_least=0,
    )

    # Seconds to deliver queued messages to a client that leaves, and to all clients at shutdown:
    # how long a person waits for a program before stopping it again.
    grace_seconds: float = _setting(
        5.0,
        "Seconds to deliver queued messages to a client that leaves, and at shutdown.",
        at_least=0,
    )

    # Seconds of a drain: how long it takes at most until all clients got their goodbye.
    # None is `DRAIN_SECONDS` for a node of a cluster, whose clients come back to another node, and
    # 0, which is no drain, for a server alone: its clients could come back nowhere else.
    drain_seconds: float | None = _setting(
        None,
        "On SIGTERM, seconds in which clients are told one after the other to reconnect, before "
        "the server shuts down; 0: it shuts down at once, as on Ctrl+C.",
        at_least=0,
        at_most=MAX_DRAIN_SECONDS,
        shown_default=f"0; with --cluster {DRAIN_SECONDS:g}",
    )

    # Whether only clients that are logged in to an account may send messages; the others can read.
    require_login: bool = _setting(
        False, "Only clients that are logged in may send messages; others can read."
    )

    # Who can create accounts.
    registration: Registration = _setting(  # noqa: RUF009 - a field
        Registration.OPEN,
        "Who can create accounts: everybody with /register, or the operator only, with `multichat "
        "account` or at the console.",
    )

    # The names of the accounts that may use the operators' commands in the chat.  They cannot be
    # registered there.
    operators: tuple[str, ...] = ()

    # The addresses and networks of load balancers, whose connections begin with a PROXY header: it
    # says whose they are.  By default none: a client could claim any address.
    proxies: tuple[str, ...] = ()

    # Limits of accounts that have no option on the command line.
    accounts: AccountLimits = AccountLimits()

    # The web port.
    web: WebConfig = WebConfig()  # noqa: RUF009 - immutable

    # Timeouts that have no option on the command line.
    timeouts: ServerTimeouts = ServerTimeouts()

    # Sizes of replays, which have no option on the command line either.
    replay: ReplayLimits = ReplayLimits()

    @property
    def history_bytes(self) -> int:
        """How many bytes the messages of a journal in memory may take."""
        return self.memory_bytes // 2

    @property
    def rings_bytes(self) -> int:
        """Bytes of the newest messages of all rooms."""
        return self.memory_bytes // 8

    @property
    def clients_bytes(self) -> int:
        """How many bytes connected clients may take."""
        return self.memory_bytes // 4

    @property
    def max_connections(self) -> int:
        """How many connections may be open, with those that are not admitted yet or are closing."""
        return max(_MIN_CONNECTIONS, self.memory_bytes * CONNECTIONS_PER_MIB >> 20)

    @property
    def hides_messages(self) -> bool:
        """Whether the log has nothing of what people write."""
        return self.log_messages is LogMessages.NONE

    @property
    def max_pages(self) -> int:
        """How many pages of earlier messages are cached for replays."""
        return max(1, min(_MAX_PAGES, self.memory_bytes // 32 // _CACHED_PAGE_BYTES))

    @property
    def sessions_bytes(self) -> int:
        """Bytes of the sessions of disconnected clients."""
        return self.memory_bytes // 8

    @property
    def limits(self) -> Limits:
        """The limits that a welcome announces; finite, because JSON has no infinity."""
        wait = MAX_FREE_WAIT_SECONDS + min(self.slow_timeout_seconds, 1e6)
        return Limits(self.max_line_bytes, MAX_NAME_CHARACTERS, wait)

    def __post_init__(self) -> None:
        for each in fields(self):
            setting, value = each.metadata.get("setting"), getattr(self, each.name)
            if value is None and (each.default is None or each.name == "log_rate"):
                continue
            is_number = setting is not None and each.default is None
            _check_kind(each.name, value, 0.0 if is_number else each.default)
            if setting is None:
                continue
            # Written so that NaN is refused, too.
            if setting.positive and not value > 0:
                raise ValueError(f"{each.name} must be more than 0")
            if setting.at_least is not None and not value >= setting.at_least:
                bound = f"at least {setting.at_least}" if setting.at_least else "0 or more"
                raise ValueError(f"{each.name} must be {bound}")
            if setting.at_most is not None and not value <= setting.at_most:
                raise ValueError(f"{each.name} must be at most {setting.at_most}")
        Proxies(self.proxies)
        for operator in self.operators:
            try:
                parse_person_name(operator)
            except InvalidName as error:
                raise ValueError(f"an operator is an account: {error}") from None
        if self.password is not None and "\n" in self.password:
            raise ValueError("a password must be one line")
        # Counted as it arrives; see `multichat.protocol.framing.clean`.
        typed = None if self.password is None else len(clean(self.password))
        if typed is not None and not 0 < typed <= MAX_PASSWORD_CHARACTERS:
            raise ValueError(f"a password has 1 to {MAX_PASSWORD_CHARACTERS} characters")
