"""Resuming: client id, name and room, missed messages, and deduplication."""

import json
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.backend.local import LocalBackend
from multichat.journal.base import PendingWrite, SessionRecord
from multichat.journal.memory import MemoryJournal, _MemoryRoom
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal
from multichat.protocol.ids import message_id
from multichat.protocol.messages import MAX_UNACCEPTED, Accepted, Nonce, SaidBlock
from multichat.server.config import ReplayLimits
from multichat.server.session_store import SessionStore
from multichat.server.stored_session import Submission
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.journals import HeldJournal, HeldRoom, running, tidy
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit


class Program:
    """A JSON client over memory streams."""

    def __init__(self, client: ScriptedClient) -> None:
        self.client = client
        self.welcome: dict[str, Any] = {}

    async def send(self, **request: object) -> None:
        await self.client.send(json.dumps(request))

    async def hear(self) -> dict[str, Any]:
        return json.loads(await self.client.line())  # type: ignore[no-any-return]

    async def hear_until(self, type_: str) -> list[dict[str, Any]]:
        """Return the events up to one of that type."""
        received = [await self.hear()]
        while received[-1]["type"] != type_:
            received.append(await self.hear())
        return received

    async def ask(self, **request: object) -> dict[str, Any]:
        await self.send(**request)
        return await self.hear()

    async def say(self, *texts: str) -> str:
        """Send messages, and return the id of the last."""
        for text in texts:
            await self.send(type="say", text=text, nonce=f"{text}")
            accepted = (await self.hear_until("accepted"))[-1]
        return accepted["id"]  # type: ignore[no-any-return]

    async def texts(self, count: int) -> list[str]:
        """Return the texts of the next events, which are messages."""
        return [(await self.hear())["text"] for _ in range(count)]

    async def reset(self) -> None:
        """Reset the connection."""
        await trio.aclose_forcefully(self.client.stream)
        await trio.testing.wait_all_tasks_blocked()


async def program(network: MemoryServer, **fields: object) -> Program:
    """Connect with a hello with these fields; return the welcomed client."""
    one = Program(await network.join())
    await one.client.send(f"/json {json.dumps(fields)}")
    while not (line := await one.client.line()).startswith("{"):
        pass  # messages of the lobby from before the hello was read
    one.welcome = json.loads(line)
    assert one.welcome["type"] == "welcome"
    return one


async def again(network: MemoryServer, one: Program, **fields: object) -> Program:
    """Reconnect with the session of *one*."""
    return await program(network, session=one.welcome["session"], **fields)


@asynccontextmanager
async def small_server(max_messages: int) -> AsyncGenerator[MemoryServer]:
    """Run a server whose journal stores no more than that."""
    async with memory_server(journal=MemoryJournal(max_messages=max_messages)) as network:
        yield network


async def test_a_resumed_client_keeps_its_identity_and_gets_missed_messages(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server() as network:
        alice = await program(network, name="alice", room="den")
        bob = await program(network, name="bob", room="den")
        seen = await bob.say("one")
        assert (await alice.hear_until("said"))[-1]["id"] == seen
        await alice.reset()
        await bob.say("two", "three")
        alice = await again(network, alice, since=seen)
        welcome = alice.welcome
        assert (welcome["resumed"], welcome["client"], welcome["name"]) == (True, 1, "alice")
        assert (welcome["room"], welcome["members"]) == ("den", 2)
        assert await alice.texts(2) == ["two", "three"]
        await bob.say("four")
        assert await alice.texts(1) == ["four"]
        assert network.server.find("alice") == 1
    assert "[INFO] [server] [STATE] Client 3 is Client 1 again" in log.lines


async def test_a_quick_resume_is_announced_neither_as_leave_nor_as_join(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(away_seconds=30)) as network:
        bob = await program(network, name="bob")
        alice = await program(network, name="alice")
        await bob.hear_until("joined")
        await alice.reset()
        await trio.sleep(20)
        alice = await again(network, alice)
        await trio.sleep(60)
        assert (await bob.ask(type="ping"))["type"] == "pong"
        await alice.reset()
        await trio.sleep(29)
        assert (await bob.ask(type="ping"))["type"] == "pong"
        await trio.sleep(3)
        left = await bob.hear()
        assert (left["type"], left["name"], left["client"]) == ("left", "alice", 2)


async def test_quit_leaves_at_once_and_ends_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(away_seconds=30)) as network:
        bob = await program(network, name="bob")
        alice = await program(network, name="alice")
        await bob.hear_until("joined")
        await alice.send(type="quit")
        assert (await alice.hear())["type"] == "goodbye"
        await trio.sleep(2)
        assert (await bob.hear())["type"] == "left"
        stranger = await again(network, alice)
        assert not stranger.welcome["resumed"]
        assert stranger.welcome["client"] == 3
        assert stranger.welcome["session"] != alice.welcome["session"]


