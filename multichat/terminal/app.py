"""A chat on a terminal: what one types to the server, what happens to the screen.

Owns what is local to whoever sits there: the local commands of `multichat.protocol.commands`, whom
they do not want to hear, who and what can be completed, and what was said and is not yet accepted.
The terminal itself is `prompt`'s, the look of things `look`'s.

What we say is shown pending until the server has accepted it, and then where the room has it, in
the one order that everybody sees.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from multichat.client.chat import Chat
from multichat.client.connect import Endpoint, open_chat
from multichat.client.status import (
    LEAVES_WHEN_SENT,
    SPEAKING_TEXT,
    describe_retry,
    refused_name,
    waiting_for_server,
)
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    MultichatError,
    Refused,
)
from multichat.protocol.commands import COMMANDS, split_command
from multichat.protocol.messages import (
    NO_SENDER,
    Accepted,
    Act,
    Direct,
    Directed,
    Disconnected,
    Error,
    Event,
    HistoryPage,
    Joined,
    Left,
    Members,
    Nonce,
    Presence,
    Reconnected,
    Renamed,
    Request,
    Said,
    SayBlock,
    Welcome,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import disguised_command, looks_like, say_literally
from multichat.stdio import until_signal
from multichat.terminal.completion import Completion, complete, expand_reply
from multichat.terminal.event_loop import run_beside_prompt
from multichat.terminal.input_history import History, keeps
from multichat.terminal.input_line import Syntax
from multichat.terminal.prompt import Prompt, Show, open_prompt
from multichat.terminal.render import DIM, WARNING, Fragments, Line, Renderer, Us

__all__ = ["TerminalChat"]

# Who comes and goes in a storm is told as numbers, after which we ask for the names: a thousand of
# them are 30 KiB, which nobody needs to complete a name every second.
_ASK_AGAIN_SECONDS = 10.0

# Sooner, where somebody came or went while we asked: the answer may be older.
_ASK_AGAIN_SOON_SECONDS = 1.0

# Names and rooms that are offered for completion, however many a server tells of.
_MAX_TRIED_BYTES = 4096

# How often we look whether all is accepted, where the terminal is gone.
_LOOK_AGAIN_SECONDS = 0.1

# How often the status counts down to the next try to reconnect.
_COUNT_DOWN_SECONDS = 1.0

# Of the lines that wait for a connection; the rows for them are fewer.
_SHOWN_WAITING = 10

# How many lines that were never sent are shown in the end; all are in the input history.
_SHOWN_UNSENT = 10


class TerminalChat:
    """One run of `connect` on a terminal; `run` is called once.

    For *replay*, *reconnect* and *wait* see `multichat.client.connect.connect`.  *history* is where
    what is typed is kept.  *bell* rings for what is meant for us in particular.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        history: History,
        name: str | None = None,
        room: str | None = None,
        password: str | None = None,
        plain: bool = False,
        replay: int = 0,
        reconnect: bool = True,
        wait: bool = False,
        color: bool = True,
        bell: bool = False,
    ) -> None:
        self._endpoint, self._history = endpoint, history
        self._name, self._room, self._plain = name, room, plain
        self._password = password
        self._replay, self._reconnect, self._wait = replay, reconnect, wait
        self._color, self._bell = color, bell
        self._renderer = Renderer()
        self._prompt: Prompt
        self._chat: Chat | None = None
        self._state = "connecting"  # empty while all is well
        self._retrying = ""  # which try to reconnect is next, while the connection is lost
        self._connected_at = 0.0
        self._room_at_first = self._last = ""  # where we came in, and the last message there then
        self._sent = self._received = 0
        self._unsent: Sequence[Request] = ()  # what is on its way to be sent
        self._waiting: dict[Nonce, Request] = {}  # sent and not answered, the oldest first
        self._early: set[Nonce] = set()  # what was answered before it was known to be sent
        self._ignored: dict[str, str] = {}  # folded: as they were typed
        self._renamed: dict[int, str] = {}  # clients and the ignored names that they had, folded
        self._names: set[str] = set()
        self._rooms: set[str] = set()
        self._members = 0
        self._changes = 0  # how many events have changed these
        self._names_stale = trio.Event()
        self._lost = trio.Event()  # set for each try to reconnect
        self._failure: MultichatError | None = None
        self._leaving = False  # by our own wish
        self._over: list[str] = []  # what was entered when the conversation was over
        self._last_direct: Directed | None = None  # the last private message that was shown

    def run(self) -> None:
        """Connect and talk until we leave, the server closes, or a signal ends it.

        Not inside of trio: it begins and ends it.  Raises as `Console.run` does.  The terminal is
        left as it was.
        """
        run_beside_prompt(partial(until_signal, self._run))

    async def _run(self) -> None:
        history = await trio.to_thread.run_sync(self._history.load)
        syntax = Syntax(disguised_command, looks_like, say_literally, self._audience, self._expand)
        show = Show(self._status, self._pending, self._complete, syntax, self._warn)
        async with open_prompt(show, history=history, color=self._color) as self._prompt:
            try:
                try:
                    await self._converse()
                finally:
                    self._tell_unaccepted()
            except MultichatError:
                await self._wait_for_line()
                raise
            else:
                await self._wait_for_line()
            finally:
                self._tell_unsent()

    async def _wait_for_line(self) -> None:
        """Where the conversation ended while a line was being typed, keep it from the shell."""
        if self._leaving:
            return
        if self._prompt.is_begun:
            self._told("The conversation is over; Enter leaves", warning=True)
            self._state = "not connected"
            self._prompt.close_after_next()
            self._over += [line async for line in self._prompt.typed]
        self._prompt.discard_input()

    async def _converse(self) -> None:
        self._told(f"Connecting to {self._endpoint}")
        if self._wait:
            stream = await self._endpoint.dial_until_there(self._tell_failure)
        else:
            stream = await self._endpoint.dial()
        self._connected_at = trio.current_time()
        async with open_chat(
            stream,
            name=self._name if self._plain else None,  # else a refusal need not be the end
            room=self._room,
            password=self._password,
            plain=self._plain,
            replay=self._replay,
            redial=self._endpoint.dial if self._reconnect else None,
            wait=self._wait,
            timeouts=self._endpoint.timeouts,
        ) as chat:
            self._chat = chat
            chat.tells_accepted = True
            await self._introduce(chat)
            await self._talk(chat)

    def _tell_failure(self, error: ConnectFailed) -> None:
        self._told(waiting_for_server(error))

    async def _introduce(self, chat: Chat) -> None:
        self._state = ""
        if chat.fell_back:
            self._told(SPEAKING_TEXT)
        if chat.welcome is not None:
            if self._name is not None:
                seconds = self._endpoint.timeouts.answer
                refused = await chat.try_rename(self._name, seconds)
                if refused is not None:
                    self._told(refused_name(refused), warning=True)
            self._room_at_first, self._last = chat.welcome.room, chat.welcome.last or ""
            self._show_event(msgspec.structs.replace(chat.welcome, name=chat.name))
        else:
            self._told("Connected")

    async def _talk(self, chat: Chat) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_typed, chat, nursery.cancel_scope)
            nursery.start_soon(self._ask_names, chat)
            nursery.start_soon(self._count_down, chat)
            if self._name is not None and chat.welcome is not None:
                nursery.start_soon(chat.keep_name, self._name)
            try:
                await self._show_events(chat)
            except MultichatError as error:
                self._failure = self._failure or error
            nursery.cancel_scope.cancel(reason="the conversation is over")
        if chat.goodbye is not None and isinstance(self._failure, ConnectionLost):
            return  # we have been told, and shown, why
        if self._failure is not None:
            raise self._failure

    def _tell_unaccepted(self) -> None:
        for request in (*self._waiting.values(), *self._unsent):
            for line in self._renderer.typed(request, self._us, _now()):
                text = "".join(text for _, text in line.fragments)
                self._told(f"not accepted: {text}", warning=True)

    def _tell_unsent(self) -> None:
        """Say what was typed and never sent, and keep it for the next time."""
        lines = [line for line in (*self._over, *self._prompt.take_unsent()) if keeps(line)]
        for line in lines[:_SHOWN_UNSENT]:
            self._told(f"not sent: {line}", warning=True)
        if len(lines) > _SHOWN_UNSENT:
            self._told(f"not sent: {len(lines) - _SHOWN_UNSENT} more lines", warning=True)
        self._history.append(*lines)

    # --- What happens -----------------------------------------------------------------------------

    async def _show_events(self, chat: Chat) -> None:
        while events := await chat.receive():
            lines: list[Line] = []
            for event in events:
                lines += self._take(event)
            self._show(lines)

    def _show_event(self, event: Event) -> None:
        self._show(self._take(event))

    def _take(self, event: Event) -> list[Line]:
        """Note what an event tells, and return how that looks."""
        self._note(event)
        before: list[Line] = []
        match event:
            case Accepted(nonce=nonce):
                return self._settle(nonce)
            case Error(nonce=nonce) if nonce is not None:
                before = self._settle(nonce)
            case Error(code=LineTooLong.code):
                hint = "it was not sent; the arrow key up brings it back"
                return [
                    *self._renderer.event(event, self._us, _now()),
                    *self._renderer.told(hint, _now(), warning=True),
                ]
            case Said() | Directed():
                self._received += 1
                if self._is_ignored(event):
                    return []
                if isinstance(event, Directed) and event.client:  # not in the text protocol
                    self._last_direct = event
            case Reconnected(resumed=False):
                self._last_direct = None
            case Renamed(client=client, old=old) if fold_name(old) in self._ignored:
                if len(self._renamed) < _MAX_TRIED_BYTES:
                    self._renamed[client] = fold_name(old)
            case HistoryPage(messages=messages):
                heard = [said for said in messages if not self._is_ignored(said)]
                event = msgspec.structs.replace(event, messages=heard)
        lines = self._renderer.event(event, self._us, _now())
        if isinstance(event, Said) and self._is_replayed(event):
            lines = [line._replace(calls=False) for line in lines]
        return [*before, *lines]

    def _is_replayed(self, said: Said) -> bool:
        """Say whether it was said before we came in; what is missed later is not."""
        return said.room == self._room_at_first and "" < said.id <= self._last

    def _is_ignored(self, said: Said | Directed) -> bool:
        names = {fold_name(said.name), self._renamed.get(said.client)}
        return not self._ignored.keys().isdisjoint(names)

    def _settle(self, nonce: Nonce | None) -> list[Line]:
        """Return how something looks that we said and that is not pending any more."""
        if nonce in self._waiting:
            return self._renderer.typed(self._waiting.pop(nonce), self._us, _now())
        if nonce is not None and self._unsent:
            self._early.add(nonce)
        return []

    def _note(self, event: Event) -> None:
        """Keep what the status shows, and whom one may want to name."""
        self._changes += isinstance(event, Joined | Left | Renamed)
        match event:
            case Welcome(members=members):
                self._members = members
                self._names_stale.set()
            case Joined(room="", name=name, members=members):
                self._members = members or self._members + 1
                self._try_send(name)
            case Joined(members=members):
                self._members = members
                self._names_stale.set()
            case Left(name=name, members=members):
                self._members = members or max(1, self._members - 1)
                self._names.discard(name)
            case Renamed(old=old, name=name):
                self._names.discard(old)
                self._try_send(name)
            case Presence(members=members):
                self._members = members
                self._names_stale.set()
            case Disconnected():
                self._lost.set()
            case Reconnected():
                self._retrying, self._connected_at = "", trio.current_time()
                self._names_stale.set()
            case Members(room=room, members=members) if self._is_here(room):
                self._members = len(members)
                self._names = {member.name for member in members[:_MAX_TRIED_BYTES]}

    def _try_send(self, name: str) -> None:
        if len(self._names) < _MAX_TRIED_BYTES:
            self._names.add(name)

    async def _count_down(self, chat: Chat) -> None:
        """While the connection is lost, have the status say which try is next, and when."""
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            while (retry := chat.retry) is not None:
                self._retrying = describe_retry(retry.number, retry.at - trio.current_time())
                self._prompt.refresh()
                with trio.move_on_after(_COUNT_DOWN_SECONDS):
                    await self._lost.wait()
                self._lost = trio.Event()
            self._retrying = ""
            self._prompt.refresh()

    async def _ask_names(self, chat: Chat) -> None:
        """Ask who and what can be completed, when that has changed without our being told."""
        while chat.welcome is not None:
            await self._names_stale.wait()
            self._names_stale = trio.Event()
            before = self._changes
            try:
                members, rooms = await chat.members(), await chat.rooms()
            except (ConnectionLost, LocalProtocolError, Refused):
                continue  # whoever reads hears of what matters
            self._names = {member.name for member in members[:_MAX_TRIED_BYTES]}
            self._members = len(members)
            self._rooms = {room.room for room in rooms[:_MAX_TRIED_BYTES]}
            self._prompt.refresh()
            if self._changes == before:
                await trio.sleep(_ASK_AGAIN_SECONDS)
            else:
                self._names_stale.set()
                await trio.sleep(_ASK_AGAIN_SOON_SECONDS)

    # --- What is typed ----------------------------------------------------------------------------

    async def _send_typed(self, chat: Chat, scope: trio.CancelScope) -> None:
        try:
            async for line in self._prompt.typed:
                if not await self._obey(chat, line):
                    break
                await trio.to_thread.run_sync(self._history.append, line)
            self._leaving = True
            self._state = "leaving"
            self._prompt.refresh()
            gone = self._prompt.is_gone
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as end:
                    nursery.start_soon(self._limit_end, chat, end, gone)
                    await chat.finish()
                nursery.cancel_scope.cancel(reason="the conversation has ended")
            if end.cancelled_caught:
                if gone:
                    self._failure = ConnectionLost("the terminal is gone")
                await chat.end()
                scope.cancel(reason="the server does not end")
        except MultichatError as error:
            self._failure = self._failure or error

    async def _limit_end(self, chat: Chat, end: trio.CancelScope, gone: bool) -> None:
        """Do not wait long for a server that goes on sending when all was accepted.

        In text nothing is accepted; there Ctrl+C ends the waiting, unless the terminal is *gone*.
        """
        timeouts, is_text = self._endpoint.timeouts, chat.welcome is None
        if is_text and not gone:
            return
        with trio.move_on_after(timeouts.progress if gone else math.inf):
            # Nothing tells when bytes have been handed to the system.
            while chat.unaccepted or (is_text and chat.waiting_bytes):  # noqa: ASYNC110
                await trio.sleep(_LOOK_AGAIN_SECONDS)
        end.deadline = trio.current_time() + timeouts.finish

    async def _obey(self, chat: Chat, line: str) -> bool:
        """Do what a typed line asks for; return False when it is time to leave."""
        word, rest = split_command(line) if line.startswith("/") else ("", "")
        command = COMMANDS.find(word)
        match command and command.name:
            case "/quit" if not rest.strip():
                if not chat.connected and chat.unaccepted:
                    self._told(self._describe(chat))
                    self._told(LEAVES_WHEN_SENT)
                return False
            case "/status":
                self._told(self._describe(chat))
            case "/clear":
                self._prompt.clear()
            case "/ignore":
                self._ignore(rest.strip().removeprefix("@"))
            case "/help":
                for each in COMMANDS.help_lines(local=True):
                    self._told(each)
                await self._say(chat, line)
            case "/r" if rest and chat.welcome is not None:
                # There is no sender to answer: else the line would name one.  An ignored one does
                # not count.
                self._told(NO_SENDER, warning=True)
            case _:
                await self._say(chat, line)
        return True

    async def _say(self, chat: Chat, line: str) -> None:
        said = list(map(self._with_name, _said_by(line)))
        self._unsent = said
        self._prompt.refresh()
        nonces = await chat.send(line)
        self._unsent = ()
        self._sent += len(said)
        for request, nonce in zip(said, nonces, strict=False):
            if nonce is None:  # too long
                continue
            self._waiting[nonce] = request
            if nonce in self._early:
                self._show(self._settle(nonce))
        self._early.clear()
        if chat.codec is TEXT:  # in which nobody says what is accepted
            self._show(
                [line for each in said for line in self._renderer.typed(each, self._us, _now())]
            )

    def _with_name(self, request: SayBlock | Act | Direct) -> SayBlock | Act | Direct:
        """Return *request* as it is shown: an answer to a private message names its sender."""
        last = self._last_direct
        if last is not None and isinstance(request, Direct) and request.to == last.client:
            return msgspec.structs.replace(request, to=last.name)
        return request

    def _ignore(self, name: str) -> None:
        if not name:
            listed = ", ".join(sorted(self._ignored.values())) or "nobody"
            self._told(f"ignored: {listed}")
        elif self._ignored.pop(fold_name(name), None) is not None:
            self._told(f"{name} is not ignored any more")
        else:
            self._ignored[fold_name(name)] = name
            self._told(f"{name} is ignored; the same again ends it")

    # --- What is seen -----------------------------------------------------------------------------

    @property
    def _us(self) -> Us:
        if self._chat is None:
            return Us(name=self._name or "")
        return Us(self._chat.client, self._chat.name)

    def _told(self, text: str, *, warning: bool = False) -> None:
        self._show(self._renderer.told(text, _now(), warning=warning))

    def _warn(self, text: str) -> None:
        self._told(text, warning=True)

    def _show(self, lines: Sequence[Line]) -> None:
        self._prompt.show([line.fragments for line in lines])
        if self._bell and any(line.calls for line in lines):
            self._prompt.ring()
        self._prompt.refresh()

    def _is_here(self, room: str) -> bool:
        return self._chat is None or fold_name(room) == fold_name(self._chat.room)

    def _describe(self, chat: Chat) -> str:
        waiting = len(self._waiting) + len(self._unsent)
        if not chat.connected:
            return f"Not connected; {waiting} waiting to be sent"
        seconds = trio.current_time() - self._connected_at
        unaccepted = f", {waiting} not accepted" if waiting else ""
        return (
            f"Connected to {self._endpoint} for {seconds:.0f} s; "
            f"{self._sent} sent, {self._received} received{unaccepted}"
        )

    def _status(self) -> Fragments:
        parts = [str(self._endpoint)]
        if self._chat is not None and self._chat.room:
            parts = [f"{self._us.name} in {self._chat.room}", f"{self._members} here", *parts]
        where = " · ".join(parts)
        state = ", ".join(filter(None, (self._state, self._retrying)))
        if not state:
            return [(DIM, where)]
        # First, because a narrow terminal cuts off what stands last.
        return [(f"{WARNING} bold", state), (DIM, f" · {where}")]

    def _audience(self) -> str:
        room = self._chat.room if self._chat is not None else self._room
        return f"everybody in {room}" if room else "everybody"

    def _pending(self) -> list[Fragments]:
        now, us = _now(), self._us
        entered = self._prompt.waiting
        first, last = entered[:-_SHOWN_WAITING], entered[-_SHOWN_WAITING:]
        requests = (
            *self._waiting.values(),
            *self._unsent,
            *map(self._with_name, _said_by("\n".join(last))),
        )
        lines = [
            line.fragments
            for request in requests
            for line in self._renderer.typed(request, us, now, pending=True)
        ]
        return [[] for _ in first] + lines  # which are only counted, however many there are

    def _complete(self, before: str) -> list[Completion]:
        return complete(before, self._names - {self._us.name}, self._rooms)

    def _expand(self, line: str) -> str:
        return expand_reply(line, None if self._last_direct is None else self._last_direct.client)


def _said_by(run: str) -> list[SayBlock | Act | Direct]:
    """Return what the lines of *run* say to anybody."""
    if not run:
        return []
    return [each for each in TEXT.parse_requests(run) if isinstance(each, SayBlock | Act | Direct)]


def _now() -> datetime:
    return datetime.now(UTC)
