"""The files of a journal, in tests: copy and dump them, and get the reason why one is refused."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from multichat.errors import JournalFailed
from multichat.journal.sqlite.journal import SqliteJournal, SqliteLimits
from multichat.journal.sqlite.reader import open_reader

from .journals import running


def wal_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def contents(folder: Path) -> dict[str, bytes]:
    files = (each for each in folder.iterdir() if each.is_file())
    return {each.name: each.read_bytes() for each in files if not each.name.endswith("-shm")}


async def refusal(path: Path, limits: SqliteLimits | None = None) -> str:
    """Return why a server refuses to start with *path*, and check that no file has changed."""
    before = contents(path.parent)
    with pytest.RaisesGroup(JournalFailed) as group:
        async with running(SqliteJournal(path, limits=limits)):
            pass
    after = contents(path.parent)
    assert {name: after[name] for name in before} == before
    message = str(group.value.exceptions[0])
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def reader_refusal(path: Path) -> str:
    with pytest.raises(JournalFailed) as caught, open_reader(path):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def save(path: Path, folder: Path) -> Path:
    """Copy the files of a journal, as they are when its server is killed now."""
    folder.mkdir()
    for each in (path, wal_of(path)):
        if each.exists():
            shutil.copy(each, folder / each.name)
    return folder / path.name


def dump(path: Path) -> list[object]:
    """Return what is in the journal at *path*, whose pages are all whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute("SELECT seq, room, first, text FROM runs ORDER BY seq").fetchall()
