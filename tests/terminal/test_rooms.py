"""The rooms of a terminal client: which is shown, what is unread, and where lines go."""

from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multichat.protocol.messages import (
    Joined,
    Left,
    MemberName,
    Members,
    Missed,
    Presence,
    Renamed,
    Said,
)
from multichat.terminal.rooms import Heard, Rooms
from tests.support.conversations import welcome

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 2, 10, 30, tzinfo=UTC)


def heard(text: str, room: str = "kitchen", number: int = 1) -> Heard:
    return Heard(Said(id=f"x-{number}", room=room, client=2, name="bob", text=text), NOW)


def keep(rooms: Rooms, room: str, text: str, *, is_new: bool = True, mention: bool = False) -> None:
    found = rooms.find(room)
    assert found is not None
    rooms.keep(found, heard(text, room), is_new=is_new, is_mention=mention)


def texts(events: list[Heard]) -> list[str]:
    return [each.event.text for each in events if isinstance(each.event, Said)]


def entered(*names: str) -> Rooms:
    rooms = Rooms()
    for name in names:
        rooms.enter(name, 2, None)
        rooms.show(name)
    return rooms


def test_the_first_room_is_shown_and_others_when_asked_for() -> None:
    rooms = Rooms()
    assert rooms.shown.name == rooms.target == ""
    rooms.enter("lobby", 2, "x-7")
    rooms.enter("Kitchen", 1, None)
    assert rooms.shown.name == rooms.target == "lobby"
    rooms.show("kitchen")
    assert rooms.shown.name == rooms.target == "Kitchen"
    assert [room.name for room in rooms] == ["lobby", "Kitchen"]
    assert rooms.at(1) is rooms.find("LOBBY")
    assert rooms.at(0) is rooms.at(3) is None


def test_messages_of_other_rooms_count_as_unread_until_they_are_shown_once() -> None:
    rooms = entered("kitchen", "lobby")
    keep(rooms, "kitchen", "one")
    keep(rooms, "kitchen", "two, alice", mention=True)
    kitchen = rooms.find("kitchen")
    assert kitchen is not None
    assert (kitchen.unread, kitchen.mentions) == (2, 1)
    assert texts(rooms.show("kitchen").heard) == ["one", "two, alice"]
    assert (kitchen.unread, kitchen.mentions) == (0, 0)
    assert rooms.show("lobby") == rooms.show("kitchen") == ([], 0)


def test_messages_from_before_we_entered_are_kept_and_not_unread() -> None:
    rooms = entered("lobby")
    kitchen = rooms.enter("kitchen", 2, "x-5")
    assert [kitchen.is_earlier(Said(id=f"x-{n}", name="bob", text="")) for n in (5, 6)] == [
        True,
        False,
    ]
    assert not kitchen.is_earlier(Said(name="bob", text="of a text server"))
    keep(rooms, "kitchen", "earlier", is_new=False)
    assert kitchen.unread == 0
    assert texts(rooms.show("kitchen").heard) == ["earlier"]


def test_only_the_newest_messages_are_kept_and_all_are_counted() -> None:
    rooms = entered("kitchen", "lobby")
    kitchen = rooms.find("kitchen")
    assert kitchen is not None
    rooms.keep(kitchen, Heard(Missed(3), NOW), is_new=False)
    for number in range(250):
        keep(rooms, "kitchen", f"{number}")
    assert kitchen.unread == 250
    meanwhile = rooms.show("kitchen")
    assert meanwhile.left_out == 50
    assert texts(meanwhile.heard) == [str(number) for number in range(50, 250)]


def test_long_messages_are_kept_up_to_a_size() -> None:
    rooms = Rooms(max_kept_characters=1000)
    for name in ("lobby", "kitchen"):
        rooms.enter(name, 1, None)
    for text in ("a" * 600, "b" * 300, "c" * 300, "d" * 5000):
        keep(rooms, "kitchen", text)
    meanwhile = rooms.show("kitchen")
    assert texts(meanwhile.heard) == ["d" * 5000]
    assert meanwhile.left_out == 3


def test_leaving_shows_the_room_that_was_shown_before() -> None:
    rooms = entered("lobby", "kitchen", "ops")
    rooms.show("lobby")
    keep(rooms, "ops", "hello")
    meanwhile = rooms.leave("LOBBY")
    assert rooms.shown.name == rooms.target == "ops"
    assert meanwhile is not None
    assert texts(meanwhile.heard) == ["hello"]
    assert rooms.leave("kitchen") is None
    assert rooms.leave("kitchen") is None
    assert rooms.shown.name == "ops"
    assert rooms.leave("ops") is None
    assert rooms.shown.name == "ops"  # until there is another
    rooms.enter("lobby", 1, None)
    assert rooms.shown.name == rooms.target == "lobby"


def test_lines_go_to_the_room_that_is_being_entered() -> None:
    rooms = entered("lobby")
    rooms.aim("kitchen")
    assert (rooms.shown.name, rooms.target) == ("lobby", "kitchen")
    rooms.enter("Kitchen", 1, None)
    rooms.settle("kitchen")
    assert rooms.target == "Kitchen"
    rooms.aim("full")
    rooms.aim("ops")
    rooms.settle("full")
    assert rooms.target == "ops"
    rooms.settle("ops")  # refused
    assert rooms.target == "lobby"


