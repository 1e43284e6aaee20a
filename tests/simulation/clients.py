"""Clients that follow a `PersonPlan` over one end of a connection.

They know how requests are encoded, but not what the server makes of them: the invariants check the
bytes on the wire.  Every message is tagged with its sender and its index, `c7.12: …`, or `d7.13: …`
if it is private, so that its origin is always known.
"""

import json
from collections.abc import Callable
from random import Random

import msgspec
import trio

from .plan import HUSH, SHOUT, SLEEPY, Ending, PersonPlan, Reading
from .returning import LeftBehind, Notebook, Return, Since
from .wire import End

__all__ = ["Client"]

NAMES = ("ann", "bob", "b0b", "cem", "cern", "Ann", "ÉVA", "éva", "Server", "7", "Client 7")

# How long a client that does not read waits after its last message: longer than the server does.
_DEAF_SECONDS = 60.0

# After this it closes, even if the server is still sending: slow reads could take very long.
_LAST_SECONDS = 200.0

# The size of a read, if it does not matter.
_READ_BYTES = 64 * 1024

_WORDS = (
    "well",
    "you know",
    "naïve café",
    "안녕",
    '"quoted"',
    "back\\slash",
    "[Client 1] hi",
    "[x] y",
)
# None of these contains IAC, which is covered by the tests of framing.
_NOISE = bytes(range(0x20)).replace(b"\n", b"").replace(b"\r", b"") + bytes(range(0x7F, 0xFF))


# A reconnecting client sends nothing before it knows its identity.
_WELCOME_SECONDS = 30.0


