"""`multichat journal import`, `history` and `account` on the engine of a cluster, as processes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from multichat.cluster.engine_session import open_session
from multichat.cluster.importing import import_contents
from multichat.journal.sqlite.contents import open_contents
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.protocol.messages import SaidBlock
from tests.support.journals import running, wait_stored
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    serve,
)
from tests.support.sockets import open_client

from .engine import Engine, EngineConfig, Engines, certificates
from .functions import block, calling
from .hostile import HostileEngine, encode
from .links import config, peer

pytestmark = pytest.mark.process

NOON = "2025-01-15T12:00:{:02}.123Z"


def multichat(*words: str | Path, password: str = "") -> tuple[int, str, str]:
    """Run a command; return its exit status, and the output on both streams."""
    done = subprocess.run(
        [MULTICHAT, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "MULTICHAT_CLUSTER_PASSWORD": password, "TZ": "UTC"},
        timeout=WAIT_SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


async def run(*words: str | Path, password: str = "") -> tuple[int, str, str]:
    """Run a command beside other tasks."""
    return await trio.to_thread.run_sync(lambda: multichat(*words, password=password))


async def write(path: Path, *said: tuple[str, int, str]) -> dict[str, list[str]]:
    """Write blocks: the room, seconds after noon, the text; return the ids of each room's texts."""
    ids: dict[str, list[str]] = {}
    async with running(SqliteJournal(path)) as journal:
        for shown, seconds, text in said:
            room = journal.room(shown.lower())
            first = room.next
            block = SaidBlock(
                room.epoch, first, NOON.format(seconds), shown, 7, "alice", text, False
            )
            await wait_stored(room.append(block))
            ids.setdefault(shown, []).extend(
                room.id_of(first + i) for i in range(text.count("\n") + 1)
            )
    return ids


async def fill(path: Path) -> list[str]:
    """Write two rooms, one in three epochs; return the ids of the lobby's messages."""
    ids = []
    for start in (0, 10, 20):
        written = await write(
            path, ("Lobby", start, f"a{start}\nb{start}"), ("den", start + 1, "x")
        )
        ids += written["Lobby"]
    return ids


