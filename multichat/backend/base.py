"""The interface of a backend, which makes the decisions that the nodes of one chat share.

A server is a *node*.  Nodes propose, the backend decides, and every node applies the decisions in
the order of the log.  With the local backend, which has one node, a decision is made in the same
step and nothing is awaited.

A backend owns the order of each room's messages, client numbers, and the holders of names, sessions
and logins.  It stores messages, sessions, accounts, topics and, if it is shared, bans.  It knows no
connections and delivers nothing.

1. A client has a name, a session or a login, which only one client can have, only after the backend
   has granted it: *claim, then apply*.  With a local backend, `is_shared` is False, and the
   decision of the server itself is final.
2. Everything else that a client does (entering rooms, leaving) is applied at once and reported with
   `put_client` and `remove_client`, which never fail and never wait: a backend that cannot report
   it now reports the state that its clients have later.
3. A backend that is not `available` refuses to decide, with `StorageFailed`.  The server then
   rejects entering, renaming and logging in; leaving always works.
4. Calls of one node take effect in the order in which they were made; an async method counts as
   called when its coroutine first runs.
5. If an async method is cancelled, it may or may not have taken effect.  A claim is released with
   `put_client` or `remove_client`, by number and generation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

import msgspec
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
    "RoomClaim",
    "RoomLog",
    "Skipped",
]

# A number that no client has: for the operator, or for a recipient that has disconnected.
NOBODY = 0


class DirectFate(Enum):
    """The outcome of a private message; *UNKNOWN* means that it may have been delivered."""

    DELIVERED = "delivered"
    NOT_DELIVERED = "not-delivered"
    UNKNOWN = "unknown"


class Proposal:
    """Messages that a node has proposed to a room's log.

    *said* has the numbered messages if the log numbers them in the step in which they are proposed;
    otherwise it stays None.  *pending* is the write that stores them, None if they are stored; it
    fails if they are not in the log and never will be.  A log with a feed resolves it once their
    outcome is known, at the latest in the step in which `receive` returns them.

    *earlier* is set by a log with a feed before *pending* resolves, if messages with the same
    nonces are already in the log: it maps their index in the proposal to the earlier id.  They are
    not appended a second time: the entry has the other messages, and without any, there is no
    entry.  *reused* has the indexes of messages whose nonce belongs to a different message; these
    must be refused.
    """

    # Only some proposals have these, and a local log makes a proposal for each publish.
    earlier: Mapping[int, str] = MappingProxyType({})
    reused: frozenset[int] = frozenset()

    def __init__(self, said: SaidBlock | None, pending: PendingWrite | None) -> None:
        self.said = said
        self.pending = pending


class Entry(msgspec.Struct, frozen=True):
    """The next messages in the order of a log; *proposal* is theirs if this node made it."""

    said: SaidBlock
    proposal: Proposal | None = None


class Lost(msgspec.Struct, frozen=True):
    """The log has lost its last *count* messages, which were handed out; it continues at *next*.

    The numbers from *next* on are used again, in a new epoch.  The *proposals* had succeeded, but
    their messages were lost before they were handed out.
    """

    next: int
    count: int
    proposals: Sequence[Proposal] = ()


class Skipped(msgspec.Struct, frozen=True):
    """The messages before *next* were deleted before they were handed out.

    *entries* are this node's own messages among them: their proposals have succeeded.
    """

    next: int
    entries: Sequence[Entry] = ()


Fed: TypeAlias = Entry | Lost | Skipped
"""An item of the feed of a log."""


class RoomLog(MessageIds, ABC):
    """The log of one room: its messages, in the same order on all nodes.

    The messages are numbered from *first*, the oldest one stored, up to but excluding *next*, which
    is the number after the last message that was handed out, in a log with a feed, or proposed, in
    one without.  If the two are equal, there are no messages.  A message's id consists of *epoch*
    and its number (see `multichat.protocol.ids.message_id`); epochs are unique among rooms.

    *earlier* maps the room's earlier epochs, oldest first, to the number at which the next epoch
    began.  Numbers continue from one epoch to the next.  A log that has lost messages maps their
    ids to the last number before them.

    With *has_feed*, decisions about the log are made elsewhere: `propose` numbers nothing, and one
    task of the room calls `receive` in a loop.

    Created by `Backend.room` only.  A subclass MUST have the attributes or properties *epoch*,
    *first*, *next* and *earlier*.
    """

    has_feed: bool = False

    @property
    @abstractmethod
    def epoch(self) -> str:
        """The epoch of the next messages."""

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

        The epoch and first number of *draft* MUST be the log's current ones; a log with a feed
        ignores them.  *nonces* has one nonce for each message, or is empty; *checks* has four bytes
        for each, to detect a nonce that is reused for another message.  *generation* is that of the
        draft's client; messages of an older generation are refused.

        Raises `StorageFailed`, with nothing changed, if nothing can be stored now.  If it is
        uncertain whether the messages are in the log, for example after a lost connection, the
        proposal stays pending until that is known.
        """

    async def receive(self) -> Fed:
        """Return the next item of the log; called by one task at a time, only with *has_feed*.

        Advances *next*, and *epoch* where a new one begins, in the step in which it returns.  Each
        proposal that succeeded is handed out exactly once, as an entry or among the lost or skipped
        ones, unless all its messages are *earlier* ones.  If cancelled, nothing was handed out.
        """
        await trio.sleep_forever()
        raise AssertionError

    @abstractmethod
    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Return the messages numbered from *start* up to but excluding *stop*, oldest first.

        Stops before a message that would exceed *max_bytes* of text, but returns at least one.
        Messages that are not stored, or have been deleted, are left out.  Raises `NotRead`.
        """

    @abstractmethod
    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages with numbers below *stop*, oldest first.

        Returns at most *max_messages* messages and *max_bytes* of text, but at least one message.
        Reads backwards, and at most one block more than it returns.  Raises `NotRead`.
        """

    def close(self) -> None:
        """Release the log's resources: the room is closed, and no task is in `receive`.

        Pending proposals are still stored, and resolve.
        """


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A *name* that a client requests; *account* is the account that it is logged in to, if any.

    With *login*, the client logs in to the account of that name, and takes the name and the login
    from any other client.  Without *login* the claim succeeds if the name is free: no client holds
    it, or its holder has left and was this client, came from the same *origin*, left too long ago,
    or held the name of *account*.  It fails if another client is logged in to *account*.
    """

    client: int
    generation: int
    name: str
    account: str = ""
    login: bool = False
    origin: str = ""


class RoomClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A room that a node is about to open: its *key*, case-folded, and its *name*.

    The claim succeeds if the room is open on any node; or if fewer than *most* rooms are, and none
    of them has a name that looks like this one.  *leaving* are the keys of rooms that this node
    closes then: those that no other node has open do not count.

    A room with messages is opened although it looks like another, else its members would be locked
    out.  A *name* that is not *valid*, by the rules of today, is that of such a room, or the claim
    fails.
    """

    key: str
    name: str
    leaving: tuple[str, ...] = ()
    most: int
    valid: bool = True


