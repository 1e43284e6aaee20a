"""Commands that do one thing and leave: `send`, `who`, and `connect --json`, which passes lines on.

Standard output is for what was asked for alone, so that it can be piped; all else is one line on
standard error.
"""

import math
import os
import select
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import trio

from multichat.chat import Chat
from multichat.client import Endpoint, open_chat
from multichat.connection import MAX_WAIT_SECONDS
from multichat.console import SPEAKING_TEXT, read_input, try_name
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    MultichatError,
    NoJson,
    OutputLost,
    Refused,
)
from multichat.handshake import check_welcome, make_hello, settles_text
from multichat.json_lines import clean_json
from multichat.messages import (
    Accepted,
    Disconnected,
    Error,
    Event,
    Goodbye,
    Quit,
    Reconnected,
    Welcome,
)
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
    there is none for `ClientTimeouts.away` seconds, or nothing is accepted, that is an error.  For
    *wait* see `multichat.client.connect`.

    Raises `ConnectFailed`, `ConnectionLost`, and `Refused` if the server does not take it.  A
    *name* that cannot be had is no reason not to say it.
    """
    async with (
        open_chat(
            await _dial(endpoint, wait=wait),
            name=name if plain else None,
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
        sender = _Sender(chat, endpoint.timeouts.away)
        nursery.start_soon(sender.receive)
        with sender.limited():
            if name is not None and not plain and not chat.fell_back:
                not_named = await try_name(chat, name, endpoint.timeouts.answer)
                if not_named is not None:
                    await notify(f"{not_named}; speaking as {chat.name}")
            if text is not None:
                await sender.say([text])
            else:
                async for run in _runs(input_fd):
                    await sender.say(run.split("\n"))
            await chat.finish()
        if chat.goodbye is not None and chat.voice is TEXT:  # and who knows what was heard before
            raise ConnectionLost(chat.goodbye)
        if sender.errors:
            raise Refused(sender.errors[0].code, sender.errors[0].text)
        nursery.cancel_scope.cancel(reason="all was said")


class _Sender:
    """The messages of one `send`, and how long the server may take to accept one of them.

    The limit is *away* seconds, and what the server may wait for slow clients; without a connection
    it is *away* seconds for another.  *errors* are the server's answers to what it did not accept.
    """

    def __init__(self, chat: Chat, away: float) -> None:
        self._chat, self._away = chat, away
        self._scope = trio.CancelScope()
        self._sent = self._accepted = 0
        self.errors: list[Error] = []
        chat.tells_accepted = True

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Run the block within the limit; an error says how many messages were accepted."""
        reason = ""
        with self._scope:
            try:
                yield
            except ConnectionLost as error:
                reason = error.reason
        if self._scope.cancelled_caught:
            reason = f"nothing was accepted in {self._limit:g} s"
            if not self._chat.connected:
                reason = f"there was no other in {self._away:g} s"
        if not reason:
            return
        if self._chat.welcome is not None and self._accepted < self._sent:
            reason += f"; {self._accepted} of {self._sent} messages were accepted"
        raise ConnectionLost(reason)

    async def say(self, texts: list[str]) -> None:
        """Say *texts*, each as one message."""
        self._sent += len(texts)
        if self._scope.deadline == math.inf and self._chat.welcome is not None:
            self._scope.deadline = trio.current_time() + self._limit
        await self._chat.say(*texts)
        if not self._chat.unaccepted:
            self._scope.deadline = math.inf

    async def receive(self) -> None:
        """Receive the answers, until there are no more."""
        with suppress(MultichatError):  # whoever sends gets it, too
            while events := await self._chat.receive():
                for event in events:
                    self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case Accepted():
                self._accepted += 1
            case Error(nonce=nonce) if nonce is not None:  # the answer to a message
                self.errors.append(event)
            case Disconnected(failures=0):
                self._scope.deadline = trio.current_time() + self._away
                return
            case Reconnected():
                pass
            case _:
                return
        if self._chat.unaccepted:
            self._scope.deadline = trio.current_time() + self._limit
        else:
            self._scope.deadline = math.inf

    @property
    def _limit(self) -> float:
        welcome = self._chat.welcome
        wait = 0.0 if welcome is None else welcome.limits.wait
        return self._away + min(max(0.0, wait), MAX_WAIT_SECONDS)


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
                            check_welcome(lines[0])
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