@pytest.mark.parametrize("send_away", ["kick", "ban"])
async def test_a_kicked_client_cannot_resume_its_session(send_away: str) -> None:
    async with memory_server() as network:
        alice = await program(network, name="alice")
        network.server.kick(1)
        await trio.testing.wait_all_tasks_blocked()
        assert not (await again(network, alice)).welcome["resumed"]


async def test_a_new_connection_takes_over_from_the_old_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob")
        old = await program(network, name="alice")
        await bob.hear_until("joined")
        new = await again(network, old)
        assert new.welcome["resumed"]
        goodbye = (await old.hear_until("goodbye"))[-1]
        assert goodbye["reason"] == "taken over by a new connection"
        await trio.sleep(60)
        await new.say("still me")
        said = await bob.hear()
        assert (said["type"], said["client"], said["name"]) == ("said", 2, "alice")


async def test_a_message_repeated_with_its_nonce_is_published_once() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob")
        alice = await program(network, name="alice")
        await alice.send(type="say", text="once", nonce="n")
        first = await alice.hear()
        await alice.send(type="say", text="once", nonce="n")
        assert await alice.hear() == first
        await alice.reset()
        alice = await again(network, alice)
        # In one read: repeated and new messages, one of the new ones twice.
        says = [("once", "n"), ("two", "m"), ("three", "o"), ("two", "m"), ("four", None)]
        lines = [json.dumps({"type": "say", "text": t, "nonce": n}) for t, n in says]
        await alice.client.send(*lines)
        answers = [await alice.hear() for _ in range(4)]
        assert [answer["nonce"] for answer in answers] == ["n", "m", "o", "m"]
        assert answers[0] == first
        assert answers[1] == answers[3]
        said = [(await bob.hear_until("said"))[-1]["text"] for _ in range(4)]
        assert said == ["once", "two", "three", "four"]
        await alice.send(type="act", text="waves", nonce="p")
        await alice.send(type="act", text="waves", nonce="p")
        assert await alice.hear() == await alice.hear()
        await alice.send(type="direct", to="bob", text="psst", nonce="q")
        await alice.send(type="direct", to="bob", text="psst", nonce="q")
        assert await alice.hear() == await alice.hear() == {"type": "accepted", "nonce": "q"}
        assert await bob.texts(2) == ["waves", "psst"]
        assert (await bob.ask(type="ping"))["type"] == "pong"


