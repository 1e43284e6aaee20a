"""Commands that do one thing and leave: `send`, `who`, and `connect --json`, which passes lines on.

Standard output is for what was asked for alone, so that it can be piped; all else is one line on
standard error.
"""

import math
import os
import select
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from multichat.chat import HELLO_SECONDS, Chat
from multichat.client import Endpoint, dial_until_there, open_chat
from multichat.console import ANSWER_SECONDS, read_input
from multichat.conversation import FINISH_AWAY_SECONDS
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    MultichatError,
    NoJson,
    OutputLost,
    Refused,
)
from multichat.handshake import make_hello
from multichat.json_lines import clean_json
from multichat.messages import Disconnected, Error, Goodbye, Reconnected, Welcome
from multichat.voices import JSON, TEXT, spell_hello

__all__ = ["pass_json", "send", "who"]

# Here nothing is said instead of JSON, so that a slow network is given the time that it takes.
WELCOME_SECONDS = 10.0


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
    there is none for `FINISH_AWAY_SECONDS`, that is the end.  For *wait* see
    `multichat.client.connect`.

    Raises `ConnectFailed`, `ConnectionLost`, and `Refused` if the server does not take it.  A
    *name* that cannot be had is no reason not to say it.
    """
    in_hello = name if plain else None
    # What is meant for a room is said nowhere else, however far away the server is.
    hello_seconds = HELLO_SECONDS if room is None else WELCOME_SECONDS
    async with (
        open_chat(
            await _dial(endpoint, wait=wait),
            name=in_hello,
            room=room,
            password=password,
            plain=plain,
            hello_seconds=hello_seconds,
            redial=endpoint.dial,
            wait=wait,
        ) as chat,
        trio.open_nursery() as nursery,
    ):
        _check(chat, needs_json=room is not None and not plain)
        refused: list[Error] = []
        with trio.CancelScope() as patience:
            nursery.start_soon(_note_errors, chat, refused, patience)
            if name is not None and not plain:
                await _try_name(chat, name)
            if text is not None:
                await chat.say(text)
            else:
                async for run in _runs(input_fd):
                    await chat.say(*run.split("\n"))
            await chat.finish()
        if patience.cancelled_caught:
            raise ConnectionLost(f"none for {FINISH_AWAY_SECONDS:.0f} s")
        if chat.goodbye is not None and chat.voice is TEXT:  # and who knows what was heard before
            raise ConnectionLost(chat.goodbye)
        if refused:
            raise Refused(refused[0].code, refused[0].text)
        nursery.cancel_scope.cancel(reason="all was said")


def _check(chat: Chat, *, needs_json: bool) -> None:
    if chat.goodbye is not None:
        raise ConnectionLost(chat.goodbye)
    if needs_json and chat.welcome is None:
        raise NoJson


@asynccontextmanager
async def _answer_in_time() -> AsyncGenerator[None]:
    with trio.move_on_after(ANSWER_SECONDS) as scope:
        yield
    if scope.cancelled_caught:
        raise ConnectionLost("the server does not answer")


async def _try_name(chat: Chat, name: str) -> None:
    if chat.fell_back:
        return
    try:
        async with _answer_in_time():
            await chat.rename(name)
    except Refused as refused:
        print(f"multichat: {refused}; speaking as {chat.name}", file=sys.stderr)  # noqa: T201


async def _runs(fd: int) -> AsyncIterator[str]:
    async for parts in read_input(fd):
        for part in parts:
            if isinstance(part, LineTooLong):
                raise part
            yield part


async def _note_errors(chat: Chat, errors: list[Error], patience: trio.CancelScope) -> None:
    with suppress(MultichatError):  # as who sends will hear
        while events := await chat.receive():
            for event in events:
                if isinstance(event, Error) and event.nonce is not None:  # of what we said
                    errors.append(event)
                elif isinstance(event, Reconnected):
                    patience.deadline = math.inf
                elif isinstance(event, Disconnected) and not event.failures:
                    patience.deadline = trio.current_time() + FINISH_AWAY_SECONDS


async def _dial(endpoint: Endpoint, *, wait: bool) -> trio.abc.Stream:
    return await (dial_until_there(endpoint.dial) if wait else endpoint.dial())


async def who(
    endpoint: Endpoint, *, room: str | None = None, password: str | None = None
) -> list[str]:
    """Return a line for each member of *room* but ourselves: the number, a space, the name.

    Raises `ConnectFailed`, `ConnectionLost`, `Refused`, or `NoJson`.
    """
    stream = await endpoint.dial()
    async with open_chat(
        stream, room=room, password=password, hello_seconds=WELCOME_SECONDS
    ) as chat:
        _check(chat, needs_json=True)
        async with _answer_in_time():
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
        open_chat(stream, password=password, plain=True) as chat,
        trio.open_nursery() as nursery,
    ):
        await chat.send(spell_hello(make_hello(name, room, replay)))
        welcomed = trio.Event()
        if input_fd is not None:
            nursery.start_soon(_pass_input, chat, input_fd, welcomed)
        with trio.move_on_after(WELCOME_SECONDS) as patience:
            last = ""
            try:
                while events := await chat.receive():
                    # As they came: in the text voice every line is an event that is that line.
                    lines = list(map(TEXT.lines, events))
                    if not welcomed.is_set():
                        chat.check_admitted()
                        # Who said something before our hello was read was not talking to us.
                        while lines and not isinstance(_event(lines[0]), Welcome):
                            lines.pop(0)
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
            raise NoJson
        nursery.cancel_scope.cancel(reason="the conversation is over")


def _event(line: str) -> object:
    return next(iter(JSON.parse_events(line)), None) if line else None


async def _pass_input(chat: Chat, fd: int, welcomed: trio.Event) -> None:
    await welcomed.wait()
    async for run in _runs(fd):
        await chat.send(run)
    await chat.finish()


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)  # somebody shares it and made it non-blocking
        except OSError as error:
            raise OutputLost((error.strerror or "").lower()) from error
