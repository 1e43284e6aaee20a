"""What the nodes of one chat decide together: its interface, and what each implementation promises.

A server is a *node*.  Nodes propose; the backend decides; every node applies what was decided, in
the order of the log.  With the local backend, which has one node, the decision is made in the same
step and nothing is awaited.

A backend owns the order of each room's messages, client numbers, and who holds which name, session
and login.  It stores messages, sessions, accounts, topics and, if it is shared, bans.  It knows no
connections and delivers nothing.

1. Of what only one client can have (a name, a session, a login) a client has nothing before the
   backend has given it: *claim, then apply*.  With a local backend, `is_shared` is False, and the
   server's own decision is final.
2. Everything else that a client does (entering rooms, leaving) is applied at once and reported with
   `put_client` and `remove_client`, which never fail and never wait: a backend that cannot report
   it now does so later, as the state that its clients have then.
3. A backend that is not `available` refuses what has to be decided with `StorageFailed`.  The
   server then lets nobody enter, rename or log in; leaving always works.
4. Calls of one node take effect in the order in which they were made; an async method is called
   when its coroutine first runs.
5. Cancelling an async method leaves undecided whether it took effect.  A claim is given back with
   `put_client` or `remove_client`, by number and generation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

import trio

from multichat.backend.events import BanRecord, ClientRecord, DirectReceived, Event
from multichat.journal.base import AccountRecord, PendingWrite, SavedSession, SessionRecord
from multichat.net.durations import DurationRecorder
from multichat.protocol.ids import MessageIds
from multichat.protocol.messages import Directed, Nonce, SaidBlock

__all__ = [
    "NOBODY",
    "Backend",
    "Claim",
    "DirectFate",
    "Entry",
    "Fed",
    "Lost",
    "Proposal",
    "RoomLog",
    "Skipped",
]

# The number of no client: the operator, or a recipient that has disconnected.
NOBODY = 0


class DirectFate(Enum):
    """What has become of a private message: *UNKNOWN* if it may have been delivered."""

    DELIVERED = "delivered"
    NOT_DELIVERED = "not-delivered"
    UNKNOWN = "unknown"


class Proposal:
    """Messages that a node has proposed to a room's log.

    *said* are the numbered messages if the log has numbered them in the step in which they were
    proposed, else None for good.  *pending* is what storing them waits for, None if they are
    stored: it fails if they were not, and never will be, in the log.  A log with a feed resolves it
    no later than in the step in which `receive` returns them, never before their fate is known.

    *earlier* is set by a log with a feed before *pending* resolves, if messages with the same
    nonces are in the log already: their ids, by their number in the proposal.  They are not in it a
    second time: the entry has the other messages, and if there is none, no entry comes.  *reused*
    are the numbers of those whose nonce belongs to another message, which must be refused.
    """

    # Only some have any: a local log makes one of these for each publish.
    earlier: Mapping[int, str] = MappingProxyType({})
    reused: frozenset[int] = frozenset()

    def __init__(self, said: SaidBlock | None, pending: PendingWrite | None) -> None:
        self.said = said
        self.pending = pending


@dataclass(frozen=True, slots=True)
class Entry:
    """The next messages in the order of a log; *proposal* is the one that it answers, if any."""

    said: SaidBlock
    proposal: Proposal | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The log has lost its last *count* messages, which were handed out: it continues at *next*.

    The numbers from *next* on are given again, in a new epoch.  The *proposals* had succeeded, but
    their messages were lost before they were handed out.
    """

    next: int
    count: int
    proposals: Sequence[Proposal] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """The messages before *next* were deleted before they were handed out.

    *entries* are those of this node among them: their proposals have succeeded.
    """

    next: int
    entries: Sequence[Entry] = ()


Fed: TypeAlias = Entry | Lost | Skipped
"""What the feed of a log hands out."""


