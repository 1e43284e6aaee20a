"""Names that belong to accounts: which client gets or loses one, and what a login survives."""

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from multichat import ServerConfig
from multichat.errors import WrongPassphrase
from multichat.journal.base import PendingWrite
from multichat.journal.memory import MemoryJournal
from multichat.server.config import AccountLimits, Registration
from multichat.server.passphrases import Hasher
from multichat.server.server import Server
from multichat.testing import MemoryServer, memory_server
from tests.support.journals import back_up
from tests.support.log import LogRecorder
from tests.support.processes import MULTICHAT, Command, ServerCommand, serve
from tests.support.programs import JsonClient, join, program
from tests.support.sockets import open_client

pytestmark = pytest.mark.unit

T = TypeVar("T")

QUICK = AccountLimits(hash_kib=8, hash_passes=1)
RIGHT, WRONG, OTHER = "correct horse", "incorrect horse", "battery staple"
ALICE = {"name": "alice", "passphrase": RIGHT}


@asynccontextmanager
async def network(**settings: Any) -> AsyncIterator[MemoryServer]:
    async with memory_server(ServerConfig(accounts=QUICK, **settings)) as opened:
        yield opened


async def registered(net: MemoryServer, name: str = "alice", **fields: object) -> JsonClient:
    """Connect, and register *name*."""
    client = await join(net, name=name, **fields)
    answer = await client.ask("register", passphrase=RIGHT)
    assert (answer["type"], answer["name"]) == ("logged-in", name)
    return client


class HeldHasher(Hasher):
    """Hashes once *held* is set, if there is one."""

    held: trio.Event | None = None

    async def run(self, work: Callable[[], T]) -> T:
        if self.held is not None:
            await self.held.wait()
        return await super().run(work)


async def members_of(client: JsonClient) -> set[str]:
    return {each["name"] for each in (await client.ask("who"))["members"]}


# --- A registered name is given to no other client ------------------------------------------------

SPELLINGS = ("alice", "ALICE", "aIice", "ａｌｉｃｅ")


async def refused_everywhere(net: MemoryServer, name: str) -> None:
    """Ask for *name* in each way in which a client can have a name."""
    client = await join(net)
    answer = await client.ask("name", name=name)
    assert (answer["code"], answer["registered"]) == ("name-taken", True)
    assert "/login alice" in answer["text"].lower()
    client = await join(net, name=name)
    assert (await client.hear("error"))["code"] == "name-taken"
    assert client.welcome["name"] == f"Client {client.welcome['client']}"
    text = await net.join()
    await text.send(f"/name {name}")
    assert "is registered" in await text.line()
    for credentials in ({"name": name, "passphrase": WRONG}, {"name": "bob", "passphrase": RIGHT}):
        answer = await client.ask("login", **credentials)
        assert answer["code"] == "wrong-passphrase"
        again = await join(net, login=credentials)
        assert (await again.hear("error"))["code"] == "wrong-passphrase"
        assert "account" not in again.welcome
    assert (await client.ask("register", passphrase=OTHER))["code"] == "invalid-request"


@pytest.mark.parametrize("name", SPELLINGS)
async def test_a_registered_name_and_its_lookalikes_are_refused_to_others(name: str) -> None:
    async with network() as net:
        alice = await registered(net)
        await refused_everywhere(net, name)
        # Also while she is called something else, is away, and has left.
        await alice.ask("name", name="alice_at_lunch")
        await refused_everywhere(net, name)
        await alice.reset()
        await trio.sleep(0.05)
        await refused_everywhere(net, name)
        back = await join(net, login=ALICE)
        await back.ask("logout")
        await refused_everywhere(net, name)
        await back.send({"type": "quit"})
        await refused_everywhere(net, name)