async def test_a_repeated_message_is_acknowledged_once_the_original_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not before: a client that resumes after the acknowledged id would miss earlier messages."""
    async with memory_server(
        ServerConfig(send_queue_batches=1, slow_timeout_seconds=30)
    ) as network:
        sender, alice = await network.join(), await program(network, name="alice")
        await network.join(lockstep=True)  # never reads
        for text in "012":
            await sender.send(text)
            await trio.testing.wait_all_tasks_blocked()
        await alice.send(type="say", text="mine", nonce="n")  # waits for its turn
        await trio.testing.wait_all_tasks_blocked()
        alice = await again(network, alice)
        await alice.send(type="say", text="mine", nonce="n")
        with trio.move_on_after(20):
            assert (await alice.hear_until("accepted"))[0]["type"] == "said"
            raise AssertionError("accepted before it was told")
        assert (await alice.hear_until("accepted"))[-1]["nonce"] == "n"


async def test_a_window_holds_the_last_nonces_and_no_more() -> None:
    async with memory_server() as network:
        alice = await program(network, name="alice")
        first = await alice.say("first")
        for number in range(MAX_UNACCEPTED):
            await alice.send(type="say", text="x", nonce=number)
            await alice.hear()
        assert await alice.say("first") != first


@pytest.mark.parametrize("kept", [False, True])
async def test_a_session_that_resumes_knows_all_that_may_be_unacknowledged(
    kept: bool, tmp_path: Path
) -> None:
    def journal() -> MemoryJournal | SqliteJournal:
        path = tmp_path / "chat.db"
        return SqliteJournal(path, durability=Durability.NORMAL) if kept else MemoryJournal()

    says = [
        json.dumps({"type": "say", "text": "x", "nonce": n if n % 2 else f"n{n}"})
        for n in range(3 * MAX_UNACCEPTED)
    ]
    async with memory_server(journal=journal()) as network:
        alice = await program(network, name="alice")
        await alice.client.send(*says)
        accepted = [await alice.hear() for _ in says]
        await alice.reset()
        if not kept:
            alice = await again(network, alice)
            await alice.client.send(*says[-MAX_UNACCEPTED:])
            assert [await alice.hear() for _ in range(MAX_UNACCEPTED)] == accepted[-MAX_UNACCEPTED:]
    if kept:
        async with memory_server(journal=journal()) as network:
            alice = await again(network, alice)
            await alice.client.send(*says[-MAX_UNACCEPTED:])
            assert [await alice.hear() for _ in range(MAX_UNACCEPTED)] == accepted[-MAX_UNACCEPTED:]


async def test_nonces_of_different_clients_are_independent() -> None:
    async with memory_server() as network:
        alice, bob = await program(network, name="alice"), await program(network, name="bob")
        assert await alice.say("hello") != await bob.say("hello")


async def test_messages_deleted_from_the_journal_are_counted_as_missed() -> None:
    async with small_server(3) as network:
        alice = await program(network, name="alice")
        bob = await program(network, name="bob")
        seen = await bob.say("0")
        await alice.reset()
        for number in range(1, 41):  # more than the room's ring holds
            await bob.send(type="say", text=f"{number}{'x' * 60_000}", nonce=number)
            await bob.hear_until("accepted")
        alice = await again(network, alice, since=seen)
        missed = await alice.hear()
        assert missed["type"] == "missed"
        assert 0 < missed["count"] < 40
        rest = range(missed["count"] + 1, 41)
        assert [text.rstrip("x") for text in await alice.texts(len(rest))] == [*map(str, rest)]


async def test_an_unknown_id_is_an_error_without_further_effect() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob", room="den")
        elsewhere = await bob.say("in the den")
        await bob.send(type="join", room="lobby")
        await bob.hear_until("joined")
        here = await bob.say("in the lobby")
        for since in (elsewhere, "", "x", here + "0", here[:-1] + "9", "-1000000000", "é-１"):
            alice = await program(network, since=since)
            assert (await alice.hear())["code"] == "unknown-id"
            await bob.say(f"after {since}")
            assert await alice.texts(1) == [f"after {since}"]
            await alice.send(type="quit")
            await trio.testing.wait_all_tasks_blocked()


async def test_a_join_may_replay_messages_since_an_id() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob", room="den")
        first = await bob.say("1")
        await bob.say("2", "3")
        carol = await program(network, name="carol")
        await carol.send(type="join", room="den", since=first, nonce="j")
        joined = (await carol.hear_until("joined"))[-1]
        assert (joined["room"], joined["last"][-1]) == ("den", "2")
        assert await carol.texts(2) == ["2", "3"]
        dave = await program(network, name="dave", room="den", replay=2)
        assert await dave.texts(2) == ["2", "3"]
        eve = await program(network, name="eve", room="den", replay=10)
        assert await eve.texts(3) == ["1", "2", "3"]


async def test_history_comes_in_pages_from_the_last_to_the_first() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob")
        await bob.client.send(*(f'{{"type":"say","text":"{n}"}}' for n in range(250)))
        page = await bob.ask(type="history", limit=1000, nonce=1)
        assert (page["type"], page["more"], page["nonce"]) == ("history", True, 1)
        assert [m["text"] for m in page["messages"]] == [*map(str, range(150, 250))]
        assert page["messages"][0]["type"] == "said"
        page = await bob.ask(type="history", limit=100, before=page["messages"][0]["id"])
        assert [m["text"] for m in page["messages"]] == [*map(str, range(50, 150))]
        page = await bob.ask(type="history", limit=100, before=page["messages"][0]["id"])
        assert [m["text"] for m in page["messages"]] == [*map(str, range(50))]
        assert not page["more"]
        assert (await bob.ask(type="history", before="?"))["code"] == "unknown-id"
        assert (await bob.ask(type="history", limit=0))["code"] == "invalid-request"


async def test_a_page_of_long_lines_is_bounded_in_bytes() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob")
        for number in range(20):
            await bob.send(type="say", text=f"{number} " + "x" * 60_000)
        page = await bob.ask(type="history", limit=100)
        assert page["more"]
        assert [m["text"].split()[0] for m in page["messages"]] == ["16", "17", "18", "19"]


async def test_a_room_that_everybody_left_is_remembered() -> None:
    async with memory_server() as network:
        bob = await program(network, name="bob", room="den")
        first = await bob.say("1")
        await bob.send(type="join", room="lobby")
        await bob.hear_until("joined")
        carol = await program(network, name="carol", room="Den")
        assert carol.welcome["last"] == first
        assert (await carol.ask(type="history"))["messages"][0]["id"] == first
        assert await carol.say("2") > first


@pytest.mark.parametrize("token", ["", "0" * 32, "é", "x" * 60_000])
async def test_an_unknown_session_reveals_nothing(token: str) -> None:
    async with memory_server() as network:
        await program(network, name="alice")
        stranger = await program(network, session=token)
        assert not stranger.welcome["resumed"]
        assert stranger.welcome["client"] == 2
        assert network.server.find("alice") == 1


async def test_an_expired_session_is_unknown(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    session_store = SessionStore(LocalBackend(MemoryJournal()), 10, session_seconds=60)
    token, one = session_store.create(1, "alice", ("lobby",))
    await trio.sleep(100)  # a connected session does not age
    session_store.disconnect(one, "here")
    await trio.sleep(60)
    assert await session_store.find(token) is one
    await trio.sleep(0.1)
    assert await session_store.find(token) is None
    assert token not in "\n".join(log.lines)


async def test_above_the_limit_the_oldest_sessions_are_evicted() -> None:
    async with memory_server(ServerConfig(max_sessions=2)) as network:
        here = await program(network, name="here")
        gone = [await program(network) for _ in range(3)]
        for one in gone:
            await one.reset()
        back = [await again(network, one) for one in gone]
        assert [one.welcome["resumed"] for one in back] == [False, True, True]
        assert (await again(network, here)).welcome["resumed"]


class ForgettingJournal(MemoryJournal):
    """Records which sessions are to be deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[bytes] = []

    def forget_session(self, digest: bytes) -> None:
        self.forgotten.append(digest)


