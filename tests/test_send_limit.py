"""How long `send` waits for a server that welcomes it, and accepts nothing."""

import json
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import ClientTimeouts, ConnectionLost, errands
from multichat.client import Endpoint
from multichat.testing import ScriptedClient

pytestmark = pytest.mark.unit

SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class ScriptedEndpoint(Endpoint):
    """A server that welcomes each client, and accepts *accepted* of its messages after *seconds*.

    It answers pings, and talks all the time.
    """

    nursery: trio.Nursery
    accepted: int = 0
    seconds: float = 0.0
    wait: float = 0.0

    async def dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        server = ScriptedClient(theirs)
        self.nursery.start_soon(self._run, server)
        return ours

    async def _run(self, server: ScriptedClient) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._talk, server)
                await self._serve(server)
                nursery.cancel_scope.cancel()
        except* (EOFError, trio.BrokenResourceError):  # the client has left
            pass

    async def _talk(self, server: ScriptedClient) -> None:
        while True:
            await trio.sleep(0.7)
            await server.send('{"type":"notice","text":"still here"}')

    async def _serve(self, server: ScriptedClient) -> None:
        accepted = 0
        while True:
            line = await server.line()
            if line.startswith("/json"):
                limits = {"line": 65536, "name": 32, "wait": self.wait}
                welcome = {"protocol": 1, "client": 7, "name": "Client 7", "room": "lobby"}
                rest = {"members": 1, "limits": limits, "last": None, "server": "x"}
                end = {"resumed": False, "session": "x"}
                await server.send(json.dumps({"type": "welcome", **welcome, **rest, **end}))
                continue
            request = json.loads(line)
            nonce = request["nonce"]
            if request["type"] == "ping":
                await server.send(f'{{"type":"pong","token":"","nonce":{nonce}}}')
            elif request["type"] == "say" and accepted < self.accepted:
                await trio.sleep(self.seconds)
                accepted += 1
                await server.send(f'{{"type":"accepted","id":"x-{accepted}","nonce":{nonce}}}')
            elif request["type"] == "quit":
                await server.finish()
                return


@pytest.mark.parametrize("wait", [0.0, 32.0, 1e300])
async def test_send_ends_when_nothing_is_accepted_in_time(
    wait: float, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        timeouts = ClientTimeouts(away=SECONDS)
        endpoint = ScriptedEndpoint(nursery=nursery, wait=wait, timeouts=timeouts)
        most = SECONDS + min(wait, 3600.0)
        with pytest.raises(
            ConnectionLost,
            match=f"nothing was accepted in {most:g} s; 0 of 1 messages were accepted",
        ):
            await errands.send(endpoint, "hello", input_fd=-1)
        assert trio.current_time() == pytest.approx(most, abs=1)
        nursery.cancel_scope.cancel()


async def test_send_waits_as_long_as_the_server_may_wait_for_slow_clients(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        timeouts = ClientTimeouts(away=SECONDS)
        endpoint = ScriptedEndpoint(
            nursery=nursery, wait=32, accepted=1, seconds=30, timeouts=timeouts
        )
        await errands.send(endpoint, "hello", input_fd=-1)
        assert trio.current_time() == pytest.approx(30, abs=3)
        nursery.cancel_scope.cancel()