async def test_only_a_login_gets_the_name_of_an_account_that_is_away() -> None:
    """Without an account, a client from the same address gets the name."""
    async with network(away_seconds=60) as net:
        alice, bob = await registered(net), await join(net, name="bob")
        for client in (alice, bob):
            await client.reset()
        await trio.sleep(0.05)
        other = await join(net, name="bob")
        assert other.welcome["name"] == "bob"
        other = await join(net, name="alice")
        assert other.welcome["name"] != "alice"
        owner = await join(net, login=ALICE)
        assert (owner.welcome["name"], owner.welcome["account"]) == ("alice", "alice")


async def test_a_session_that_had_the_name_before_it_was_registered_does_not_get_it_back() -> None:
    async with network() as net:
        mallory = await join(net, name="alice")
        await mallory.reset()
        await trio.sleep(0.05)
        await net.server.admin.account(f"add alice {RIGHT}")
        back = await join(net, session=mallory.welcome["session"])
        assert back.welcome["resumed"]
        assert back.welcome["name"] != "alice"
        assert (await back.hear("error"))["code"] == "name-taken"


async def test_a_registered_name_that_its_owner_gives_up_stays_reserved() -> None:
    async with network() as net:
        alice = await registered(net)
        others = [await join(net) for _ in range(5)]

        async def want(client: JsonClient) -> None:
            for _ in range(20):
                answer = await client.ask("name", name="alice")
                assert answer["code"] == "name-taken"

        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(want, other)
            for name in ("x1", "alice", "x2", "alice"):
                assert (await alice.ask("name", name=name))["name"] == name
            await alice.ask("logout")
            await alice.ask("login", **ALICE)
        assert "alice" in await members_of(alice)


async def test_a_name_that_is_being_registered_cannot_be_taken() -> None:
    async with network() as net:
        alice, bob = await join(net, name="alice"), await join(net, name="bob")
        await alice.send(
            {"type": "register", "passphrase": RIGHT, "nonce": 1},
            {"type": "name", "name": "carol", "nonce": 2},
        )
        codes = [(await bob.ask("name", name="alice")).get("code") for _ in range(20)]
        assert (await alice.answer(1))["type"] == "logged-in"
        assert set(codes) == {"name-taken"}
        assert (await bob.ask("name", name="alice"))["code"] == "name-taken"


# --- Logging in -----------------------------------------------------------------------------------


async def test_a_login_takes_the_name_from_a_client_that_is_not_logged_in() -> None:
    async with network() as net:
        mallory, text = await join(net, name="alice"), await net.join()
        await text.send("/name bob")
        await text.line()
        await net.server.admin.account(f"add alice {RIGHT}")
        await net.server.admin.account(f"add bob {RIGHT}")
        owner = await join(net)
        answer = await owner.ask("login", name="ALICE", passphrase=RIGHT)
        assert (answer["type"], answer["name"]) == ("logged-in", "alice")
        renamed = await mallory.hear("renamed")
        number = mallory.welcome["client"]
        assert (renamed["old"], renamed["name"]) == ("alice", f"Client {number}")
        assert "its owner has logged in" in (await mallory.hear("notice"))["text"]
        assert (await mallory.ask("name", name="alice"))["code"] == "name-taken"
        await owner.ask("logout")
        await owner.ask("login", name="bob", passphrase=RIGHT)
        assert "bob is now Client 2" in await text.line()
        assert "registered, and its owner has logged in" in await text.line()
        assert await members_of(owner) >= {"bob", f"Client {number}", "Client 2"}


async def test_a_later_login_takes_the_name_from_an_earlier_one() -> None:
    async with network() as net:
        first, second = await registered(net), await join(net)
        assert (await second.ask("login", **ALICE))["name"] == "alice"
        out = await first.hear("logged-out")
        assert out["name"] == f"Client {first.welcome['client']}"
        assert "elsewhere" in out["reason"]
        assert (await first.ask("name", name="alice"))["code"] == "name-taken"
        assert (await first.ask("say", text="still here"))["type"] == "accepted"
        # Its session is no longer logged in, and takes nothing from the client that is.
        again = await join(net, session=first.welcome["session"])
        assert (again.welcome["resumed"], again.welcome.get("account")) == (True, None)
        assert "alice" in await members_of(second)


