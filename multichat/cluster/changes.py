"""The directory's changes and events, as directory.lua defines them.  Pure.

A change is a packed array [KIND, …] that a node requests; an event is [ACTOR, [KIND, …]].  The
fields are in the order of the arguments there.

Invariant: every text in a change, and so in an event, is valid UTF-8.
"""

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, TypeAlias

import msgspec

from multichat.backend.events import BanRecord, ClientRecord, DirectReceived
from multichat.protocol.lookalikes import fold_name, lookalike_keys
from multichat.protocol.messages import Directed

__all__ = [
    "Account",
    "AccountStored",
    "Announce",
    "Announcement",
    "Banned",
    "Change",
    "ClaimDirect",
    "ClaimName",
    "ClaimRoom",
    "ClientLeft",
    "DirectDone",
    "DirectSent",
    "Disconnect",
    "DisconnectClient",
    "DropBan",
    "DropRoom",
    "Fed",
    "FeedEvent",
    "FinishDirect",
    "ForgetSession",
    "Gone",
    "HoldRoom",
    "Lost",
    "NodeJoined",
    "NodeLost",
    "Put",
    "PutBan",
    "PutClient",
    "ReadSession",
    "RetainClients",
    "RetainRooms",
    "SaveSession",
    "SendDirect",
    "SetTopic",
    "Settings",
    "Snapshot",
    "StoreAccount",
    "TakeNumbers",
    "TakeSession",
    "Taken",
    "TopicSet",
    "Unbanned",
    "WithdrawDirect",
    "pack",
    "read_direct",
    "read_event",
    "read_number",
    "read_snapshot",
]


def pack(value: object) -> bytes:
    """Pack *value* for an argument of a function; lone surrogates become question marks."""
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        return _ENCODER.encode(_without_surrogates(msgspec.to_builtins(value)))


_ENCODER = msgspec.msgpack.Encoder()


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_surrogates(each) for key, each in value.items()}
    return value


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A node's settings for the directory; times are in milliseconds.

    A node that has not renewed its lease for *lease* counts as dead.  The name of a disconnected
    client is reserved for *away*, and its session can be resumed for *session*.  Nonces of messages
    are kept for *nonces*.  At most *max_sessions* sessions of disconnected clients are kept, which
    take at most *session_bytes* in the engine.
    """

    lease: int = 10_000
    away: int = 15_000
    session: int = 86_400_000
    nonces: int = 86_400_000
    max_sessions: int = 100_000
    session_bytes: int = 128 << 20

    def within(self, maxmemory: int) -> "Settings":
        """Return the settings for an engine with *maxmemory* bytes; 0 or less means no limit.

        Sessions take at most a quarter of it: the rest is for messages.
        """
        if maxmemory <= 0:
            return self
        most = min(self.session_bytes, maxmemory // 4)
        return msgspec.structs.replace(self, session_bytes=most)


# Changes ------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """A request of a node to the directory."""


class TakeNumbers(Change, frozen=True, tag="numbers"):
    """Reserve *count* client numbers; the result is the first.

    They are above *floor*, and far above it if the engine has lost the record of that number.
    """

    count: int
    floor: int = 0


class ClaimName(Change, frozen=True, tag="claim"):
    """Give a client a name; with *login* also the account of that name.

    With *login* the name is taken from another client that holds it.
    """

    client: int
    generation: int
    name: str
    fold: str
    keys: tuple[str, ...]
    account: str
    login: bool
    origin: str

    @classmethod
    def of(
        cls,
        client: int,
        generation: int,
        name: str,
        *,
        account: str = "",
        login: bool = False,
        origin: str = "",
    ) -> "ClaimName":
        """Return the change with the keys of *name*."""
        fold = fold_name(name)
        account = fold if login else account
        return cls(client, generation, name, fold, lookalike_keys(name), account, login, origin)


class PutClient(Change, frozen=True, tag="put"):
    """Report the complete state of a client; what it no longer holds is released."""

    record: ClientRecord
    fold: str
    keys: tuple[str, ...]

    @classmethod
    def of(cls, record: ClientRecord) -> "PutClient":
        """Return the change for *record*, with the keys of its name."""
        name = record.name
        return cls(record, fold_name(name), lookalike_keys(name) if name else ())


class Gone(Change, frozen=True, tag="gone"):
    """Report that a client has disconnected; unless negative, *keep* reserves its name (in ms)."""

    client: int
    generation: int
    reason: str
    keep: int


class SaveSession(Change, frozen=True, tag="save-session"):
    """Report the state of a client's session; only the nodes interpret *record*."""

    digest: str
    client: int
    generation: int
    record: str
    connected: bool


