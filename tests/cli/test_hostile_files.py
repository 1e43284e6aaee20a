"""Commands print hostile files cleaned, or one line with the error."""

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from typer.testing import CliRunner

from multichat.cli.history import parse_since, show_history
from multichat.cli.main import make_app
from multichat.errors import JournalFailed, UnknownId, lone_exception
from multichat.journal.sqlite.journal import Durability, SqliteJournal
from multichat.testing import memory_server
from tests.support.harmless import is_harmless, is_one_harmless_line
from tests.support.journals import make_journal
from tests.support.processes import LOOPBACK, MULTICHAT, Command

pytestmark = pytest.mark.unit

ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e\x1b[31m"
FORGED = f"{ESCAPES}\n[Server] FORGED"

COLUMNS = {
    "rooms": ("id", "name", "epoch", "first", "next", "seq"),
    "runs": (
        *("seq", "room", "first", "messages", "bytes", "time"),
        *("shown", "client", "name", "act", "text"),
    ),
}

VALUES: dict[str, object] = {
    "null": None,
    "escapes": FORGED,
    "a blob": FORGED.encode("utf-8", "surrogatepass"),
    "no UTF-8": b"\xff\xfe\x1b[31m",
    "a negative number": -7,
    "the largest number": 2**63 - 1,
    "a fraction": 1.5,
    "infinity": float("inf"),
    "an empty text": "",
    "a huge text": "x\n" * 20_000 + FORGED,
    "JSON that is nested": "[" * 100_000,
}


def change(path: Path, *statements: str, parameters: Sequence[object] = ()) -> None:
    """Change a journal without what keeps others from it: any type goes into any column."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        for statement in statements:
            connection.execute(statement, parameters)
        connection.commit()


def set_column(path: Path, table: str, column: str, value: object) -> None:
    if isinstance(value, bytes) and value.startswith(b"\xff"):
        value_sql, parameters = f"CAST(x'{value.hex()}' AS TEXT)", []
    else:
        value_sql, parameters = "?", [value]
    statement = f"UPDATE {table} SET {column} = {value_sql} WHERE rowid = 1"
    if table == "sessions":
        statement = statement.replace("WHERE rowid = 1", "")
    if value is None:  # which the table forbids, so its constraint is removed for a moment
        sql = "SELECT sql FROM sqlite_master WHERE name = ?"
        with closing(sqlite3.connect(path)) as connection:
            [[before]] = connection.execute(sql, [table]).fetchall()
        _define(path, table, before.replace(" NOT NULL", ""))
        change(path, statement, parameters=parameters)
        _define(path, table, before)
        return
    change(path, statement, parameters=parameters)


def _define(path: Path, table: str, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", [sql, table])
        connection.commit()


FILES: dict[str, Callable[[Path], object]] = {
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "empty": lambda path: path.touch(),
    "no database": lambda path: path.write_bytes(FORGED.encode() * 1000),
    "a truncated journal": lambda path: os.truncate(make_journal(path), 5000),
    "a journal without its first page": lambda path: _overwrite(make_journal(path), 100),
    "a journal with a page of noise": lambda path: _overwrite(make_journal(path), 4096),
    "no permission": lambda path: make_journal(path).chmod(0),
    "another database": lambda path: change(path, f'CREATE TABLE "{ESCAPES}" (x)'),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a table that is a view": lambda path: change(
        make_journal(path), "DROP TABLE runs",
        "CREATE VIEW runs AS WITH RECURSIVE c(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM c) "
        "SELECT seq, 1 room, seq first, 1 messages, 1 bytes, '' time, '' shown, 1 client, '' name, "
        "0 act, hex(zeroblob(1000000)) text FROM c",
    ),
    "a trigger": lambda path: change(
        make_journal(path),
        f"CREATE TRIGGER t BEFORE INSERT ON runs BEGIN SELECT raise(ABORT, '{ESCAPES}'); END",
    ),
    "a column less": lambda path: change(make_journal(path), "ALTER TABLE runs DROP COLUMN shown"),
    "a column more": lambda path: change(
        make_journal(path), f'ALTER TABLE runs ADD COLUMN "{ESCAPES}" DEFAULT 1'
    ),
    "a table less": lambda path: change(make_journal(path), "DROP TABLE rooms"),
    "no heads": lambda path: change(make_journal(path), "DELETE FROM heads"),
    "a newer version": lambda path: change(make_journal(path), "PRAGMA user_version=99"),
    "a negative version": lambda path: change(make_journal(path), "PRAGMA user_version=-1"),
    "version 0 with tables": lambda path: change(make_journal(path), "PRAGMA user_version=0"),
    "a schema that is no SQL": lambda path: _define(make_journal(path), "runs", ESCAPES),
    "an index whose name is no UTF-8": lambda path: _replace(
        make_journal(path), b"runs_by_number", b"runs_by_\xff\x1bmber"
    ),
    "a WAL that is a FIFO": lambda path: os.mkfifo(f"{make_journal(path)}-wal"),
    "a WAL that is a directory": lambda path: Path(f"{make_journal(path)}-wal").mkdir(),
    "an index of the WAL that is a FIFO": lambda path: os.mkfifo(f"{make_journal(path)}-shm"),
    "a lock that is a FIFO": lambda path: _put_fifo(f"{make_journal(path)}-lock"),
    "a lock that is no database": lambda path: Path(f"{make_journal(path)}-lock").write_bytes(
        FORGED.encode() * 1000
    ),
    "a lock whose schema is no UTF-8": lambda path: shutil.copy(
        _replace(make_journal(path), b"runs_by_number", b"runs_by_\xff\x1bmber"), f"{path}-lock"
    ),
}  # fmt: skip


def _replace(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def _put_fifo(name: str) -> None:
    Path(name).unlink(missing_ok=True)
    os.mkfifo(name)


def _overwrite(path: Path, start: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + 4096] = FORGED.encode("utf-8")[:16] * 256
    path.write_bytes(data)


CONFIGS = {
    "an escape in a key": '"\\u001b[31m\\u202e" = 1',
    "an escape in a table": '[servers."\\u001b[31m"]\nhost = 7',
    "an escape in a server's key": '[servers.x]\n"\\u001b[31m" = 1',
    "escapes in values": 'name = "\\u001b[31mx\\u0007"\nroom = "\\u202e"',
    "escapes in a server's name": '[servers."\\u001b[31m\\u009b2J"]\nhost = "h\\u001b[31m"',
    "a path with null": 'password-file = "a\\u0000b"',
    "a Unix socket with null": '[servers.x]\nunix = "a\\u0000b"',
    "nested deeply": "name = " + "[" * 50_000,
    "a table nested deeply": "[" + "a." * 5_000 + "a]",
    "inline tables nested deeply": "a = " + "{a=" * 20_000,
    "a huge number": "timeout = " + "9" * 10_000,
    "a huge float": "timeout = 1e999",
    "not a number": "timeout = nan",
    "a raw escape": "name = '\x1b[31m'",
    "a date": "timeout = 2025-13-45",
    "servers that are none": "servers = 5",
    "a server that is none": "servers.x = 5",
}


WAYS: tuple[dict[str, object], ...] = (
    {},
    {"json": True},
    {"room": "den"},
    {"limit": 1},
    {"since": "2024-01-01T00:00"},
    {"since": "00000000001-1000000000"},
)


def check_history(path: Path) -> None:
    """Check that a journal is shown clean, or that one clean reason says why it cannot be."""
    for number, options in enumerate(WAYS):
        out = path.with_name(f"{number}.out")
        wanted: dict[str, Any] = dict(options)
        if "since" in wanted:
            wanted["since"] = parse_since(wanted["since"])
        reason = ""
        with out.open("wb") as file:
            try:
                show_history(path, file.fileno(), **wanted)
            except UnknownId:
                pass
            except JournalFailed as failed:
                reason = failed.reason.replace(str(path.parent), "")
        assert is_one_harmless_line(reason)
        assert len(reason) <= 100
        shown = out.read_text("utf-8")
        assert is_harmless(shown)
        assert "\n[Server] FORGED" not in f"\n{shown}"


@pytest.mark.parametrize("table", ["rooms", "runs"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_history_of_a_journal_with_any_value_in_any_column(
    value: object, table: str, tmp_path: Path
) -> None:
    for column in COLUMNS[table]:
        folder = tmp_path / column
        folder.mkdir()
        path = make_journal(folder / "journal")
        with suppress(sqlite3.Error):  # a primary key of another type
            set_column(path, table, column, value)
        check_history(path)


async def check_server(path: Path, durability: Durability = Durability.FULL) -> None:
    """Check that a server starts with the journal at *path*, or says why it cannot."""
    received: list[str] = []
    reason = ""
    try:
        with lone_exception():
            async with memory_server(journal=SqliteJournal(path, durability=durability)) as network:
                client = await network.join()
                await client.send("/history", "/join den", "/history")
                await client.send(f'/json {{"replay":5,"room":"lobby","session":"{"0" * 32}"}}')
                await client.send('{"type":"history"}', '{"type":"say","text":"x","nonce":1}')
                await client.send('{"type":"quit"}')
                received = await client.rest()
    except JournalFailed as failed:
        reason = failed.reason
    assert is_one_harmless_line(reason)
    assert all(map(is_one_harmless_line, received))
    assert reason or received[-1].startswith('{"type":"goodbye"')
    for line in received:
        if line.startswith("{"):
            json.loads(line)


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
async def test_a_file_that_is_not_a_journal_is_one_line(
    make: Callable[[Path], object], tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / f"journal{ESCAPES}"
    make(path)
    check_history(path)
    await check_server(path)


@pytest.fixture(scope="module")
def large_journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal whose trees have several levels, and texts that are longer than a page."""
    path = make_journal(tmp_path_factory.mktemp("large") / "journal")
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO runs VALUES (?, 1, ?, 1, 5, '2025-01-15T10:30:46.123Z', 'lobby', 1, "
            "'alice', 0, ?)",
            [(seq, seq, "x" * (20_000 if seq % 100 == 0 else 20)) for seq in range(4, 400)],
        )
        connection.execute("UPDATE rooms SET next = 400, seq = 400 WHERE id = 1")
        connection.commit()
    return path.read_bytes()


# Where and how a byte changes: anywhere, and often in the page with the schema.
FLIPS = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.05)), st.integers(1, 255)
    ),
    min_size=1,
    max_size=40,
)