class Client:
    """One connection of a client; `run` runs it from start to end.

    *everybody_leaves* is set at the end of the run.  *coming* is how it reconnects, if it was
    connected before; *left* is what happens to this connection when it reconnects; *notebook* is
    what it remembers across connections.  `heard_the_end` says whether it read up to the server's
    EOF; `left_off` is set when it may reconnect.
    """

    def __init__(
        self,
        plan: PersonPlan,
        end: End,
        rooms: tuple[str, ...],
        everybody_leaves: trio.Event,
        *,
        max_line_bytes: int,
        rng: Random,
        notebook: Notebook,
        coming: Return | None = None,
        left: LeftBehind | None = None,
    ) -> None:
        self._plan = plan
        self._end = end
        self._rooms = rooms
        self._everybody_leaves = everybody_leaves
        self._max_line_bytes = max_line_bytes
        self._rng = rng
        self.heard_the_end = False
        self.left_off = trio.Event()
        self._notebook: Notebook | None = notebook
        self._coming = coming
        self._left = left
        self._received = bytearray()
        self._welcomed = trio.Event()
        self._stalled = False
        self._heard_all = trio.Event()
        self._talking = trio.CancelScope()
        self._actions: dict[str, Callable[[], bytes]] = {
            "say": self._say,
            "paste": lambda: self._many(self._rng.randint(2, 12)),
            "flood": lambda: self._many(self._rng.randint(50, 200)),
            "act": self._act,
            "whisper": self._whisper,
            "rename": lambda: self._ask("name", name=self._rng.choice(NAMES)),
            "join": self._join,
            "history": self._ask_history,
            "who": lambda: self._ask("who"),
            "rooms": lambda: self._ask("rooms"),
            "ping": lambda: self._ask("ping"),
            "help": lambda: self._ask("help"),
            "forge": self._forge,
            "noise": self._noise,
            "overlong": self._overlong,
            "nonsense": lambda: self._line(self._rng.choice(("", "/frobnicate", "/name", "/"))),
        }

    async def run(self) -> None:
        """Send and receive as planned, until the connection is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                with self._talking:
                    nursery.start_soon(self._stop_talking)
                    await self._talk()
                await self._leave()
                with trio.move_on_after(_LAST_SECONDS):
                    await self._heard_all.wait()
                nursery.cancel_scope.cancel(reason="the chat has ended")
        finally:
            self._end.close()
            self.left_off.set()

    def retire(self) -> None:
        """Stop taking notes, because another connection does."""
        self._notebook = None

    async def _stop_talking(self) -> None:
        await self._everybody_leaves.wait()
        self._talking.cancel(reason="everybody leaves")

    # --- Receiving --------------------------------------------------------------------------------

    async def _listen(self) -> None:
        plan = self._plan
        if plan.reading is Reading.DEAF:
            return
        trickles = plan.reading is Reading.TRICKLING
        stalls_at = trio.current_time() + plan.stalls_after_seconds
        try:
            while data := await self._end.receive_some(
                plan.reads_bytes if trickles else _READ_BYTES
            ):
                self._note(data)
                if self._stalled:
                    await trio.sleep_forever()
                if trickles:
                    await trio.sleep(plan.pauses_seconds)
                elif plan.reading is Reading.STALLING and trio.current_time() >= stalls_at:
                    await trio.sleep(plan.stalls_seconds)
                    stalls_at = float("inf")
            self.heard_the_end = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._heard_all.set()
        if not plan.ignores_eof:
            self._talking.cancel(reason="the server has closed")

    def _note(self, data: bytes) -> None:
        if self._notebook is None or not self._plan.speaks_json:
            return
        *lines, rest = (self._received + data).split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            if line.startswith(b"{"):
                event = msgspec.json.decode(line)
                self._notebook.hear(event)
                if event["type"] == "welcome":
                    self._welcomed.set()

    # --- Sending ----------------------------------------------------------------------------------

    async def _talk(self) -> None:
        plan, rng = self._plan, self._rng
        kinds, weights = zip(*plan.inclinations, strict=True)
        try:
            actions = plan.actions
            if self._coming is not None:
                actions = self._coming.actions
                if not await self._come_back(self._coming):
                    return
            elif plan.speaks_json:
                wishes: dict[str, object] = (
                    {"name": rng.choice(NAMES)} if rng.random() < 0.3 else {}
                )
                if rng.random() < 0.2:
                    wishes["replay"] = rng.choice([1, 10])
                await self._send(f"/json {json.dumps(wishes)}\n".encode())
            for _ in range(actions):
                await trio.sleep(rng.uniform(0, 2 * plan.talkativeness_seconds))
                await self._send(self._actions[rng.choices(kinds, weights)[0]]())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _come_back(self, coming: Return) -> bool:
        """Send a hello and all unaccepted messages again; return whether there was a welcome."""
        notebook = self._notebook
        if notebook is None:
            return False
        await self._send(notebook.hello(coming, self._rng, self._rooms))
        with trio.move_on_after(_WELCOME_SECONDS):
            await self._welcomed.wait()
            again = b"".join(notebook.again(coming, self._rng))
            if again:
                await self._send(again)
            return True
        return False

    async def _send(self, data: bytes) -> None:
        if not self._plan.types_slowly:
            await self._end.send_all(data)
            return
        pieces = self._rng.randint(1, 5)
        size = max(1, len(data) // pieces)
        for start in range(0, len(data), size):
            await self._end.send_all(data[start : start + size])
            await trio.sleep(self._rng.uniform(0, 0.2))

    async def _leave(self) -> None:
        if self._left is not None and not self._everybody_leaves.is_set():
            await self._leave_behind(self._left)
            return
        ending = self._plan.ending
        try:
            match ending:
                case Ending.STAYS:
                    with trio.CancelScope() as scope:
                        await self._wait_for_the_end(scope)
                    await self._end.send_eof()
                case Ending.HALF_CLOSES:
                    await self._end.send_eof()
                case Ending.QUITS:
                    with trio.move_on_after(_DEAF_SECONDS):
                        await self._end.send_all(self._ask("quit"))
                    await self._end.send_eof()
                case Ending.RESETS_IN_MID_LINE:
                    with trio.move_on_after(1):
                        await self._end.send_all(self._say()[:-3])
                    self._end.abort()
                case Ending.RESETS:
                    self._end.abort()
                case Ending.CLOSES:
                    self._end.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self._plan.reading is Reading.DEAF and not self._end.closed:
            await trio.sleep(_DEAF_SECONDS)
        if self._end.closed or self._plan.reading is Reading.DEAF:
            self._heard_all.set()

    async def _leave_behind(self, left: LeftBehind) -> None:
        """Abandon this connection, in order to reconnect."""
        try:
            match left:
                case LeftBehind.RESET:
                    self._end.abort()
                case LeftBehind.RESET_IN_MID_LINE:
                    with trio.move_on_after(1):
                        await self._end.send_all(self._say()[:-3])
                    self._end.abort()
                case LeftBehind.CLOSED:
                    self._end.close()
                case LeftBehind.HALF_CLOSED:
                    await self._end.send_eof()
                case LeftBehind.STALLED | LeftBehind.OPEN:
                    self._stalled = left is LeftBehind.STALLED
                    self.left_off.set()
                    with trio.CancelScope() as scope:
                        await self._wait_for_the_end(scope)
                    self._end.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self._end.closed:
            self._heard_all.set()

    async def _wait_for_the_end(self, scope: trio.CancelScope) -> None:
        async with trio.open_nursery() as nursery:
            for event in (self._everybody_leaves, self._heard_all):
                nursery.start_soon(_cancel_when, event, scope)

    # --- Actions ----------------------------------------------------------------------------------

    def _line(self, text: str) -> bytes:
        return f"{text}\n".encode()

    def _text(self, kind: str = "c") -> str:
        rng = self._rng
        if self._notebook is not None:
            self._notebook.said += 1
        words = [*rng.choices(_WORDS, k=rng.choice((1, 2, 10)))]
        words += [mark for mark in (HUSH, SHOUT, SLEEPY) if rng.random() < 0.1]
        return f"{kind}{self._plan.number}.{self._said}: {' '.join(words)}"

    @property
    def _said(self) -> int:
        return 0 if self._notebook is None else self._notebook.said

    def _ask(self, request: str, **fields: str | int) -> bytes:
        if self._plan.speaks_json:
            nonce = {"nonce": self._said} if self._rng.random() < 0.8 else {}
            line = self._line(json.dumps({"type": request, **nonce, **fields}))
            if nonce and request in ("say", "act", "direct") and self._notebook is not None:
                self._notebook.wrote(self._said, line)
            return line
        words = {"say": "", "act": "/me ", "direct": "/msg "}.get(request, f"/{request} ")
        return self._line(words + " ".join(map(str, fields.values())))

    def _join(self) -> bytes:
        """Join a room, possibly one where the client has been, and resume there."""
        room = self._rng.choice(self._rooms)
        notebook = self._notebook
        if not self._plan.speaks_json or notebook is None or self._rng.random() < 0.4:
            return self._ask("join", room=room)
        notebook.joins += 1
        known = [ids for ids in notebook.ids.values() if ids]
        since = notebook.since(self._rng.choice(list(Since)), self._rng)
        if known and self._rng.random() < 0.7:  # the room may be another
            since = self._rng.choice(self._rng.choice(known)[-3:])
        wish = {} if since is None else {"since": since}
        return self._ask("join", room=room, nonce=f"j{notebook.joins}", **wish)

    def _ask_history(self) -> bytes:
        limit = self._rng.choice((1, 3, 20, 1000))
        if not self._plan.speaks_json or self._notebook is None:
            return self._ask("history", limit=limit)
        ids = self._notebook.ids.get(self._notebook.room)
        before = {"before": self._rng.choice(ids)} if ids and self._rng.random() < 0.5 else {}
        return self._ask("history", limit=limit, **before)

    def _say(self) -> bytes:
        return self._ask("say", text=self._text())

    def _many(self, count: int) -> bytes:
        return b"".join(self._say() for _ in range(count))

    def _act(self) -> bytes:
        return self._ask("act", text=self._text())

    def _whisper(self) -> bytes:
        return self._ask("direct", to=self._rng.randint(1, 12), text=self._text("d"))

    def _forge(self) -> bytes:
        """Send text that would be another client's message if a control character ended a line."""
        ending = self._rng.choice(("\r", "\x0b", "\x0c", "\x85", "\u2028", "\x1b[1G"))
        return self._ask("say", text=f"{self._text()}{ending}[Client 1] c1.1: forged")

    def _noise(self) -> bytes:
        noise = bytes(self._rng.choices(_NOISE, k=self._rng.randint(1, 50)))
        return self._text().encode() + noise + b"\n"

    def _overlong(self) -> bytes:
        length = self._rng.choice((self._max_line_bytes - 40, self._max_line_bytes, 3000))
        return self._ask("say", text=f"{self._text()} {'x' * min(length, 100_000)}")


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel(reason="it happened")
