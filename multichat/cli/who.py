"""`who`: lists the members of a room."""

import trio

from multichat.client.connect import Endpoint
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.errors import ConnectionLost
from multichat.protocol.messages import room_of

__all__ = ["who"]


async def who(endpoint: Endpoint, options: ChatOptions, room: str | None = None) -> list[str]:
    """Return a line with the number and the name of each member of *room* except ourselves.

    Asks from the lobby, which is also the default, so that no room is opened.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, or `NoJson`.
    """
    stream = await endpoint.dial(options.timeouts)
    async with LineChat(stream, options).open() as chat:
        chat.check_ready(needs_json=True)
        with trio.move_on_after(options.timeouts.answer) as timeout:
            members = await chat.members(None if room is None else room_of(room))
        if timeout.cancelled_caught:
            raise ConnectionLost("the server does not answer")
    return [f"{member.client} {member.name}" for member in members if member.client != chat.client]