class Backend(ABC):
    """The interface of a backend; each server has one object.

    Call `run` once; any task of the same trio run may call the other methods.

    *is_shared* tells whether other nodes may use the backend, too.  If not, methods with "Shared"
    in their docstring are never called.  *location* tells the operator where the data is stored;
    it is empty for a backend in memory.  *accounts*, *topics* (by room, case-folded), *bans* and
    *clients* (those on other nodes) are as of when `run` opened the backend; `receive` returns the
    changes since.  *recent_sessions*, without nonces, are those of clients that were connected when
    a former server ended, and of some that had disconnected.  *journal_writes* records the
    durations of a journal's transactions, and *round_trips* those of requests to an engine; either
    is None where it does not apply.
    """

    is_shared: bool = False
    location: str = ""
    accounts: Sequence[AccountRecord] = ()
    topics: Mapping[str, str] = MappingProxyType({})
    bans: Sequence[BanRecord] = ()
    clients: Sequence[ClientRecord] = ()
    recent_sessions: Sequence[SavedSession] = ()
    journal_writes: DurationRecorder | None = None
    round_trips: DurationRecorder | None = None

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the backend, report that it has started, and serve until cancelled.

        Nothing else may be called before that report.  On cancellation it stores what is queued, if
        that is possible at once, and resolves every pending proposal before it returns.  Raises
        `JournalFailed`, with nothing changed, if the backend cannot be opened.
        """

    def before_shutdown(self) -> None:  # noqa: B027 - not every journal deletes
        """Stop deleting and log what was deleted; called before the shutdown is announced."""

    refusal: str = "the server cannot reach its storage"
    """The reason why a request that needs a decision is refused while `available` is False."""

    is_away: bool = True
    """Whether, while `available` is False, the storage cannot be reached or does not answer.

    If not, it refuses requests: `refusal` says why.
    """

    @property
    def available(self) -> bool:
        """Whether decisions are possible now; always True if the backend is not shared."""
        return True

    @property
    def fault(self) -> str:
        """Why nothing can be decided or stored now, in a few words for clients; empty if it can.

        The text contains no file name and no address; these are in the log.
        """
        return ""

    # --- Rooms ------------------------------------------------------------------------------------

    def load_room(self, key: str) -> PendingWrite | None:  # noqa: ARG002 - a local one is loaded
        """Prepare the log of the room *key*, case-folded, so that `room` can return it.

        Returns None if `room` can be called at once, which is always so if the backend is not
        shared.  After waiting for the result, `room` can be called in the same step, and for at
        least ten seconds; a log that was not opened by then is released.  The result raises
        `StorageFailed` if the log cannot be loaded.

        If the room is open, the result is ready once everything that its log has now was handed
        out, and the room has called `receive` again; or once its log is closed, and then it has to
        be loaded again.
        """
        return None

    @abstractmethod
    def room(self, key: str) -> RoomLog:
        """Return the log of the room *key*, case-folded; creates a new room.

        Call it once for each open room: two objects of one room would give the same numbers.
        Raises `TooManyRooms` if a new room would evict the messages of another, and
        `StorageFailed` if the log is not loaded.
        """

    async def claim_room(self, claim: RoomClaim) -> str:
        """Claim a room for this node, until `release_room`; return the name under which it is open.

        That is the name with which it was opened first.  A room that this node has already may be
        claimed again.  Shared.  Raises `TooManyRooms`, `InvalidName` or `StorageFailed`; if it is
        cancelled, or raises `StorageFailed`, the caller MUST call `release_room` unless the room is
        open, or claimed by another task on this node.
        """
        raise NotImplementedError

    def hold_room(self, key: str, name: str) -> None:
        """Report a room that this node has opened and that cannot be refused; never waits or fails.

        Shared.
        """
        raise NotImplementedError

    def release_room(self, key: str) -> None:
        """Report that this node has closed a room, or does not open it; never waits or fails.

        Shared.
        """
        raise NotImplementedError

    # --- Client numbers, sessions -----------------------------------------------------------------

    @abstractmethod
    async def give_client_number(self) -> int:
        """Return a number for a new client that no client has ever had, even before a restart.

        A local backend that cannot store the number returns it nevertheless, so another client may
        get it after a restart.  Shared: raises `StorageFailed`.
        """

    @abstractmethod
    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Queue the session's current state for storing; never waits or fails.

        The age of a session that is not *connected* counts from now on.  A record with an older
        generation than the stored one is ignored.
        """

    @abstractmethod
    def forget_session(self, digest: bytes) -> None:
        """Delete a session, if it exists, and its client's nonces."""

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Store the *nonce* of a private message of *client*, and the *check* of its text.

        Returns None if there is nothing to wait for.  The `PendingWrite` reports a failure.  For
        local backends only: a shared one does this in `send_direct`.
        """
        raise NotImplementedError

    @abstractmethod
    async def session(self, digest: bytes) -> SavedSession | None:
        """Return a session, or None if it does not exist or is not stored.

        Nonces of pending writes may be missing.  Raises `NotRead`.  A shared backend has all
        sessions, including those of connected clients.
        """

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        """Take over the session that was found with *generation*, for a client of this node.

        Returns it with a generation that is higher by one, and with the nonces of all accepted
        messages: from now on, messages of the former generation are refused.  A client that has the
        session on another node is `Replaced` there.  Returns None if the session no longer exists,
        or was taken over elsewhere since it was found.  Shared; raises `StorageFailed`.
        """
        raise NotImplementedError

    # --- Names, logins, presence ------------------------------------------------------------------

    async def claim(self, claim: Claim) -> None:
        """Give a client a name, and with `Claim.login` a login, until it is released.

        The client may hold several names until the next `put_client`, which releases all but the
        name in its record.  For each client that loses its name or login, its node receives
        `NameLost`, and the name is released in the same step.

        Shared.  Raises `StorageFailed`, or `NameTaken`, also if *generation* is no longer the
        client's.
        """
        raise NotImplementedError

    def put_client(self, record: ClientRecord) -> None:
        """Report the present state of one of our clients; never waits or fails.

        Other nodes receive `ClientPut`.  If the client was on another node, ours receives
        `ClientGone` after the last `ClientPut` of that, which may come when the client has left.
        A login in it that was not claimed, as that of a session that was resumed, is the client's
        if no other client has it; else our node receives `NameLost`.  Shared.
        """
        raise NotImplementedError

    def remove_client(
        self, client: int, generation: int, reason: str, *, keep_seconds: float | None
    ) -> None:
        """Report that one of our clients has left, for that *reason*; never waits or fails.

        Its names and its login are released.  *keep_seconds* is how long its name stays reserved
        for it, or None if it may not reconnect; *reason* is empty if it left by itself.  A call
        with an older generation is ignored.  Other nodes receive `ClientGone`.  Shared.
        """
        raise NotImplementedError

    # --- Accounts, topics, bans -------------------------------------------------------------------

    @abstractmethod
    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        """Store the account *key*, case-folded, or delete it if *record* is None.

        *former* is the record that it replaces, None for a new account.  Raises `StorageFailed`.
        Shared: raises `NameTaken` if the stored record is not *former*; other nodes receive
        `AccountChanged`.
        """

    @abstractmethod
    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        """Store the *topic* of *room*, case-folded, or delete it if it is empty.

        It was set by *client*, called *name*; 0 stands for the operator.  Raises `StorageFailed`.
        Shared: all nodes, including this one, receive `TopicChanged`, in one order, so that all end
        with the same topic if two are set at once; raises `InvalidRequest` if `MAX_TOPICS` rooms
        have one.
        """

    def add_ban(self, ban: BanRecord) -> None:
        """Store a ban; never waits or fails.

        All nodes, including this one, receive `BanAdded`, in one order with the removals.  If there
        are `MAX_BANS`, this node receives `BanRefused`.  Shared.
        """
        raise NotImplementedError

    def remove_ban(self, target: str) -> None:
        """Remove the ban of exactly that *target*; never waits or fails.

        All nodes, this one too, get it as `BanRemoved`, in one order with what is added.  Shared.
        """
        raise NotImplementedError

    # --- To clients on other nodes ----------------------------------------------------------------

    def disconnect(self, client: int, code: str, reason: str) -> None:
        """Have the node of *client* disconnect it; *code* is the code of the goodbye.  Shared."""
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
        """Send a private message to a client on any node, and return its outcome.

        *generation* is that of the sender, whose number is in *message*.  With a *nonce*, and a
        *check* of its text, the message is delivered at most once, on whichever node it is sent
        again: later calls return its outcome, and send it only if it was certainly not delivered.
        Nothing is sent to `NOBODY`.

        Shared.  Raises `StorageFailed` if it was certainly not sent, and `NonceReused` if the
        nonce belongs to another message.
        """
        raise NotImplementedError

    def answer_direct(self, received: DirectReceived, *, delivered: bool) -> None:
        """Report whether a private message that came to this node was delivered.  Shared."""
        raise NotImplementedError

    async def receive(self) -> Event:
        """Return the next event of another node or of the backend, in order.

        Of what this node did it returns topics and bans: see `save_topic` and `add_ban`.

        One task of the server calls this in a loop.  A local backend never returns.
        """
        await trio.sleep_forever()
        raise AssertionError
