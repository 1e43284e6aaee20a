"""A TCP relay between a node and its engine, which holds replies back and cuts connections."""

from contextlib import suppress

import trio

from tests.support.processes import LOOPBACK

from .engine import Engine

__all__ = ["Relay"]


class Relay:
    """Relays connections to *engine*; `port` is where it listens once it runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.port = 0
        self.connections = 0
        self._replies = trio.Event()  # set: replies pass
        self._replies.set()
        self._open: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._handle, [listener])

    def hold_replies(self) -> None:
        """Pass requests on, and nothing that the engine sends, until the connection is cut."""
        self._replies = trio.Event()

    def cut(self) -> None:
        """Cut all connections: what was held back is lost.  New ones are as usual."""
        for scope in self._open:
            scope.cancel(reason="the test cuts it")
        self._replies.set()

    async def _handle(self, client: trio.SocketStream) -> None:
        self.connections += 1
        try:
            engine = await trio.open_tcp_stream(LOOPBACK, self.engine.port)
        except OSError:
            return
        async with engine:
            with trio.CancelScope() as scope:
                self._open.add(scope)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass, client, engine, None, scope)
                        nursery.start_soon(self._pass, engine, client, self, scope)
                finally:
                    self._open.discard(scope)
            await trio.aclose_forcefully(engine)
            await trio.aclose_forcefully(client)

    async def _pass(
        self,
        source: trio.SocketStream,
        to: trio.SocketStream,
        held: "Relay | None",
        scope: trio.CancelScope,
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                if held is not None:
                    await held._replies.wait()
                await to.send_all(data)
        scope.cancel(reason="the other end is gone")
