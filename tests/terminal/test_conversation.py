"""The events of several rooms as lines: what is shown, what is kept, and where our messages are."""

import pytest

from multichat.protocol.messages import (
    Accepted,
    Directed,
    Enter,
    Entered,
    Error,
    Exited,
    HistoryPage,
    Joined,
    Left,
    Missed,
    Reconnected,
    RoomList,
    RoomSize,
    Said,
    SayBlock,
    TopicChanged,
)
from multichat.terminal.conversation import Conversation
from multichat.terminal.render import DIM, Line
from multichat.terminal.syntax import TypedLine
from tests.support.conversations import OurChat, begun, texts, welcome

pytestmark = pytest.mark.unit


def said(room: str, number: int, text: str = "hello", *, client: int = 2) -> Said:
    return Said(id=f"x-{number}", room=room, client=client, name="bob", text=text)


def take(chat: Conversation, *events: object) -> list[str]:
    lines: list[Line] = []
    for event in events:
        lines += chat.take(event)  # type: ignore[arg-type]
    return texts(lines)


def unread(chat: Conversation) -> dict[str, tuple[int, int]]:
    return {room.name: (room.unread, room.mentions) for room in chat.rooms}


def test_messages_of_other_rooms_are_counted_and_shown_when_we_go_there() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    assert take(chat, said("lobby", 1), said("kitchen", 1, "one")) == ["bob  hello"]
    assert take(chat, said("kitchen", 2, "two, alice")) == ["(alert)"]
    assert unread(chat) == {"kitchen": (2, 1), "lobby": (0, 0)}
    shown = chat.switch(1)
    assert texts(shown) == ["· you are in kitchen; 2 are here", "bob  one", "bob  two, alice"]
    assert not any(line.is_alert for line in shown)
    assert unread(chat) == {"kitchen": (0, 0), "lobby": (0, 0)}
    assert take(chat, said("lobby", 2), said("kitchen", 3, "three")) == ["bob  three"]


def test_joins_and_leaves_of_other_rooms_are_only_counted() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    events = Joined(3, "carol", "kitchen", 3), Left(2, "bob", "", 2, "kitchen")
    assert take(chat, *events, Joined(3, "carol", "lobby", 3)) == ["· carol joined"]
    assert {room.name: room.members for room in chat.rooms} == {"kitchen": 2, "lobby": 3}


def test_other_events_of_a_room_keep_their_place_among_its_messages() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    topic = TopicChanged("kitchen", "dinner", 2, "bob")
    assert take(chat, said("kitchen", 1, "one"), Missed(7, "kitchen"), topic) == []
    assert texts(chat.switch(1))[1:] == [
        "bob  one",
        "! 7 messages skipped",
        "· bob set the topic of kitchen: dinner",
    ]


def test_the_history_of_another_room_is_shown_there() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    page = HistoryPage([said("kitchen", 1, "one")], more=False, room="kitchen", nonce=1)
    assert take(chat, page) == []
    assert texts(chat.switch(1))[1:] == ["· the last message:", "bob  one"]


def test_earlier_messages_are_neither_unread_nor_alerts() -> None:
    chat = begun("lobby", "kitchen", "lobby", last="x-5")
    assert take(chat, said("kitchen", 5, "alice?"), said("kitchen", 6, "alice!")) == ["(alert)"]
    assert unread(chat)["kitchen"] == (1, 1)
    assert not any(line.is_alert for line in chat.take(said("lobby", 5, "alice?")))
    assert all(line.is_alert for line in chat.take(said("lobby", 6, "alice!")))


def test_ignored_senders_in_other_rooms_neither_count_nor_alert() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    chat.ignore("Bob")
    assert take(chat, said("kitchen", 1, "alice!")) == []
    assert unread(chat)["kitchen"] == (0, 0)


def test_private_messages_are_shown_at_once() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    assert take(chat, Directed(client=2, name="bob", text="psst")) == ["bob → you  psst"]


# --- Our own messages -----------------------------------------------------------------------------


def send(chat: Conversation, nonce: int, text: str, room: str) -> None:
    chat.begin_sending([SayBlock(text, room=room)])
    assert chat.end_sending([nonce]) == []


def pending(chat: Conversation, *entered: TypedLine) -> list[str]:
    return ["".join(text for _, text in line)[6:] for line in chat.pending(entered)]


def test_our_message_has_its_place_in_the_room_that_it_was_sent_to() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    send(chat, 1, "first", "lobby")
    send(chat, 2, "second", "lobby")
    assert pending(chat) == ["alice  first", "alice  second"]
    assert take(chat, Accepted(id="x-1", nonce=1)) == ["alice  first"]
    chat.switch(1)
    assert pending(chat, TypedLine("third", "kitchen"), TypedLine("other", "lobby")) == [
        "alice  third"
    ]
    events = said("lobby", 2, "between"), Accepted(id="x-3", nonce=2), said("lobby", 4, "after")
    assert take(chat, *events) == []
    assert unread(chat)["lobby"] == (2, 0)
    assert texts(chat.switch(2))[1:] == ["bob  between", "alice  second", "bob  after"]


