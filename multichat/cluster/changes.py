"""The directory's changes and events, as the functions in directory.lua have them.  Pure.

A change is a packed array [KIND, …] that a node asks for; an event is [ACTOR, [KIND, …]].  The
fields are in the order of the arguments there.

Invariant: every text in a change, and so in an event, is valid UTF-8.
"""

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, TypeAlias

import msgspec

from multichat.backend.events import BanRecord, ClientRecord, DirectReceived
from multichat.cluster.errors import reading_answer
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
    "ClientLeft",
    "DirectDone",
    "DirectSent",
    "Disconnect",
    "DisconnectClient",
    "DropBan",
    "Fed",
    "FeedEvent",
    "FinishDirect",
    "ForgetSession",
    "Gone",
    "Lost",
    "NodeJoined",
    "NodeLost",
    "Put",
    "PutBan",
    "PutClient",
    "ReadSession",
    "RetainClients",
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
    "read_results",
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
    """What a node asks of the directory; times in milliseconds.

    *lease* is how long a node that is not heard of is waited for, *away* how long the name of a
    client that has disconnected is reserved, *session* how long it can be resumed, and *nonces*
    how long nonces of messages are kept.  Of the sessions of those away at most *max_sessions* are
    kept, which take at most *session_bytes* in the engine.
    """

    lease: int = 10_000
    away: int = 15_000
    session: int = 86_400_000
    nonces: int = 86_400_000
    max_sessions: int = 100_000
    session_bytes: int = 128 << 20

    def within(self, maxmemory: int) -> "Settings":
        """Return them for an engine with that `maxmemory` in bytes; 0 or less is no limit.

        Sessions take a quarter of it at most: the rest is for messages.
        """
        if maxmemory <= 0:
            return self
        most = min(self.session_bytes, maxmemory // 4)
        return msgspec.structs.replace(self, session_bytes=most)


# Changes ------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """What a node asks the directory for."""


class TakeNumbers(Change, frozen=True, tag="numbers"):
    """A block of *count* client numbers; the result is the first.

    They are above *floor*, and far above it if the engine has lost that it was given.
    """

    count: int
    floor: int = 0


class ClaimName(Change, frozen=True, tag="claim"):
    """A name for a client, and with *login* the account of that name, also from other clients."""

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
    """The present state of a client; what is not in it is given back."""

    record: ClientRecord
    fold: str
    keys: tuple[str, ...]

    @classmethod
    def of(cls, record: ClientRecord) -> "PutClient":
        """Return the change for *record*, with the keys of its name."""
        name = record.name
        return cls(record, fold_name(name), lookalike_keys(name) if name else ())


class Gone(Change, frozen=True, tag="gone"):
    """A client has disconnected; its name is kept for *keep* ms, unless that is negative."""

    client: int
    generation: int
    reason: str
    keep: int


class SaveSession(Change, frozen=True, tag="save-session"):
    """The present state of a client's session: *record* is for the nodes."""

    digest: str
    client: int
    generation: int
    record: str
    connected: bool


class ReadSession(Change, frozen=True, tag="session"):
    """Read a session; the result is as for `TakeSession`, and its age in ms."""

    digest: str


class TakeSession(Change, frozen=True, tag="take-session"):
    """Resume a session on this node, if it has that generation.

    The result is the client, its new generation, the record, and its nonces with their values.
    """

    digest: str
    generation: int


class ForgetSession(Change, frozen=True, tag="forget-session"):
    """Nobody can resume that session any more."""

    digest: str
    client: int
    generation: int


class RetainClients(Change, frozen=True, tag="retain"):
    """This node has these clients and no others."""

    clients: tuple[int, ...]


class StoreAccount(Change, frozen=True, tag="account"):
    """Store an account in place of the one with the hash *former*, empty if it is new.

    Without a *name* remove it.  At most *most* are stored.
    """

    fold: str
    name: str
    hash: str
    keys: tuple[str, ...]
    former: str
    most: int


class SetTopic(Change, frozen=True, tag="topic"):
    """Give a room a topic, or none; at most *most* rooms have one."""

    key: str
    topic: str
    client: int
    name: str
    most: int


class PutBan(Change, frozen=True, tag="ban"):
    """Add a ban, or replace that of the same target; at most *most*."""

    ban: BanRecord
    most: int


class DropBan(Change, frozen=True, tag="unban"):
    """Remove the ban of exactly that target."""

    target: str


class DisconnectClient(Change, frozen=True, tag="disconnect"):
    """Disconnect a client wherever it is; unless it *returns*, its session ends now."""

    client: int
    code: str
    reason: str
    returns: bool


class Announce(Change, frozen=True, tag="announce"):
    """Tell all clients of the other nodes."""

    text: str


class SendDirect(Change, frozen=True, tag="direct"):
    """A private message of *client* to the client *to*; *message* is its event in JSON.

    *nonce* is in JSON, too, empty if it has none; *check* has eight hexadecimal digits.  The result
    is the id of the message, another one if the nonce is known and its message is under way; and
    whether this node has to deliver it, which has claimed it then.  It is refused with
    `delivered`, `unknown` or `nonce-reused` if the fate of the message with that nonce is decided.
    """

    id: str
    to: int
    message: str
    client: int
    generation: int
    nonce: str
    check: str


class ClaimDirect(Change, frozen=True, tag="claim-direct"):
    """The recipient's node is about to deliver it; refused if the sender waits no longer."""

    id: str


class FinishDirect(Change, frozen=True, tag="finish-direct"):
    """The recipient's node has delivered it, or could not."""

    id: str
    delivered: bool


class WithdrawDirect(Change, frozen=True, tag="withdraw-direct"):
    """The sender waits no longer; refused if it is claimed, or its fate is decided."""

    id: str


# Events -------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """What has changed."""


class Put(_Event, frozen=True, tag="put"):
    """The state of a client of the node that is the actor."""

    record: ClientRecord


class ClientLeft(_Event, frozen=True, tag="gone"):
    """A client has disconnected; if it is *away* it may resume."""

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
    """An account is new, or its hash is; without a *name* it was removed."""

    fold: str
    name: str
    hash: str


class TopicSet(_Event, frozen=True, tag="topic"):
    """A room has that topic, or none, by a client or the console (0)."""

    key: str
    topic: str
    client: int
    name: str


class Banned(_Event, frozen=True, tag="banned"):
    """A ban is new, or replaced."""

    ban: BanRecord


class Unbanned(_Event, frozen=True, tag="unbanned"):
    """A ban was removed."""

    target: str


class Disconnect(_Event, frozen=True, tag="disconnect"):
    """That client of *node* is to be disconnected."""

    client: int
    node: str
    code: str
    reason: str


class Announcement(_Event, frozen=True, tag="announced"):
    """All clients are to be told."""

    text: str


class DirectSent(_Event, frozen=True, tag="direct"):
    """A private message for a client of *node*, which claims it first."""

    id: str
    to: int
    node: str
    message: str


class DirectDone(_Event, frozen=True, tag="direct-done"):
    """What became of a private message, for *node*, which has sent it; see `DirectFate`."""

    id: str
    node: str
    fate: str


class NodeJoined(_Event, frozen=True, tag="node-joined"):
    """A node has started."""

    node: str


class NodeLost(_Event, frozen=True, tag="node-lost"):
    """The lease of a node has ended; that its clients are gone follows."""

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
    """An *event* of the feed; *actor* is the node that asked for it, if one did."""

    actor: str
    event: FeedEvent


_EVENTS = msgspec.msgpack.Decoder(Fed)


def read_event(packed: bytes) -> Fed | None:
    """Unpack an event; None for one that this version does not know, as of a newer node."""
    try:
        return _EVENTS.decode(packed)
    except msgspec.MsgspecError:
        return None


def read_direct(id_: str, to: int, message: str) -> DirectReceived | None:
    """Return the event for the private message of a `SendDirect`; None for one that is not ours."""
    try:
        return DirectReceived(id_, to, _DIRECTED.decode(message))
    except msgspec.MsgspecError:
        return None


_DIRECTED = msgspec.json.Decoder(Directed)


class _Entry(msgspec.Struct, frozen=True):
    node: str
    told: int
    record: ClientRecord


class Account(msgspec.Struct, frozen=True):
    """An account: its *name*, and the *hash* of its passphrase."""

    name: str
    hash: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that the directory has, up to the event *number*.

    *clients* are by number, each with its node; *accounts* by key; *topics* by room; *bans* in the
    order in which they were added.
    """

    number: int
    clients: dict[int, tuple[str, ClientRecord]]
    accounts: dict[str, Account]
    topics: dict[str, str]
    bans: list[BanRecord]


_ENTRIES = msgspec.msgpack.Decoder(_Entry)
_ACCOUNTS = msgspec.msgpack.Decoder(Account)
_BANS = msgspec.msgpack.Decoder(tuple[int, BanRecord])
_RESULTS = msgspec.msgpack.Decoder(list[list[Any]])


def read_results(reply: Any, count: int) -> tuple[int, list[list[Any]]]:
    """Return the number of the last event, and *count* results; raises `NotOurs`."""
    with reading_answer():
        number, packed = reply
        results = _RESULTS.decode(packed)
        if len(results) != count:
            raise ValueError(f"{len(results)} results instead of {count}")
        for result in results:
            if result[:1] != ["ok"] and not (result[:1] == ["refused"] and len(result) > 1):
                raise ValueError("a result is neither ok nor refused")
        return index(number), results


def read_snapshot(reply: Sequence[Any]) -> Snapshot:
    """Decode what `multichat_snapshot` answers; raises as `reading_answer` takes it."""
    number, clients, accounts, topics, bans = reply
    entries = [_ENTRIES.decode(entry) for entry in clients[1::2]]
    return Snapshot(
        number=index(number),
        clients={each.record.client: (each.node, each.record) for each in entries if each.told},
        accounts={key.decode(): _ACCOUNTS.decode(value) for key, value in _pairs(accounts)},
        topics={key.decode(): topic.decode() for key, topic in _pairs(topics)},
        bans=[ban for _, ban in sorted(map(_BANS.decode, bans[1::2]), key=lambda each: each[0])],
    )


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
