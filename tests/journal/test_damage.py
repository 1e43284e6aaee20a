"""A partly damaged journal: the rest works, and the damage is reported."""

import itertools
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import MockClock

from multichat.cli.history import show_history
from multichat.errors import JournalFailed
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal
from multichat.journal.sqlite.repair import is_whole
from multichat.journal.sqlite.schema import MIGRATIONS
from multichat.server.config import ReplayLimits, ServerConfig
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.harmless import is_harmless, is_one_harmless_line
from tests.support.journals import running, tidy, write_wrong_index
from tests.support.log import LogRecorder
from tests.support.messages import strings_in
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command

pytestmark = pytest.mark.unit

# Nothing is in memory, so that all of a replay is read from the file.
UNREMEMBERED = ServerConfig(replay=ReplayLimits(ring_bytes=0))


_nonces = itertools.count(1)


async def hello(network: MemoryServer, **fields: object) -> tuple[ScriptedClient, dict[str, Any]]:
    """Join and send a hello; return the client and its welcome."""
    client = await network.join()
    await client.send(f"/json {json.dumps(fields)}")
    return client, json.loads(await client.line())


async def ask(
    client: ScriptedClient, lines: list[str] | None = None, **request: object
) -> dict[str, Any]:
    """Send a request and return its answer; that, and what comes before, is added to *lines*."""
    nonce = next(_nonces)
    await client.send(json.dumps({**request, "nonce": nonce}))
    event: dict[str, Any] = {}
    while event.get("nonce") != nonce:
        line = await client.line()
        event = json.loads(line)
        if lines is not None:
            lines.append(line)
    return event


def execute(path: Path, sql: str, parameters: Sequence[object] = ()) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql, parameters)
        connection.commit()


async def say_ten(path: Path, room: str = "den") -> tuple[dict[str, Any], list[str]]:
    """Have a client send ten messages to *room*; return its welcome, and their ids."""
    async with memory_server(journal=SqliteJournal(path)) as network:
        client, welcome = await hello(network, room=room)
        ids = [(await ask(client, type="say", text=f"text {number}"))["id"] for number in range(10)]
        await network.server.close()
    return welcome, ids


