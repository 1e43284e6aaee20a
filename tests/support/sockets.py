"""Real sockets on the loopback interface."""

import trio

from multichat.testing import ScriptedClient

from .processes import LOOPBACK


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        ours = await trio.open_tcp_stream(LOOPBACK, listener.socket.getsockname()[1])
        return ours, await listener.accept()


async def open_client(port: int, host: str = LOOPBACK) -> ScriptedClient:
    return ScriptedClient(await trio.open_tcp_stream(host, port))