def test_lines_entered_after_leaving_go_to_the_next_room() -> None:
    rooms = entered("lobby", "kitchen")
    rooms.aim_back("kitchen")
    assert (rooms.shown.name, rooms.target) == ("kitchen", "lobby")
    rooms.leave("kitchen")
    assert (rooms.shown.name, rooms.target) == ("lobby", "lobby")


def test_a_server_that_has_forgotten_rooms_leaves_the_others() -> None:
    rooms = entered("lobby", "kitchen", "ops")
    keep(rooms, "kitchen", "hello")
    meanwhile = rooms.keep_only({"LOBBY", "kitchen"})
    assert [room.name for room in rooms] == ["lobby", "kitchen"]
    assert rooms.shown.name == "kitchen"
    assert meanwhile is not None
    assert texts(meanwhile.heard) == ["hello"]


def test_events_change_the_members_of_their_room() -> None:
    rooms = entered("kitchen", "lobby")
    kitchen, lobby = rooms
    rooms.note(Members("Kitchen", [MemberName(1, "alice"), MemberName(2, "bob")]))
    rooms.note(Joined(3, "carol", room="kitchen", members=3))
    rooms.note(Joined(3, "carol"))  # of an old server, which knows one room
    assert (kitchen.members, kitchen.names) == (3, {"alice", "bob", "carol"})
    assert (lobby.members, lobby.names) == (3, {"carol"})
    rooms.note(Renamed(3, "carol", "caroline"))
    rooms.note(Left(2, "bob", "", members=2, room="kitchen"))
    rooms.note(Left(2, "bob", "", members=2, room="elsewhere"))
    assert (kitchen.members, kitchen.names) == (2, {"alice", "caroline"})
    assert lobby.names == {"caroline"}
    kitchen.is_stale = False
    rooms.note(Presence(5, 1, 0, 6, room="kitchen"))
    assert (kitchen.members, kitchen.is_stale) == (6, True)


def test_a_welcome_enters_rooms_and_shows_the_current_one() -> None:
    rooms = Rooms()
    rooms.welcome(welcome("ops", "lobby", "ops", last="x-1", members=3))
    assert [(room.name, room.members, room.last) for room in rooms] == [
        ("lobby", 3, "x-1"),
        ("ops", 3, "x-1"),
    ]
    assert rooms.shown.name == rooms.target == "ops"
    old = Rooms()
    old.welcome(welcome("lobby", last="x-9"))
    assert [(room.name, room.last) for room in old] == [("lobby", "x-9")]


def test_after_a_reconnect_the_same_room_is_shown_and_unread_messages_stay() -> None:
    rooms = entered("lobby", "kitchen", "ops")
    rooms.show("lobby")
    keep(rooms, "kitchen", "hello")
    assert rooms.welcome(welcome("ops", "lobby", "kitchen", members=5)) is None
    assert rooms.shown.name == "lobby"
    assert [(room.name, room.members, room.unread) for room in rooms] == [
        ("lobby", 5, 0),
        ("kitchen", 5, 1),
    ]
    meanwhile = rooms.welcome(welcome("kitchen", "kitchen"))
    assert meanwhile is not None
    assert texts(meanwhile.heard) == ["hello"]


NAMES = st.sampled_from(["lobby", "kitchen", "ops", "κουζίνα", "부엌"])


class RoomsMachine(RuleBasedStateMachine):
    """Random events; the model is a list of texts for each room."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms = Rooms(max_kept=5)
        self.unseen: dict[str, list[str]] = {}
        self.number = 0

    @rule(name=NAMES)
    def enter(self, name: str) -> None:
        self.rooms.enter(name, 1, None)
        self.unseen.setdefault(name, [])

    @precondition(lambda self: self.unseen)
    @rule(data=st.data())
    def show(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.unseen)))
        meanwhile = self.rooms.show(name)
        assert texts(meanwhile.heard) == self.unseen[name][-5:]
        assert meanwhile.left_out == max(0, len(self.unseen[name]) - 5)
        self.unseen[name] = []
        assert self.rooms.target == name

    @precondition(lambda self: self.unseen)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.unseen)))
        if self.rooms.shown.name == name:
            return
        self.number += 1
        keep(self.rooms, name, str(self.number), mention=self.number % 3 == 0)
        self.unseen[name].append(str(self.number))

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        meanwhile = self.rooms.leave(name)
        self.unseen.pop(name, None)
        if meanwhile is not None:
            shown = self.rooms.shown.name
            assert texts(meanwhile.heard) == self.unseen[shown][-5:]
            self.unseen[shown] = []

    @rule(name=NAMES)
    def try_to_enter_in_vain(self, name: str) -> None:
        self.rooms.aim(name)
        self.rooms.settle(name)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        assert {room.name: room.unread for room in self.rooms} == {
            name: len(unseen) for name, unseen in self.unseen.items()
        }
        for room in self.rooms:
            assert room.mentions == sum(int(text) % 3 == 0 for text in self.unseen[room.name])

    @invariant()
    def the_room_that_is_shown_is_ours_and_lines_go_to_one_of_ours(self) -> None:
        if self.unseen:
            assert self.rooms.shown.name in self.unseen
            assert self.rooms.target in self.unseen
            assert not self.rooms.shown.unread


RoomsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
test_random_events = RoomsMachine.TestCase