async def test_a_login_elsewhere_cancels_a_change_of_the_passphrase_under_way() -> None:
    hasher = HeldHasher(QUICK)
    server = Server(ServerConfig(accounts=QUICK), hasher=hasher)
    async with server.open(), trio.open_nursery() as nursery:
        net = MemoryServer(server, nursery)
        thief, owner = await registered(net), await join(net)
        hasher.held = trio.Event()
        await thief.send({"type": "passphrase", "passphrase": "stolen passphrase", "nonce": 1})
        await wait_all_tasks_blocked()
        held, hasher.held = hasher.held, None
        assert (await owner.ask("login", **ALICE))["type"] == "logged-in"
        held.set()
        assert (await thief.answer(1))["code"] == "invalid-request"
        assert (await join(net, login=ALICE)).welcome["account"] == "alice"
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_session_of_an_account_stays_logged_in() -> None:
    async with network() as net:
        alice = await registered(net)
        for name in ("alice", "alice_at_lunch"):
            await alice.ask("name", name=name)
            await alice.reset()
            session = alice.welcome["session"]
            # A wrong passphrase does not matter: the token proves as much.
            for login in (None, {"name": "alice", "passphrase": WRONG}):
                alice = await join(net, session=session, login=login)
                assert (alice.welcome["name"], alice.welcome["account"]) == (name, "alice")


async def test_a_resume_does_not_take_the_name_from_a_later_login() -> None:
    async with network() as net:
        first = await registered(net)
        await first.reset()
        await trio.sleep(0.05)
        second = await join(net, login=ALICE)
        again = await join(net, session=first.welcome["session"])
        assert (again.welcome["resumed"], again.welcome.get("account")) == (True, None)
        assert (await again.hear("logged-out"))["name"] == again.welcome["name"]
        assert again.welcome["name"] != "alice"
        await second.reset()
        await trio.sleep(0.05)
        back = await join(net, session=second.welcome["session"])
        assert (back.welcome["name"], back.welcome["account"]) == ("alice", "alice")


async def test_changing_the_passphrase_logs_all_other_sessions_out() -> None:
    async with network() as net:
        old = await registered(net)
        await old.reset()
        await trio.sleep(0.05)
        alice = await join(net, login=ALICE)
        answer = await alice.ask("passphrase", passphrase=OTHER)
        assert "is changed" in answer["text"]
        for fields in ({"session": old.welcome["session"]}, {"login": ALICE}):
            other = await join(net, **fields)
            assert "account" not in other.welcome
            assert other.welcome["name"] != "alice"
        await alice.reset()
        alice = await join(net, session=alice.welcome["session"])
        assert alice.welcome["account"] == "alice"
        other = await join(net, login={"name": "alice", "passphrase": OTHER})
        assert other.welcome["account"] == "alice"


async def test_a_passphrase_that_was_right_before_the_change_no_longer_logs_in() -> None:
    async with network() as net:
        owner = await registered(net)
        registry = net.server._registry
        account = registry.accounts.find("alice")
        assert account is not None
        # A hello may wait between the comparison and the login, for as long as its client likes.
        await owner.ask("passphrase", passphrase=OTHER)
        other = await join(net)
        client = registry.find(other.welcome["client"])
        assert client is not None
        with pytest.raises(WrongPassphrase):
            registry.logins.log_in(client, account)
        assert await members_of(owner) == {"alice", other.welcome["name"]}


async def test_a_removed_account_is_logged_out_and_its_name_is_free() -> None:
    async with network() as net:
        alice = await registered(net)
        assert await net.server.admin.account("list") == ["alice"]
        await net.server.admin.account("remove ALICE")
        assert "removed" in (await alice.hear("logged-out"))["reason"]
        await alice.send({"type": "quit"})
        bob = await join(net, name="alice")
        assert bob.welcome["name"] == "alice"
        assert (await bob.ask("register", passphrase=OTHER))["type"] == "logged-in"


