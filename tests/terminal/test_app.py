"""A chat on a terminal: pending messages, ignored clients, alerts, and hostile servers."""

import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    ServerCommand,
    listening,
    serve,
)
from tests.support.terminals import GREY, Terminal, connect_alice

pytestmark = pytest.mark.process


class OurServer:
    """A server that does what the test says, to the one client that it has."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._read = bytearray()

    async def line(self) -> str:
        while b"\n" not in self._read:
            with trio.fail_after(WAIT_SECONDS):
                data = await self._stream.receive_some()
            assert data, "the client has left"
            self._read += data
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read[:] = rest
        return line.decode()

    async def wait_for_end(self) -> None:
        """Wait until the client has half-closed."""
        with trio.fail_after(WAIT_SECONDS):
            while await self._stream.receive_some():
                pass

    async def request(self, kind: str) -> dict[str, object]:
        """The next request of that kind; those for lists are answered."""
        while True:
            request: dict[str, object] = json.loads(await self.line())
            if request["type"] == kind:
                return request
            nonce = request["nonce"]
            if request["type"] == "who":
                await self.send(type="members", nonce=nonce, room="lobby", members=[])
            elif request["type"] == "rooms":
                await self.send(type="rooms", nonce=nonce, rooms=[])

    async def send(self, **event: object) -> None:
        await self.send_line(json.dumps(event, separators=(",", ":")))

    async def send_line(self, line: str) -> None:
        await self._stream.send_all(f"{line}\n".encode())


@asynccontextmanager
async def our_server(terminal: Terminal, *options: str) -> AsyncIterator[OurServer]:
    """A client in the terminal `t`, called alice, that this server has welcomed."""
    async with listening() as (listener, port):
        await terminal.open("t", MULTICHAT, "connect", *options, LOOPBACK, str(port))
        with trio.fail_after(WAIT_SECONDS):
            stream = await listener.accept()
        async with stream:
            server = OurServer(stream)
            assert (await server.line()).startswith("/json")
            await server.send(
                type="welcome",
                protocol=1,
                client=1,
                name="alice",
                room="lobby",
                members=2,
                limits={"line": 65536, "name": 32},
                last=None,
                server="test",
                resumed=False,
            )
            await terminal.wait_for("t", "alice in lobby · 2 here")
            yield server


async def test_a_pending_message_is_grey_and_then_appears_in_room_order(
    terminal: Terminal,
) -> None:
    async with our_server(terminal) as server:
        await terminal.type("t", "first")
        await terminal.type("t", "second")
        first, second = await server.request("say"), await server.request("say")
        assert (first["text"], second["text"]) == ("first", "second")
        pending = r"\d\d:\d\d alice  first\s*\n\d\d:\d\d alice  second\s*\n>\s*\nalice in lobby"
        await terminal.wait_for_match("t", pending)
        assert await terminal.colors_of("t", "alice  first") == {GREY}
        # Bob came before the first; after the second no change is known yet.
        said = {"type": "said", "time": "", "room": "lobby", "client": 2}
        await server.send(**said, id="x-1", name="bob", text="before")
        await server.send(type="accepted", nonce=first["nonce"], id="x-2")
        await server.send(**said, id="x-3", name="bob", text="between")
        await terminal.wait_for_match(
            "t",
            r"bob  before\n\d\d:\d\d alice  first\n\d\d:\d\d bob  between\n"
            r"\d\d:\d\d alice  second\s*\n>\s*\nalice in lobby",
        )
        assert await terminal.colors_of("t", "alice  first") > {GREY, None}
        assert await terminal.colors_of("t", "alice  second") == {GREY}
        await server.send(type="accepted", nonce=second["nonce"], id="x-4")
        with trio.fail_after(WAIT_SECONDS):
            while await terminal.colors_of("t", "alice  second") == {GREY}:
                await trio.sleep(0.02)
        await terminal.wait_for_match("t", r"bob  between\n\d\d:\d\d alice  second\n>")


async def test_a_member_that_joins_during_the_list_request_is_remembered(
    terminal: Terminal,
) -> None:
    alice, bob = ({"client": n, "name": name} for n, name in ((1, "alice"), (2, "bob")))
    async with our_server(terminal) as server:
        who = await server.request("who")
        await server.send(type="members", nonce=who["nonce"], room="lobby", members=[alice])
        await server.send(type="joined", **bob)

        async def answer_if_asked_again() -> None:  # not asked again if the list was read first
            while True:
                again = await server.request("who")
                answer = {"nonce": again["nonce"], "room": "lobby", "members": [alice, bob]}
                await server.send(type="members", **answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_if_asked_again)
            await terminal.run("send-keys", "-t", "t", "-l", "to b")
            with trio.fail_after(WAIT_SECONDS / 2):  # an unanswered ping ends the client after that
                while "> to bob" not in await terminal.screen("t"):
                    await terminal.press("t", "Tab")
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel(reason="it has not forgotten bob")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
async def test_typing_continues_while_the_server_is_away(
    end: signal.Signals, terminal: Terminal, tmp_path: Path
) -> None:
    """An orderly restart and a crash look alike."""
    async with serve(tmp_path) as server:
        port = server.port
        command = (MULTICHAT, "connect", "--name", "alice", LOOPBACK, str(port))
        await terminal.open("t", *command)
        await terminal.wait_for("t", "alice in lobby · 1 here")
        await terminal.run("send-keys", "-t", "t", "-l", "while you were ")
        server.signal(end)
        await server.wait()
        await terminal.wait_for_match("t", r"! Connection lost: .*; reconnecting$")
        await terminal.wait_for_match("t", r"reconnecting \(\d+.. try.*\) · alice in lobby")
        await terminal.type("t", "away")
        await terminal.wait_for_match("t", r"alice  while you were away\s*\n>\s*\nreconnecting")
        assert await terminal.colors_of("t", "while you were away") == {GREY}
        await terminal.type("t", "/status")
        await terminal.wait_for("t", "· Not connected; 1 waiting to be sent")
        # One line for the loss, and the tries in place: in the status.
        await terminal.wait_for_match("t", r"reconnecting \((4th|5th|6th) try, next in \d+ s\)")
        assert "refused" not in await terminal.screen("t")
    async with ServerCommand(tmp_path, MULTICHAT, "serve", str(port), "--host", LOOPBACK) as again:
        await again.wait_for("[RX] [alice] while you were away\n")
        await terminal.wait_for("t", "· Connected again")
        with trio.fail_after(WAIT_SECONDS):
            while await terminal.colors_of("t", "while you were away") == {GREY}:
                await trio.sleep(0.02)
        await terminal.wait_for_match("t", r"^>\s*\nalice in lobby")


async def test_quit_during_a_lost_connection_says_what_it_waits_for(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(server.port))
        await terminal.wait_for("t", "1 here")
        server.process.kill()
        await terminal.wait_for("t", "reconnecting")
        await terminal.type("t", "last words")
        await terminal.type("t", "/quit")
        await terminal.wait_for("t", "· Not connected; 1 waiting to be sent")
        await terminal.wait_for("t", "· Leaving when they are sent; Ctrl+C leaves at once")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")


async def test_many_pending_messages_take_three_rows(terminal: Terminal) -> None:
    async with our_server(terminal) as server:
        for number in range(6):
            await terminal.type("t", f"number {number}")
            await server.request("say")
        await terminal.wait_for_match(
            "t", r"… 4 more\s*\n\d\d:\d\d alice  number 4\s*\n\d\d:\d\d alice  number 5\s*\n>"
        )


async def test_a_refused_message_is_reported(terminal: Terminal) -> None:
    async with our_server(terminal) as server:
        await terminal.type("t", "/msg bob psst")
        await terminal.wait_for_match("t", r"you → bob  psst\s*\n>")
        asked = await server.request("direct")
        await server.send(
            type="error", nonce=asked["nonce"], code="nobody-there", text="nobody is called bob"
        )
        await terminal.wait_for_match("t", r"→ bob  psst\n\d\d:\d\d ! nobody is called bob\n>")


async def test_unacknowledged_messages_are_shown_at_the_end(terminal: Terminal) -> None:
    async with our_server(terminal) as server:
        await terminal.type("t", "lost words")
        await server.request("say")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")
        await terminal.wait_for_match("t", r"! not accepted: \d\d:\d\d alice  lost words")


async def test_a_line_that_is_too_long_is_reported_at_once(terminal: Terminal) -> None:
    async with our_server(terminal) as server:
        await terminal.type("t", "short")
        request = await server.request("say")
        long = terminal.home / "long"
        long.write_text("x" * 70_000, "utf-8")
        await terminal.run("load-buffer", str(long))
        await terminal.run("paste-buffer", "-p", "-t", "t")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", "bytes; the server takes lines of 65536")
        await terminal.wait_for_match("t", r"^\d\d:\d\d alice  short\s*\n>")
        await server.send(type="accepted", nonce=request["nonce"], id="x-1")
        await server.send(type="notice", text="after that")
        await terminal.wait_for("t", "after that")
        await terminal.type("t", "/status")
        await terminal.wait_for_match("t", r"Connected to 127\.0\.0\.1:\d+ for \d+ s; \d sent, 0")
        assert "not accepted" not in await terminal.screen("t")


async def test_a_hostile_server_cannot_control_the_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    """All that the terminal is sent, byte by byte: no sequence in it is the server's."""
    raw = tmp_path / "raw"
    async with our_server(terminal) as server:
        await terminal.run("pipe-pane", "-t", "t", f"cat > {raw}")
        evil = "\x1b]0;title\x07\x1b[2J\x9b2J\u202e\nforged\r\t<b>&amp;\x00"
        said = {"type": "said", "id": "x-1", "time": evil, "room": evil, "client": 2}
        await server.send(**said, name=evil, text=evil)
        await server.send(type="joined", client=3, name=evil)
        await server.send(type="renamed", client=3, old=evil, name=evil)
        await server.send(type="error", code=evil, text=evil)
        await server.send(type="direct", time=evil, client=2, name=evil, text=evil)
        members = [{"client": 4, "name": evil}]
        await server.send(type="members", room=evil, members=members)
        await server.send(type="renamed", client=1, old="alice", name=evil)  # in the status
        await server.send(type="notice", text="the end")
        await terminal.wait_for("t", "Server  the end")
        await terminal.wait_for("t", "forged")
        await terminal.type("t", "/clear")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")
        shown = raw.read_bytes()
        assert b"the end" in shown
        for sequence in (b"\x1b]0", b"\x1b[2J", b"\xc2\x9b", "\u202e".encode(), b"\x00", b"\x07"):
            assert sequence not in shown
        assert not re.search(rb"\nforged", shown)


