"""The operator's console: its commands against a server in memory, and a real one in a terminal."""

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from multichat.errors import LineTooLong
from multichat.net import transport
from multichat.protocol.commands import ADMIN_COMMANDS
from multichat.protocol.framing import Part
from multichat.server import admin_requests
from multichat.server.client import MemberInfo
from multichat.server.config import ServerConfig
from multichat.server.server import Server
from multichat.terminal import admin_console as operator
from multichat.terminal.admin_console import AdminConsole, console_fd, run_console
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, MULTICHAT
from tests.support.terminals import Terminal

pytestmark = pytest.mark.unit

HINT = "/help lists them; start with // to send a line that starts with /"
NOW = 1_736_937_045.0
MIXED = "a name cannot mix scripts, except Latin with Chinese, Japanese or Korean"


class Desk:
    """A server in memory, and the console of its operator."""

    def __init__(self, network: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network, self.server = network, network.server
        self._monkeypatch = monkeypatch
        self.shown: list[str] = []
        self.typed, self.lines = trio.open_memory_channel[list[Part]](0)
        self.ended = False

    async def run(self) -> None:
        await AdminConsole(self.server, self.shown.append).run(self.lines)
        self.ended = True

    async def type(self, *parts: Part) -> list[str]:
        """Type the input of one read; return what is shown once all is quiet."""
        await self.typed.send(list(parts))
        await wait_all_tasks_blocked()
        shown, self.shown[:] = self.shown[:], []
        return shown

    async def join(self, address: str = "", name: str = "") -> ScriptedClient:
        self._monkeypatch.setattr(transport, "peer_address", lambda _: address)
        client = await self.network.join()
        if name:
            await client.send(f"/name {name}")
            await client.line()
        return client


@pytest.fixture
async def desk(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    async with open_desk(monkeypatch) as made:
        yield made


@asynccontextmanager
async def open_desk(
    monkeypatch: pytest.MonkeyPatch, config: ServerConfig | None = None
) -> AsyncIterator[Desk]:
    async with memory_server(config, clock=lambda: NOW) as network, trio.open_nursery() as nursery:
        made = Desk(network, monkeypatch)
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel(reason="the test is over")


# Saying something


async def test_a_line_is_sent_to_all_clients(desk: Desk) -> None:
    alice, bob = await desk.join(), await desk.join()
    await bob.send("/join den")
    await wait_all_tasks_blocked()
    assert await desk.type("maintenance at noon\n//clients is for me\n/ is not a command") == [
        f"unknown command /; {HINT}"
    ]
    said = ["[Server] maintenance at noon", "[Server] /clients is for me"]
    assert await alice.lines(2) == said
    assert (await bob.lines(3))[-2:] == said


@pytest.mark.parametrize("start", [" /", "\u200b/", "／", "\\"])
async def test_a_line_that_looks_like_a_command_is_not_broadcast(desk: Desk, start: str) -> None:
    alice = await desk.join()
    assert await desk.type(f"{start}kick alice badly\n /login bob pw\n /usr/bin is full") == [
        "not sent, because it looks like /kick: type /kick to run it, //kick to say it",
        "not sent, because it looks like a command, and there is no /login: type //login to say it",
    ]
    assert await alice.line() == "[Server]  /usr/bin is full"


async def test_an_account_command_without_its_slash_is_not_broadcast(desk: Desk) -> None:
    alice = await desk.join()
    assert await desk.type("account add bob correct horse\nthe account of bob is made") == [
        "not sent, because it may hold a passphrase: a command begins with /"
    ]
    assert await alice.line() == "[Server] the account of bob is made"


async def test_clients_and_rooms_are_listed(desk: Desk) -> None:
    assert await desk.type("/rooms\n/who") == ["nobody is connected"] * 2
    await desk.join(name="alice")
    bob = await desk.join(name="bob")
    await bob.send("/join den")
    await wait_all_tasks_blocked()
    assert await desk.type("/rooms") == ["room   clients", "den          1", "lobby        1"]
    clients = await desk.type("/clients")
    assert await desk.type("/who") == clients
    assert len(clients) == 3
    for command in ("/who #DEN", "/clients den"):
        heading, client = await desk.type(command)
        assert client.split()[:3] == ["2", "bob", "den"]
    assert await desk.type("/who attic") == ["nobody is in attic"]


async def test_tell_reaches_one_client(desk: Desk, log: LogRecorder) -> None:
    alice, bob = await desk.join(name="alice"), await desk.join()
    assert await desk.type("/send 1 hello,  you\n/send ALICE and you\n/send Client 2 not you") == []
    assert await alice.lines(2) == ["[Server] hello,  you", "[Server] and you"]
    assert await bob.line() == "[Server] not you"
    assert await desk.type("/send 7 x\n/send carol x\n/send Client 7 x") == [
        "no client 7 is connected",
        "nobody called carol is connected",
        "nobody called Client 7 is connected",
    ]
    assert await desk.type("/send\n/send 1\n/send Client 2") == ["usage: /send WHO TEXT"] * 3


async def test_a_slow_client_can_be_kicked_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(monkeypatch, ServerConfig(send_queue_batches=1)) as desk:
        await desk.network.join(lockstep=True)
        assert await desk.type("\n".join(f"line {i}" for i in range(9))) == []
        started = trio.current_time()
        assert await desk.type("/kick 1\n/clients") == [
            "client 1 was disconnected",
            "nobody is connected",
        ]
        assert trio.current_time() == started


async def test_tell_to_a_blocked_client_fails(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(monkeypatch, ServerConfig(send_queue_batches=1)) as desk:
        await desk.network.join(lockstep=True)
        for text in ("is being written", "waits", "has no room"):
            assert await desk.type(f"/send 1 {text}") == []
        await trio.sleep(60)
        assert desk.shown == ["Client 1 is too slow: the message was not delivered"]


async def test_pending_console_lines_are_bounded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await desk.join()
    lines = operator.MAX_WAITING_LINES + 2
    shown = await desk.type("\n".join(map(str, range(lines))))
    assert set(shown) == {"too many lines are waiting; this one was not sent"}
    assert len(shown) <= 2
    await client.lines(lines - len(shown))


async def test_a_console_line_that_is_too_long_is_reported(desk: Desk) -> None:
    assert await desk.type(LineTooLong(1000)) == [
        "the line was longer than 1000 bytes and was dropped"
    ]


async def test_the_end_of_input_waits_for_pending_lines(desk: Desk) -> None:
    client = await desk.join()
    await desk.typed.send(["goodnight"])
    await desk.typed.aclose()
    assert await client.line() == "[Server] goodnight"
    await wait_all_tasks_blocked()
    assert desk.ended
    assert not desk.server.shutting_down


async def test_an_announcement_says_how_many_clients_it_was_sent_to(desk: Desk) -> None:
    assert await desk.type("/announce hello") == ["sent to 0 clients"]
    alice, bob = await desk.join(), await desk.join()
    await bob.send("/join den")
    await wait_all_tasks_blocked()
    assert await desk.type("/announce  maintenance at noon\n/announce ") == [
        "usage: /announce TEXT",
        "sent to 2 clients",
    ]
    said = "[Server] maintenance at noon"
    assert await alice.line() == said
    assert (await bob.lines(2))[-1] == said


async def test_a_reload_shows_a_line_for_each_part_that_failed(desk: Desk) -> None:
    def fail() -> str:
        raise ValueError("it is wrong")

    desk.server.reloading.add("one", fail, lambda _: None)
    desk.server.reloading.add("two", fail, lambda _: None)
    shown = await desk.type("/reload now\n/reload")  # which is done in threads
    with trio.fail_after(60):
        while len(shown) + len(desk.shown) < 4:
            await trio.sleep(0.1)
    assert [*shown, *desk.shown] == [
        "usage: /reload",
        "Could not reload the one (unchanged): it is wrong",
        "Could not reload the two (unchanged): it is wrong",
        "Reloaded: nothing",
    ]


# Who is there


async def test_commands_on_an_empty_server(desk: Desk) -> None:
    assert await desk.type("/clients\n/bans") == ["nobody is connected", "nobody is banned"]


async def test_clients_are_listed_in_columns(desk: Desk) -> None:
    await desk.join("203.0.113.7:51234", "alice")
    await desk.join("[2001:db8::1]:51234")
    bob = await desk.join("", "花子")
    await bob.send("/join den")
    await wait_all_tasks_blocked()
    assert await desk.type("/clients") == [
        "#  name      rooms  address      waiting",
        "1  alice     lobby  203.0.113.7      0 B",
        "2  Client 2  lobby  2001:db8::1      0 B",
        "3  花子      den    -                0 B",
    ]


LONG = [
    MemberInfo(
        client=1_234_567,
        name="w" * 32,
        room="r" * 32,
        rooms=("r" * 32,),
        address="[2001:db8:1111:2222:3333:4444:5555:6666]:51234",
        waiting_bytes=4 * 1024 * 1024,
    ),
    MemberInfo(
        client=3, name="花" * 32, room="x", rooms=("x",), address="/run/chat", waiting_bytes=2048
    ),
    MemberInfo(
        client=5, name="al", room="x", rooms=("x",), address="", waiting_bytes=99, behind=4321
    ),
    MemberInfo(
        client=4,
        name="e\u0301" * 9,
        room="x\x1b[2J",
        rooms=("x\x1b[2J",),
        address="",
        waiting_bytes=0,
    ),
]


async def test_a_narrow_terminal_holds_the_list(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "members", LONG)
    assert await desk.type("/clients") == [
        "      #  name         rooms        address           waiting",
        "1234567  wwwwwwwwww…  rrrrrrrrrr…  2001:db8:1…         4 MiB",
        "      3  花花花花花…  x            /run/chat           2 KiB",
        "      5  al           x            -            4,321 behind",
        "      4  " + "e\u0301" * 9 + "    x␛[2J        -                     0 B",
    ]


# Having them go


async def test_a_client_is_kicked(desk: Desk, log: LogRecorder) -> None:
    alice, bob = await desk.join(name="alice"), await desk.join()
    assert await desk.type("/kick ALICE too   loud\x1b\n/KICK 2") == [
        "client 1 was disconnected",
        "client 2 was disconnected",
    ]
    assert await alice.rest() == ["[Server] goodbye: kicked: too   loud␛"]
    assert await bob.rest() == ["[Server] goodbye: kicked"]
    assert "[INFO] [server] [STATE] Client 2 disconnected (kicked)" in log.lines
    assert await desk.type("/kick 2\n/kick\n/kick bob\x1b[2J") == [
        "no client 2 is connected",
        "usage: /kick WHO [REASON]",
        "nobody called bob␛[2J is connected",
    ]


@pytest.mark.parametrize("who", ["1", "alice", "Client 1", "203.0.113.7", "203.0.113.7:51234"])
async def test_a_ban_of_a_client_bans_its_address(desk: Desk, who: str) -> None:
    alice = await desk.join("203.0.113.7:51234", "alice")
    neighbour = await desk.join("203.0.113.7:51235")
    await desk.join("203.0.113.8:51234")
    assert await desk.type(f"/ban {who} 10m  too loud") == [
        "banned 203.0.113.7 for 10 min: too loud (2 clients were disconnected)"
    ]
    for client in (alice, neighbour):
        assert (await client.rest())[-1] == "[Server] goodbye: banned for 10 min: too loud"
    again = await desk.join("203.0.113.7:51236")
    assert await again.rest() == ["[Server] goodbye: banned for 10 min: too loud"]
    assert await desk.type("/bans") == ["203.0.113.7 for 10 min: too loud"]
    assert await desk.type("/unban 203.0.113.7\n/unban 203.0.113.7") == [
        "203.0.113.7 is no longer banned",
        "there is no ban of 203.0.113.7",
    ]
    await desk.join("203.0.113.7:51237", "alice")


async def test_a_network_is_banned(desk: Desk) -> None:
    await desk.join("[2001:db8::1]:51234")
    assert await desk.type("/ban 2001:db8::/32\n/ban 203.0.113.7/24 1d\n/bans") == [
        "banned 2001:db8::/32 for ever (1 client was disconnected)",
        "banned 203.0.113.0/24 for 24 h (no client was disconnected)",
        "2001:db8::/32 for ever",
        "203.0.113.0/24 for 24 h",
    ]


@pytest.mark.parametrize("typed", ["bob", "name bob"])
async def test_a_name_can_be_banned_whether_or_not_it_is_in_use(desk: Desk, typed: str) -> None:
    assert await desk.type(f"/ban {typed} forever 3 times is enough") == [
        "banned name bob for ever: 3 times is enough (no client was disconnected)"
    ]
    client = await desk.join()
    await client.send("/name BOB")
    assert await client.line() == "[Server] the name 'BOB' is banned"
    assert await desk.type("/unban Bob") == ["name Bob is no longer banned"]


async def test_a_client_without_an_address_is_banned_by_name(desk: Desk) -> None:
    bob = await desk.join(name="bob")
    await desk.join()
    assert await desk.type("/ban 1 too loud\n/ban Client 2\n/ban 2") == [
        "banned name bob for ever: too loud (1 client was disconnected)",
        *["Client 2 has neither an address nor a name; /kick it"] * 2,
    ]
    assert (await bob.rest())[-1] == "[Server] goodbye: banned for ever: too loud"


async def test_the_name_of_a_client_with_an_address_can_be_banned(desk: Desk) -> None:
    await desk.join("203.0.113.7:51234", "bob")
    assert await desk.type("/ban name bob") == [
        "banned name bob for ever (1 client was disconnected)"
    ]


@pytest.mark.parametrize(
    "argument", ["203.0.113.8", "127.1", "0x7f.1", "name", "forever", "10m", "l0", "Client", "all"]
)
async def test_no_client_can_be_named_like_a_command_argument(desk: Desk, argument: str) -> None:
    client = await desk.join()
    await client.send(f"/name {argument}")
    assert (await client.line()).startswith(f"[Server] the name '{argument}' is not allowed: ")
    [shown] = await desk.type(f"/kick {argument}")
    assert shown == f"nobody called {argument} is connected"
    assert desk.server.statistics().clients == 1


async def test_a_lookalike_of_a_banned_name_is_banned(desk: Desk) -> None:
    assert await desk.type("/ban alice") == [
        "banned name alice for ever (no client was disconnected)"
    ]
    client = await desk.join()
    await client.send("/name аӏісе")  # Cyrillic
    assert await client.line() == "[Server] the name 'аӏісе' is banned"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("/ban", "usage: /ban WHAT [TIME] [REASON]"),
        ("/unban", "usage: /unban WHAT"),
        ("/ban 7", "no client 7 is connected"),
        ("/ban Client 7 10m", "nobody called Client 7 is connected"),
        ("/ban 203.0.113.256", "203.0.113.256 is not an address"),
        ("/ban 203.0.113.0/99", "203.0.113.0/99: the length of a network is 0 to 32"),
        ("/ban bob 10x", "10x is not a duration; examples: 90s, 10m, 2h, 1d, forever"),
        ("/ban bob 2nd time", "2nd is not a duration; examples: 90s, 10m, 2h, 1d, forever"),
        (
            "/ban 10m",
            "the name '10m' is not allowed: it can be mistaken for a number, an address or a time",
        ),
        (
            "/ban Client",
            "the name 'Client' is not allowed: it can be mistaken for a client without a name",
        ),
        ("/ban name аlice", MIXED),
        ("/ban bob\x1b", "bob␛ is not an address, network or name"),
        ("/unban 7", "7 is the number of a client, not a name"),
        ("/unban a b", "a b is not an address, network or name"),
        (
            "/foo\x1b bar",
            f"unknown command /foo␛; {HINT}",
        ),
        (
            f"/{'x' * 99}",
            f"unknown command /{'x' * 39}…; {HINT}",
        ),
    ],
)
async def test_a_usage_error_is_one_line(desk: Desk, typed: str, shown: str) -> None:
    assert await desk.type(typed) == [shown]
    assert await desk.type("/bans") == ["nobody is banned"]


async def test_help_names_every_command_and_fits_a_narrow_terminal(desk: Desk) -> None:
    shown = await desk.type("/help")
    assert max(map(len, shown)) <= 60
    source = Path(admin_requests.__file__).read_text("utf-8")
    run = set(re.findall(r'case "(/\w+)"', source))
    assert {line.split()[0] for line in shown if line.startswith("/")} == {*run, "//TEXT"}
    assert {each.name for each in ADMIN_COMMANDS} == run


async def test_quit_stops_the_server_after_pending_lines(desk: Desk) -> None:
    client = await desk.join()
    await desk.type("goodnight\n/quit")
    assert desk.server.shutting_down
    assert await client.line() == "[Server] goodnight"


# The terminal


def test_there_is_no_console_without_a_terminal_on_standard_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Path("/dev/null").open() as null:
        monkeypatch.setattr(sys, "stdin", null)
        assert console_fd() is None
    assert console_fd() is None  # closed
    monkeypatch.setattr(sys, "stdin", None)
    assert console_fd() is None


async def test_there_is_no_console_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    shown: list[str] = []
    with trio.testing.assert_checkpoints():
        await run_console(Server(), shown.append)
    assert shown == []


async def test_an_internal_error_ends_neither_the_console_nor_the_server(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, log: LogRecorder
) -> None:
    async def broadcast(server: Server, text: str) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(Server, "broadcast", broadcast)
    monkeypatch.setattr(Server, "bans", property(lambda server: 1 // 0))
    assert await desk.type("hello\n/bans\n/clients") == [
        "internal error; see the log",
        "nobody is connected",
        "internal error; see the log",
    ]
    crashed = "[ERROR] [server] [STATE] an operator command crashed: ZeroDivisionError("
    assert [line[: len(crashed)] for line in log.lines] == [crashed] * 2


# A server that has a console and nothing else, for what only a terminal and its shell can show.
PROGRAM = """
import signal, sys, trio
from multichat.terminal.admin_console import run_console
from multichat.server.server import Server

async def main():
    async with Server().open() as server:
        before = signal.getsignal(signal.SIGTTIN)
        print("ready", flush=True)  # what is typed sooner is the shell's
        await run_console(server, lambda line: print("shown:", line, flush=True))
        print("sigttin", "restored" if signal.getsignal(signal.SIGTTIN) == before else "changed")
        await trio.sleep(600)

trio.run(main)
"""


@pytest.fixture
def program_file(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, "utf-8")
    return str(path)


@pytest.mark.process
async def test_the_end_of_input_ends_only_the_console(
    terminal: Terminal, program_file: str
) -> None:
    await terminal.open("t", sys.executable, program_file)
    await terminal.wait_for("t", "ready\n")
    await terminal.type("t", "/clients")
    await terminal.wait_for("t", "shown: nobody is connected")
    await terminal.run("send-keys", "-t", "t", "C-d")
    await terminal.wait_for("t", "shown: The console has ended; the server keeps running")
    await terminal.wait_for("t", "sigttin restored")
    assert "status=" not in await terminal.screen("t")


@pytest.mark.process
async def test_a_job_in_the_background_is_not_stopped(
    terminal: Terminal, program_file: str
) -> None:
    await terminal.open("t", "bash", "--norc", "-i")
    await terminal.type("t", f"PS1='$ '; {sys.executable} {program_file}")
    await terminal.wait_for("t", "ready\n")
    await terminal.type("t", "/clients")
    await terminal.wait_for("t", "shown: nobody is connected")
    await terminal.run("send-keys", "-t", "t", "C-z")
    await terminal.wait_for("t", "Stopped")
    await terminal.type("t", "clear; bg")
    await terminal.wait_for("t", "shown: The console has ended; the server keeps running")
    await terminal.type("t", "clear; jobs; kill %1")
    await terminal.wait_for("t", "Running")


@pytest.mark.process
async def test_a_job_started_in_the_background_reads_nothing(
    terminal: Terminal, program_file: str
) -> None:
    await terminal.open("t", "bash", "--norc", "-i")
    await terminal.type("t", f"PS1='$ '; {sys.executable} {program_file} &")
    await terminal.wait_for("t", "sigttin restored")
    await terminal.type("t", "clear; jobs; kill %1")
    await terminal.wait_for("t", "Running")


@pytest.mark.process
async def test_the_operator_of_a_real_server(terminal: Terminal) -> None:
    await terminal.open("server", MULTICHAT, "serve", "0", "--host", LOOPBACK)
    await terminal.wait_for("server", "Listening on")
    port = re.findall(r"server on port (\d+)", await terminal.screen("server"))[0]
    await terminal.open("client", MULTICHAT, "connect", LOOPBACK, port, "--name", "alice")
    await terminal.wait_for("server", "Client 1 is now called alice")
    await terminal.type("server", "good evening")
    await terminal.wait_for("client", "Server  good evening")
    await terminal.run("clear-history", "-t", "server")
    await terminal.type("server", "/clients")
    await terminal.wait_for("server", "1  alice  lobby  127.0.0.1")
    await terminal.type("server", "/kick 1")
    await terminal.wait_for("client", "kicked")
    await terminal.type("server", "/quit")
    await terminal.wait_for("server", "status=0")
    assert "Traceback" not in await terminal.screen("server")
