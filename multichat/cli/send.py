"""`send`: sends messages and returns when the server has accepted them."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

import trio

from multichat.cli.login import with_option
from multichat.cli.notices import notify, tell
from multichat.cli.piped import Piped, for_pipe, send_input
from multichat.client.connect import Endpoint, dial_first
from multichat.client.descriptions import SPEAKING_TEXT
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.errors import ConnectionLost, MultichatError
from multichat.protocol.text_codec import TEXT

__all__ = ["send"]


async def send(
    endpoint: Endpoint, options: ChatOptions, text: str | None, *, input_fd: int
) -> None:
    """Send *text*, or each line of *input_fd* if it is None; return when all are accepted.

    If the connection is lost, it reconnects and sends again what was not accepted, as long as there
    is progress; see `ClientTimeouts`.

    Raises `ConnectFailed`, or `Refused` or `ConnectionLost` with what was not accepted.  If the
    name is refused, the messages are sent without it.
    """
    options = replace(for_pipe(options), name_required=False)
    dial = partial(endpoint.dial, options.timeouts)
    stream = await dial_first(dial, options)
    waiting = LineChat(stream, options, redial=dial)
    waiting.link.tell_waiting = lambda refused: tell(f"{refused}; waiting")
    async with (
        waiting.open() as chat,
        trio.open_nursery() as nursery,
    ):
        # A message for a room must not be sent to another one.
        chat.check_ready(needs_json=options.room is not None and not options.plain)
        if chat.fell_back:
            await notify(SPEAKING_TEXT)
        nursery.start_soon(_discard_events, chat)
        if (refusal := chat.link.name_refusal) is not None:
            await notify(f"{with_option(refusal.text)}; speaking as {chat.name}")
        piped = Piped(chat)
        with piped.explaining():
            if text is not None:
                piped.note_sent(1, await chat.send(text))
            else:
                await send_input(input_fd, piped, piped.say)
            await chat.finish()
        goodbye = chat.link.goodbye
        # Text acknowledges nothing; over TLS a goodbye answers the `/quit` at our end.
        if goodbye is not None and goodbye.known().code != "quit" and chat.codec is TEXT:
            raise chat.link.rejection or ConnectionLost(goodbye.reason)
        piped.check_refused()
        nursery.cancel_scope.cancel(reason="everything was accepted")


async def _discard_events(chat: LineChat) -> None:
    with suppress(MultichatError):  # the sending task raises it, too
        while await chat.receive():
            pass