class RoomLog(MessageIds, ABC):
    """The log of one room: its messages, in the one order that they have on all nodes.

    Its messages have the numbers from *first*, the oldest that is stored, up to and without *next*:
    in a log with a feed the number after the last one that was handed out, else after the last one
    that was proposed.  If the two are equal, there are none.  A message's id is made of *epoch* and
    its number (see `multichat.protocol.ids.message_id`); epochs are unique among rooms.

    *earlier* maps the room's earlier epochs, oldest first, to the number at which the next epoch
    began.  Numbers continue from one epoch to the next.  A log that has lost messages maps their
    ids to the last number before those.

    With *has_feed*, the log is decided elsewhere: `propose` numbers nothing, and one task of the
    room calls `receive` again and again.

    Created by `Backend.room` only.  A subclass MUST have the attributes or properties *epoch*,
    *first*, *next* and *earlier*.
    """

    has_feed: bool = False

    @property
    @abstractmethod
    def epoch(self) -> str:
        """The epoch of the messages that come next."""

    @property
    @abstractmethod
    def first(self) -> int:
        """The number of the oldest message that is stored."""

    @property
    @abstractmethod
    def next(self) -> int:
        """The number after the last message."""

    @property
    @abstractmethod
    def earlier(self) -> Mapping[str, int]:
        """The earlier epochs, oldest first, with the number at which the next one began."""

    @abstractmethod
    def propose(
        self,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
        generation: int = 1,
    ) -> Proposal:
        """Propose the messages of *draft* as the next ones; does not wait.

        The epoch and first number of *draft* MUST be those of the log now; a log with a feed
        ignores them.  *nonces* has one nonce for each message, or is empty; *checks* has four bytes
        for each, to detect a nonce that is reused for another message.  *generation* is that of the
        draft's client, of an older one nothing is taken.

        Raises `StorageFailed`, with nothing changed, if nothing can be stored now.  If it is
        uncertain whether the messages are in the log, as when a connection broke, the proposal
        stays pending until that is known.
        """

    async def receive(self) -> Fed:
        """Return what is next in the log; called by one task at a time, only with *has_feed*.

        Advances *next*, and *epoch* where a new one begins, in the step in which it returns.  Each
        proposal that succeeded is handed out exactly once, as an entry or among those lost or
        skipped, unless all its messages are *earlier* ones.  If cancelled, nothing was handed out.
        """
        await trio.sleep_forever()
        raise AssertionError

    @abstractmethod
    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Return the messages with numbers from *start* up to and without *stop*, oldest first.

        Stops before a message that would exceed *max_bytes* of text, but returns at least one.
        Messages that are not stored, or have been deleted, are left out.  Raises `NotRead`.
        """

    @abstractmethod
    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages with numbers below *stop*, oldest first.

        At most *max_messages* and *max_bytes* of text, but at least one message.  Reads backwards,
        and at most one block more than is returned.  Raises `NotRead`.
        """

    def close(self) -> None:
        """Release what the log holds; the room is closed, and no task is in `receive`.

        Proposals that are still pending are stored all the same, and resolve.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A *name* that a client wants; *account* is the account that it is logged in to, if any.

    With *login*, it logs in to the account of that name, and takes the name and the login from any
    other client.  Without *login* the claim succeeds if the name is free: nobody holds it; or its
    holder has left, and was this client, came from the same *origin*, left too long ago, or held
    the name of *account*.
    """

    client: int
    generation: int
    name: str
    account: str = ""
    login: bool = False
    origin: str = ""