async def test_a_session_that_is_taken_over_evicts_none() -> None:
    """Its own session would be evicted first, with its nonces."""
    journal = ForgettingJournal()
    async with memory_server(ServerConfig(max_sessions=2), journal=journal) as network:
        gone = [await program(network) for _ in range(2)]
        for one in gone:
            await one.reset()
        here = await program(network)
        assert (await here.ask(type="say", text="once", nonce=1))["type"] == "accepted"
        for _ in range(3):
            here = await again(network, here)
            assert here.welcome["resumed"]
        assert not journal.forgotten
        assert all([(await again(network, one)).welcome["resumed"] for one in gone])


class Visits:
    """Short sessions with *nonces* nonces each, in a session store."""

    def __init__(self, max_disconnected: int = 10_000, max_bytes: float = math.inf) -> None:
        self.store = SessionStore(LocalBackend(MemoryJournal()), max_disconnected, 60.0, max_bytes)
        self._tokens: dict[int, str] = {}

    def visit(self, client: int, address: str | None, nonces: int = 0) -> None:
        self._tokens[client], one = self.store.create(client, "", ("lobby",))
        for nonce in range(nonces):
            self.store.remember(one, (nonce,), Submission("epoch", nonce))
        self.store.disconnect(one, address)

    async def known(self) -> set[int]:
        """Return the clients whose sessions can be resumed."""
        return {client for client, token in self._tokens.items() if await self.store.find(token)}

    async def check_nonces(self, client: int, nonces: int) -> None:
        """Resume, and check that the last *nonces* get the same answers."""
        one = await self.store.find(self._tokens[client])
        assert one is not None
        self.store.resume(one)
        for nonce in range(nonces - MAX_UNACCEPTED, nonces):
            answer = await one.answer(nonce, b"")
            assert answer == Accepted(nonce=nonce, id=message_id("epoch", nonce))
        assert await one.answer(nonces - MAX_UNACCEPTED - 1, b"") is None


async def test_session_churn_from_one_address_does_not_evict_other_addresses() -> None:
    visits = Visits(max_disconnected=100)
    others = set(range(80))
    for client in others:
        visits.visit(client, f"address {client}" if client % 2 else None)
    for client in range(100, 1100):
        visits.visit(client, "one address")
    assert await visits.known() >= {*others, 1099}
    for client in range(1100, 1400):
        visits.visit(client, "one address", MAX_UNACCEPTED)
    assert await visits.known() >= {*others, 1399}
    assert len(await visits.known()) <= 100


async def test_among_addresses_with_one_session_each_the_oldest_is_evicted() -> None:
    visits = Visits(max_disconnected=80)
    for client in range(200):
        visits.visit(client, f"address {client}")
    known = await visits.known()
    assert 70 <= len(known) <= 80
    assert known == set(range(200 - len(known), 200))


