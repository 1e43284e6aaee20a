"""Records that a node shares with other nodes, and the events that it receives from them.  Pure.

A *node* is one server of a cluster; its clients are those that are connected to it.  A client's
*number* is unique in the cluster and never used again.  Its *generation* is 1 when it connects, and
rises each time its session is resumed, on any node; requests with an old generation are *fenced*.
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
    "NodeAdded",
    "NodeFenced",
    "NodeRemoved",
    "Replaced",
    "TopicChanged",
]

# All are in memory.  As many topics as accounts, and more bans than anybody enters by hand: they
# take 5 MiB, and their file 1 MiB.
MAX_TOPICS = 10_000
MAX_BANS = 10_000


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What other nodes know of a client: its *name*, empty if it has none, and its *rooms*.

    The rooms are as they are displayed, the current one last.  *account* is the account that it is
    logged in to, case-folded, or empty.  *address* is the address that it connects from, for bans,
    and *origin* the address that counts for limits; both are empty if it has none.
    """

    client: int
    generation: int
    name: Name = ""
    account: Name = ""
    rooms: tuple[Name, ...] = ()
    address: str = ""
    origin: str = ""


class BanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ban of *target*, as an operator types it, until the Unix time *until*, or permanent."""

    target: str
    until: float | None = None
    reason: str = ""


class _Event(msgspec.Struct, frozen=True, tag=True):
    """An event of another node or of the backend."""


class ClientPut(_Event, frozen=True, tag=True):
    """The state of a client on another node: it is new there, or has changed.

    If we have that client with an older generation, its session was resumed there; there may be no
    `Replaced` in addition.
    """

    record: ClientRecord


class ClientGone(_Event, frozen=True, tag=True):
    """A client on another node has left, perhaps with its node; *reason* as in `remove_client`.

    To be ignored if we know the client with a later *generation*.  With *away*, it may reconnect.
    """

    client: int
    generation: int
    reason: str
    away: bool


class Replaced(_Event, frozen=True, tag=True):
    """The session of one of our clients, up to *generation*, was resumed on another node."""

    client: int
    generation: int


class NodeFenced(_Event, frozen=True, tag=True):
    """This node was considered dead: its clients were removed, and its later requests are fenced.

    For each client that resumed elsewhere, `Replaced` came before.  The backend continues as a new
    run of the node, without clients.
    """


class NodeAdded(_Event, frozen=True, tag=True):
    """The other node *node* has joined the cluster."""

    node: str


class NodeRemoved(_Event, frozen=True, tag=True):
    """The other node *node* has left the cluster *in_order*, or was considered dead.

    `ClientGone` follows for each of its clients that had not left before.
    """

    node: str
    in_order: bool


class NameLost(_Event, frozen=True, tag=True):
    """The *name* of one of our clients was taken by a login to the account it belongs to.

    With *login*, our client was logged in to that account, and no longer is.  *generation* is our
    client's.
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
    """The topic of the room *key* was set, or removed if it is empty, on any node.

    It was set by *client*, called *name*; 0 stands for the operator.
    """

    key: Name
    topic: Topic
    client: int
    name: Name


class BanAdded(_Event, frozen=True, tag=True):
    """A ban was added, on any node."""

    ban: BanRecord


class BanRemoved(_Event, frozen=True, tag=True):
    """The ban of exactly *target* was lifted, on any node."""

    target: str


class BanRefused(_Event, frozen=True, tag=True):
    """Our ban of *target* was not stored, because there are already *limit* bans."""

    target: str
    limit: int


class DisconnectAsked(_Event, frozen=True, tag=True):
    """An operator on another node disconnects one of our clients; *code* is the goodbye's code."""

    client: int
    code: str
    reason: str


class Announced(_Event, frozen=True, tag=True):
    """An operator on another node sent *text* to everybody."""

    text: str


class DirectReceived(_Event, frozen=True, tag=True):
    """A private message *to* one of our clients; answer it with `Backend.answer_direct`."""

    request: str
    to: int
    message: Directed


class AvailabilityChanged(_Event, frozen=True, tag=True):
    """`Backend.available` has changed; *reason* says why it is False, for the log.

    *refusal* and *is_away* are those of the backend in that moment, for the clients: when the event
    is applied, the backend may be available again, or refuse for another reason.
    """

    available: bool
    reason: str = ""
    refusal: str = ""
    is_away: bool = True


Event: TypeAlias = (
    ClientPut
    | ClientGone
    | Replaced
    | NodeFenced
    | NodeAdded
    | NodeRemoved
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
"""An event that `Backend.receive` returns."""