async def test_a_name_has_its_colour_and_ours_is_highlighted(terminal: Terminal) -> None:
    said = {"type": "said", "id": "x-1", "time": "", "room": "lobby", "client": 2}
    async with our_server(terminal) as server:
        await server.send(**said, name="bob", text="hello Alice")
        await terminal.wait_for("t", "hello Alice")
        assert len(await terminal.colors_of("t", "bob  hello")) == 3  # the time's, bob's, no colour
        assert await terminal.reversed("t") == ["Alice"]


@pytest.mark.parametrize(
    ("variables", "options", "colored"),
    [
        ((), (), True),
        (("NO_COLOR=1",), (), False),
        (("NO_COLOR=",), (), True),
        (("NO_COLOR=1",), ("--color", "always"), True),
        ((), ("--color", "never"), False),
        (("MULTICHAT_COLOR=never",), (), False),
    ],
)
async def test_precedence_of_colour_settings(
    variables: tuple[str, ...],
    options: tuple[str, ...],
    colored: bool,
    terminal: Terminal,
    tmp_path: Path,
) -> None:
    async with serve(tmp_path) as server:
        command = (MULTICHAT, "connect", "--name", "alice", *options, LOOPBACK, str(server.port))
        await terminal.open("t", "env", "-uNO_COLOR", *variables, *command)
        await terminal.wait_for("t", "alice in lobby")
        assert await terminal.colors_of("t", "· you are alice") == {GREY if colored else None}


