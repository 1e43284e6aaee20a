"""Input of a hostile server does not hang our client: it can always be stopped."""

import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from multichat.client.connection import MAX_LINE_BYTES
from multichat.testing import ScriptedClient
from tests.support.processes import LOOPBACK, MULTICHAT, Command, listening
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

# Normalizing sorts marks of two kinds in quadratic time: this takes minutes, and two of these fit
# into a line that our client reads.
MARKS = "a" + "\u0301\u0316" * 120_000


def encode(**event: object) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def said_by(name: str) -> bytes:
    """Events of a server that contain *name*."""
    ours, theirs = {"client": 7, "name": "Client 7"}, {"client": 8, "name": name}
    return b"".join(
        [
            encode(type="said", id="x-1", time=name, room="lobby", text="hello", **theirs),
            encode(type="said", id="x-2", time="", room=name, text="hello", **theirs),
            encode(type="direct", time="", text="hello", **theirs),
            encode(type="joined", **theirs),
            encode(type="renamed", client=8, old=name, name="bob"),
            encode(type="left", reason=name, **theirs),
            encode(type="notice", text=name),
            encode(type="error", code="x", text=name),
            encode(type="members", room="lobby", members=[ours, theirs]),
            encode(type="rooms", rooms=[{"room": name, "members": 1}]),
            encode(type="renamed", client=7, old="Client 7", name=name),
            encode(type="joined", client=7, name=name, room=name, members=2),
            encode(type="said", id="x-3", time="", room=name, text=name, client=8, name="bob"),
        ]
    )


def welcome(name: str = "Client 7", room: str = "lobby") -> bytes:
    limits = {"line": 65536, "name": 32}
    return encode(
        type="welcome", protocol=1, client=7, name=name, room=room, members=2, limits=limits,
        last=None, server="x", resumed=False, session="x",
    )  # fmt: skip


async def be_hostile(listener: trio.SocketListener, name: str, room: str, after: str) -> None:
    """Answer one client, and send *after* once everything hostile was sent."""
    async with await listener.accept() as stream:
        with suppress(trio.BrokenResourceError, EOFError):  # it has left
            await answer(stream, name, room, after)


async def answer(stream: trio.SocketStream, name: str, room: str, after: str) -> None:
    client = ScriptedClient(stream)
    while True:
        line = await client.line()
        if line.startswith("/json"):
            await stream.send_all(welcome(name, room) + said_by(MARKS))
            await stream.send_all(encode(type="notice", text=after))
            continue
        request = json.loads(line)
        nonce = request.get("nonce")
        if request["type"] == "who":
            members = [{"client": 8, "name": MARKS}]
            await stream.send_all(encode(type="members", room="x", members=members, nonce=nonce))
        elif request["type"] == "name":
            await stream.send_all(encode(type="error", code="x", text=MARKS, nonce=nonce))


# The longest lines that a client reads, of characters that are expensive to measure or to break.
FILLERS = [" ", "\t", "\u0301", "\u200d", "\u4e2d", "x", "\u05d0", "\U0001f600", "x ", "\ufe0f"]


@pytest.mark.parametrize("name", ["Client 7", MARKS], ids=["a welcome", "a hostile welcome"])
@pytest.mark.parametrize(
    "options", [("connect",), ("connect", "--room", "den"), ("connect", "--listen")], ids=" ".join
)
async def test_a_client_ends_by_a_signal_whatever_names_a_server_sends(
    options: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    room = "den" if "den" in options else "lobby"
    command, *rest = options
    async with (
        listening() as (listener, port),
        Command(tmp_path, MULTICHAT, command, LOOPBACK, str(port), *rest) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(be_hostile, listener, name, room, "That was all")
        if name == MARKS:  # a welcome that is not valid
            assert await client.wait() == 1
            assert client.err.startswith("multichat: the server's welcome is not valid")
            assert client.err.count("\n") == 1
        else:
            await client.wait_for("That was all")
            client.signal(signal.SIGTERM)
            await client.wait()
            assert "Traceback" not in client.err
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options",
    [
        ("who",),
        ("who", "--room", "den"),
        ("send", "--room", "den", "--name", "alice"),
        ("connect", "--json"),
    ],
    ids=" ".join,
)
async def test_a_command_ends_whatever_names_a_server_sends(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    command, *rest = options
    text = ["hello"] if command == "send" else []
    async with (
        listening() as (listener, port),
        Command(tmp_path, MULTICHAT, command, LOOPBACK, str(port), *text, *rest) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(be_hostile, listener, MARKS, MARKS, "That was all")
        await client.wait()
        assert "Traceback" not in client.err
        nursery.cancel_scope.cancel()


async def test_a_client_on_a_terminal_ends_by_ctrl_c_whatever_names_a_server_sends(
    terminal: Terminal,
) -> None:
    async with listening() as (listener, port), trio.open_nursery() as nursery:
        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(port), "--name", "alice")
        nursery.start_soon(be_hostile, listener, "Client 7", "lobby", "That was all")
        await terminal.wait_for("t", "That was all")
        await terminal.press("t", "a", "Tab")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=")
        nursery.cancel_scope.cancel()


async def test_a_client_on_a_terminal_shows_lines_of_the_greatest_length_and_ends_by_ctrl_c(
    terminal: Terminal,
) -> None:
    async with listening() as (listener, port), trio.open_nursery() as nursery:

        async def say_long_lines() -> None:
            async with await listener.accept() as stream:
                client = ScriptedClient(stream)
                await client.line()
                await stream.send_all(welcome())
                for number, filler in enumerate(FILLERS):
                    text = "a" + filler * (MAX_LINE_BYTES // 2 // len(filler.encode()))
                    said = {"client": 8, "name": "bob", "time": "", "room": "lobby"}
                    await stream.send_all(encode(type="said", id=f"x-{number}", text=text, **said))
                await stream.send_all(encode(type="notice", text="That was all"))
                with suppress(trio.BrokenResourceError, EOFError):
                    while True:
                        await client.line()

        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(port), columns=80)
        nursery.start_soon(say_long_lines)
        await terminal.wait_for("t", "That was all")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=")
        nursery.cancel_scope.cancel()


async def test_ctrl_d_leaves_a_server_that_never_stops_sending(terminal: Terminal) -> None:
    async with listening() as (listener, port), trio.open_nursery() as nursery:

        async def flood() -> None:
            async with await listener.accept() as stream:
                await ScriptedClient(stream).line()
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(welcome())
                    while True:
                        await stream.send_all(encode(type="notice", text="more") * 100)

        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(port))
        nursery.start_soon(flood)
        await terminal.wait_for("t", "more")
        await terminal.press("t", "C-d")
        await terminal.wait_for("t", "status=0")
        nursery.cancel_scope.cancel()