def flipped(data: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for where, mask in flips:
        changed[int(where * len(data))] ^= mask
    return bytes(changed)


@settings(max_examples=300)
@given(flips=FLIPS)
def test_history_of_a_journal_with_flipped_bytes(
    large_journal: bytes, flips: list[tuple[float, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        path.write_bytes(flipped(large_journal, flips))
        check_history(path)


@settings(max_examples=100)
@given(flips=FLIPS)
def test_a_server_with_a_journal_with_flipped_bytes(
    large_journal: bytes, flips: list[tuple[float, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        path.write_bytes(flipped(large_journal, flips))
        clock = MockClock(autojump_threshold=0.01)  # as `thread_clock`
        trio.run(check_server, path, Durability.NORMAL, clock=clock)


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_with_any_content_is_read_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{ESCAPES}.toml"
    path.write_text(text, "utf-8")
    for command in (["config"], ["config", ESCAPES], ["connect", "x", "--plain", "--replay=1"]):
        result = CliRunner().invoke(make_app(), command, env={"MULTICHAT_CONFIG": str(path)})
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert is_harmless(result.output), result.output


@pytest.mark.process
@pytest.mark.parametrize(
    ("argv", "limit"),
    [
        (["env", "MULTICHAT_CONFIG=HUGE", MULTICHAT, "config"], 1024),
        (["env", "MULTICHAT_CONFIG=HUGE", MULTICHAT, "connect", LOOPBACK], 1024),
        ([MULTICHAT, "who", LOOPBACK, "--password-file", "HUGE"], 64),
        ([MULTICHAT, "serve", "0", "--host", LOOPBACK, "--password-file", "HUGE"], 64),
        ([MULTICHAT, "serve", "0", "--host", LOOPBACK, "--ban-file", "HUGE"], 16 * 1024),
    ],
)
async def test_a_file_that_is_too_large_is_one_clear_line(
    argv: list[str], limit: int, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << 40)  # which takes no room on the disk
    argv = [argument.replace("HUGE", str(huge)) for argument in argv]
    async with Command(tmp_path, *argv) as command:
        command.end_input()
        assert await command.wait()
    assert f"{huge}: larger than {limit * 1024} bytes\n" in command.err
    assert "Traceback" not in command.err


@pytest.mark.process
async def test_file_names_in_errors_are_filtered(tmp_path: Path) -> None:
    path = tmp_path / f"file{ESCAPES}"
    path.write_text(ESCAPES)
    for argv in (
        ["history", str(path)],
        ["history", "--room", ESCAPES, str(make_journal(tmp_path / "good"))],
        ["serve", "0", "--host", LOOPBACK, "--journal", str(path)],
        ["serve", "0", "--host", LOOPBACK, "--ban-file", str(path)],
        ["serve", "0", "--host", LOOPBACK, "--tls-cert", str(path)],
        ["serve", "0", "--host", LOOPBACK, "--filter", f"{ESCAPES}:f"],
        ["serve", "0", "--host", ESCAPES],
        ["serve", "0", "--unix", f"{path}/x"],
        ["serve", "0", "--log-file", f"{path}/x"],
        ["connect", ESCAPES],
        ["connect", "--unix", str(path)],
        ["connect", LOOPBACK, "--tls-ca", str(path)],
        ["who", LOOPBACK, "1", "--password-file", f"{path}/x"],
        [f"--{ESCAPES}"],
        [ESCAPES],
    ):
        async with Command(tmp_path, MULTICHAT, *argv) as command:
            command.end_input()
            assert await command.wait()
        assert is_harmless(command.out + command.err), argv
        assert "Traceback" not in command.err
        assert "multichat: " in command.err or "Error: " in command.err
