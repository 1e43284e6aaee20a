"""A node's replica of the directory: the clients of other nodes, accounts, topics and bans.  Pure.

Its input is the snapshot and the events of the feed, in any order and with repetitions; it applies
each event once, in the order of their numbers, and returns what that means for this node.

Invariants:

1. After the events up to a number it has the content of a snapshot at that number, without the
   clients of this node.
2. The updates that it returns bring the node from its previous state to the present one, also when
   a snapshot replaces events that were missed.
"""

from collections.abc import Container, Iterator
from itertools import chain
from typing import NamedTuple, TypeAlias

from multichat.backend.events import (
    AccountChanged,
    Announced,
    BanAdded,
    BanRecord,
    BanRemoved,
    ClientGone,
    ClientPut,
    ClientRecord,
    DisconnectAsked,
    Event,
    NameLost,
    NodeAdded,
    NodeRemoved,
    Replaced,
    TopicChanged,
)
from multichat.cluster.changes import (
    Account,
    AccountStored,
    Announcement,
    Banned,
    ClientLeft,
    DirectDone,
    DirectSent,
    Disconnect,
    Fed,
    Lost,
    NodeJoined,
    NodeLost,
    Put,
    Snapshot,
    Taken,
    TopicSet,
    Unbanned,
    read_direct,
)

__all__ = ["DirectAnswered", "Replica", "Update"]

# The reason given for clients that are no longer in a snapshot.
_LOST = "connection lost"


class DirectAnswered(NamedTuple):
    """The fate of the private message *id* of this node; see `DirectFate`."""

    id: str
    fate: str


Update: TypeAlias = Event | DirectAnswered
"""A consequence of an event of the feed for this node."""


class Replica:
    """The replica of the node called *node*.

    *number* is the number of the last event that was applied, -1 before the first snapshot.
    *clients* are those of other nodes, by number.  Changes of topics and bans that this node
    requested are returned as well, because their order counts; with *echoes* also those of
    accounts, because the node may not know that they were made.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.number = -1
        self.echoes = False
        self.clients: dict[int, ClientRecord] = {}
        self.accounts: dict[str, Account] = {}
        self.topics: dict[str, str] = {}
        self.bans: dict[str, BanRecord] = {}

    def apply(self, number: int, fed: Fed | None) -> list[Update] | None:
        """Apply the event *fed* under its *number*, and return the updates for this node.

        If *fed* is None, this version does not know the event, and ignores it.

        Returns None, with nothing changed, if events before it are missing: the caller must read
        them, or a snapshot.  An event that was applied before is ignored.
        """
        if number <= self.number:
            return []
        if number > self.number + 1:
            return None
        self.number = number
        return [] if fed is None else list(self._apply(fed))

    def load(self, snapshot: Snapshot, ours: Container[int] = ()) -> list[Update]:
        """Replace everything by *snapshot*, and return the differences.

        *ours* are the clients of this node.
        """
        self.number = snapshot.number
        return [
            *self._load_clients(snapshot, ours),
            *self._load_accounts(snapshot),
            *self._load_topics(snapshot),
            *self._load_bans(snapshot),
            *chain.from_iterable(self._tell(each, "") for each in snapshot.disconnects),
        ]

    def _load_clients(self, snapshot: Snapshot, ours: Container[int]) -> Iterator[Update]:
        before = self.clients
        self.clients = {
            client: record
            for client, (node, record) in snapshot.clients.items()
            if node != self.node
        }
        for client, record in before.items():
            if client not in self.clients:
                reason = "" if client in ours else _LOST
                yield ClientGone(client, record.generation, reason, True)
        for client, record in self.clients.items():
            if before.get(client) != record:
                yield ClientPut(record)

    def _load_accounts(self, snapshot: Snapshot) -> Iterator[Update]:
        before, self.accounts = self.accounts, dict(snapshot.accounts)
        for key in before:
            if key not in self.accounts:
                yield AccountChanged(key)
        for key, account in self.accounts.items():
            if before.get(key) != account:
                yield AccountChanged(key, account.name, account.hash)

    def _load_topics(self, snapshot: Snapshot) -> Iterator[Update]:
        before, self.topics = self.topics, dict(snapshot.topics)
        for key in before.keys() | self.topics.keys():
            topic = self.topics.get(key, "")
            if before.get(key, "") != topic:
                yield TopicChanged(key, topic, 0, "")

    def _load_bans(self, snapshot: Snapshot) -> Iterator[Update]:
        before, self.bans = self.bans, {ban.target: ban for ban in snapshot.bans}
        for target in before:
            if target not in self.bans:
                yield BanRemoved(target)
        for target, ban in self.bans.items():
            if before.get(target) != ban:
                yield BanAdded(ban)

    def _apply(self, fed: Fed) -> Iterator[Update]:
        """Change the state, and yield what the node has to apply.

        Of what it did itself those are topics and bans, and with `echoes` accounts.
        """
        is_ours = fed.actor == self.node
        is_known = is_ours and not self.echoes
        match fed.event:
            case Put(record=record):
                if is_ours:  # it was resumed here, perhaps before we knew where it was last
                    if (former := self.clients.pop(record.client, None)) is not None:
                        yield ClientGone(former.client, former.generation, "", True)
                else:
                    self.clients[record.client] = record
                    yield ClientPut(record)
            case ClientLeft(client=client, generation=generation, reason=reason, away=away):
                if self.clients.pop(client, None) is not None:
                    yield ClientGone(client, generation, reason, away)
            case Taken(client=client, generation=generation, node=node):
                if node == self.node and not is_ours:
                    yield Replaced(client, generation)
            case Lost(client=client, generation=generation, name=name, login=login, node=node):
                if node == self.node:
                    yield NameLost(client, generation, name, login)
            case AccountStored(fold=fold, name=name, hash=hash_):
                self.accounts.pop(fold, None)
                if name:
                    self.accounts[fold] = Account(name=name, hash=hash_)
                if not is_known:
                    yield AccountChanged(fold, name, hash_)
            case TopicSet(key=key, topic=topic, client=client, name=name):
                self.topics.pop(key, None)
                if topic:
                    self.topics[key] = topic
                yield TopicChanged(key, topic, client, name)
            case Banned(ban=ban):
                self.bans[ban.target] = ban
                yield BanAdded(ban)
            case Unbanned(target=target):
                self.bans.pop(target, None)
                yield BanRemoved(target)
            case _:
                yield from self._tell(fed.event, fed.actor)

    def _tell(
        self,
        event: Disconnect | Announcement | DirectSent | DirectDone | NodeJoined | NodeLost,
        actor: str,
    ) -> Iterator[Update]:
        """Yield the updates of an event that changes no state, if it concerns this node."""
        match event:
            case Disconnect(client=client, node=node, code=code, reason=reason):
                if node == self.node:
                    yield DisconnectAsked(client, code, reason)
            case Announcement(text=text):
                if actor != self.node:
                    yield Announced(text)
            case DirectSent(id=id_, to=to, node=node, message=message):
                received = read_direct(id_, to, message) if node == self.node else None
                if received is not None:
                    yield received
            case DirectDone(id=id_, node=node, fate=fate):
                if node == self.node:
                    yield DirectAnswered(id_, fate)
            case NodeJoined(node=node):
                if node != self.node:
                    yield NodeAdded(node)
            case NodeLost(node=node):
                if node != self.node:
                    yield NodeRemoved(node, actor == node)