async def test_a_damaged_message_is_replaced_by_missed(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    _, ids = await say_ten(path)
    execute(path, "UPDATE runs SET text = x'ff' WHERE first = 4")
    async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
        client, _ = await hello(network, room="den", since=ids[2])
        told = [json.loads(line) for line in await client.lines(7)]
        page = await ask(client, type="history")
    assert [event.get("text") for event in told] == [
        "text 3", None, "text 5", "text 6", "text 7", "text 8", "text 9",
    ]  # fmt: skip
    assert told[1] == {"type": "missed", "count": 1}
    assert (len(page["messages"]), page["missed"]) == (9, 1)
    [line] = [line for line in log.lines if "damaged" in line]
    assert "Messages of den cannot be read, the first is number 4: the file is damaged; " in line


async def test_pages_that_cannot_be_read_are_missed_and_the_rest_is_replayed(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    _, ids = await say_ten(path)
    execute(path, "UPDATE runs SET text = x'ff' WHERE first BETWEEN 2 AND 7")
    limits = ReplayLimits(ring_bytes=0, page_messages=2)
    config = ServerConfig(replay=limits)
    async with memory_server(config, journal=SqliteJournal(path)) as network:
        client, _ = await hello(network, room="den", since=ids[0])
        told = [json.loads(line) for line in await client.lines(4)]
    what = [(event["type"], event.get("text") or event.get("count")) for event in told]
    assert what == [
        ("said", "text 1"),
        ("missed", 6),
        ("said", "text 8"),
        ("said", "text 9"),
    ]


def ten_without(missing: Sequence[int]) -> tuple[list[str], list[str | int]]:
    """Return what can be read of the ten, and a replay: texts, and how many are missed."""
    replayed: list[str | int] = []
    for number in range(10):
        if number not in missing:
            replayed.append(f"text {number}")
        elif replayed and isinstance(replayed[-1], int):
            replayed[-1] += 1
        else:
            replayed.append(1)
    return [each for each in replayed if isinstance(each, str)], replayed


@pytest.mark.parametrize(
    "damaged",
    [[0], [5], [9], [0, 9], [3, 4, 5], [*range(5, 10)], [*range(10)]],
    ids=["first", "middle", "last", "both ends", "three", "newest half", "all"],
)
async def test_a_damaged_message_costs_only_itself(
    damaged: list[int], tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """In a replay, in a page of history, in text and in the command; no client gets an error."""
    path = tmp_path / "chat.db"
    await say_ten(path)
    marks = ", ".join("?" * len(damaged))
    execute(path, f"UPDATE runs SET text = x'ff' WHERE first IN ({marks})", damaged)
    readable, replayed = ten_without(damaged)
    async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
        client, _ = await hello(network, room="den", replay=10)
        lines = await client.lines(len(replayed))
        page = await ask(client, type="history")
        newest = await ask(client, type="history", limit=1)
        text = await network.join()
        await text.send("/join den", "/history", "/quit")
        shown = await text.rest()
        await network.server.close()
    events = [json.loads(line) for line in lines]
    assert [event.get("text") or event.get("count") for event in events] == replayed
    assert [message["text"] for message in page["messages"]] == readable
    behind = int(readable[0].split()[1]) if readable else 0
    assert page.get("missed", 0) == len([number for number in damaged if number >= behind])
    assert [message["text"] for message in newest["messages"]] == readable[-1:]
    assert [line.split("] ")[-1] for line in shown[2:-1]] == readable
    assert len([line for line in log.lines if "Messages of den cannot be read" in line]) == 1
    out = tmp_path / "out"
    with out.open("wb") as file, pytest.raises(JournalFailed, match=f"in {len(damaged)} place"):
        show_history(path, file.fileno())
    assert [line.split("] ")[-1] for line in out.read_text().splitlines()] == readable


async def test_history_in_text_says_how_many_messages_cannot_be_read(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    await say_ten(path)
    execute(path, "UPDATE runs SET text = x'ff' WHERE first IN (4, 9)")
    async with memory_server(journal=SqliteJournal(path)) as network:
        client = await network.join()
        await client.send("/join den", "/history")
        [_, head] = await client.lines(2)
    assert head == "[Server] 8 messages and 2 that cannot be read, times in UTC:"


async def test_a_session_whose_nonces_are_damaged_is_unknown(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """A repeated message could be published twice; without a welcome the client retried forever."""
    path = tmp_path / "chat.db"
    first, _ = await say_ten(path)
    execute(path, "UPDATE nonces SET nonces = '[1' WHERE first = 9")
    async with memory_server(journal=SqliteJournal(path)) as network:
        _, welcome = await hello(network, session=first["session"])
    assert welcome["type"] == "welcome"
    assert not welcome["resumed"]
    assert welcome["session"] != first["session"]
    [line] = [line for line in log.lines if "cannot be resumed" in line]
    assert "A session cannot be resumed: " in line


async def test_damage_in_one_room_does_not_affect_others(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """A row that contradicts the next message of a room failed the transaction of all rooms."""
    path = tmp_path / "chat.db"
    await say_ten(path)
    async with memory_server(journal=SqliteJournal(path)) as network:
        one, _ = await hello(network, room="den")
        other, _ = await hello(network, room="attic")
        execute(path, "INSERT INTO runs SELECT 500, room, 10, 1, 1, time, shown, 1, name, 0, 'x' "
                      "FROM runs WHERE first = 9")  # fmt: skip
        for _ in range(2):
            for client, answer in ((one, "error"), (other, "accepted")):
                assert (await ask(client, type="say", text="hello?"))["type"] == answer


async def test_a_damaged_room_is_rebuilt_from_its_messages(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    _, ids = await say_ten(path)
    execute(path, "UPDATE rooms SET name = x'ff', first = 3, next = 2, seq = -1")
    async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
        client, welcome = await hello(network, room="den", since=ids[4])
        told = [json.loads(line)["text"] for line in await client.lines(5)]
        assert told == [f"text {number}" for number in range(5, 10)]
        assert (await ask(client, type="say", text="hello"))["type"] == "accepted"
    assert len([line for line in log.lines if "the room den was rebuilt" in line]) == 1
    async with memory_server(journal=SqliteJournal(path)) as network:
        await hello(network)
    assert len([line for line in log.lines if "was rebuilt" in line]) == 1


@pytest.mark.parametrize(
    ("found", "whole"),
    [
        ((0, 10), True),
        ((4, 10), True),  # the index does not find the first four: readers say so
        ((0, 9), True),
        ((None, 10), False),
        ((0, None), False),
        ((None, None), False),
        ((0, 11), False),
    ],
)
def test_a_room_whose_messages_are_found_from_one_side_only_is_damaged(
    found: tuple[int | None, int | None], whole: bool
) -> None:
    """An index that is out of order made a start fail."""
    assert is_whole((2, "den", "1a222e7267a", 0, 10, 5, *found)) is whole


async def test_client_ids_continue_after_the_heads_are_damaged(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    await say_ten(path)
    execute(path, "UPDATE heads SET clients_ever = 'x'")
    async with memory_server(journal=SqliteJournal(path)) as network:
        _, welcome = await hello(network)
    assert welcome["client"] == 2
    assert len([line for line in log.lines if "The journal was damaged" in line]) == 1


@pytest.mark.parametrize("epoch", [0xF << 40, (1 << 44) - 1, 1 << 44, (1 << 48) - 1])
async def test_ids_are_known_after_the_last_epoch_in_the_heads_is_damaged(
    epoch: int, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """Epochs had twelve digits, and were unknown to each next server."""
    path = tmp_path / "chat.db"
    _, ids = await say_ten(path)
    since = ids[-1]
    execute(path, "UPDATE heads SET last_epoch = ?", (epoch,))
    for _ in range(3):
        async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
            client, _ = await hello(network, room="den", since=since)
            lines: list[str] = []
            said = await ask(client, lines, type="say", text="on")
            await network.server.close()
        assert len(said["id"].partition("-")[0]) == 11
        assert "unknown-id" not in "".join(lines)
        since = said["id"]


async def test_sessions_that_claim_one_client_are_unknown(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    async with memory_server(journal=SqliteJournal(path)) as network:
        tokens = [(await hello(network))[1]["session"] for _ in range(3)]
        await network.server.close()
    execute(path, "UPDATE sessions SET client = 1 WHERE client = 2")
    async with memory_server(journal=SqliteJournal(path)) as network:
        resumed = [(await hello(network, session=token))[1]["resumed"] for token in tokens]
    assert resumed == [False, False, True]
    assert len([line for line in log.lines if "A session cannot be resumed" in line]) == 1


async def test_history_shows_the_messages_that_can_be_read(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    await say_ten(path)
    execute(path, "UPDATE runs SET text = x'ff' WHERE first IN (4, 9)")
    out = tmp_path / "out"
    with out.open("wb") as file, pytest.raises(JournalFailed) as failed:
        show_history(path, file.fileno())
    assert failed.value.reason == "the file is damaged: messages cannot be read in 2 places"
    assert [line.split()[-1] for line in out.read_text().splitlines()] == list("01235678")


def not_found(*numbers: int) -> str:
    """The columns of an index that does not find the messages with these *numbers*."""
    return f"(room, first) WHERE first NOT IN ({', '.join(map(str, numbers))})"


@pytest.mark.parametrize(
    ("wrong", "missing"),
    [
        (not_found(0), [0]),
        (not_found(4, 5), [4, 5]),
        (not_found(9), [9]),
        (not_found(*range(5)), [*range(5)]),
        (not_found(*range(5, 10)), [*range(5, 10)]),
        (not_found(*range(10)), [*range(10)]),
        ("(room + 7 * (first = 5), first)", [5]),  # it is found in another room
        ("(room, iif(first = 2, 3, iif(first = 3, 2, first)))", [2, 3]),  # they are confused
    ],
    ids=["first", "middle", "last", "oldest", "newest", "all", "room", "number"],
)
async def test_messages_that_an_index_does_not_find_are_reported_as_missing(
    wrong: str, missing: list[int], tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """They were missing without a word from the command, and from the log."""
    path, out = tmp_path / "chat.db", tmp_path / "out"
    _, ids = await say_ten(path)
    write_wrong_index(path, wrong)
    found, replayed = ten_without(missing)

    def show(**which: Any) -> tuple[list[str], str]:
        reason = ""
        with out.open("wb") as file:
            try:
                show_history(path, file.fileno(), **which)
            except JournalFailed as failed:
                reason = failed.reason
        return [line.split("] ")[-1] for line in out.read_text().splitlines()], reason

    said = "the file is damaged: messages cannot be read in 1 place"
    for _ in range(2):  # the second server finds the same
        assert show(room="den") == (found, said)
        assert show(room="den", limit=10) == (found, said)
        behind = [text for text in found if text > "text 0"]
        assert show(since=ids[0]) == (behind, "" if missing == [0] else said)
        assert show(room="den", since=time.time() + 60) == ([], said if 9 in missing else "")
        assert show(room="den", since=1.0) == (found, said)
        assert show() == ([f"text {number}" for number in range(10)], "")
        log.lines.clear()
        async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
            client, _ = await hello(network, room="den", replay=10)
            events = [json.loads(line) for line in await client.lines(len(replayed))]
            page = await ask(client, type="history")
            await network.server.close()
        assert [event.get("text") or event.get("count") for event in events] == replayed
        assert [message["text"] for message in page["messages"]] == found
        [line] = [line for line in log.lines if "Messages of den cannot be read" in line]
        assert f"the first is number {missing[0]}: the file is damaged; " in line


async def test_a_wrong_index_entry_shows_and_deletes_no_message_of_another_room(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    for room in ("den", "attic"):
        await say_ten(path, room)
    with closing(sqlite3.connect(path)) as connection:
        ids = [id_ for (id_,) in connection.execute("SELECT id FROM rooms ORDER BY id")]
    # The index has the first message of each room as that of the other one.
    write_wrong_index(path, f"(iif(first = 0, {sum(ids)} - room, room), first)")
    async with memory_server(UNREMEMBERED, journal=SqliteJournal(path)) as network:
        for room in ("den", "attic"):
            client, _ = await hello(network, room=room)
            page = await ask(client, type="history")
            texts = [message["text"] for message in page["messages"]]
            assert texts == [f"text {number}" for number in range(1, 10)]
        await network.server.close()
    async with running(SqliteJournal(path, retention=Retention(max_messages=8))) as journal:
        await tidy(journal)
    with closing(sqlite3.connect(path)) as connection:
        runs = connection.execute("SELECT room, first FROM runs NOT INDEXED").fetchall()
    kept = [0, *range(2, 10)]
    assert sorted(runs) == [(room, first) for room in ids for first in kept]


def damaged_pages_of(path: Path, table: str) -> Iterator[str]:
    """Write the file anew for each page at which *table* or an index of it begins, damaged."""
    whole = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT name, rootpage FROM sqlite_master WHERE tbl_name = ? ORDER BY rootpage"
        pages = connection.execute(sql, [table]).fetchall()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    assert len(pages) >= 2
    for name, page in pages:
        for noise in (b"\xff", b"\x00"):
            start = (page - 1) * size
            for beside in path.parent.glob(f"{path.name}-*"):
                beside.unlink()
            path.write_bytes(whole[:start] + noise * size + whole[start + size :])
            yield f"{name} {noise!r}"


@pytest.mark.parametrize("table", ["nonces", "sessions"])
async def test_every_client_is_answered_whichever_session_pages_are_damaged(
    table: str, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """Clients resume, and all can talk, before and after another restart."""
    path = tmp_path / "chat.db"
    first, _ = await say_ten(path)
    for what in damaged_pages_of(path, table):
        for _ in range(2):
            log.lines.clear()
            async with memory_server(journal=SqliteJournal(path)) as network:
                client, welcome = await hello(network, session=first["session"], room="den")
                assert welcome["type"] == "welcome", what
                other, _ = await hello(network, room="attic")
                for one in (client, other):
                    for text in ("hello", "and again"):
                        assert (await ask(one, type="say", text=text))["type"] == "accepted", what
                    assert (await ask(one, type="act", text="waves"))["type"] == "accepted", what
                reader = await network.join()
                await reader.send("/join den", "/history 2", "/quit")
                lines = await reader.rest()
                assert lines[2].endswith("] and again"), what
                assert lines[3].endswith(f" * Client {welcome['client']} waves"), what
                await network.server.close()
            assert not [line for line in log.lines if "crash" in line]


async def test_private_messages_are_delivered_even_if_their_nonces_cannot_be_stored(
    tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """They are accepted, and received once while the server runs; the log says the effect."""
    path = tmp_path / "chat.db"
    await say_ten(path)
    for what in damaged_pages_of(path, "nonces"):
        log.lines.clear()
        async with memory_server(journal=SqliteJournal(path)) as network:
            alice, _ = await hello(network, room="den")
            bob, welcome = await hello(network, room="den")
            other, _ = await hello(network, room="attic")
            for number in range(3):
                request = {"type": "direct", "to": welcome["client"], "text": f"{number}"}
                private = json.dumps({**request, "nonce": f"n{number}"})
                for _ in range(2):  # the second time it is known
                    await alice.send(private)
                    while "nonce" not in (answer := json.loads(await alice.line())):
                        pass
                    assert answer == {"type": "accepted", "nonce": f"n{number}"}, what
                assert (await ask(other, type="say", text="hi"))["type"] == "accepted", what
            received = []
            await alice.send('{"type": "say", "text": "over"}')
            while (event := json.loads(await bob.line()))["type"] != "said":
                received.append(event.get("text"))
            assert [text for text in received if text] == ["0", "1", "2"], what
            await network.server.close()
        told = [line for line in log.lines if "nonces cannot be written" in line]
        assert len(told) == 1, (what, log.lines)


# --- Every column of every table ------------------------------------------------------------------


class Undecodable(bytes):
    """Text that is not UTF-8."""


ESCAPES = "\x1b[2J\u202e\x9b1m\n[Server] FORGED"

VALUES: dict[str, object] = {
    "NULL": None,
    "an empty text": "",
    "text with escapes": ESCAPES,
    "text that is not UTF-8": Undecodable(b"\xff\xfe\x1b[31m"),
    "a huge text": "x\n" * 20_000 + ESCAPES,
    "JSON that is cut off": "[1",
    "JSON with escapes": json.dumps([ESCAPES]),
    "JSON that is nested": "[" * 100_000,
    "an epoch": "00000000fff",
    "a blob": b"\xff\x00\x1b",
    "zero": 0,
    "a negative number": -7,
    "a number that is too large": 2**40,
    "the largest number": 2**63 - 1,
    "a fraction": 1.5,
    "infinity": float("inf"),
    "the value of another row": "another row",
}


def tables() -> list[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for migration in MIGRATIONS:
            for statement in migration:
                connection.execute(statement)
        names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        return [name for (name,) in connection.execute(names)]


def columns(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        info = connection.execute("SELECT name FROM pragma_table_info(?)", [table])
        return [name for (name,) in info]


def damage(path: Path, table: str, column: str, value: object, row: int) -> bool:
    """Write *value* into the column of the so manieth row, the last as 0; return if that is so."""
    with closing(sqlite3.connect(path)) as connection:
        [sql] = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = ?", [table]
        ).fetchone()
        info = connection.execute("SELECT name, pk FROM pragma_table_info(?)", [table]).fetchall()
        keys = ", ".join(name for name, pk in info if pk) or "rowid"
        # Foreign to the schema, as damage is: nothing but the primary key is checked.
        connection.execute("PRAGMA writable_schema=ON")
        define = "UPDATE sqlite_master SET sql = ? WHERE name = ?"
        connection.execute(define, [sql.replace(" NOT NULL", ""), table])
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        which = f"({keys}) = (SELECT {keys} FROM {table} ORDER BY {keys} DESC LIMIT 1 OFFSET {row})"
        placeholder = "?"
        if isinstance(value, Undecodable):
            placeholder = "CAST(? AS TEXT)"
        elif value == "another row":
            placeholder = f"coalesce(?, (SELECT {column} FROM {table} WHERE NOT {which} LIMIT 1))"
            value = None
        try:
            update = f"UPDATE {table} SET {column} = {placeholder} WHERE {which}"
            changed = connection.execute(update, [value]).rowcount
        except sqlite3.Error:  # a primary key, or what is unique
            changed = 0
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(define, [sql, table])
        connection.commit()
    return changed == 1


class Talk(NamedTuple):
    """A journal of several clients in several rooms, over two servers."""

    data: bytes
    sessions: list[str]
    since: str


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    path = tmp_path_factory.mktemp("talk") / "chat.db"
    sessions: list[str] = []
    ids: list[str] = []

    async def run() -> None:
        for _ in range(2):
            async with memory_server(journal=journal_at(path)) as network:
                for room in ("hall", "den", "den"):
                    client, welcome = await hello(network, room=room)
                    sessions.append(welcome["session"])
                    for number in range(3):
                        answer = await ask(client, type="say", text=f"{room} {number}")
                        ids.append(answer["id"])
                await network.server.close()

    trio.run(run, clock=MockClock(autojump_threshold=0.01))
    return Talk(path.read_bytes(), sessions, ids[-4])


def journal_at(path: Path, **retention: int) -> SqliteJournal:
    return SqliteJournal(path, durability=Durability.NORMAL, retention=Retention(**retention))


async def check_server(path: Path, talk: Talk) -> None:
    """Check that a server starts, that a room can be talked in, and that everybody is answered."""
    lines: list[str] = []
    async with memory_server(UNREMEMBERED, journal=journal_at(path)) as network:
        one, welcome = await hello(network, room="attic")
        other, _ = await hello(network, room="attic")
        assert welcome["room"] == "attic"
        answer = await ask(one, type="say", text="can you hear me?")
        assert answer["type"] == "accepted"
        while (received := json.loads(await other.line()))["type"] != "said":
            pass
        assert received["text"] == "can you hear me?"
        for session in talk.sessions[-2:]:
            client, welcome = await hello(network, session=session)
            assert welcome["type"] == "welcome"
            for request in (
                {"type": "join", "room": "attic"},
                {"type": "join", "room": "den", "since": talk.since},
                {"type": "history"},
                {"type": "history", "limit": 1},
                {"type": "who"},
                {"type": "rooms"},
                {"type": "say", "text": "hello again"},
            ):
                await ask(client, lines, **request)
            await client.send('{"type": "quit"}')
            lines += await client.rest()
        text = await network.join()
        await text.send("/join den", "/history", "/who", "/quit")
        lines += await text.rest()
        await network.server.close()
    assert [line for line in lines if not is_one_harmless_line(line)] == []


async def check_retention(path: Path) -> None:
    """Check that deletion continues in a room that is not damaged."""
    async with memory_server(journal=journal_at(path, max_messages=1)) as network:
        with closing(sqlite3.connect(path)) as connection:
            count = "SELECT count(*) FROM runs WHERE shown = 'attic'"
            deadline = time.monotonic() + WAIT_SECONDS
            client, _ = await hello(network, room="attic")
            await ask(client, type="say", text="the last word")
            while connection.execute(count).fetchone() != (1,):
                assert time.monotonic() < deadline
                await trio.sleep(5)


def check_history(path: Path) -> None:
    """Check that the messages are shown that can be, and in one line that others cannot."""
    out = path.with_suffix(".out")
    reason = ""
    with out.open("wb") as file:
        try:
            show_history(path, file.fileno())
        except JournalFailed as failed:
            reason = failed.reason
    shown = out.read_text("utf-8")
    assert is_one_harmless_line(reason)
    assert is_harmless(shown)
    assert "\n[Server]" not in shown
    assert shown or reason


@pytest.mark.process  # each takes seconds
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("table", tables())
async def test_a_server_serves_with_any_value_in_any_column(
    table: str,
    value: str,
    talk: Talk,
    tmp_path: Path,
    log: LogRecorder,
    thread_clock: MockClock,
) -> None:
    path = tmp_path / "chat.db"
    path.write_bytes(talk.data)
    for column in columns(path, table):
        for beside in tmp_path.iterdir():
            beside.unlink()
        path.write_bytes(talk.data)
        if damage(path, table, column, VALUES[value], row=0):
            log.lines.append(f"--- {table}.{column}")
            check_history(path)
            await check_server(path, talk)
            await check_retention(path)
            check_history(path)
    assert not [line for line in log.lines if "crash" in line or not is_one_harmless_line(line)]


# --- Text that a terminal or a viewer obeys -------------------------------------------------------

# Each is one line, so that a message with it is not mistaken for one of another length.
RAW_TEXTS: dict[str, object] = {
    "escapes": "\x1b[2J\x9b1m\r[Server] forged\x7f\x00\x08",
    "bidi controls": "a\u202eb\u2066c\u2028d\ufeff",
    "the end of a JSON string": 'a","type":"goodbye","reason":"\\',
    "a lone surrogate": Undecodable(b"a\xed\xa0\x80b"),
    "broken UTF-8": Undecodable(b"a\xff\xc3\x1b[2J"),
}

TEXT_COLUMNS = {
    "runs": ("time", "shown", "name", "text"),
    "rooms": ("name", "epoch"),
    "epochs": ("epoch",),
    "sessions": ("name", "room", "login"),
    "nonces": ("epoch", "nonces"),
    "stamps": ("stamp",),
    "accounts": ("name", "shown", "hash"),
    "topics": ("room", "topic"),
}


def test_every_text_column_of_the_tables_is_known() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for migration in MIGRATIONS:
            for statement in migration:
                connection.execute(statement)
        sql = "SELECT name FROM pragma_table_info(?) WHERE type = 'TEXT'"
        found = {
            table: tuple(name for (name,) in connection.execute(sql, [table]))
            for table in tables()
            if table != "sqlite_sequence"
        }
    assert {table: names for table, names in found.items() if names} == TEXT_COLUMNS


async def hear_everything(path: Path, talk: Talk) -> tuple[list[str], list[str]]:
    """Return the replay of a journal, as lines of text and of JSON."""
    spoken: list[str] = []
    text_lines: list[str] = []
    async with memory_server(UNREMEMBERED, journal=journal_at(path)) as network:
        for session in talk.sessions:
            client, welcome = await hello(network, session=session, replay=9)
            spoken.append(json.dumps(welcome, ensure_ascii=False))
            for room in ("hall", "den"):
                await ask(client, spoken, type="join", room=room, since=talk.since)
                for request in ("history", "who", "rooms"):
                    await ask(client, spoken, type=request)
                await ask(client, spoken, type="say", text="hello again")
        for room in ("hall", "den"):
            text = await network.join()
            await text.send(f"/join {room}", "/history", "/who", "/rooms", "/quit")
            text_lines += await text.rest()
        await network.server.close()
    return text_lines, spoken


@pytest.mark.process  # each takes seconds
@pytest.mark.parametrize("what", RAW_TEXTS)
async def test_damaged_text_is_cleaned_before_it_is_shown(
    what: str, talk: Talk, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """Neither in text nor in JSON, nor by the command, nor in the log."""
    path, out = tmp_path / "chat.db", tmp_path / "out"
    value = RAW_TEXTS[what]
    is_text = not isinstance(value, Undecodable)
    mark = "?" if is_text else "CAST(? AS TEXT)"
    for table, names in TEXT_COLUMNS.items():
        for column in names:
            for beside in tmp_path.iterdir():
                beside.unlink()
            path.write_bytes(talk.data)
            damaged = json.dumps([value]) if column == "nonces" and is_text else value
            execute(path, f"UPDATE OR IGNORE {table} SET {column} = {mark}", [damaged])
            shown = b""
            for is_json in (False, True):
                with out.open("wb") as file, suppress(JournalFailed):
                    show_history(path, file.fileno(), json=is_json)
                shown += out.read_bytes()
            text_lines, json_lines = await hear_everything(path, talk)
            json_lines += [line for line in shown.decode().splitlines() if line.startswith("{")]
            strings = [each for line in json_lines for each in strings_in(json.loads(line))]
            for line in [*shown.decode().split("\n"), *text_lines, *json_lines, *strings]:
                assert is_one_harmless_line(line), (table, column, line)
            assert not any('"type":"goodbye","reason":"\\' in line for line in json_lines)
            if is_text and (table, column) in [
                ("runs", "text"),
                ("runs", "name"),
                ("runs", "time"),
            ]:
                assert len([line for line in json_lines if '"said"' in line]) > 20, (table, column)
    assert not [line for line in log.lines if "crash" in line or not is_one_harmless_line(line)]


# --- Whole pages, and real processes --------------------------------------------------------------


@pytest.mark.process
async def test_commands_report_damaged_pages_in_one_line(talk: Talk, tmp_path: Path) -> None:
    """The server starts or is refused, and `history` shows the rest."""
    rng = Random(1)
    size = 4096
    pages = len(talk.data) // size
    for number, page in enumerate((0, *rng.sample(range(1, pages), 4))):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        path = folder / "chat.db"
        damaged = bytearray(talk.data)
        for _ in range(40):
            damaged[page * size + rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        async with Command(folder, MULTICHAT, "history", str(path)) as history:
            history.end_input()
            code = await history.wait()
        assert len(history.err.splitlines()) == (1 if code else 0)
        assert is_harmless(history.out + history.err)
        argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK, "--journal", str(path)]
        async with Command(folder, *argv) as server:
            deadline = time.monotonic() + WAIT_SECONDS
            while "Listening on" not in server.out and server.process.poll() is None:
                assert time.monotonic() < deadline
                await trio.sleep(0.02)
        assert "Traceback" not in server.out + server.err
        assert "Listening on" in server.out or len(server.err.splitlines()) == 1
