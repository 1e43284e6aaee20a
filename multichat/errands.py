"""Commands that do one thing and leave: `send`, `who`, and `connect --json`, which passes lines on.

Standard output is for what was asked for alone, so that it can be piped; all else is one line on
standard error.
"""

import math
import os
import select
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from multichat.chat import Chat
from multichat.client import Endpoint, open_chat
from multichat.console import SPEAKING_TEXT, read_input, try_name
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    MultichatError,
    NoJson,
    OutputLost,
    Refused,
)
from multichat.handshake import make_hello, settles_text
from multichat.json_lines import clean_json
from multichat.messages import Disconnected, Error, Goodbye, Quit, Reconnected, Welcome
from multichat.notices import notify
from multichat.voices import JSON, TEXT, spell_hello

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

    A connection that is lost is followed by another, and what was not accepted is said again; if
    there is none for `ClientTimeouts.away` seconds, that is an error.  For *wait* see
    `multichat.client.connect`.

    Raises `ConnectFailed`, `ConnectionLost`, and `Refused` if the server does not take it.  A
    *name* that cannot be had is no reason not to say it.
    """
    in_hello = name if plain else None
    away = endpoint.timeouts.away
    async with (
        open_chat(
            await _dial(endpoint, wait=wait),
            name=in_hello,
            room=room,
            password=password,
            plain=plain,
            redial=endpoint.dial,
            wait=wait,
            timeouts=endpoint.timeouts,
        ) as chat,
        trio.open_nursery() as nursery,
    ):
        # What is meant for a room is said nowhere else.
        _check(chat, needs_json=room is not None and not plain)
        if chat.fell_back:
            await notify(SPEAKING_TEXT)
        refused: list[Error] = []
        with trio.CancelScope() as patience:
            nursery.start_soon(_note_errors, chat, refused, patience, away)
            if name is not None and not plain and not chat.fell_back:
                not_named = await try_name(chat, name, endpoint.timeouts.answer)
                if not_named is not None:
                    await notify(f"{not_named}; speaking as {chat.name}")
            if text is not None:
                await chat.say(text)
            else:
                async for run in _runs(input_fd):
                    await chat.say(*run.split("\n"))
            await chat.finish()
        if patience.cancelled_caught:
            raise ConnectionLost(f"none for {away:g} s")
        if chat.goodbye is not None and chat.voice is TEXT:  # and who knows what was heard before
            raise ConnectionLost(chat.goodbye)
        if refused:
            raise Refused(refused[0].code, refused[0].text)
        nursery.cancel_scope.cancel(reason="all was said")


def _check(chat: Chat, *, needs_json: bool) -> None:
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


async def _runs(fd: int) -> AsyncIterator[str]:
    async for parts in read_input(fd):
        for part in parts:
            if isinstance(part, LineTooLong):
                raise part
            yield part


async def _note_errors(
    chat: Chat, errors: list[Error], patience: trio.CancelScope, away: float
) -> None:
    with suppress(MultichatError):  # as who sends will hear
        while events := await chat.receive():
            for event in events:
                if isinstance(event, Error) and event.nonce is not None:  # of what we said
                    errors.append(event)
                elif isinstance(event, Reconnected):
                    patience.deadline = math.inf
                elif isinstance(event, Disconnected) and not event.failures:
                    patience.deadline = trio.current_time() + away


async def _dial(endpoint: Endpoint, *, wait: bool) -> trio.abc.Stream:
    return await (endpoint.dial_until_there() if wait else endpoint.dial())


async def who(
    endpoint: Endpoint, *, room: str | None = None, password: str | None = None
) -> list[str]:
    """Return a line for each member of *room* but ourselves: the number, a space, the name.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, or `NoJson`.
    """
    stream = await endpoint.dial()
    async with open_chat(stream, room=room, password=password, timeouts=endpoint.timeouts) as chat:
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
    stream = await _dial(endpoint, wait=wait)
    async with (
        open_chat(stream, password=password, plain=True, timeouts=endpoint.timeouts) as chat,
        trio.open_nursery() as nursery,
    ):
        await chat.send(spell_hello(make_hello(name, room, replay)))
        welcomed = trio.Event()
        if input_fd is not None:
            nursery.start_soon(_pass_input, chat, input_fd, welcomed)
        with trio.move_on_after(endpoint.timeouts.answer) as patience:
            last = ""
            try:
                while events := await chat.receive():
                    # As they came: in the text voice every line is an event that is that line.
                    lines = list(map(TEXT.lines, events))
                    if not welcomed.is_set():
                        chat.check_admitted()
                        # Chat in the lobby may come before the server has read our hello.
                        while lines and not isinstance(_event(lines[0]), Welcome):
                            if settles_text(next(iter(TEXT.parse_events(lines.pop(0))))):
                                raise NoJson
                        if not lines:
                            _check(chat, needs_json=False)
                            continue
                        patience.deadline = float("inf")
                        welcomed.set()
                    last = lines[-1]
                    data = "".join(f"{clean_json(line)}\n" for line in lines).encode()
                    await trio.to_thread.run_sync(
                        _write_all, output_fd, data, abandon_on_cancel=True
                    )
            except ConnectionLost:
                if not isinstance(_event(last), Goodbye):
                    raise
            _check(chat, needs_json=False)
        if patience.cancelled_caught:
            raise NoJson(endpoint.timeouts.answer)
        nursery.cancel_scope.cancel(reason="the conversation is over")


def _event(line: str) -> object:
    return next(iter(JSON.parse_events(line)), None) if line else None


async def _pass_input(chat: Chat, fd: int, welcomed: trio.Event) -> None:
    await welcomed.wait()
    async for run in _runs(fd):
        await chat.send(run)
    await chat.finish(end_line=JSON.spell_request(Quit()))


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)  # somebody shares it and made it non-blocking
        except OSError as error:
            raise OutputLost((error.strerror or "").lower()) from error