async def test_a_client_that_logs_out_keeps_a_name_that_is_not_the_accounts() -> None:
    async with network() as net:
        alice = await registered(net)
        assert (await alice.ask("logout"))["name"] == f"Client {alice.welcome['client']}"
        await alice.ask("login", **ALICE)
        await alice.ask("name", name="carol")
        assert (await alice.ask("logout"))["name"] == "carol"
        assert (await alice.ask("logout"))["code"] == "invalid-request"
        assert (await alice.ask("passphrase", passphrase=OTHER))["code"] == "invalid-request"


async def test_accounts_in_the_text_protocol() -> None:
    async with network() as net:
        alice = await net.join()
        await alice.send(f"/register {RIGHT}", "/name alice", "/register short")
        await alice.send(
            f"/register {RIGHT}", "/logout", f"/login alice {RIGHT} ", "/login alice x"
        )
        await alice.send(f"/login ALICE {RIGHT}", f"/passphrase {OTHER}", "/quit")
        assert [line.removeprefix("[Server] ") for line in await alice.rest()] == [
            "you have no name yet: /name NAME, then /register PASSPHRASE",
            "Client 1 is now alice",
            "a passphrase has at least 8 characters",
            "you are logged in as alice",
            "the server keeps no journal: accounts last until it ends",
            "you are logged out, and called Client 1 now",
            "the name or the passphrase is wrong",
            "the name or the passphrase is wrong",
            "you are logged in as alice",
            "your passphrase is changed, and your other sessions are logged out",
            "goodbye: you asked to leave",
        ]


# --- --require-login, --registration --------------------------------------------------------------


async def test_where_a_login_is_required_others_can_only_read() -> None:
    async with network(require_login=True) as net:
        alice, bob = await registered(net), await join(net, name="bob")
        await alice.say("hello")
        assert (await bob.hear("said"))["text"] == "hello"
        for request in (
            {"type": "say", "text": "x"},
            {"type": "act", "text": "x"},
            {"type": "direct", "to": "alice", "text": "x"},
        ):
            kind = request.pop("type")
            assert (await bob.ask(kind, **request))["code"] == "login-required"
        text = await net.join()
        await text.send("hello", "/me waves", "/msg alice hello", "/history", "/quit")
        lines = await text.rest()
        assert sum("only accounts may speak" in line for line in lines) == 3
        await bob.ask("register", passphrase=OTHER)
        await bob.say("now")
        assert (await alice.hear("said"))["text"] == "now"
        await alice.ask("logout")
        assert (await alice.ask("say", text="x"))["code"] == "login-required"


async def test_a_bot_of_the_program_needs_no_login() -> None:
    async with network(require_login=True) as net:
        alice = await registered(net)

        async def bot(chat: Any) -> None:
            await chat.say("hello")

        await net.server.start_bot(bot, name="bot")
        assert (await alice.hear("said"))["text"] == "hello"


async def test_where_registration_is_closed_register_is_refused() -> None:
    async with network(registration=Registration.CLOSED) as net:
        alice = await join(net, name="alice")
        assert (await alice.ask("register", passphrase=RIGHT))["code"] == "registration-closed"
        await net.server.admin.account(f"add alice {RIGHT}")
        assert (await alice.ask("login", **ALICE))["type"] == "logged-in"


# --- Operators and topics -------------------------------------------------------------------------


