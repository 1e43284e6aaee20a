"""Bots: clients that run as tasks of the server.

A bot has a real connection, over a socket pair, with the limits of any client.
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from multichat.errors import lone_exception
from multichat.log import Log

if TYPE_CHECKING:
    from multichat.client.chat import Chat

__all__ = ["Bot", "Bots"]

Bot = Callable[["Chat"], Awaitable[object]]


class Bots:
    """The bots of one server; *handle* serves a connection to it.

    A bot whose connection has ended is cancelled after *linger* seconds.
    """

    def __init__(
        self,
        handle: Callable[[trio.abc.Stream], Awaitable[None]],
        log: Log,
        *,
        linger: float,
    ) -> None:
        self._handle, self._log, self._linger = handle, log, linger
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Allow bots to be started while the block runs; wait for them at its end."""
        try:
            async with trio.open_nursery() as self._nursery:
                yield
        finally:
            self._nursery = None

    def cancel(self) -> None:
        """Cancel all bots."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason="the server has ended")

    async def start(self, bot: Bot, *, name: str | None, room: str | None) -> None:
        """Start *bot*; see `multichat.server.server.Server.start_bot`."""
        if self._nursery is None:
            raise RuntimeError("the server is not open")
        await self._nursery.start(self._run, bot, name, room)

    async def _run(
        self, bot: Bot, name: str | None, room: str | None, task_status: trio.TaskStatus[None]
    ) -> None:
        # Imported here, because few servers have a bot.
        from multichat.client.connect import open_chat
        from multichat.client.timeouts import ClientTimeouts

        # A bot may be started before the server serves connections.
        timeouts = ClientTimeouts(answer=math.inf, lobby=math.inf)
        started = False
        try:
            ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
            with lone_exception():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve, theirs, nursery.cancel_scope)
                    async with open_chat(ours, name=name, room=room, timeouts=timeouts) as chat:
                        started = True
                        task_status.started()
                        await bot(chat)
        except Exception as error:  # the boundary of one bot
            if not started:
                raise
            called = name or getattr(bot, "__name__", "without a name")
            self._log.fault(f"the bot {called} raised {type(error).__name__}", error)

    async def _serve(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        await self._handle(stream)
        scope.deadline = trio.current_time() + self._linger