class Backend(ABC):
    """What the nodes of one chat decide together; one object for each server.

    Call `run` once; every task of that trio run may call the rest.

    *is_shared* says whether other nodes may use it, too.  If it is not, only the methods without
    "Shared" in their docstring are called.  *location* tells the operator where the data is stored;
    it is empty in memory.  *accounts*, *topics* (by room, case-folded), *bans* and *clients* (those
    on other nodes) are those that there were when `run` opened it; `receive` returns what changes
    from then on.  *journal_writes* is how long the transactions of a journal took, *round_trips*
    how long the others' engine took for an answer; None where there is no such thing.
    """

    is_shared: bool = False
    location: str = ""
    accounts: Sequence[AccountRecord] = ()
    topics: Mapping[str, str] = MappingProxyType({})
    bans: Sequence[BanRecord] = ()
    clients: Sequence[ClientRecord] = ()
    journal_writes: DurationRecorder | None = None
    round_trips: DurationRecorder | None = None

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the backend, report that it has started, and serve until cancelled.

        Nothing else may be called before that report.  On cancellation it stores what is queued, as
        far as it can at once, and resolves every pending proposal before it returns.  Raises
        `JournalFailed`, with nothing changed, if it cannot be opened.
        """

    def before_shutdown(self) -> None:  # noqa: B027 - not every journal deletes
        """Stop deleting and log what was deleted; called before the shutdown is announced."""

    @property
    def available(self) -> bool:
        """Whether anything can be decided now; always True if it is not shared."""
        return True

    @property
    def fault(self) -> str:
        """Why nothing can be decided or stored now, in a few words for everybody.

        Empty if it can.  The words name no file and no address: the log does.
        """
        return ""

    # --- Rooms ------------------------------------------------------------------------------------

    def load_room(self, key: str) -> PendingWrite | None:  # noqa: ARG002 - a local one is loaded
        """Prepare the log of the room *key*, case-folded, so that `room` can return it.

        Returns None if it can at once, always if the backend is not shared.  After the result was
        waited for, `room` can be called in the same step, and for at least ten seconds; what is not
        asked for by then is released.  The result raises `StorageFailed` if it cannot be loaded.

        If the room is open, the result is there once all that its log has now is handed out, and
        the room has asked for more.
        """
        return None

    @abstractmethod
    def room(self, key: str) -> RoomLog:
        """Return the log of the room *key*, case-folded; creates it if it is new.

        Call it once for each open room: two objects of one room would give the same numbers.
        Raises `TooManyRooms` if a new room would evict the messages of another, `StorageFailed`
        if it is not loaded.
        """

    # --- Client numbers, sessions -----------------------------------------------------------------

    @abstractmethod
    async def give_client_number(self) -> int:
        """Return the number of a new client, which no client had before, also before a restart.

        A local backend that cannot store it gives it all the same, and another client may get it
        after a restart.  Shared: raises `StorageFailed`.
        """

    @abstractmethod
    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Queue the session's current state for storing; never waits or fails.

        A session that is not *connected* ages from now on.  Nothing is stored if the record has an
        older generation than what is stored.
        """

    @abstractmethod
    def forget_session(self, digest: bytes) -> None:
        """Delete a session, if it exists, and its client's nonces."""

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Store the *nonce* of a private message of *client*, and the *check* of its text.

        Returns None if there is nothing to wait for.  The `PendingWrite` reports a failure.  Not
        shared: then `send_direct` does it.
        """
        raise NotImplementedError

    @abstractmethod
    async def session(self, digest: bytes) -> SavedSession | None:
        """Return that session, or None if it does not exist or is not stored.

        The nonces of writes that are still pending may be missing.  Raises `NotRead`.  A shared
        backend has all sessions, also those of connected clients.
        """

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        """Take the session that was found with that *generation*, for a client of this node.

        Returns it with a generation that is higher by one, and with all nonces of the messages that
        were taken: from then on nothing is taken of the former generation.  A client that has it on
        another node is `Replaced` there.  Returns None if the session is gone or was taken by
        somebody else since it was found.  Shared; raises `StorageFailed`.
        """
        raise NotImplementedError

    # --- Names, logins, presence ------------------------------------------------------------------

    async def claim(self, claim: Claim) -> None:
        """Give a client a name, and with `Claim.login` a login, until it is given back.

        The client may hold several names until the next `put_client`, which gives all back but the
        name in its record.  Those who lose their name or login are told by `NameLost` on their
        node, and their names are given back in the same step.

        Shared.  Raises `NameTaken` or `StorageFailed`, or `NameTaken` if *generation* is not that
        of the client any more.
        """
        raise NotImplementedError

    def put_client(self, record: ClientRecord) -> None:
        """Report the present state of one of our clients; never waits or fails.

        Other nodes get it as `ClientPut`.  Shared.
        """
        raise NotImplementedError

    def remove_client(
        self, client: int, generation: int, reason: str, *, keep_seconds: float | None
    ) -> None:
        """Report that one of our clients has left, for that *reason*; never waits or fails.

        Its names and its login are released.  *keep_seconds* is how long its name stays reserved
        for it, None if it may not reconnect; *reason* is empty if it asked to leave.  A call with
        an older generation is ignored.  Other nodes get `ClientGone`.  Shared.
        """
        raise NotImplementedError

    # --- Accounts, topics, bans -------------------------------------------------------------------

    @abstractmethod
    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        """Store the account *key*, case-folded, or delete it if *record* is None.

        *former* is what it replaces, None if it is new.  Raises `StorageFailed`.  Shared: raises
        `NameTaken` if what is stored is not *former*; others get it as `AccountChanged`.
        """

    @abstractmethod
    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        """Store the *topic* of *room*, case-folded, or delete it if it is empty.

        It was set by *client*, called *name*; 0 if it was the operator.  Raises `StorageFailed`.
        Shared: all nodes, this one too, get it as `TopicChanged`, in one order, so that of two
        topics that are set at once all end with the same; raises `InvalidRequest` if `MAX_TOPICS`
        have one.
        """

    def add_ban(self, ban: BanRecord) -> None:
        """Store a ban; never waits or fails.

        All nodes, this one too, get it as `BanAdded`, in one order with what is lifted.  If there
        are `MAX_BANS`, this node gets `BanRefused`.  Shared.
        """
        raise NotImplementedError

    def remove_ban(self, target: str) -> None:
        """Remove the ban of exactly that *target*; never waits or fails.

        All nodes, this one too, get it as `BanRemoved`, in one order with what is added.  Shared.
        """
        raise NotImplementedError

    # --- To clients on other nodes ----------------------------------------------------------------

    def disconnect(self, client: int, code: str, reason: str) -> None:
        """Ask the node of *client* to disconnect it; *code* is that of a goodbye.  Shared."""
        raise NotImplementedError

    def announce(self, text: str) -> None:
        """Announce *text* to the clients of the other nodes.  Shared."""
        raise NotImplementedError

    async def send_direct(
        self,
        to: int,
        message: Directed,
        *,
        generation: int,
        nonce: Nonce | None = None,
        check: bytes = b"",
    ) -> DirectFate:
        """Send a private message to a client on any node, and return what has become of it.

        *generation* is the sender's, whose number is in *message*.  With a *nonce*, for whose text
        *check* stands, it is delivered at most once, on whichever nodes it is sent again: later
        calls return its fate, and send it only if it was certainly not delivered.
        To `NOBODY` nothing is sent.

        Shared.  Raises `StorageFailed` if it was certainly not sent, and `NonceReused` if the
        nonce was that of another message.
        """
        raise NotImplementedError

    def answer_direct(self, received: DirectReceived, *, delivered: bool) -> None:
        """Answer a private message that came to this node.  Shared."""
        raise NotImplementedError

    async def receive(self) -> Event:
        """Return what another node did, or what happened to the backend, in order.

        Of what this node did it returns topics and bans: see `save_topic` and `add_ban`.

        Called by one task of the server, again and again.  A local backend never returns.
        """
        await trio.sleep_forever()
        raise AssertionError