async def test_operators_do_what_the_console_does(log: LogRecorder) -> None:
    async with network(operators=("boss",)) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
        bob = await join(net, name="bob", rooms={"lobby": {}})
        requests: list[dict[str, object]] = [
            {"type": "kick", "who": "boss"},
            {"type": "ban", "what": "name boss"},
            {"type": "unban", "what": "name boss"},
            {"type": "bans"},
            {"type": "announce", "text": "hello"},
            {"type": "topic", "text": "tea"},
        ]
        for request in requests:
            kind = str(request.pop("type"))
            assert (await bob.ask(kind, **request))["code"] == "not-operator"
        assert (await boss.ask("announce", text="hello all"))["type"] == "notice"
        assert (await bob.hear("notice"))["text"] == "hello all"
        changed = await boss.ask("topic", text="tea at four")
        told = await bob.hear("topic")
        assert told == {key: value for key, value in changed.items() if key != "nonce"}
        assert (told["room"], told["text"], told["name"]) == ("lobby", "tea at four", "boss")
        assert (await bob.ask("topic"))["text"] == "tea at four"
        assert (await boss.ask("kick", who="nobody"))["code"] == "invalid-request"
        await boss.ask("ban", what="name mallory", time="1h", reason="spam")
        [ban] = (await boss.ask("bans"))["bans"]
        assert (ban["what"], ban["reason"]) == ("name mallory", "spam")
        await boss.ask("unban", what="name mallory")
        assert (await boss.ask("bans"))["bans"] == []
        await boss.ask("kick", who=bob.welcome["client"], reason="enough")
        assert (await bob.hear("goodbye"))["reason"] == "kicked: enough"
        await boss.ask("logout")
        assert (await boss.ask("announce", text="x"))["code"] == "not-operator"
    lines = "\n".join(log.lines)
    for command in ("/announce hello all", "/topic tea at four", "/kick 2 enough", "/bans"):
        assert re.search(rf"Operator boss \(Client \d+\): {re.escape(command)}", lines)


@pytest.mark.parametrize("what", ["name boss", "boss"])
async def test_an_operator_cannot_ban_itself(what: str) -> None:
    async with network(operators=("boss",)) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
        assert "would ban you" in (await boss.ask("ban", what=what))["text"]
        assert (await boss.ask("bans"))["bans"] == []


async def test_words_of_one_field_of_an_operators_request_never_count_as_another() -> None:
    async with network(operators=("boss",)) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
        bob = await join(net, name="bob")
        number = str(bob.welcome["client"])
        for who, reason in ("client", f"{number} enough"), ("", "bob"), ("bob enough", ""):
            answer = await boss.ask("kick", who=who, reason=reason)
            assert answer["code"] == "invalid-request"
        for what, time, reason in ("name", "bob", ""), ("", "", "name bob"), ("name zed", "1", "x"):
            await boss.ask("ban", what=what, time=time, reason=reason)
        await boss.ask("ban", what="name yan", reason="2h late")
        bans = (await boss.ask("bans"))["bans"]
        assert [(each["what"], each["reason"]) for each in bans] == [
            ("name zed", "x"),
            ("name yan", "2h late"),
        ]
        assert "seconds" not in bans[1]
        assert (await bob.ask("ping"))["type"] == "pong"


async def test_a_mistyped_duration_does_not_make_a_ban_permanent() -> None:
    async with network(operators=("boss",)) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
        answer = await boss.ask("ban", what="name zed", time="x")
        assert (answer["code"], (await boss.ask("bans"))["bans"]) == ("invalid-request", [])


async def test_an_operators_name_without_its_account_is_not_an_operator() -> None:
    async with network(operators=("boss",)) as net:
        mallory = await join(net, name="boss")
        assert (await mallory.ask("announce", text="x"))["code"] == "not-operator"
        assert (await mallory.ask("register", passphrase=RIGHT))["code"] == "registration-closed"


async def test_a_topic_is_shown_on_entering() -> None:
    async with network(operators=("boss",)) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT}, room="den")
        await boss.ask("topic", text="hush")
        assert (await boss.ask("topic", text="x" * 201))["code"] == "invalid-request"
        bob = await join(net, rooms={"den": {}})
        assert bob.welcome["rooms"]["den"]["topic"] == "hush"
        assert (await bob.ask("enter", room="kitchen")).get("topic") is None
        assert (await bob.ask("join", room="den"))["topic"] == "hush"
        await boss.send({"type": "quit"})
        await bob.ask("join", room="lobby")
        assert (await bob.ask("enter", room="DEN"))["topic"] == "hush"  # a room that was closed
        text = await net.join()
        await text.send("/join den", "/topic", "/quit")
        assert (await text.rest())[1:3] == [
            "[Server] topic: hush",
            "[Server] the topic of DEN: hush",
        ]