class ReadSession(Change, frozen=True, tag="session"):
    """Read a session; the result is that of `TakeSession` and the session's age in ms."""

    digest: str


class TakeSession(Change, frozen=True, tag="take-session"):
    """Resume a session on this node, if its generation is the given one.

    The result is the client, its new generation, the record, and its nonces with their values.
    """

    digest: str
    generation: int


class ForgetSession(Change, frozen=True, tag="forget-session"):
    """End a session: it can no longer be resumed."""

    digest: str
    client: int
    generation: int


class RetainClients(Change, frozen=True, tag="retain"):
    """Report that this node has these clients and no others."""

    clients: tuple[int, ...]


class ClaimRoom(Change, frozen=True, tag="claim-room"):
    """A room that this node is about to open; it closes those of *leaving* that only it has.

    *keys* are the lookalike keys of *name*, which is *valid*, or that of a room with messages.  The
    result is the name under which the room is open.  It is refused with `too-many-rooms` if *most*
    are open, `looks-like` with the name of another one, or `invalid-name`.
    """

    key: str
    name: str
    keys: tuple[str, ...]
    leaving: tuple[str, ...]
    most: int
    valid: bool


class HoldRoom(Change, frozen=True, tag="hold-room"):
    """This node has a room open, whatever else is open."""

    key: str
    name: str
    keys: tuple[str, ...]


class DropRoom(Change, frozen=True, tag="drop-room"):
    """This node has closed a room."""

    key: str


class RetainRooms(Change, frozen=True, tag="retain-rooms"):
    """This node has these rooms open and no others: of each its key, name and lookalike keys."""

    rooms: tuple[tuple[str, str, tuple[str, ...]], ...]


class StoreAccount(Change, frozen=True, tag="account"):
    """Store an account in place of the one with the hash *former*, which is empty for a new one.

    An empty *name* removes the account.  At most *most* accounts are stored.
    """

    fold: str
    name: str
    hash: str
    keys: tuple[str, ...]
    former: str
    most: int


class SetTopic(Change, frozen=True, tag="topic"):
    """Set or remove the topic of a room; at most *most* rooms have one."""

    key: str
    topic: str
    client: int
    name: str
    most: int


class PutBan(Change, frozen=True, tag="ban"):
    """Add a ban, or replace the ban of the same target; at most *most* are stored."""

    ban: BanRecord
    most: int


class DropBan(Change, frozen=True, tag="unban"):
    """Remove the ban of exactly that target."""

    target: str


class DisconnectClient(Change, frozen=True, tag="disconnect"):
    """Disconnect a client of any node; unless *returns* is true, its session ends now."""

    client: int
    code: str
    reason: str
    returns: bool


class Announce(Change, frozen=True, tag="announce"):
    """Send an announcement to all clients of the other nodes."""

    text: str


class SendDirect(Change, frozen=True, tag="direct"):
    """Send a private message from *client* to the client *to*; *message* is its event in JSON.

    *nonce* is JSON, too, and empty if there is none; *check* has eight hexadecimal digits.  The
    result is the id of the message, and whether this node is to deliver it, in which case this node
    has claimed it.  If a message with that nonce is already in transit, the id is that message's.
    The change is refused with `delivered`, `unknown` or `nonce-reused` if the outcome of the
    message with that nonce is decided.
    """

    id: str
    to: int
    message: str
    client: int
    generation: int
    nonce: str
    check: str


class ClaimDirect(Change, frozen=True, tag="claim-direct"):
    """The recipient's node is about to deliver the message; refused if it was withdrawn."""

    id: str


class FinishDirect(Change, frozen=True, tag="finish-direct"):
    """The recipient's node has delivered the message, or has failed to."""

    id: str
    delivered: bool


class WithdrawDirect(Change, frozen=True, tag="withdraw-direct"):
    """The sender no longer waits; refused if the message is claimed or its outcome is decided."""

    id: str


# Events -------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """Something that has changed."""


class Put(_Event, frozen=True, tag="put"):
    """The state of a client of the acting node."""

    record: ClientRecord


class ClientLeft(_Event, frozen=True, tag="gone"):
    """A client has disconnected; with *away* it may still resume."""

    client: int
    generation: int
    reason: str
    away: bool


class Taken(_Event, frozen=True, tag="taken"):
    """The client with that *generation*, on *node* or away, was resumed by the actor."""

    client: int
    generation: int
    node: str


class Lost(_Event, frozen=True, tag="name-lost"):
    """A client of *node* has lost a name, and with *login* the login to the account."""

    client: int
    generation: int
    name: str
    login: bool
    node: str


class AccountStored(_Event, frozen=True, tag="account"):
    """An account is new or has a new hash; with an empty *name* it was removed."""

    fold: str
    name: str
    hash: str