def test_our_own_replayed_message_is_not_unread() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    assert take(chat, said("kitchen", 1, client=1)) == []
    assert unread(chat)["kitchen"] == (0, 0)


def test_a_refused_message_is_shown_with_the_reason_wherever_we_are() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    send(chat, 1, "too fast", "lobby")
    chat.switch(1)
    assert take(chat, Error("rate-limited", "slow down", nonce=1)) == [
        "alice  too fast",
        "! slow down",
    ]


@pytest.mark.parametrize("accepted", [True, False])
def test_a_message_that_is_not_accepted_stays_dimmed(accepted: bool) -> None:
    chat = begun("lobby")
    send(chat, 1, "hello", "lobby")
    answer = Accepted(id="x-1", nonce=1) if accepted else Error("storage-failed", "no", nonce=1)
    styles = [{style for style, _ in line.fragments} for line in chat.take(answer)]
    assert ({DIM} in styles) is not accepted


@pytest.mark.parametrize("accepted", [True, False])
def test_an_answer_may_come_before_we_know_the_nonce(accepted: bool) -> None:
    chat = begun("lobby", "kitchen", "lobby")
    chat.begin_sending([SayBlock("quick", room="kitchen")])
    answer = Accepted(id="x-1", nonce=7) if accepted else Error("rate-limited", "no", nonce=7)
    assert take(chat, answer) == ([] if accepted else ["! no"])
    assert texts(chat.end_sending([7])) == ([] if accepted else ["alice  quick"])
    assert chat.unaccepted == 0
    assert texts(chat.switch(1))[1:] == (["alice  quick"] if accepted else [])


# --- Entering and leaving -------------------------------------------------------------------------


def join(chat: Conversation, room: str, nonce: int) -> None:
    assert chat.address(f"/join {room}")[1] == []
    chat.begin_sending([Enter(room)])
    assert chat.end_sending([nonce]) == []


def test_a_room_is_shown_when_the_server_has_let_us_in() -> None:
    chat = begun("lobby", "lobby")
    join(chat, "kitchen", 1)
    assert chat.address("typed ahead") == ("kitchen", [])
    assert chat.audience() == "everybody in kitchen"
    assert chat.unaccepted == 0
    assert take(chat, Entered("kitchen", 3, "x-9", "dinner", nonce=1), said("kitchen", 9)) == [
        "· you are in kitchen; 3 are here",
        "· topic: dinner",
        "bob  hello",
    ]
    assert [room.name for room in chat.rooms] == ["lobby", "kitchen"]
    assert take(chat, said("lobby", 1)) == []


def test_a_room_that_cannot_be_entered_leaves_us_where_we_are() -> None:
    chat = begun("lobby", "lobby")
    join(chat, "secret", 1)
    assert take(chat, Error("invalid-name", "no such name", nonce=1)) == ["! no such name"]
    assert chat.address("hello") == ("lobby", [])


def test_a_room_that_we_left_for_another_meanwhile_is_not_shown() -> None:
    chat = begun("lobby", "lobby")
    join(chat, "kitchen", 1)
    assert texts(chat.switch(1)) == ["· you are in lobby; 2 are here"]
    assert take(chat, Entered("kitchen", 3, None, nonce=1), said("kitchen", 1)) == []
    assert chat.rooms.shown.name == "lobby"
    assert unread(chat)["kitchen"] == (1, 0)


def test_joining_one_of_our_rooms_shows_it_at_once() -> None:
    chat = begun("lobby", "Kitchen", "lobby")
    take(chat, said("Kitchen", 1))
    room, lines = chat.address("/J #kitchen")
    assert room == "lobby"
    assert texts(lines) == ["· you are in Kitchen; 2 are here", "bob  hello"]


def test_leaving_shows_the_previous_room_with_its_unread_messages() -> None:
    chat = begun("kitchen", "lobby", "kitchen")
    assert chat.address("/leave") == ("kitchen", [])
    assert chat.address("hello") == ("lobby", [])
    take(chat, said("lobby", 1))
    assert take(chat, Exited("kitchen", nonce=1)) == [
        "· you have left kitchen",
        "· you are in lobby; 2 are here",
        "bob  hello",
    ]
    assert [room.name for room in chat.rooms] == ["lobby"]