async def test_sessions_with_full_windows_from_one_address_do_not_evict_others() -> None:
    max_bytes = 1_000_000
    visits = Visits(max_bytes=max_bytes)
    talkers, quiet = set(range(257)), set(range(300, 400))
    for client in talkers:
        visits.visit(client, f"address {client}", 2 * MAX_UNACCEPTED)
    for client in quiet:
        visits.visit(client, f"address {client}")
    for client in range(1000, 1300):
        visits.visit(client, "one address", MAX_UNACCEPTED)
        assert visits.store.disconnected_bytes <= max_bytes
    assert await visits.known() >= {*talkers, *quiet, 1299}
    assert len(await visits.known()) < 257 + 100 + 300
    for client in talkers:
        await visits.check_nonces(client, 2 * MAX_UNACCEPTED)


async def test_the_memory_of_a_session_is_counted_until_it_is_released() -> None:
    visits = Visits()
    for client in range(20):
        visits.visit(client, None, 10 * client)
    assert visits.store.disconnected_bytes > 0
    for one in [*visits.store._disconnected.values()][::2]:
        visits.store.resume(one)
        visits.store.remember(one, ("while connected",), Submission())
    for one in [*visits.store._disconnected.values()]:
        visits.store.remember(one, ("said as it left",), Submission())
        visits.store.end(one)
    assert visits.store.disconnected_bytes == 0


async def test_a_session_that_ends_during_a_write_remembers_the_nonce() -> None:
    """Nonces whose messages are not stored yet must not be packed."""
    visits = Visits()
    _, one = visits.store.create(1, "", ("lobby",))
    kept, failed = PendingWrite(), PendingWrite()
    visits.store.remember(one, ("kept", "too"), Submission("epoch", 7, pending=kept))
    visits.store.remember(one, ("failed",), Submission("epoch", 9, pending=failed))
    visits.store.disconnect(one, None)
    kept.resolve()
    failed.resolve("disk full")
    for _ in range(2):
        visits.store.resume(one)
        assert await one.answer("too", b"") == Accepted(nonce="too", id=message_id("epoch", 8))
        assert await one.answer("failed", b"") is None
        visits.store.disconnect(one, None)


async def test_session_tokens_are_not_logged(log: LogRecorder) -> None:
    async with memory_server() as network:
        alice = await program(network, name="alice")
        await alice.reset()
        await again(network, alice)
        assert alice.welcome["session"] not in "\n".join(log.lines)


async def test_replay_and_live_delivery_meet_without_gap_or_duplicate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While the room continues and the resuming client reads slowly."""
    async with memory_server() as network:
        alice = await program(network, name="alice")
        bob = await program(network, name="bob")
        seen = await bob.say("0")
        await alice.hear_until("said")
        await alice.reset()
        await bob.client.send(*(f'{{"type":"say","text":"{n}"}}' for n in range(1, 3000)))
        await bob.hear_until("left")  # everything was read

        async def go_on_talking() -> None:
            for number in range(3000, 5000):
                await bob.send(type="say", text=f"{number}")
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on_talking)
            alice = await again(network, alice, since=seen)
            received = [int(text) for text in await alice.texts(4999)]
        assert received == [*range(1, 5000)]


async def test_a_reserved_name_is_available_to_clients_of_the_same_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A program that was killed and restarted has no session, and requests its name."""
    async with memory_server(ServerConfig(away_seconds=30)) as network:
        bob = await program(network, name="bob")
        old = await program(network, name="alice")
        await bob.hear_until("joined")
        await old.reset()
        new = await program(network, name="alice")
        assert new.welcome["name"] == "alice"
        await trio.sleep(2)
        assert {(await bob.hear())["type"] for _ in range(2)} == {"left", "joined"}
        back = await again(network, old)
        assert (back.welcome["client"], back.welcome["name"]) == (2, "Client 2")
        assert (await back.hear())["code"] == "name-taken"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "Server-admin",
            "the name 'Server-admin' is not allowed: it can be mistaken for the server",
        ),
        ("花子Ζωή", "a name cannot mix scripts"),
        (
            "127.0.0.1",
            "the name '127.0.0.1' is not allowed: it can be mistaken for a number or an address",
        ),
        ("x" * 1000, "a name has at most 32 characters"),
        ("\x1b[2J", "a name consists of letters"),
    ],
)
async def test_a_session_with_an_invalid_name_resumes_without_it(
    name: str, reason: str, tmp_path: Path, thread_clock: trio.testing.MockClock
) -> None:
    """From a journal that was written with other rules for names, or modified."""
    token = "0" * 32
    digest = sha256(token.encode()).digest()
    async with running(SqliteJournal(tmp_path / "history")) as journal:
        record = SessionRecord(digest=digest, client=7, name=name, rooms=("ไทยroom",))
        journal.save_session(record, connected=False)
    async with memory_server(journal=SqliteJournal(tmp_path / "history")) as network:
        one = await program(network, session=token)
        assert one.welcome["resumed"]
        assert (one.welcome["name"], one.welcome["room"]) == ("Client 7", "ไทยroom")
        error = await one.hear()
        assert error["code"] == "invalid-name"
        assert error["text"].startswith(reason)
        assert (await one.ask(type="name", name="alice", nonce=1))["name"] == "alice"