class HeldTopics(MemoryJournal):
    """Stores topics, and reports that when *pending* is resolved."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = PendingWrite()

    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        return self.pending


@pytest.mark.parametrize("failure", ["", "the disk is full"])
async def test_a_topic_that_is_stored_is_set_even_if_its_operator_is_disconnected_meanwhile(
    failure: str,
) -> None:
    journal = HeldTopics()
    config = ServerConfig(accounts=QUICK, operators=("boss",))
    async with memory_server(config, journal=journal) as net:
        await net.server.admin.account(f"add boss {RIGHT}")
        boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
        await boss.send({"type": "topic", "text": "tea"})
        await wait_all_tasks_blocked()
        net.server.kick(boss.welcome["client"])
        await wait_all_tasks_blocked()
        journal.pending.resolve(failure)
        bob = await join(net, rooms={"lobby": {}})
        assert bob.welcome["rooms"]["lobby"].get("topic") == (None if failure else "tea")


# --- Real servers ---------------------------------------------------------------------------------


def journal(folder: Path) -> tuple[str, str]:
    return "--journal", str(folder / "chat.db")


async def registered_at(server: ServerCommand, stack: AsyncExitStack) -> JsonClient:
    alice = await stack.enter_async_context(program(server, name="alice"))
    assert (await alice.ask("register", passphrase=RIGHT))["type"] == "logged-in"
    await alice.say("hello")  # which is stored no earlier than the session
    return alice


async def check_owned(server: ServerCommand, session: str) -> None:
    """Only the owner has the name, by *session* or passphrase."""
    async with program(server, name="alice") as mallory:
        assert (await mallory.hear("error"))["code"] == "name-taken"
    async with program(server, session=session) as again:
        assert (again.welcome["name"], again.welcome["account"]) == ("alice", "alice")
    async with program(server, login=ALICE) as owner:
        assert owner.welcome["account"] == "alice"


@pytest.mark.process
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
async def test_an_account_its_session_and_the_topic_survive_a_restart(
    end: signal.Signals, tmp_path: Path
) -> None:
    async with serve(tmp_path, *journal(tmp_path)) as server, AsyncExitStack() as stack:
        session = (await registered_at(server, stack)).welcome["session"]
        server.signal(end)
        await server.wait()
    async with serve(tmp_path, *journal(tmp_path), "--operators", "alice") as server:
        await check_owned(server, session)
        async with program(server, login=ALICE) as alice:
            await alice.ask("topic", text="tea")
        server.signal(end)
        await server.wait()
    async with serve(tmp_path, *journal(tmp_path)) as server, program(server) as bob:
        assert (await bob.ask("topic"))["text"] == "tea"


@pytest.mark.process
async def test_a_restored_backup_has_the_account(tmp_path: Path) -> None:
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with serve(tmp_path, *journal(tmp_path)) as server, AsyncExitStack() as stack:
        alice = await registered_at(server, stack)
        back_up(path, backup)
        await alice.ask("passphrase", passphrase=OTHER)
        server.signal(signal.SIGTERM)
        await server.wait()
    shutil.copy(backup, path)
    async with serve(tmp_path, *journal(tmp_path)) as server:
        async with program(server, login={"name": "alice", "passphrase": OTHER}) as late:
            assert (await late.hear("error"))["code"] == "wrong-passphrase"
        await check_owned(server, alice.welcome["session"])


@pytest.mark.process
async def test_the_start_warns_of_operators_without_an_account(tmp_path: Path) -> None:
    names, secret = tmp_path / "operators", tmp_path / "secret"
    names.write_text("# the night shift\nbob\n\ncarol # since May\n")
    secret.write_text(RIGHT)
    argv = (MULTICHAT, "account", "add", str(tmp_path / "chat.db"), "carol")
    async with Command(tmp_path, *argv, "--passphrase-file", str(secret)) as command:
        assert await command.wait() == 0
    options = (*journal(tmp_path), "--operators", "alice, bob", "--operators-file", str(names))
    async with serve(tmp_path, *options) as server:
        await server.wait_for("The operator bob has no account")
        assert server.out.count("has no account") == 2
        async with program(server, login={"name": "carol", "passphrase": RIGHT}) as carol:
            assert (await carol.ask("announce", text="hello"))["type"] == "notice"


def own_address() -> str:
    """Return an address of this machine that is not loopback; skip the test without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address = str(probe.getsockname()[0])
        if not address.startswith("127."):
            return address
    pytest.skip("this machine has no address but loopback")