def test_leaving_another_room_shows_nothing_of_it() -> None:
    chat = begun("lobby", "kitchen", "lobby")
    chat.address("/part kitchen")
    take(chat, said("kitchen", 1))
    assert take(chat, Exited("kitchen", nonce=1)) == ["· you have left kitchen"]
    assert chat.rooms.shown.name == "lobby"


def test_on_a_server_with_one_room_joining_moves() -> None:
    chat = begun("lobby")
    assert chat.address("/join kitchen") == ("lobby", [])
    assert chat.address("hello") == ("lobby", [])  # the server decides
    assert take(chat, Entered("kitchen", 1, None)) == ["· you are in kitchen; nobody else is here"]
    assert [room.name for room in chat.rooms] == ["kitchen"]
    assert chat.switch(1) == []


# --- After a reconnect ----------------------------------------------------------------------------


def test_after_a_reconnect_everything_is_as_before() -> None:
    chat = begun("lobby", "kitchen", "lobby", "ops")
    take(chat, said("kitchen", 1, "alice"))
    chat.chat = OurChat(1, "alice", welcome("ops", "kitchen", "lobby", "ops", members=4))
    assert take(chat, Reconnected(resumed=True), said("kitchen", 2)) == ["· Connected again"]
    assert chat.rooms.shown.name == "lobby"
    assert chat.rooms.shown.members == 4
    assert unread(chat) == {"kitchen": (2, 1), "lobby": (0, 0), "ops": (0, 0)}


def test_a_room_that_cannot_be_entered_again_is_left() -> None:
    chat = begun("kitchen", "lobby", "ops", "kitchen")
    take(chat, said("lobby", 1))
    chat.switch(1)
    chat.switch(3)
    chat.chat = OurChat(1, "alice", welcome("ops", "lobby", "ops"))
    refused = Error("too-many-rooms", "there are too many rooms", room="kitchen")
    assert take(chat, Reconnected(resumed=False), refused)[1:] == [
        "· you are in lobby; 2 are here",
        "! kitchen: there are too many rooms",
    ]
    assert [room.name for room in chat.rooms] == ["lobby", "ops"]


@pytest.mark.parametrize("code", ["unknown-id", "storage-failed"])
def test_a_room_with_missing_messages_keeps_its_unread_count(code: str) -> None:
    chat = begun("lobby", "kitchen", "lobby")
    take(chat, said("kitchen", 1, "alice"))
    chat.chat = OurChat(1, "alice", welcome("lobby", "kitchen", "lobby"))
    gaps = [Error(code, "there is a gap", room=room) for room in ("kitchen", "lobby")]
    assert take(chat, Reconnected(resumed=True), *gaps, said("kitchen", 2)) == [
        "· Connected again",
        "! there is a gap",
    ]
    assert unread(chat) == {"kitchen": (2, 1), "lobby": (0, 0)}
    assert [line.split()[0] for line in texts(chat.switch(1))] == ["·", "bob", "!", "bob"]


def test_a_room_that_we_entered_while_the_connection_was_lost_is_shown() -> None:
    chat = begun("lobby", "lobby")
    join(chat, "kitchen", 1)
    chat.chat = OurChat(1, "alice", welcome("kitchen", "lobby", "kitchen"))
    assert take(chat, Reconnected(resumed=True)) == ["· Connected again"]
    assert take(chat, Entered("kitchen", 2, None, nonce=1)) == ["· you are in kitchen; 2 are here"]
    assert chat.rooms.shown.name == "kitchen"


# --- Lists and typing -----------------------------------------------------------------------------


def test_the_rooms_are_listed_with_their_unread_counts() -> None:
    chat = begun("lobby", "lobby", "kitchen")
    take(chat, said("kitchen", 1))
    sizes = RoomList([RoomSize("kitchen", 2), RoomSize("den", 1), RoomSize("lobby", 4)], nonce=1)
    assert take(chat, sizes) == [
        "· rooms and their members:",
        "· lobby 4 (Alt+1)",
        "· kitchen 2 (Alt+2): 1 unread",
        "· den 1",
    ]


def test_only_our_rooms_are_completed_after_leave() -> None:
    chat = begun("lobby", "lobby", "kitchen")
    chat.all_rooms = {"lobby", "kitchen", "kiosk"}
    assert [each.text for each in chat.complete("/join ki")] == ["kiosk", "kitchen"]
    assert [each.text for each in chat.complete("/leave ki")] == ["kitchen"]


def test_the_names_of_the_room_that_is_shown_are_completed() -> None:
    chat = begun("lobby", "lobby", "kitchen")
    take(chat, Joined(2, "bob", "lobby", 3), Joined(3, "bert", "kitchen", 3))
    assert [each.text for each in chat.complete("/msg b")] == ["bob "]
    chat.switch(2)
    assert [each.text for each in chat.complete("/msg b")] == ["bert "]
