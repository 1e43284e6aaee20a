"""What a node tells the others of its clients, and what it hears of theirs, as typed values.  Pure.

A *node* is one server of a cluster; its clients are those that are connected to it.  A client's
*number* is unique in the cluster and never given again.  Its *generation* is 1 when it connects,
and rises each time its session is resumed, on any node: what carries an old generation is *fenced*.
"""

from typing import TypeAlias

import msgspec

from multichat.protocol.fields import Name, Topic
from multichat.protocol.messages import Directed

__all__ = [
    "MAX_BANS",
    "MAX_TOPICS",
    "AccountChanged",
    "Announced",
    "AvailabilityChanged",
    "BanAdded",
    "BanRecord",
    "BanRefused",
    "BanRemoved",
    "ClientGone",
    "ClientPut",
    "ClientRecord",
    "DirectReceived",
    "DisconnectAsked",
    "Event",
    "NameLost",
    "NodeFenced",
    "Replaced",
    "TopicChanged",
]

# All are in memory.  As many topics as accounts; more bans than anybody types or reads: they take
# 5 MiB, and their file 1 MiB.
MAX_TOPICS = 10_000
MAX_BANS = 10_000


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What other nodes know of a client: its *name*, empty if it has none, and its *rooms*.

    The rooms are as they are displayed, the current one last.  *account* is the account that it is
    logged in to, case-folded, empty if there is none.  *address* is where it connects from, for
    bans, and *origin* the address that counts for limits; both are empty if it has none.
    """

    client: int
    generation: int
    name: Name = ""
    account: Name = ""
    rooms: tuple[Name, ...] = ()
    address: str = ""
    origin: str = ""


class BanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ban of *target*, as an operator types it, up to the Unix time *until*, or without end."""

    target: str
    until: float | None = None
    reason: str = ""


class _Event(msgspec.Struct, frozen=True, tag=True):
    """Something that another node did, or the backend."""


class ClientPut(_Event, frozen=True, tag=True):
    """A client on another node has this state now: it is new there, or was changed.

    If it is one of our clients with an older generation, its session was resumed there:
    `Replaced` need not come in addition.
    """

    record: ClientRecord


class ClientGone(_Event, frozen=True, tag=True):
    """A client on another node has left, as when its node is gone; *reason* as in `remove_client`.

    To be ignored if we know the client with a later *generation*.  With *away*, it may reconnect.
    """

    client: int
    generation: int
    reason: str
    away: bool


class Replaced(_Event, frozen=True, tag=True):
    """The session of one of our clients, up to that *generation*, was resumed on another node."""

    client: int
    generation: int


class NodeFenced(_Event, frozen=True, tag=True):
    """This node was taken for dead: its clients were removed, and what it did since is fenced.

    Those that have resumed elsewhere were each told by `Replaced` before.  The backend goes on as a
    new run of the node, without clients.
    """


class NameLost(_Event, frozen=True, tag=True):
    """The *name* of one of our clients was taken by a login to the account it belongs to.

    With *login*, our client was logged in to that account, and is not any more.  *generation* is
    our client's.
    """

    client: int
    generation: int
    name: Name
    login: bool = False


class AccountChanged(_Event, frozen=True, tag=True):
    """Another node has stored the account *key*, or removed it if *name* is empty."""

    key: Name
    name: Name = ""
    hash: str = ""


class TopicChanged(_Event, frozen=True, tag=True):
    """A node, perhaps this one, has given the room *key* a topic, empty for none.

    It was set by *client*, 0 if it was the operator, called *name*.
    """

    key: Name
    topic: Topic
    client: int
    name: Name


class BanAdded(_Event, frozen=True, tag=True):
    """A node, perhaps this one, has added a ban."""

    ban: BanRecord


class BanRemoved(_Event, frozen=True, tag=True):
    """A node, perhaps this one, has lifted the ban of exactly that *target*."""

    target: str


class BanRefused(_Event, frozen=True, tag=True):
    """Our ban of that *target* is not stored, because there are *limit* already."""

    target: str
    limit: int


class DisconnectAsked(_Event, frozen=True, tag=True):
    """An operator on another node disconnects one of our clients; *code* is that of a goodbye."""

    client: int
    code: str
    reason: str


class Announced(_Event, frozen=True, tag=True):
    """An operator on another node has announced *text* to everybody."""

    text: str


class DirectReceived(_Event, frozen=True, tag=True):
    """A private message *to* one of our clients; answer it with `Backend.answer_direct`."""

    request: str
    to: int
    message: Directed


class AvailabilityChanged(_Event, frozen=True, tag=True):
    """`Backend.available` has changed; *reason* says why it is False."""

    available: bool
    reason: str = ""


Event: TypeAlias = (
    ClientPut
    | ClientGone
    | Replaced
    | NodeFenced
    | NameLost
    | AccountChanged
    | TopicChanged
    | BanAdded
    | BanRemoved
    | BanRefused
    | DisconnectAsked
    | Announced
    | DirectReceived
    | AvailabilityChanged
)
"""What `Backend.receive` returns."""