async def test_messages_keep_their_ids_and_order(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "chat.db"
    ids = await fill(path)
    status, out, err = await run("journal", "import", path, engine.url)
    assert (status, out) == (
        0,
        "imported 9 messages of 2 rooms, 0 accounts, 0 topics, 0 sessions\n",
    )
    assert "lobby: 6 messages" in err
    for options in (
        (),
        ("--json",),
        ("--room", "LOBBY"),
        ("--limit", "4"),
        ("--limit", "0"),
        ("--since", ids[1]),
        ("--since", ids[1], "--limit", "1"),
        ("--since", "2025-01-15T12:00:10.123Z"),
        ("--since", "2025-01-15T12:00:10.124Z", "--room", "den"),
        ("--since", "2035-01-15T12:00"),
    ):
        local = await run("history", path, *options)
        assert local == await run("history", engine.url, *options), options
        assert local[0] == 0

    async with serve_on(tmp_path, engine) as server:
        client = await open_client(server.port)
        async with client.stream:
            await client.send(f'/json {{"type":"hello","room":"lobby","since":"{ids[1]}"}}')
            assert json.loads(await client.line())["last"] == ids[-1]
            texts = [json.loads(await client.line()) for _ in range(4)]
            assert [each["text"] for each in texts] == ["a10", "b10", "a20", "b20"]
            assert [each["id"] for each in texts] == ids[2:]
            await client.send('{"type":"say","text":"new","nonce":1}')
            accepted = json.loads(await client.line())["id"]
        assert accepted.partition("-")[0] > ids[-1].partition("-")[0]
        assert accepted.endswith("-1000000006")


def serve_on(folder: Path, engine: Engine) -> ServerCommand:
    return serve(folder, "--cluster", engine.url)


async def test_accounts_topics_and_sessions_are_imported(tmp_path: Path, engine: Engine) -> None:
    path, passphrase = tmp_path / "chat.db", tmp_path / "passphrase"
    passphrase.write_text("correct horse")
    assert (await run("account", "add", path, "Bob", "--passphrase-file", passphrase))[0] == 0
    async with serve(tmp_path, "--journal", str(path)) as server:
        client = await open_client(server.port)
        async with client.stream:
            await client.send('/json {"type":"hello","name":"carol"}')
            welcome = json.loads(await client.line())
            await client.send('{"type":"say","text":"once","nonce":"n1"}')
            accepted = json.loads(await client.line())
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
    async with running(SqliteJournal(path)) as journal:
        await wait_stored(journal.save_topic("lobby", "news"))
    done = await run("journal", "import", path, engine.url)
    assert done[:2] == (0, "imported 1 message of 1 room, 1 account, 1 topic, 1 session\n")
    assert await run("account", "list", engine.url) == (0, "Bob\n", "")
    assert await engine.call("HGET", "multichat:topics", "lobby") == b"news"
    async with serve_on(tmp_path, engine) as server:
        client = await open_client(server.port)
        async with client.stream:
            hello = {"type": "hello", "session": welcome["session"], "since": accepted["id"]}
            await client.send(f"/json {json.dumps(hello)}")
            again = json.loads(await client.line())
            assert (again["name"], again["resumed"]) == ("carol", True)
            await client.send('{"type":"say","text":"once","nonce":"n1"}')
            assert json.loads(await client.line()) == accepted
            # A new client gets a number that no client has had.
            other = await open_client(server.port)
            async with other.stream:
                await other.send('/json {"type":"hello"}')
                assert json.loads(await other.line())["client"] > welcome["client"]


async def test_an_aborted_import_continues(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "chat.db"
    await write(path, *(("lobby", second % 60, f"message {second}") for second in range(450)))
    with open_contents(path) as contents:
        with trio.CancelScope() as scope:
            async with open_session(config(engine)) as session:
                await import_contents(
                    contents, session, add=False, tell=lambda *_: scope.cancel(reason="aborted")
                )
        assert scope.cancelled_caught
    done = await run("journal", "import", path, engine.url)
    assert done[:2] == (0, "imported 250 messages of 1 room, 0 accounts, 0 topics, 0 sessions\n")
    again = await run("journal", "import", path, engine.url)
    assert again[:2] == (0, "imported 0 messages of 0 rooms, 0 accounts, 0 topics, 0 sessions\n")
    assert (await run("history", path))[1] == (await run("history", engine.url))[1]
    # Later messages of the journal are added, and later ones of the nodes are kept.
    await write(path, ("lobby", 0, "later"))
    assert "imported 1 message of" in (await run("journal", "import", path, engine.url))[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_import_with_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Running it again continues: see the test above."""
    path = tmp_path / "chat.db"
    await write(path, ("lobby", 0, "one"))
    engine = HostileEngine(
        {
            "ZRANGE": encode([]),
            "multichat_import_begin": b"+OK\r\n",
            "multichat_import_room": b"",  # it is slow
        }
    )
    async with peer(engine.handle) as port:
        url = f"valkey://{LOOPBACK}:{port}"
        async with Command(tmp_path, MULTICHAT, "journal", "import", str(path), url) as command:
            with trio.fail_after(WAIT_SECONDS):
                while "multichat_import_room" not in engine.asked:
                    await trio.sleep(0.01)
            command.signal(number)
            assert await command.wait() == 1
        assert command.err == "multichat: interrupted: run it again to continue\n"
        assert command.out == ""


async def test_an_engine_that_has_rooms_is_refused_unless_stated(
    tmp_path: Path, engine: Engine
) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await write(one, ("lobby", 0, "one"))
    await write(other, ("lobby", 0, "other"), ("den", 0, "other"))
    assert (await run("journal", "import", one, engine.url))[0] == 0
    status, out, err = await run("journal", "import", other, engine.url)
    assert (status, out) == (1, "")
    assert err == (
        f"multichat: {engine.url}: it already has rooms, such as lobby: with --add these stay "
        "unchanged, and the others are imported\n"
    )
    status, out, err = await run("journal", "import", other, engine.url, "--add")
    assert (status, out.splitlines()) == (
        0,
        [
            "imported 1 message of 1 room, 0 accounts, 0 topics, 0 sessions",
            "not imported: the room lobby, which the cluster has already",
        ],
    )
    shown = (await run("history", engine.url))[1]
    assert "lobby: [alice] one" in shown
    assert "den: [alice] other" in shown


async def test_the_history_of_an_engine_is_clean_whatever_is_in_it(engine: Engine) -> None:
    async with calling(engine) as caller:
        await caller.load()
        await caller.append(block("one\x1b[2J\ntwo", name="al\x07ice"))
    status, shown, _ = await run("history", engine.url)
    assert status == 0
    assert [line.partition("] ")[2] for line in shown.splitlines()] == ["one␛[2J", "two"]
    assert "[al␇ice]" in shown


async def test_nothing_is_imported_while_a_node_or_the_journals_server_runs(
    tmp_path: Path, engine: Engine
) -> None:
    path, busy, other = tmp_path / "chat.db", tmp_path / "busy.db", tmp_path / "other.db"
    await write(path, ("lobby", 0, "one"))
    await write(other, ("den", 0, "other"))
    assert (await run("journal", "import", other, engine.url))[0] == 0
    async with serve_on(tmp_path, engine):
        # First of all, also where --add would be needed.
        status, _, err = await run("journal", "import", path, engine.url)
        assert status == 1
        assert err.startswith(f"multichat: {engine.url}: nodes are running on it: stop them all")
        # Accounts can be changed meanwhile.
        passphrase = tmp_path / "passphrase"
        passphrase.write_text("correct horse")
        added = await run("account", "add", engine.url, "Bob", "--passphrase-file", passphrase)
        assert added == (0, f"Bob has an account in {engine.url}\n", "")
        assert (await run("account", "remove", engine.url, "bob"))[0] == 0
        assert await run("account", "list", engine.url) == (0, "", "")
    async with serve(tmp_path, "--journal", str(busy)):
        assert await run("journal", "import", busy, engine.url) == (
            1,
            "",
            f"multichat: {busy}: its server is running: stop it first\n",
        )


async def test_errors_are_one_line(tmp_path: Path, engines: Engines) -> None:
    path = tmp_path / "chat.db"
    await write(path, ("lobby", 0, "one"))
    engine = await engines.start(EngineConfig(password="sesame"))
    commands = (
        ("journal", "import", path, engine.url),
        ("history", engine.url),
        ("account", "list", engine.url),
    )
    for words in commands:
        for password, reason in (
            ("", "it asks for a password: give --cluster-password-file"),
            ("wrong", "it does not accept the user and password"),
        ):
            expected = (1, "", f"multichat: {engine.url}: {reason}\n")
            assert await run(*words, password=password) == expected
    assert await run("history", engine.url, password="sesame") == (0, "", "")
    done = await run("history", engine.url, "--room", "den", password="sesame")
    assert done == (1, "", f"multichat: {engine.url}: it has no room den\n")
    engine.kill()
    for words in commands:
        assert await run(*words) == (1, "", f"multichat: {engine.url}: connection refused\n")
    status, _, err = await run("history", "valkey://u:secret@h")
    assert (status, "secret" in err, "must not contain a password" in err) == (2, False, True)
    for option in ("--cluster-password-file", "--cluster-ca", "--cluster-tls-name"):
        for command in (("history",), ("account", "list")):
            refused = await run(*command, path, option, path)
            assert refused == (2, "", f"multichat: {option} has no effect with a file\n")
    assert (await run("journal", "import", tmp_path / "no.db", engine.url))[2] == (
        f"multichat: {tmp_path / 'no.db'}: no such file\n"
    )


async def test_every_command_that_uses_an_engine_can_trust_an_authority(
    engines: Engines, tmp_path: Path
) -> None:
    path = tmp_path / "chat.db"
    await write(path, ("lobby", 0, "one"))
    engine = await engines.start(EngineConfig(tls=True))
    trusted = ("--cluster-ca", certificates().authority)
    commands: list[tuple[tuple[str | Path, ...], str]] = [
        (("journal", "import", path, engine.url), "lobby"),
        (("history", engine.url), "one"),
        (("account", "list", engine.url), ""),
    ]
    for words, expected in commands:
        status, _, err = await run(*words)
        assert status == 1
        assert "; trust it with --cluster-ca FILE" in err
        status, _, err = await run(*words, *trusted, "--cluster-tls-name", "other.example")
        assert status == 1
        assert "its certificate is not accepted" in err
        status, out, err = await run(*words, *trusted, "--cluster-tls-name", "localhost")
        assert (status, expected in out + err) == (0, True), out + err
