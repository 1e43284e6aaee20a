"""Timeouts of a client whose server accepts no or few messages."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import ClientTimeouts, ConnectFailed, ConnectionLost, Refused
from multichat.cli.log_client import LogClient
from multichat.cli.send import send
from multichat.client.connect import Endpoint
from multichat.client.connection import Standstill
from multichat.client.options import ChatOptions
from multichat.client.timeouts import DEFAULT_TIMEOUTS
from multichat.log import open_log
from multichat.protocol.messages import MAX_UNACCEPTED
from multichat.stdio import MAX_LINE_BYTES
from multichat.testing import ScriptedClient
from tests.support.clients import open_line_chat

pytestmark = pytest.mark.unit

SECONDS = 40.0


@dataclass(frozen=True, kw_only=True)
class ScriptedEndpoint(Endpoint):
    """A server that welcomes each client, and accepts *accepted* of its messages after *seconds*.

    It answers pings, and sends messages all the time.
    """

    nursery: trio.Nursery
    options: ChatOptions
    accepted: int = 0
    seconds: float = 0.0
    wait: float = 0.0

    async def dial(self, _: ClientTimeouts = DEFAULT_TIMEOUTS) -> trio.abc.Stream:
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
            await trio.sleep(6.3)
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


@asynccontextmanager
async def scripted(timeouts: ClientTimeouts, **script: Any) -> AsyncIterator[ScriptedEndpoint]:
    async with trio.open_nursery() as nursery:
        yield ScriptedEndpoint(nursery=nursery, options=ChatOptions(timeouts=timeouts), **script)
        nursery.cancel_scope.cancel()


@contextmanager
def piped(folder: Path, lines: int) -> Iterator[int]:
    """Return a descriptor from which so many *lines* can be read."""
    path = folder / "input"
    path.write_text("".join(f"{i}\n\n" for i in range(lines)))
    with path.open("rb") as file:
        yield file.fileno()


@pytest.mark.parametrize("wait", [0.0, 32.0, 1e300])
async def test_send_ends_when_nothing_is_accepted_in_time(
    wait: float, autojump_clock: MockClock
) -> None:
    async with scripted(ClientTimeouts(progress=SECONDS), wait=wait) as endpoint:
        most = max(SECONDS, endpoint.options.timeouts.stuck + min(wait, 3600.0))
        with pytest.raises(ConnectionLost, match=f"nothing was accepted in {most:g} s"):
            await send(endpoint, endpoint.options, "hello", input_fd=-1)
        assert trio.current_time() == pytest.approx(most, rel=0.11)


@pytest.mark.parametrize("lines", [10, MAX_UNACCEPTED, MAX_UNACCEPTED + 1, 5000])
async def test_piped_send_always_ends_and_reports_unaccepted_lines(
    lines: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with scripted(ClientTimeouts(progress=SECONDS), accepted=7) as endpoint:
        with piped(tmp_path, lines) as fd, pytest.raises(ConnectionLost) as caught:
            await send(endpoint, endpoint.options, None, input_fd=fd)
        assert str(caught.value) == (
            f"connection lost: nothing was accepted in {SECONDS:g} s; {lines - 7} lines were not "
            "accepted, the first is line 8 of the input (empty lines not counted)"
            + (", and what follows was not read" if lines > MAX_UNACCEPTED + 7 else "")
        )


async def test_send_waits_as_long_as_the_server_may_wait_for_slow_clients(
    autojump_clock: MockClock,
) -> None:
    timeouts = ClientTimeouts(progress=SECONDS)
    async with scripted(timeouts, wait=60, accepted=1, seconds=70) as endpoint:
        await send(endpoint, endpoint.options, "hello", input_fd=-1)
        assert trio.current_time() == pytest.approx(70, abs=3)


async def test_a_slow_server_that_makes_progress_is_never_given_up_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    lines = MAX_UNACCEPTED + 20
    timeouts = ClientTimeouts(progress=SECONDS)
    async with scripted(timeouts, accepted=lines, seconds=SECONDS - 5) as endpoint:
        with piped(tmp_path, lines) as fd:
            await send(endpoint, endpoint.options, None, input_fd=fd)
        assert trio.current_time() > lines * (SECONDS - 6)


async def test_the_delivery_timeout_covers_everything_after_the_end_of_input(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    timeouts = ClientTimeouts(progress=SECONDS, delivery=3 * SECONDS)
    async with scripted(timeouts, accepted=100, seconds=SECONDS - 5) as endpoint:
        with (
            piped(tmp_path, 100) as fd,
            # How many depends on when the input, which a thread reads, is at its end.
            pytest.raises(ConnectionLost, match=r"not everything was accepted in 120 s; \d+ lines"),
        ):
            await send(endpoint, endpoint.options, None, input_fd=fd)


async def test_a_bridge_with_continuing_input_outlives_a_server_that_is_down_for_long(
    autojump_clock: MockClock,
) -> None:
    timeouts = ClientTimeouts(progress=SECONDS, blocked=SECONDS)
    async with scripted(timeouts) as endpoint:
        stream = await endpoint.dial()
        async with open_line_chat(stream, redial=endpoint.dial, timeouts=timeouts) as chat:
            await chat.send("one")
            with trio.move_on_after(100 * SECONDS):
                while True:
                    await chat.receive()
            assert chat.link.can_send
            assert chat.unaccepted == 1
            with pytest.raises(ConnectionLost, match="nothing was accepted in 40 s"):
                await chat.send(*map(str, range(1000)))


async def test_a_program_may_wait_for_its_server_without_limit(
    autojump_clock: MockClock,
) -> None:
    timeouts = ClientTimeouts(progress=SECONDS)
    async with scripted(timeouts) as endpoint:
        stream = await endpoint.dial()
        async with open_line_chat(stream, redial=endpoint.dial, timeouts=timeouts) as chat:
            with trio.move_on_after(100 * SECONDS) as timeout:
                await chat.send(*map(str, range(1000)))
            assert timeout.cancelled_caught
            assert chat.link.can_send
            with pytest.raises(ConnectionLost, match="nothing was accepted in 40 s"):
                await chat.finish()


async def test_waiting_for_a_server_that_hangs_up_ends_in_time(autojump_clock: MockClock) -> None:
    async def dial() -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.aclose()
        return ours

    timeouts = ClientTimeouts(wait=SECONDS, answer=1.0)
    with pytest.raises(ConnectionLost):
        async with open_line_chat(await dial(), redial=dial, wait=True, timeouts=timeouts):
            pytest.fail("nobody has answered")
    assert trio.current_time() == pytest.approx(SECONDS + 1)


@pytest.mark.parametrize(("becomes", "kind"), [("full", Refused), ("down", ConnectionLost)])
async def test_waiting_for_a_full_server_ends_with_its_reason(
    becomes: str, kind: type[Exception], autojump_clock: MockClock
) -> None:
    """Only if it is still full, and not down in between."""

    async def dial() -> trio.abc.Stream:
        if becomes == "down" and trio.current_time() > SECONDS / 2:
            raise ConnectFailed("x", 1, "connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(b"[Server] goodbye: the server is full (limit: 1)\n")
        await theirs.send_eof()
        return ours

    timeouts = ClientTimeouts(wait=SECONDS, answer=1.0, longest_retry=SECONDS / 10)
    with pytest.raises(kind) as caught:
        async with open_line_chat(await dial(), redial=dial, wait=True, timeouts=timeouts):
            pytest.fail("nobody is admitted")
    if isinstance(caught.value, Refused):
        assert (caught.value.code, str(caught.value)) == ("full", "the server is full (limit: 1)")
    assert trio.current_time() == pytest.approx(SECONDS + 1)


async def test_time_in_which_the_process_did_not_run_does_not_count(mock_clock: MockClock) -> None:
    standstill = Standstill()
    assert standstill.watch("a", at_most=1) == 0
    for seconds in (1, 2):
        mock_clock.jump(1)
        assert standstill.watch("a", at_most=1) == seconds
    mock_clock.jump(3600)  # stopped, or asleep
    assert standstill.watch("a", at_most=1) == 3
    assert standstill.watch("b", at_most=1) == 0


SAID, LEFT_OUT, LONG = "said", " /msg bob x", "x" * (MAX_LINE_BYTES + 1)


@pytest.mark.parametrize("accepted", [0, 1])
@pytest.mark.parametrize(
    "lines",
    [
        [SAID, SAID, LEFT_OUT, "", LEFT_OUT],
        [LEFT_OUT, SAID, LEFT_OUT, SAID],
        [SAID, LEFT_OUT, LEFT_OUT, SAID, SAID],
        [SAID, LONG, SAID],
        [LONG, SAID, SAID],
        [SAID, SAID, "/status", SAID],
        [SAID, SAID, "/quit", SAID, SAID],
        [SAID, "/json {}", SAID],
        ["/json", SAID, "/json {}", "/json", SAID, "/json"],
    ],
    ids=["1", "2", "3", "too long", "too long first", "status", "quit", "hello", "hellos"],
)
async def test_connect_in_a_pipe_says_which_line_was_the_first_that_was_not_accepted(
    lines: list[str], accepted: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "input"
    path.write_text("".join(f"{line}\n" for line in lines))
    counted = [line for line in lines if line]
    if "/quit" in counted:
        del counted[counted.index("/quit") :]
    rest = [number for number, line in enumerate(counted, 1) if line == SAID][accepted:]
    timeouts = ClientTimeouts(progress=SECONDS)
    async with scripted(timeouts, accepted=accepted) as endpoint:
        with (
            path.open("rb") as file,
            (tmp_path / "log").open("wb") as out,
            open_log(out.fileno()) as writer,
            pytest.raises(ConnectionLost) as caught,
        ):
            await LogClient(endpoint, endpoint.options, writer=writer, input_fd=file.fileno()).run()
    were = "1 line was" if len(rest) == 1 else f"{len(rest)} lines were"
    assert f"; {were} not accepted, the first is line {rest[0]} of" in str(caught.value)