class TopicSet(_Event, frozen=True, tag="topic"):
    """The topic of a room was set or removed, by a client or the console (0)."""

    key: str
    topic: str
    client: int
    name: str


class Banned(_Event, frozen=True, tag="banned"):
    """A ban was added or replaced."""

    ban: BanRecord


class Unbanned(_Event, frozen=True, tag="unbanned"):
    """A ban was removed."""

    target: str


class Disconnect(_Event, frozen=True, tag="disconnect"):
    """A client of *node* is to be disconnected."""

    client: int
    node: str
    code: str
    reason: str


class Announcement(_Event, frozen=True, tag="announced"):
    """An announcement to all clients."""

    text: str


class DirectSent(_Event, frozen=True, tag="direct"):
    """A private message for a client of *node*, which must claim it before delivery."""

    id: str
    to: int
    node: str
    message: str


class DirectDone(_Event, frozen=True, tag="direct-done"):
    """The outcome of a private message that *node* sent; see `DirectFate`."""

    id: str
    node: str
    fate: str


class NodeJoined(_Event, frozen=True, tag="node-joined"):
    """A node has started."""

    node: str


class NodeLost(_Event, frozen=True, tag="node-lost"):
    """A node has left, if it is the actor, or its lease has ended.

    Events for the loss of its clients follow.
    """

    node: str


FeedEvent: TypeAlias = (
    Put
    | ClientLeft
    | Taken
    | Lost
    | AccountStored
    | TopicSet
    | Banned
    | Unbanned
    | Disconnect
    | Announcement
    | DirectSent
    | DirectDone
    | NodeJoined
    | NodeLost
)


class Fed(msgspec.Struct, frozen=True, array_like=True):
    """An *event* of the feed; *actor* is the node that requested it, if any."""

    actor: str
    event: FeedEvent


_EVENTS = msgspec.msgpack.Decoder(Fed)


def read_event(packed: bytes) -> Fed | None:
    """Unpack an event; None if this version does not know it, for example from a newer node."""
    try:
        return _EVENTS.decode(packed)
    except (msgspec.MsgspecError, ValueError):  # a text is not UTF-8
        return None


def read_direct(id_: str, to: int, message: str) -> DirectReceived | None:
    """Return the event for the message of a `SendDirect`; None if that is not from multichat."""
    try:
        return DirectReceived(id_, to, _DIRECTED.decode(message))
    except (msgspec.MsgspecError, ValueError):
        return None


_DIRECTED = msgspec.json.Decoder(Directed)


class _Entry(msgspec.Struct, frozen=True):
    node: str
    told: int
    record: ClientRecord
    ended: tuple[str, str] | None = None


class Account(msgspec.Struct, frozen=True):
    """An account: its *name*, and the *hash* of its passphrase."""

    name: str
    hash: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole directory, up to the event *number*.

    *clients* maps numbers to clients, each with its node; *accounts* is by key, *topics* by room,
    and *bans* are in the order in which they were added.  *disconnects* are those of clients that
    may not return, and that their nodes have not reported as gone.
    """

    number: int
    clients: dict[int, tuple[str, ClientRecord]]
    accounts: dict[str, Account]
    topics: dict[str, str]
    bans: list[BanRecord]
    disconnects: list[Disconnect] = []


_ENTRIES = msgspec.msgpack.Decoder(_Entry)
_ACCOUNTS = msgspec.msgpack.Decoder(Account)
_BANS = msgspec.msgpack.Decoder(tuple[int, BanRecord])


def read_number(reply: Any) -> int:
    """Return the number of an event; raises `TypeError` or `ValueError` if it is invalid."""
    number = index(reply)
    if not 0 <= number < _MAX_NUMBER:
        raise ValueError("a number that no event has")
    return number


# As many as a double can tell apart: Lua has no others.
_MAX_NUMBER = 2**53


def read_snapshot(reply: Sequence[Any]) -> Snapshot:
    """Decode the answer of `multichat_snapshot`; for use within `reading_answer`."""
    number, clients, accounts, topics, bans = reply
    entries = [_ENTRIES.decode(entry) for entry in clients[1::2]]
    return Snapshot(
        number=read_number(number),
        clients={each.record.client: (each.node, each.record) for each in entries if each.told},
        accounts={key.decode(): _ACCOUNTS.decode(value) for key, value in _pairs(accounts)},
        topics={key.decode(): topic.decode() for key, topic in _pairs(topics)},
        bans=[ban for _, ban in sorted(map(_BANS.decode, bans[1::2]), key=lambda each: each[0])],
        disconnects=[
            Disconnect(each.record.client, each.node, *each.ended) for each in entries if each.ended
        ],
    )


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
