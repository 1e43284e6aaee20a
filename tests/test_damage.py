"""A journal of which a part is damaged: the rest can be used, and whoever asks for it is told."""

import itertools
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from multichat.config import ReplayLimits, ServerConfig
from multichat.journal.sqlite import SqliteJournal
from multichat.testing import MemoryServer, ScriptedClient, memory_server

from .support.log import LogRecorder

pytestmark = pytest.mark.unit

# Nothing is in memory, so that all of a replay is read from the file.
UNREMEMBERED = ServerConfig(replay=ReplayLimits(ring_bytes=0))


_nonces = itertools.count(1)


async def hello(network: MemoryServer, **wishes: object) -> tuple[ScriptedClient, dict[str, Any]]:
    """Join and say hello; return the client and its welcome."""
    client = await network.join()
    await client.send(f"/json {json.dumps(wishes)}")
    return client, json.loads(await client.line())


async def ask(client: ScriptedClient, **request: object) -> dict[str, Any]:
    """Send a request and return its answer; events in between are dropped."""
    nonce = next(_nonces)
    await client.send(json.dumps({**request, "nonce": nonce}))
    while (event := json.loads(await client.line())).get("nonce") != nonce:
        pass
    return dict(event)


def execute(path: Path, sql: str, parameters: Sequence[object] = ()) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql, parameters)
        connection.commit()


async def say_ten(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Have somebody say ten messages in a room; return its welcome, and their ids."""
    async with memory_server(journal=SqliteJournal(path)) as network:
        client, welcome = await hello(network, room="den")
        ids = [(await ask(client, type="say", text=f"text {number}"))["id"] for number in range(10)]
        await network.server.close()
    return welcome, ids


async def test_a_damaged_message_is_missed_in_its_place(
    tmp_path: Path, log: LogRecorder, autojump_clock: MockClock
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
    assert "The journal is damaged: messages of den cannot be read" in line


async def test_pages_that_cannot_be_read_are_missed_and_the_rest_is_replayed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    _, ids = await say_ten(path)
    execute(path, "UPDATE runs SET text = x'ff' WHERE first BETWEEN 2 AND 7")
    limits = ReplayLimits(ring_bytes=0, page_messages=2)
    config = ServerConfig(replay=limits)
    async with memory_server(config, journal=SqliteJournal(path)) as network:
        client, _ = await hello(network, room="den", since=ids[0])
        told = [json.loads(line) for line in await client.lines(5)]
    what = [(event["type"], event.get("text") or event.get("count")) for event in told]
    reason = "nothing can be said now: the journal cannot be read: the file is damaged"
    assert what == [
        ("said", "text 1"),
        ("error", reason),
        ("missed", 6),
        ("said", "text 8"),
        ("said", "text 9"),
    ]


async def test_history_in_text_says_how_many_messages_cannot_be_read(
    tmp_path: Path, autojump_clock: MockClock
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
    tmp_path: Path, log: LogRecorder, autojump_clock: MockClock
) -> None:
    """What its client sent again could be said twice; and without a welcome it tried for ever."""
    path = tmp_path / "chat.db"
    first, _ = await say_ten(path)
    execute(path, "UPDATE nonces SET nonces = '[1' WHERE first = 9")
    async with memory_server(journal=SqliteJournal(path)) as network:
        _, welcome = await hello(network, session=first["session"])
    assert welcome["type"] == "welcome"
    assert not welcome["resumed"]
    assert welcome["session"] != first["session"]
    [line] = [line for line in log.lines if "cannot be resumed" in line]
    assert f"The session of Client {first['client']} cannot be resumed" in line
