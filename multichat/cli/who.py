"""`who`: lists the members of a room."""

import trio

from multichat.client.connect import Endpoint
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.errors import ConnectionLost

__all__ = ["who"]


async def who(endpoint: Endpoint, options: ChatOptions) -> list[str]:
    """Return a line with the number and the name of each member of the room except ourselves.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, or `NoJson`.
    """
    stream = await endpoint.dial(options.timeouts)
    async with LineChat(stream, options).open() as chat:
        chat.check_ready(needs_json=True)
        with trio.move_on_after(options.timeouts.answer) as timeout:
            members = await chat.members()
        if timeout.cancelled_caught:
            raise ConnectionLost("the server does not answer")
    return [f"{member.client} {member.name}" for member in members if member.client != chat.client]
