"""`connect --json`: passes JSON lines between a server and standard input and output."""

import os
import select
from dataclasses import replace

import trio

from multichat.cli.piped import Piped, for_pipe, send_input
from multichat.client.connect import Endpoint
from multichat.client.line_chat import LineChat
from multichat.client.negotiation import check_welcome, make_hello, settles_text
from multichat.errors import ConnectionLost, NoJson, OutputLost
from multichat.protocol.json_codec import JSON, encode_hello
from multichat.protocol.json_lines import clean_json
from multichat.protocol.messages import Goodbye, Quit, Welcome
from multichat.protocol.text_codec import TEXT

__all__ = ["pass_json"]


async def pass_json(
    endpoint: Endpoint,
    *,
    input_fd: int | None,
    output_fd: int,
    name: str | None = None,
    room: str | None = None,
    password: str | None = None,
    replay: int = 0,
    wait: bool = False,
) -> None:
    """Pass JSON lines from *input_fd* to a server and from the server to *output_fd*.

    The first line of the output is the `welcome`.  Strings are filtered, as the server may be
    hostile.  Ends as `Console.run` does, and when the connection is lost: it cannot reconnect,
    because only the program knows which of its lines were answered.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, `OutputLost`, or `NoJson`.
    """
    timeouts = for_pipe(endpoint.timeouts)
    if input_fd is not None:  # the server closes after our `quit`: then it has received everything
        timeouts = replace(timeouts, finish=timeouts.progress)
    stream = await (endpoint.dial_until_there() if wait else endpoint.dial())
    async with (
        LineChat(stream, password=password, plain=True, timeouts=timeouts).open() as chat,
        trio.open_nursery() as nursery,
    ):
        piped = Piped(chat)
        await chat.send_lines(encode_hello(make_hello(name, room, replay)))
        welcomed = trio.Event()
        if input_fd is not None:
            nursery.start_soon(_pass_input, chat, piped, input_fd, welcomed)
        with trio.move_on_after(timeouts.answer) as timeout:
            last = ""
            try:
                while events := await chat.receive():
                    # Unchanged: in the text protocol every line is an event.
                    lines = list(map(TEXT.format, events))
                    if not welcomed.is_set():
                        chat.link.check_admitted()
                        # Messages in the lobby may come before the server has read our hello.
                        while lines and not isinstance(_event(lines[0]), Welcome):
                            check_welcome(lines[0])
                            if settles_text(next(iter(TEXT.parse_events(lines.pop(0))))):
                                raise NoJson
                        if not lines:
                            chat.check_ready()
                            continue
                        timeout.deadline = float("inf")
                        welcomed.set()
                    last = lines[-1]
                    data = "".join(f"{clean_json(line)}\n" for line in lines).encode()
                    await trio.to_thread.run_sync(
                        _write_all, output_fd, data, abandon_on_cancel=True
                    )
                if not chat.link.connection.ended:
                    raise ConnectionLost("the server does not end the conversation")  # noqa: TRY301
            except ConnectionLost as error:
                if not isinstance(_event(last), Goodbye):
                    raise piped.explain(error) from None
            chat.check_ready()
        if timeout.cancelled_caught:
            raise NoJson(timeouts.answer)
        nursery.cancel_scope.cancel(reason="the conversation is over")


def _event(line: str) -> object:
    return next(iter(JSON.parse_events(line)), None) if line else None


async def _pass_input(chat: LineChat, piped: Piped, fd: int, welcomed: trio.Event) -> None:
    await welcomed.wait()
    with piped.explaining():
        await send_input(fd, piped, piped.pass_lines)
        await chat.finish(end_line=JSON.encode_request(Quit()))


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)  # another process made it non-blocking
        except OSError as error:
            raise OutputLost((error.strerror or "").lower()) from error