async def test_members_and_newcomers_can_use_a_room_whose_name_is_no_longer_allowed(
    tmp_path: Path, thread_clock: trio.testing.MockClock
) -> None:
    token = "0" * 32
    digest = sha256(token.encode()).digest()
    async with running(SqliteJournal(tmp_path / "history")) as journal:
        record = SessionRecord(digest=digest, client=7, name="alice", rooms=("ไทยroom",))
        journal.save_session(record, connected=False)
    async with memory_server(journal=SqliteJournal(tmp_path / "history")) as network:
        alice = await program(network, session=token)
        me = [{"client": 7, "name": "alice"}]
        who = await alice.ask(type="who", nonce=1)
        assert (who["room"], who["members"]) == ("ไทยroom", me)
        assert (await alice.ask(type="who", room="ไทยRoom", nonce=2))["members"] == me
        assert {"room": "ไทยroom", "members": 1} in (await alice.ask(type="rooms", nonce=3))[
            "rooms"
        ]
        assert (await alice.ask(type="history", nonce=4))["messages"] == []
        assert (await alice.ask(type="name", name="alice", nonce=5))["name"] == "alice"
        # Joining while it has members.
        bob = await program(network, name="bob")
        assert (await bob.ask(type="join", room="ไทยroom", nonce=1))["members"] == 2
        await alice.hear_until("joined")
        # Joining again when it is empty but has messages.
        assert (await alice.ask(type="say", text="hello", nonce=6))["type"] == "accepted"
        await bob.send(type="quit")
        await alice.hear_until("left")
        assert (await alice.ask(type="join", room="lobby", nonce=6))["room"] == "lobby"
        assert (await alice.ask(type="join", room="ไทยroom", nonce=7))["room"] == "ไทยroom"
        assert [said["text"] for said in (await alice.ask(type="history", nonce=8))["messages"]]
        # The rules hold for new rooms.
        assert (await alice.ask(type="join", room="ไทยothers", nonce=9))["code"] == "invalid-name"
        assert (await alice.ask(type="who", room="ไทยothers", nonce=10))["code"] == "invalid-name"


async def test_a_session_whose_name_looks_like_one_in_use_resumes_without_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(away_seconds=5)) as network:
        alice = await program(network, name="alice", room="coco")
        await alice.reset()
        other = await program(network, name="bob", room="сосо")
        assert other.welcome["room"] == "сосо"
        await trio.sleep(6)
        assert (await other.ask(type="name", name="аӏісе", nonce=1))["type"] == "renamed"
        back = await again(network, alice)
        assert (back.welcome["name"], back.welcome["room"]) == ("Client 1", "lobby")
        assert {(await back.hear())["text"] for _ in range(2)} == {
            "the name 'alice' looks like 'аӏісе', which is taken",
            "the room coco would look like сосо, which is open",
        }


async def test_an_open_room_stays_protected_when_a_lookalike_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network:
        alice = await program(network, room="сосо")  # Cyrillic
        await alice.say("so that it can always be opened")
        for room in ("lobby", "coco"):
            assert (await alice.ask(type="join", room=room, nonce=room))["room"] == room
        bob = await program(network, room="сосо")
        assert bob.welcome["room"] == "сосо"
        await bob.ask(type="join", room="lobby", nonce=1)
        for room in ("cocо", "сοсο", "ⲥⲟⲥⲟ"):  # Latin and Cyrillic, Greek, Coptic
            refusal = await bob.ask(type="join", room=room, nonce=2)
            assert refusal["code"] == "invalid-name"
        assert refusal["text"] == "the room ⲥⲟⲥⲟ would look like coco, which is open"


