"""The replica of the directory, against a model: whatever is lost, repeated or early."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.backend.events import (
    AccountChanged,
    Announced,
    BanAdded,
    BanRecord,
    BanRemoved,
    ClientGone,
    ClientPut,
    ClientRecord,
    DirectReceived,
    DisconnectAsked,
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
    read_event,
)
from multichat.cluster.replica import DirectAnswered, Replica, Update
from multichat.protocol.messages import Directed

pytestmark = pytest.mark.unit

_NODES = st.sampled_from(("us", "b", "c"))
_CLIENTS = st.integers(1, 4)
_WORDS = st.sampled_from(("x", "y", "z"))
_RECORDS = st.builds(
    ClientRecord,
    client=_CLIENTS,
    generation=st.integers(1, 3),
    name=st.sampled_from(("", "alice", "bob")),
    rooms=st.sampled_from((("lobby",), ("lobby", "kitchen"))),
)
_TOPICS = st.sampled_from(("", "soup", "cake"))
_BANS = st.builds(BanRecord, target=_WORDS, until=st.none() | st.just(5.0))
_CHANGES = (
    st.builds(Put, _RECORDS)
    | st.builds(ClientLeft, _CLIENTS, st.just(9), st.just("gone"), st.booleans())
    | st.builds(AccountStored, _WORDS, st.sampled_from(("", "X")), st.sampled_from(("1", "2")))
    | st.builds(TopicSet, _WORDS, _TOPICS, _CLIENTS, st.just(""))
    | st.builds(Banned, _BANS)
    | st.builds(Unbanned, _WORDS)
    | st.builds(Announcement, st.just("hello"))
    | st.builds(NodeLost, st.just("c"))
)
_FEEDS = st.lists(st.builds(Fed, _NODES, _CHANGES), max_size=25)


@dataclass
class _Model:
    """The state of the directory after some events."""

    number: int = 0
    clients: dict[int, tuple[str, ClientRecord]] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)
    bans: dict[str, BanRecord] = field(default_factory=dict)

    @classmethod
    def after(cls, feed: list[Fed]) -> "_Model":
        model = cls(len(feed))
        for fed in feed:
            model.apply(fed)
        return model

    def apply(self, fed: Fed) -> None:
        match fed.event:
            case Put(record):
                self.clients[record.client] = (fed.actor, record)
            case ClientLeft(client):
                self.clients.pop(client, None)
            case AccountStored(fold, name, hash_):
                self.accounts.pop(fold, None)
                if name:
                    self.accounts[fold] = Account(name, hash_)
            case TopicSet(key, topic):
                self.topics.pop(key, None)
                if topic:
                    self.topics[key] = topic
            case Banned(ban):
                self.bans[ban.target] = ban
            case Unbanned(target):
                self.bans.pop(target, None)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            number=self.number,
            clients=dict(self.clients),
            accounts=dict(self.accounts),
            topics=dict(self.topics),
            bans=list(self.bans.values()),
        )

    def ours(self) -> set[int]:
        return {client for client, (node, _) in self.clients.items() if node == "us"}

    def elsewhere(self) -> dict[int, ClientRecord]:
        return {client: each for client, (node, each) in self.clients.items() if node != "us"}


@dataclass
class _Server:
    """The state of a server that applies its own changes and the events of its replica."""

    clients: dict[int, ClientRecord] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)
    bans: dict[str, BanRecord] = field(default_factory=dict)
    announced: int = 0

    def hear(self, updates: list[Update]) -> None:
        for update in updates:
            match update:
                case ClientPut(record):
                    self.clients[record.client] = record
                case ClientGone(client):
                    assert self.clients.pop(client, None) is not None, "a client left twice"
                case AccountChanged(key, name, hash_):
                    self.accounts.pop(key, None)
                    if name:
                        self.accounts[key] = Account(name, hash_)
                case TopicChanged(key, topic):
                    self.topics.pop(key, None)
                    if topic:
                        self.topics[key] = topic
                case BanAdded(ban):
                    self.bans[ban.target] = ban
                case BanRemoved(target):
                    self.bans.pop(target, None)
                case Announced():
                    self.announced += 1

    def did(self, fed: Fed) -> None:
        """Note what this node asked for, in the order of the feed."""
        own = _Model(accounts=self.accounts, topics=self.topics, bans=self.bans)
        own.apply(fed)


@given(_FEEDS, st.data())
def test_the_replica_is_the_directory_whatever_is_lost_repeated_or_early(
    feed: list[Fed], data: st.DataObject
) -> None:
    replica, server = Replica("us"), _Server()
    begin = data.draw(st.integers(0, len(feed)), label="joined at")
    server.hear(replica.load(_Model.after(feed[:begin]).snapshot()))

    def offer(number: int) -> bool:
        fed = feed[number - 1]
        is_next = number == replica.number + 1
        if is_next and fed.actor == "us":
            server.did(fed)
        updates = replica.apply(number, fed)
        assert (updates is None) == (number > replica.number)
        server.hear(updates or [])
        return updates is not None

    while replica.number < len(feed):
        number = data.draw(st.integers(1, len(feed)), label="pushed")
        if not offer(number):  # some are missing
            if data.draw(st.booleans(), label="read the events"):
                for missing in range(replica.number + 1, number + 1):
                    assert offer(missing)
            else:
                at = data.draw(st.integers(number, len(feed)), label="snapshot at")
                for fed in feed[replica.number : at]:
                    if fed.actor == "us":  # a server knows what it did itself
                        server.did(fed)
                model = _Model.after(feed[:at])
                server.hear(replica.load(model.snapshot(), model.ours()))
        model = _Model.after(feed[: replica.number])
        assert replica.clients == model.elsewhere()
        assert (replica.accounts, replica.topics) == (model.accounts, model.topics)
        assert replica.bans == model.bans
    assert server.clients == replica.clients


@given(_FEEDS)
def test_a_server_that_gets_each_event_has_the_state_of_the_directory(feed: list[Fed]) -> None:
    replica, server = Replica("us"), _Server()
    server.hear(replica.load(_Model().snapshot()))
    for number, fed in enumerate(feed, 1):
        if fed.actor == "us":
            server.did(fed)
        server.hear(replica.apply(number, fed) or [])
    model = _Model.after(feed)
    assert server.clients == model.elsewhere()
    assert (server.accounts, server.topics) == (model.accounts, model.topics)
    assert server.bans == model.bans
    announced = [each for each in feed if isinstance(each.event, Announcement)]
    assert server.announced == sum(each.actor != "us" for each in announced)


def _heard(*feed: Fed) -> list[Update]:
    replica = Replica("us")
    replica.load(_Model().snapshot())
    return [update for n, fed in enumerate(feed, 1) for update in replica.apply(n, fed) or []]


def test_events_for_one_node_reach_only_that_node() -> None:
    message = Directed(client=1, name="alice", text="hello")
    for node, heard in (("us", True), ("b", False)):
        updates = _heard(
            Fed("c", Disconnect(1, node, "kicked", "enough")),
            Fed("c", Taken(2, 1, node)),
            Fed("", Lost(3, 1, "alice", True, node)),
            Fed("c", DirectDone("x", node, "delivered")),
            Fed("c", DirectSent("y", 2, node, msgspec.json.encode(message).decode())),
        )
        expected: list[Update] = [
            DisconnectAsked(1, "kicked", "enough"),
            Replaced(2, 1),
            NameLost(3, 1, "alice", True),
            DirectAnswered("x", "delivered"),
            DirectReceived("y", 2, message),
        ]
        assert updates == (expected if heard else [])


def test_a_snapshot_instead_of_a_kick_disconnects_the_client_on_its_node() -> None:
    kicks = [Disconnect(1, "us", "kicked", "enough"), Disconnect(2, "b", "kicked", "enough")]
    replica = Replica("us")
    replica.load(_Model().snapshot())
    snapshot = msgspec.structs.replace(_Model().snapshot(), disconnects=kicks)
    assert replica.load(snapshot) == [DisconnectAsked(1, "kicked", "enough")]


def test_nodes_learn_of_others_that_join_and_leave() -> None:
    updates = _heard(
        Fed("us", NodeJoined("us")),
        Fed("b", NodeJoined("b")),
        Fed("b", NodeLost("b")),
        Fed("", NodeLost("c")),
        Fed("", NodeLost("us")),
    )
    assert updates == [NodeAdded("b"), NodeRemoved("b", True), NodeRemoved("c", False)]


def test_a_client_of_another_node_that_is_resumed_here_belongs_to_no_other_node() -> None:
    elsewhere = ClientRecord(client=1, generation=1)
    here = ClientRecord(client=1, generation=2)
    replica = Replica("us")
    replica.load(_Model().snapshot())
    assert replica.apply(1, Fed("b", Put(elsewhere))) == [ClientPut(elsewhere)]
    assert replica.apply(2, Fed("us", Taken(1, 1, "b"))) == []
    assert replica.clients == {1: elsewhere}
    # It may have left here by now, and the report of "b" about it may have come after that.
    assert replica.apply(3, Fed("us", Put(here))) == [ClientGone(1, 1, "", True)]
    assert replica.clients == {}
    assert replica.apply(4, Fed("us", ClientLeft(1, 2, "quit", False))) == []


def test_a_client_that_was_resumed_here_and_left_before_it_was_reported_is_gone() -> None:
    elsewhere = ClientRecord(client=1, generation=1)
    updates = _heard(
        Fed("b", Put(elsewhere)), Fed("us", Taken(1, 1, "b")), Fed("us", ClientLeft(1, 2, "", True))
    )
    assert updates == [ClientPut(elsewhere), ClientGone(1, 2, "", True)]


def test_an_event_of_a_newer_version_is_passed_over() -> None:
    replica = Replica("us")
    replica.load(_Model().snapshot())
    assert read_event(msgspec.msgpack.encode(["b", ["invented", 1]])) is None
    assert read_event(b"noise") is None
    assert replica.apply(1, None) == []
    assert replica.apply(2, Fed("b", Announcement("hello"))) == [Announced("hello")]
    assert replica.apply(3, Fed("b", DirectSent("x", 2, "us", "{}"))) == []
