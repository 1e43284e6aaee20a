"""Conversations of a terminal client without a terminal and without a connection."""

from dataclasses import dataclass

from multichat.protocol.messages import Limits, RoomState, Welcome
from multichat.terminal.conversation import Conversation
from multichat.terminal.render import Line


@dataclass
class OurChat:
    """What a conversation reads of a chat."""

    client: int
    name: str
    welcome: Welcome | None


def welcome(room: str, *rooms: str, last: str | None = None, members: int = 2) -> Welcome:
    """Return a welcome in *room*, and with *rooms* if the server has several."""
    states = {name: RoomState(members, last) for name in rooms} or None
    return Welcome(
        protocol=1,
        client=1,
        name="alice",
        room=room,
        members=members,
        limits=Limits(65536, 32),
        last=last,
        server="test",
        resumed=False,
        rooms=states,
    )


def begun(room: str, *rooms: str, last: str | None = None) -> Conversation:
    """Return the conversation of alice, which has been welcomed; see `welcome`."""
    conversation = Conversation("", "")
    greeting = welcome(room, *rooms, last=last)
    conversation.chat = OurChat(1, "alice", greeting)
    conversation.begin(greeting)
    return conversation


def texts(lines: list[Line]) -> list[str]:
    """Return the lines without their times; those that only alert are `(alert)`."""
    return [
        "".join(text for _, text in line.fragments[1:]) if line.fragments else "(alert)"
        for line in lines
    ]