@pytest.mark.parametrize("options", [(), ("--bell",)])
async def test_mentions_ring_with_the_bell_option(
    options: tuple[str, ...], terminal: Terminal, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    said = {"type": "said", "time": "", "room": "lobby", "client": 2, "name": "bob"}
    async with our_server(terminal, *options) as server:
        await terminal.run("pipe-pane", "-t", "t", f"cat > {raw}")
        await server.send(**said, id="x-1", text="hello all")
        await terminal.wait_for("t", "hello all")
        await server.send(**said, id="x-2", text="and alice")
        await server.send(type="notice", text="the end")
        await terminal.wait_for("t", "the end")
        with trio.fail_after(WAIT_SECONDS):
            while not raw.exists() or b"the end" not in raw.read_bytes():
                await trio.sleep(0.02)
        before, after = raw.read_bytes().split(b"hello all")
        assert b"\x07" not in before
        assert (b"\x07" in after) is bool(options)


async def test_local_commands_are_not_sent_and_others_are(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
        multichat.connect(LOOPBACK, server.port, name="carol") as carol,
    ):
        await connect_alice(terminal, server, columns=80, rows=40)
        await terminal.type("t", "/help")
        await terminal.wait_for_match("t", r"· /ignore NAME  hide the messages of NAME")
        await terminal.wait_for_match(
            "t", "· /msg WHO TEXT +tell one person"
        )  # the server's answer
        await terminal.type("t", "/clear")
        await terminal.wait_for_match("t", r"\A>\s*\nalice in lobby")
        await terminal.type("t", "/ignore BOB")
        await terminal.wait_for("t", "· BOB is ignored")
        await bob.say("you cannot hear me")
        await bob.direct("alice", "nor that")
        await bob.act("waves")
        await carol.say("but me")
        await terminal.wait_for("t", "carol  but me")
        screen = await terminal.screen("t")
        assert "cannot hear" not in screen
        assert "nor that" not in screen
        assert "waves" not in screen
        await terminal.type("t", "/ignore")
        await terminal.wait_for("t", "· ignored: BOB")
        await terminal.type("t", "/ignore bob")
        await terminal.wait_for("t", "· bob is no longer ignored")
        await bob.say("and now?")
        await terminal.wait_for("t", "bob  and now?")
        await terminal.type("t", "/name al")
        await terminal.wait_for("t", "al in lobby · 3 here")
        await terminal.type("t", "/frobnicate")
        await terminal.wait_for("t", "! unknown command /frobnicate")
        await terminal.type("t", "//slash")
        await terminal.wait_for_match("t", r"\d al  /slash\n")
        assert "/ignore" not in server.out
        await terminal.type("t", "/exit")
        await terminal.wait_for("t", "status=0")


@pytest.mark.parametrize("how", ["plain", "fallback"])
async def test_the_terminal_client_talks_to_a_text_server(how: str, terminal: Terminal) -> None:
    async with listening() as (listener, port):
        options = ("--plain",) if how == "plain" else ()
        await terminal.open("t", MULTICHAT, "connect", *options, LOOPBACK, str(port))
        with trio.fail_after(WAIT_SECONDS):
            stream = await listener.accept()
        async with stream:
            server = OurServer(stream)
            if how == "fallback":
                assert (await server.line()).startswith("/json")
                await server.send_line("[bob] hello")
                await terminal.wait_for("t", "does not answer in JSON: speaking plain text")
            else:
                await terminal.wait_for("t", "· Connected")
            await terminal.type("t", "hello")
            assert await server.line() == "hello"
            await terminal.wait_for_match("t", r"\d\d:\d\d you  hello\n>")
            await server.send_line("[bob] welcome")
            await terminal.wait_for_match("t", r"\d\d:\d\d bob  welcome\n>")
            await terminal.press("t", "C-d")
            await server.wait_for_end()
        await terminal.wait_for("t", "status=0")


async def test_a_dumb_terminal_gets_log_lines(terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        command = (MULTICHAT, "connect", LOOPBACK, str(server.port))
        await terminal.open("t", "env", "TERM=dumb", *command)
        await terminal.wait_for("t", "[INFO] [client] [STATE] Connected")


async def test_the_specifications_own_client_writes_its_log_on_a_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        command = str(Path(sys.executable).parent / "multi_chat_tcp_client")
        await terminal.open("t", command, LOOPBACK, str(server.port))
        await terminal.wait_for("t", "[INFO] [client] [STATE] Connected")
        await terminal.type("t", "Hello back!")
        await terminal.wait_for("t", "[INFO] [client] [TX] Hello back!")


async def test_quit_followed_by_words_does_not_leave(terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(server.port))
        await terminal.wait_for("t", "1 here")
        await terminal.type("t", "/quit smoking is hard")
        await terminal.wait_for("t", "usage: /quit; type //quit smoking is hard to say it")
        await terminal.type("t", "/quit")
        await terminal.wait_for("t", "status=0")
