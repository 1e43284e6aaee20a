"""The settings and timeouts of a server: defaults, with the reason for each.  Pure."""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import msgspec

from multichat.protocol.framing import clean
from multichat.protocol.messages import MAX_NAME_CHARACTERS, Directed, Limits, Said

__all__ = [
    "MAX_CLIENTS_PER_ADDRESS",
    "MAX_FREE_WAIT_SECONDS",
    "MAX_PASSWORD_CHARACTERS",
    "Filter",
    "Filtered",
    "Joining",
    "Message",
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
"""What a filter may get."""

Filter: TypeAlias = Callable[[Message], Filtered | Awaitable[Filtered | None] | None]
"""A function that gets each message before it is published.

Returns the message, a changed one, or None to reject it; may be an async function.  With
`ServerConfig.filter_joins` it gets each `Joining` and `Renaming`, too, and returns the same.
"""

# How long one publish waits at most in a room in which all members are slow but take bytes.
MAX_FREE_WAIT_SECONDS = 30.0

# A company, a campus or a mobile network may share one address; an attacker with one address takes
# an eighth of the server.
MAX_CLIENTS_PER_ADDRESS = 128

# Shorter than any line that a client may send.
MAX_PASSWORD_CHARACTERS = 1024


class Slow(enum.Enum):
    """What a room does about members whose send queue is full."""

    WAIT = "wait"  # wait for a bounded time, then replay the rest at their own pace
    DROP = "drop"  # they miss the messages and are told how many they missed
    DISCONNECT = "disconnect"  # disconnect them at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTimeouts:
    """Timeouts that an operator need not choose, in seconds.

    Raises `ValueError` for a negative value.
    """

    # A client that has been told goodbye is read for this long before its connection is closed: if
    # data arrives after a close, the kernel sends a reset, which discards what the client has not
    # read yet.
    linger: float = 1.0

    # After a wrong password the next attempt from the same address waits, at first for half a
    # second and twice as long each time.  The maximum allows 450 attempts an hour, and admits
    # somebody who mistyped.  After a time without attempts the count starts again.  For the limit
    # of all attempts see `multichat.server.password_attempts`.
    first_attempt_delay: float = 0.5
    max_attempt_delay: float = 8.0
    forget_attempts: float = 600.0

    # A disconnected client may resume its session within this time, such as a laptop that is closed
    # over night; for as long the server remembers addresses from which the password was sent.
    session: float = 24 * 3600.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= 0:  # also refuses NaN
                raise ValueError(f"{each.name} must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayLimits:
    """Sizes of replays to clients that are behind."""

    # What a replay keeps in a send queue at most: there is space for answers and private messages.
    queue_bytes: int = 256 * 1024

    # What a room keeps in memory besides its journal: a few reads of a fast sender, or a day of a
    # quiet room.
    ring_bytes: int = 1024 * 1024

    # Older messages are read in pages that begin at multiples of this.  A page is at most half a
    # batch before it is encoded.
    page_messages: int = 500


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
    """What is known of a field of `ServerConfig`: its bounds, and the option that sets it.

    A value must be *at_least* a number, or *positive*; None is always allowed.  With *help* there
    is an option, whose value is multiplied by *unit* and is at least *option_at_least*;
    *shown_default* describes the default where the value itself does not.
    """

    help: str = ""
    at_least: int | None = None
    positive: bool = False
    unit: int = 1
    option_at_least: int | None = None
    shown_default: str = ""


def _setting(default: Any, help_: str = "", **described: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(help=help_, **described)})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of a server, with the defaults of the command line.

    Raises `ValueError` for a value that makes no sense.
    """

    # Room for a pasted stack trace, while a thousand clients stalled in mid-line fit in 64 MiB.
    max_line_bytes: int = _setting(64 * 1024, "Longest line accepted, in bytes.", at_least=1)

    # A burst of 64 reads from one sender, or one word each from 64 people.
    send_queue_batches: int = _setting(64, "Size of a client's send queue, in batches.", at_least=1)

    # Loses nothing, and nobody waits for long.
    slow: Slow = _setting(  # noqa: RUF009 - a field
        Slow.WAIT,
        "What to do when a client's send queue is full: let the sender wait for a bounded time and "
        "then replay the rest at the client's pace, drop messages and tell the client how many, or "
        "disconnect the client.",
    )

    # How long a room waits at once for slow clients, before it continues and replays the rest to
    # them: long enough for a phone to change its cell.
    slow_timeout_seconds: float = _setting(
        2.0, "Seconds that slow clients may keep a room waiting at once.", at_least=0
    )

    # A client that is behind and takes nothing for this long is disconnected: longer than it takes
    # to carry a laptop to another room.
    stall_timeout_seconds: float = _setting(
        300.0,
        "Disconnect a client that is behind and takes nothing for this many seconds.",
        positive=True,
    )

    # About what a usual limit of open files allows.
    max_clients: int = _setting(
        1024, "Maximum number of clients, at most 8 for each MiB of --memory.", at_least=1
    )

    # An IPv6 /64 counts as one address: that is what one customer gets.  0 is no limit.  None is
    # `MAX_CLIENTS_PER_ADDRESS`, but no limit for loopback, from which proxies and tunnels connect.
    # Unix sockets have no address.
    max_clients_per_address: int | None = _setting(
        None,
        "Maximum number of clients from one IPv4 address, or one IPv6 /64; 0: no limit.",
        at_least=0,
        shown_default=f"{MAX_CLIENTS_PER_ADDRESS}, no limit for loopback",
    )

    # Messages and other requests that a client may send a second, and how many at once: a paste of
    # 500 lines arrives without a pause.  A client that sends faster is read more slowly.
    rate: float | None = _setting(
        None,
        "Messages per second accepted from a client; a faster one is slowed down.",
        positive=True,
        shown_default="no limit",
    )
    burst: int = _setting(500, "With --rate, messages accepted at once.", at_least=1)

    # The same in bytes; at least one read is handled at once.
    byte_rate: float | None = _setting(
        None,
        "Bytes per second accepted from a client; a faster one is slowed down.",
        positive=True,
        shown_default="no limit",
    )

    # The memory for clients and rooms; see the properties below for its parts.  Half of a small
    # machine: 1,024 clients in the middle of a long line fit into the clients' part.
    memory_bytes: int = _setting(
        512 * _MIB,
        "MiB of memory for messages (half of it), sessions and clients; above this, old messages "
        "and sessions are deleted and the slowest client is disconnected.",
        at_least=0,
        unit=_MIB,
        option_at_least=4,
    )

    # A client may listen for days without sending; TCP notices dead connections.
    idle_seconds: float | None = _setting(
        None,
        "Disconnect a client that is idle for this many seconds; pings do not count.",
        positive=True,
        shown_default="never",
    )

    # The password that a client sends before anything else; None requires none.
    password: str | None = field(default=None, repr=False)

    # A person can type a password, and a slow phone finish its handshake, in this time.
    auth_seconds: float = _setting(10.0, positive=True)
    handshake_seconds: float = _setting(10.0, positive=True)

    # What every message goes through, in order, and how long a filter may take for each: after that
    # the message goes on unchanged, because a filter that hangs must not silence the chat.
    filters: tuple[Filter, ...] = ()
    filter_seconds: float = _setting(1.0, positive=True)

    # Whether the filters get each `Joining` and `Renaming`, too.  Not by default: a filter that
    # changes or rejects texts must expect names.
    filter_joins: bool = _setting(False, "Pass joins and renames through --filter, too.")

    # More than anybody reads; a room costs little more than its members.
    max_rooms: int = _setting(1024, "Maximum number of rooms.", at_least=1)

    # New rooms that one address may open within an hour, or one client over loopback or without an
    # address: a person needs a few, and a journal keeps each for ever.
    max_new_rooms: int = _setting(
        100, "Rooms that nobody has used before which one address may open an hour.", at_least=1
    )

    # Clients of the JSON protocol, `multichat connect` among them, are always told who joins and
    # leaves; a client of the text protocol gets nothing that it did not ask for but messages.
    announce: bool = _setting(
        False, "Tell clients of the text protocol (nc), too, who joins and leaves."
    )

    # Messages of each client that are logged a second, and ten times as many at once; the others
    # are counted.  A paste of 500 lines is logged completely; a client that floods for a day writes
    # a gigabyte.
    log_rate: float | None = _setting(
        100.0,
        "Messages of a client logged per second; the others are counted. 0: no limit.",
        positive=True,
        option_at_least=0,
    )

    # Ten times as many as may be connected; 0.6 KiB each, 4 to 15 with the nonces of 256 messages;
    # see `sessions_bytes`.
    max_sessions: int = _setting(
        10_000,
        "Maximum number of disconnected clients that can resume their session.",
        at_least=1,
    )

    # How long a client that may reconnect is away before the others are told that it left, and its
    # name is reserved: as long as it takes to notice a lost connection and open a new one.
    away_seconds: float = _setting(
        5.0,
        "Seconds to wait for a client to reconnect before others are told that it left.",
        at_least=0,
    )

    # As long as a person waits for a program to stop before stopping it again.
    grace_seconds: float = _setting(
        5.0,
        "Seconds to deliver queued messages to a client that leaves, and at shutdown.",
        at_least=0,
    )

    timeouts: ServerTimeouts = ServerTimeouts()
    replay: ReplayLimits = ReplayLimits()

    @property
    def history_bytes(self) -> int:
        """How many bytes the messages of a journal in memory may take."""
        return self.memory_bytes // 2

    @property
    def rings_bytes(self) -> int:
        """How many bytes the rooms' newest messages may take."""
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
    def max_pages(self) -> int:
        """How many pages of earlier messages are cached for replays."""
        return max(1, min(_MAX_PAGES, self.memory_bytes // 32 // _CACHED_PAGE_BYTES))

    @property
    def sessions_bytes(self) -> int:
        """How many bytes the sessions of disconnected clients may take."""
        return self.memory_bytes // 8

    @property
    def limits(self) -> Limits:
        """What a welcome says of these settings; JSON has no infinity."""
        wait = MAX_FREE_WAIT_SECONDS + min(self.slow_timeout_seconds, 1e6)
        return Limits(self.max_line_bytes, MAX_NAME_CHARACTERS, wait)

    def __post_init__(self) -> None:
        for each in fields(self):
            setting, value = each.metadata.get("setting"), getattr(self, each.name)
            if setting is None or value is None:
                continue
            # Written so that NaN is refused, too.
            if setting.positive and not value > 0:
                raise ValueError(f"{each.name} must be more than 0")
            if setting.at_least is not None and not value >= setting.at_least:
                bound = f"at least {setting.at_least}" if setting.at_least else "0 or more"
                raise ValueError(f"{each.name} must be {bound}")
        if self.password is not None and "\n" in self.password:
            raise ValueError("a password must be one line")
        # Counted as it arrives; see `multichat.protocol.framing.clean`.
        typed = None if self.password is None else len(clean(self.password))
        if typed is not None and not 0 < typed <= MAX_PASSWORD_CHARACTERS:
            raise ValueError(f"a password has 1 to {MAX_PASSWORD_CHARACTERS} characters")
