"""Commands that do one thing and leave: `send`, `who`, and `connect --json`, which passes lines on.

Standard output is for what was asked for alone, so that it can be piped; all else is one line on
standard error.
"""

import os
import select
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace

import trio

from multichat.cli.notices import notify
from multichat.cli.piped import Piped, for_pipe
from multichat.client.connect import Endpoint
from multichat.client.line_chat import LineChat
from multichat.client.negotiation import check_welcome, make_hello, settles_text
from multichat.client.status import SPEAKING_TEXT
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    MultichatError,
    NoJson,
    OutputLost,
    Refused,
)
from multichat.protocol.json_codec import JSON, encode_hello
from multichat.protocol.json_lines import clean_json
from multichat.protocol.messages import Error, Goodbye, Quit, Welcome
from multichat.protocol.text_codec import TEXT
from multichat.stdio import read_input

__all__ = ["pass_json", "send", "who"]


async def send(
    endpoint: Endpoint,
    text: str | None,
    *,
    input_fd: int,
    name: str | None = None,
    room: str | None = None,
    password: str | None = None,
    plain: bool = False,
    wait: bool = False,
) -> None:
    """Say *text*, or without one each line of *input_fd*, and leave when all is accepted.

    A connection that is lost is followed by another, and what was not accepted is said again, as
    long as there is progress as `ClientTimeouts` want it.  For *wait* see
    `multichat.client.connect.connect`.

    Raises `ConnectFailed`, `ConnectionLost`, which says what was not accepted, and `Refused` if the
    server does not take it.  A *name* that cannot be had is no reason not to say it.
    """
    timeouts = for_pipe(endpoint.timeouts)
    async with (
        LineChat(
            await _dial(endpoint, wait=wait),
            name=name if plain else None,
            room=room,
            password=password,
            plain=plain,
            redial=endpoint.dial,
            wait=wait,
            timeouts=timeouts,
        ).open() as chat,
        trio.open_nursery() as nursery,
    ):
        # What is meant for a room is said nowhere else.
        _check(chat, needs_json=room is not None and not plain)
        if chat.fell_back:
            await notify(SPEAKING_TEXT)
        errors: list[Error] = []
        nursery.start_soon(_receive_errors, chat, errors)
        if name is not None and not plain and not chat.fell_back:
            not_named = await chat.try_rename(name, timeouts.answer)
            if not_named is not None:
                await notify(f"{not_named}; speaking as {chat.name}")
        piped = Piped(chat)
        with piped.explaining():
            if text is not None:
                await chat.send(text)
            else:
                await _send_input(input_fd, piped, piped.say)
            await chat.finish()
        if chat.goodbye is not None and chat.codec is TEXT:  # and who knows what was heard before
            raise ConnectionLost(chat.goodbye)
        if errors:
            raise Refused(errors[0].code, errors[0].text)
        nursery.cancel_scope.cancel(reason="all was said")


async def _receive_errors(chat: LineChat, errors: list[Error]) -> None:
    """Receive until there is nothing more; keep the answers to messages that were not accepted."""
    with suppress(MultichatError):  # whoever sends gets it, too
        while events := await chat.receive():
            errors += [
                each for each in events if isinstance(each, Error) and each.nonce is not None
            ]


def _check(chat: LineChat, *, needs_json: bool) -> None:
    if chat.goodbye is not None:
        raise ConnectionLost(chat.goodbye)
    if needs_json and chat.welcome is None:
        raise NoJson if chat.connected else ConnectionLost("the server closed the connection")


@asynccontextmanager
async def _answer_in(seconds: float) -> AsyncGenerator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ConnectionLost("the server does not answer")


async def _send_input(fd: int, piped: Piped, send: Callable[[str], Awaitable[None]]) -> None:
    """Read *fd* to its end and *send* its lines; raises `LineTooLong`, and as *send* does."""
    async with aclosing(read_input(fd)) as reads:
        async for parts in reads:
            for part in parts:
                if isinstance(part, LineTooLong):
                    raise part
                piped.note_read(part)
                await send(part)
    piped.all_read = True


async def _dial(endpoint: Endpoint, *, wait: bool) -> trio.abc.Stream:
    return await (endpoint.dial_until_there() if wait else endpoint.dial())


async def who(
    endpoint: Endpoint, *, room: str | None = None, password: str | None = None
) -> list[str]:
    """Return a line for each member of *room* but ourselves: the number, a space, the name.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, or `NoJson`.
    """
    stream = await endpoint.dial()
    chat = LineChat(stream, room=room, password=password, timeouts=endpoint.timeouts)
    async with chat.open():
        _check(chat, needs_json=True)
        async with _answer_in(endpoint.timeouts.answer):
            members = await chat.members()
    return [f"{member.client} {member.name}" for member in members if member.client != chat.client]


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

    The first line that comes out is the `welcome`.  Strings are filtered: a server may be hostile,
    too.  Ends as `Console.run` does, and with the connection: nobody but the program knows what of
    its lines was answered, so nobody can go on for it.  Raises `ConnectFailed`, `ConnectionLost`,
    `Refused`, `OutputLost`, or `NoJson`.
    """
    timeouts = for_pipe(endpoint.timeouts)
    if input_fd is not None:  # a server that speaks JSON ends when we do, and only that says that
        timeouts = replace(timeouts, finish=timeouts.progress)  # it has heard everything
    stream = await _dial(endpoint, wait=wait)
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
                    # As they came: in the text protocol every line is an event that is that line.
                    lines = list(map(TEXT.format, events))
                    if not welcomed.is_set():
                        chat.link.check_admitted()
                        # Chat in the lobby may come before the server has read our hello.
                        while lines and not isinstance(_event(lines[0]), Welcome):
                            check_welcome(lines[0])
                            if settles_text(next(iter(TEXT.parse_events(lines.pop(0))))):
                                raise NoJson
                        if not lines:
                            _check(chat, needs_json=False)
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
            _check(chat, needs_json=False)
        if timeout.cancelled_caught:
            raise NoJson(timeouts.answer)
        nursery.cancel_scope.cancel(reason="the conversation is over")


def _event(line: str) -> object:
    return next(iter(JSON.parse_events(line)), None) if line else None


async def _pass_input(chat: LineChat, piped: Piped, fd: int, welcomed: trio.Event) -> None:
    await welcomed.wait()
    with piped.explaining():
        await _send_input(fd, piped, piped.pass_lines)
        await chat.finish(end_line=JSON.encode_request(Quit()))


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)  # somebody shares it and made it non-blocking
        except OSError as error:
            raise OutputLost((error.strerror or "").lower()) from error