@pytest.mark.process
async def test_a_passphrase_in_plain_text_is_refused_beyond_loopback(tmp_path: Path) -> None:
    address = own_address()
    async with ServerCommand(
        tmp_path, MULTICHAT, "serve", "0", "--host", address, *journal(tmp_path)
    ) as server:
        with socket.create_connection((address, server.port)) as connection:
            lines = ("/name alice", f"/register {RIGHT}", f"/login alice {RIGHT}", "/quit")
            connection.sendall("".join(f"{line}\n" for line in lines).encode())
            answers = connection.makefile().read()
    assert answers.count("passphrases are accepted over TLS only") == 2


@pytest.mark.process
async def test_no_passphrase_is_anywhere(tmp_path: Path) -> None:
    """In the log at its finest, the journal and the files beside it, errors, and `ps`."""
    secrets = [f"Right-{number}-secret" for number in range(5)]
    right, changed, wrong, short, added = secrets
    log_file = tmp_path / "server.log"
    options = ("--log-level", "debug", "--log-file", str(log_file))
    async with serve(tmp_path, *journal(tmp_path), *options) as server:
        async with program(server, name="alice") as alice:
            answers: list[object] = [
                await alice.ask("register", passphrase=right),
                await alice.ask("login", name="alice", passphrase=wrong),
                await alice.ask("passphrase", passphrase=changed),
                await alice.ask("login", name="alice", passphrase=changed),
                await alice.ask("register", passphrase=7),
                await alice.ask("login", passphrase=wrong),
                await alice.ask("passphrase", passphrase=wrong, name=[wrong]),
            ]
            await alice.say("the last message")
        text = await open_client(server.port)
        async with text.stream:
            commands = (
                "/name bob",
                f"/register {right}",
                f"/login alice {wrong}",
                f"/login {wrong}",
            )
            await text.send(*commands, f" /login alice {wrong}", f"/passphrase {short}", "/quit")
            answers += await text.rest()
        seen = subprocess.run(["ps", "-efww"], capture_output=True, text=True).stdout
        assert "serve" in seen
        server.signal(signal.SIGTERM)
        await server.wait()
    secret_file = tmp_path.parent / f"{tmp_path.name}-secret"
    secret_file.write_text(added)
    argv = (MULTICHAT, "account", "add", str(tmp_path / "chat.db"), "carol")
    async with Command(tmp_path, *argv, "--passphrase-file", str(secret_file)) as command:
        assert await command.wait() == 0
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"chat.db", "server.log"} <= set(found)
    found["answers"], found["ps"] = repr(answers).encode(), seen.encode()
    for secret in secrets:
        for name, data in found.items():
            assert secret.encode() not in data, (secret, name)


async def test_a_crash_report_has_no_passphrase(log: LogRecorder) -> None:
    broken = AccountLimits(hash_kib=0, hash_passes=0)
    async with memory_server(ServerConfig(accounts=broken)) as net:
        alice = await net.join()
        await alice.send("/name alice", f"/register {RIGHT}")
        await alice.rest()
        await wait_all_tasks_blocked()
    assert any("crashed" in line for line in log.lines)
    assert RIGHT not in "\n".join(log.lines)