async def test_in_the_text_protocol_history_is_server_lines() -> None:
    async with memory_server() as network:
        a, b = await network.join(), await network.join()
        await a.send("one", "/me waves", "two")
        assert (await b.lines(3))[1] == "* Client 1 waves"
        await b.send("/history 2", "/history x", "/history")
        header, acted, said = await b.lines(3)
        assert header == "[Server] 2 messages, times in UTC:"
        assert acted.startswith("[Server] 20")
        assert acted.endswith(" * Client 1 waves")
        assert said.endswith(" [Client 1] two")
        assert await b.line() == "[Server] usage: /history [N]"
        assert await b.line() == "[Server] 3 messages, times in UTC:"


class CountingJournal(SqliteJournal):
    """Counts its reads."""

    reads = 0

    async def _read(self, what: str, read: Any) -> Any:
        self.reads += 1
        return await super()._read(what, read)


async def test_a_room_is_not_delayed_by_a_replay_of_100_000_messages(
    tmp_path: Path,
) -> None:
    """Between a message and its answer only a few pages are read, not all."""
    journal = CountingJournal(tmp_path / "chat.db", durability=Durability.NORMAL)
    said, talked, reads = 100_000, 0, [0]
    async with memory_server(journal=journal) as network:
        alice, bob, carol = [
            await program(network, name=name, room="den") for name in ("alice", "bob", "carol")
        ]
        await alice.client.send('{"type":"join","room":"lobby"}')
        await bob.client.send('{"type":"join","room":"lobby"}')
        for start in range(0, said, 500):
            lines = [json.dumps({"type": "say", "text": str(n)}) for n in range(start, start + 500)]
            await carol.client.send(*lines)
        await carol.send(type="ping")
        await carol.hear_until("pong")
        for one in (alice, bob):
            await one.send(type="join", room="den", nonce="here")
            while (await one.hear()).get("nonce") != "here":
                pass
        assert journal.room("den").next == said

        async def talk() -> None:
            nonlocal talked
            while True:
                await alice.send(type="say", text="ping")
                assert (await bob.hear_until("said"))[-1]["text"] == "ping"
                await bob.send(type="say", text="pong")
                assert (await alice.hear_until("said"))[-1]["text"] == "pong"
                talked += 1
                reads.append(journal.reads)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            dave = await program(network, name="dave", room="den", replay=2 * said)
            received: list[str] = []
            while len(received) < said:
                event = await dave.hear()
                if event["type"] == "said" and event["client"] == 3:
                    received.append(event["text"])
            nursery.cancel_scope.cancel(reason="dave has caught up")
        assert received == [*map(str, range(said))]
    assert talked >= 10
    # Two messages wait for the disk twice, each about as long as a few pages; a delayed room would
    # wait for all of nearly two hundred.
    assert journal.reads >= 150
    assert max(after - before for before, after in pairwise(reads)) <= journal.reads / 2


# --- Regressions found by the simulation ----------------------------------------------------------


async def lines_for(client: ScriptedClient, seconds: float = 1) -> list[str]:
    """Return the lines that *client* receives within *seconds*."""
    told: list[str] = []
    with trio.move_on_after(seconds):
        while True:
            told.append(await client.line())
    return told


async def test_a_slow_client_that_asks_for_a_replay_gets_each_message_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Seed 82: the message for which the room waited was repeated after the replay."""
    config = ServerConfig(send_queue_batches=1, slow_timeout_seconds=60)
    for _ in range(20):  # it depends on the order of tasks when there is space again
        async with memory_server(config) as network, trio.open_nursery() as nursery:
            sender = await network.join()
            slow = await network.join(lockstep=True)
            for text in "012":
                nursery.start_soon(sender.send, text)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(slow.send, '/json {"replay": 3}')
            told = await lines_for(slow)
            before = [line for line in told if line.startswith("[")]
            # It had taken the last one, or the room no longer waits for it.
            assert before in [[f"[Client 1] {i}" for i in range(n)] for n in (2, 3)]
            _, *past = map(json.loads, told[len(before) :])
            assert [(event["type"], event["text"]) for event in past] == [
                ("said", i) for i in "012"
            ]


async def talk(alice: Program, bob: Program, rounds: int) -> str:
    """Let both send messages in turn; return the id of bob's first."""
    ids = []
    for n in range(rounds):
        await alice.say(f"a{n}")
        ids.append(await bob.say(f"b{n}"))
    return ids[0]


NO_RING = ServerConfig(replay=ReplayLimits(ring_bytes=1))  # except for two messages


async def test_own_messages_before_a_resume_are_not_counted_as_missed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    journal = MemoryJournal(max_messages=20)
    async with memory_server(NO_RING, journal=journal) as network:
        alice, bob = [await program(network, name=name) for name in ("alice", "bob")]
        seen = await talk(alice, bob, 60)
        await alice.reset()
        alice = await again(network, alice, since=seen)
        assert await alice.hear() == {"type": "missed", "count": 59 - 10}
        assert await alice.texts(10) == [f"b{n}" for n in range(50, 60)]


async def test_own_messages_before_a_restart_are_not_counted_as_missed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "chat.db"
    async with memory_server(journal=SqliteJournal(path)) as network:
        alice, bob = [await program(network, name=name) for name in ("alice", "bob")]
        seen = await talk(alice, bob, 60)
        await alice.reset()
    journal = SqliteJournal(path, retention=Retention(max_messages=20))
    async with memory_server(NO_RING, journal=journal) as network:
        await tidy(journal)
        alice = await again(network, alice, since=seen)
        assert await alice.hear() == {"type": "missed", "count": 59 - 10}
        assert await alice.texts(10) == [f"b{n}" for n in range(50, 60)]


class PendingRoom(HeldRoom):
    """A room in which *pending*, if set, resolves when appended messages are stored."""

    pending: PendingWrite | None = None

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        return super().append(said, nonces, checks) or self.pending


class PendingJournal(HeldJournal):
    kind = PendingRoom


async def test_a_message_delivered_during_its_senders_resume_counts_as_own_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    journal = PendingJournal()
    async with memory_server(NO_RING, journal=journal) as network:
        alice, bob = [await program(network, name=name) for name in ("alice", "bob")]
        await bob.say("0", "1", "2", "3", "4")
        seen = (await alice.hear_until("said"))[-1]["id"]
        room = journal.held["lobby"]
        assert isinstance(room, PendingRoom)
        room.pending = PendingWrite()
        await alice.send(type="say", text="mine", nonce=1)
        await trio.testing.wait_all_tasks_blocked()
        room.hold()
        alice = await again(network, alice, since=seen)
        room.pending.resolve()
        await trio.testing.wait_all_tasks_blocked()
        [behind] = [each.behind for each in network.server.members if each.name == "alice"]
        assert behind == 4
        room.release()
        assert await alice.texts(4) == ["1", "2", "3", "4"]


async def test_with_more_own_messages_than_nonces_the_missed_count_is_an_upper_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rounds = MAX_UNACCEPTED + 50
    journal = MemoryJournal(max_messages=20)
    async with memory_server(NO_RING, journal=journal) as network:
        alice, bob = [await program(network, name=name) for name in ("alice", "bob")]
        seen = await talk(alice, bob, rounds)
        await alice.reset()
        alice = await again(network, alice, since=seen)
        missed = await alice.hear()
        forgotten = rounds - 1 - MAX_UNACCEPTED  # of her own messages since then
        assert missed["count"] == rounds - 1 - 10 + forgotten


async def test_undelivered_messages_are_not_missed_even_if_the_journal_deleted_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Seed 290: messages waiting for delivery exceeded the retention."""
    config = ServerConfig(send_queue_batches=1, slow_timeout_seconds=60)
    journal = MemoryJournal(max_messages=2)
    async with memory_server(config, journal=journal) as network:
        one = await program(network)
        first = await one.say("a")
        slow = await network.join(lockstep=True)
        for text in "bcdefg":  # each from another client; the third waits for the slow one
            await (await network.join()).send(text)
            await trio.testing.wait_all_tasks_blocked()
        again_ = await again(network, one, since=first)
        told = [json.loads(line) for line in await lines_for(again_.client)]
        await lines_for(slow)
        told += [json.loads(line) for line in await lines_for(again_.client)]
        assert [event["text"] for event in told if event["type"] == "said"] == [*"bcdefg"]
        assert not any(event["type"] == "missed" for event in told)


async def test_the_goodbye_does_not_wait_for_the_disk(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 945: a client that got its goodbye after the grace period was cancelled first."""
    pending = PendingWrite()
    append = _MemoryRoom.append

    def append_slowly(
        room: _MemoryRoom, said: SaidBlock, nonces: tuple[Nonce | None, ...], checks: bytes
    ) -> PendingWrite:
        append(room, said, nonces, checks)
        return pending

    monkeypatch.setattr(_MemoryRoom, "append", append_slowly)
    async with memory_server(ServerConfig(grace_seconds=2)) as network:
        one, other = [await network.join() for _ in range(2)]
        await one.send("is on its way")
        await trio.testing.wait_all_tasks_blocked()
        try:
            with trio.move_on_after(2):
                await network.server.close()
            assert trio.current_time() == 2
            goodbye = ["[Server] goodbye: the server is shutting down"]
            assert await lines_for(one, 0.5) == await other.rest() == goodbye
        finally:
            pending.resolve()
