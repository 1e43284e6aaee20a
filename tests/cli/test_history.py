"""`multichat history` reads a journal with no server, and beside one that runs."""

import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from multichat.cli.history import parse_since
from multichat.errors import UnknownId
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.journal.sqlite.reader import Reader, open_reader
from multichat.protocol.ids import message_id
from multichat.protocol.messages import SaidBlock
from tests.support.journals import running, wait_stored
from tests.support.processes import MULTICHAT

pytestmark = pytest.mark.process

NOON = 1736942400  # 2025-01-15T12:00:00Z


def at(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.123Z", time.gmtime(NOON + seconds))


async def write(
    path: Path, *said: tuple[str, int, str, str], act: bool = False, together: bool = True
) -> dict[str, str]:
    """Write messages: room, seconds after noon, name, block; return the rooms' epochs."""
    async with running(SqliteJournal(path)) as journal:
        epochs = {}
        for shown, seconds, name, block in said:
            room = journal.room(shown.lower())
            epochs[shown] = room.epoch
            pending = room.append(
                SaidBlock(room.epoch, room.next, at(seconds), shown, 7, name, block, act)
            )
            if not together:
                await wait_stored(pending)
        return epochs


def history(path: Path, *options: str, zone: str = "UTC") -> list[str]:
    done = subprocess.run(
        [MULTICHAT, "history", str(path), *options],
        capture_output=True,
        env={**os.environ, "TZ": zone, "LC_ALL": "C"},
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode().splitlines()


async def test_the_messages_of_one_room_are_shown_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, ("lobby", 0, "alice", "Hello\nwörld 😀"), ("lobby", 1, "Client 8", "hi"))
    await write(path, ("lobby", 2, "alice", "waves"), act=True)
    assert history(path) == [
        "2025-01-15 12:00:00.123 [alice] Hello",
        "2025-01-15 12:00:00.123 [alice] wörld 😀",
        "2025-01-15 12:00:01.123 [Client 8] hi",
        "2025-01-15 12:00:02.123 * alice waves",
    ]
    # Times are local, as in the log.
    assert history(path, "--limit", "1", zone="EST5") == ["2025-01-15 07:00:02.123 * alice waves"]


async def test_several_rooms_are_shown_in_the_order_of_the_messages(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, ("Lobby", 0, "a", "1"), ("den", 1, "b", "2\n3"), ("Lobby", 2, "c", "4"))
    assert [line[24:] for line in history(path)] == [
        "Lobby: [a] 1",
        "den: [b] 2",
        "den: [b] 3",
        "Lobby: [c] 4",
    ]
    assert [line[24:] for line in history(path, "--room", "LOBBY")] == ["[a] 1", "[c] 4"]
    assert [line[24:] for line in history(path, "--room", "den", "--limit", "1")] == ["[b] 3"]


async def test_json_lines_are_those_of_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    epochs = await write(path, ("lobby", 0, "alice", 'say "so"\ntwo'))
    assert [json.loads(line) for line in history(path, "--json", zone="EST5")] == [
        {
            "type": "said",
            "id": message_id(epochs["lobby"], number),
            "time": at(0),
            "room": "lobby",
            "client": 7,
            "name": "alice",
            "text": text,
        }
        for number, text in enumerate(['say "so"', "two"])
    ]


async def test_since_accepts_a_time_or_an_id(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    said = [("lobby" if n % 3 else "den", n * 60, "a", f"{n}\n{n}b") for n in range(30)]
    epochs = await write(path, *said)

    def texts(*options: str) -> list[str]:
        return [line.rpartition(" ")[2] for line in history(path, *options, zone="EST5")]

    assert texts("--since", "2025-01-15T12:27Z") == ["27", "27b", "28", "28b", "29", "29b"]
    assert texts("--since", "2025-01-15T07:27:01") == ["28", "28b", "29", "29b"]
    assert texts("--since", "2025-01-15T12:27Z", "--limit", "3") == ["27", "27b", "28"]
    assert texts("--since", "2025-01-15T12:27Z", "--room", "den") == ["27", "27b"]
    assert len(texts("--since", "1999-01-01")) == 60
    assert texts("--since", "2031-01-01") == []
    # The den has blocks of two: the message with the number 15 is the second of the eighth block,
    # sent at 21.
    assert texts("--since", message_id(epochs["den"], 14)) == ["21b", *texts_of(24, 27)]
    assert texts("--since", message_id(epochs["den"], 15)) == [*texts_of(24, 27)]
    assert texts("--since", message_id(epochs["den"], 19)) == []
    # The room is shown, as with a time.
    [by_id, by_time] = (
        history(path, "--since", since, "--limit", "1")
        for since in (message_id(epochs["den"], 15), "2025-01-15T12:24Z")
    )
    assert by_id == by_time == ["2025-01-15 12:24:00.123 den: [a] 24"]
    assert texts("--limit", "3") == ["28b", "29", "29b"]
    assert texts("--limit", "0") == []


def texts_of(*numbers: int) -> list[str]:
    return [text for n in numbers for text in (f"{n}", f"{n}b")]


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    with open_reader(path) as reader:
        yield reader


async def test_since_and_limit_in_every_combination(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    epochs = await write(
        path, *[("lobby", n, "a", f"{3 * n}\n{3 * n + 1}\n{3 * n + 2}") for n in range(5)]
    )
    with reading(path) as reader:

        def texts(since: float | str | None, limit: int | None) -> list[int]:
            blocks = reader.read(since=since, limit=limit)
            return [int(text) for said in blocks for text in said.text.split("\n")]

        for limit in range(17):
            assert texts(None, limit) == list(range(15))[max(0, 15 - limit) :]
            for number in range(15):
                wanted = list(range(number + 1, 15))[:limit]
                assert texts(message_id(epochs["lobby"], number), limit) == wanted
            for second in range(6):
                assert texts(NOON + second, limit) == list(range(3 * second, 15))[:limit]
                assert texts(NOON + second + 0.2, limit) == list(range(3 * second + 3, 15))[:limit]


async def test_history_of_an_unknown_room_id_or_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    epochs = await write(path, ("lobby", 0, "a", "x"), ("den", 0, "a", "x"))

    def fails(status: int, *argv: str) -> str:
        done = subprocess.run([MULTICHAT, "history", *argv], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, "")
        return done.stderr

    p = str(path)
    unknown = "multichat: no message of this room has that id\n"
    assert fails(1, p, "--room", "attic") == f"multichat: {p}: it has no room attic\n"
    assert fails(1, p, "--since", message_id(epochs["den"], 1)) == unknown
    assert fails(1, p, "--since", message_id("0" * 11, 0)) == unknown
    assert fails(1, p, "--since", message_id(epochs["den"], 0), "--room", "lobby") == unknown
    missing = tmp_path / "none.db"
    assert fails(1, str(missing)) == f"multichat: {missing}: no such file\n"
    assert not missing.exists()
    folder = tmp_path / "no" / "x.db"
    assert fails(1, str(folder)) == f"multichat: {folder}: there is no directory {folder.parent}\n"
    assert "neither a message's id nor a time" in fails(2, p, "--since", "yesterday")


@pytest.mark.parametrize("text", ["", "yesterday", "0-0", "99999-01-01", "2025-13-01", "\ud800"])
def test_invalid_values_of_since_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a message's id nor a time"):
        parse_since(text)


async def test_history_reads_beside_a_running_server(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")

        async def say(number: int) -> None:
            said = SaidBlock(room.epoch, room.next, at(number), "lobby", 7, "a", str(number))
            await wait_stored(room.append(said))

        for number in range(3):
            await say(number)
            lines = await trio.to_thread.run_sync(history, path)
            assert [line[24:] for line in lines] == [f"[a] {n}" for n in range(number + 1)]
        with reading(path) as reader:
            blocks = reader.read()
            assert next(blocks).text == "0"
            await say(99)  # no writer waits for a reader, which ends where it began
            assert [said.text for said in blocks] == ["1", "2"]
    assert not Path(f"{path}-wal").exists()


async def test_reading_a_large_journal_takes_little_memory_and_can_be_stopped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    text = "x" * 1000
    block = "\n".join([text] * 250)
    await write(path, *[("lobby", n, "a", block) for n in range(300)])  # 75 MB
    program = subprocess.Popen(
        [MULTICHAT, "history", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    assert program.stdout.readline().endswith(b"x\n")
    status = Path(f"/proc/{program.pid}/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found
        assert int(found[1]) < 80_000  # Python, and a page or two
    program.stdout.close()  # as `head` does
    assert program.wait(30) == 0
    assert program.stderr.read() == b""
    program.stderr.close()


async def test_the_text_of_a_tampered_file_is_filtered(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, ("lobby", 0, "alice", "x"))
    with sqlite3.connect(path) as connection:
        evil = '\x1b]0;evil\x07",'
        connection.execute(
            "UPDATE runs SET name = ?, shown = ?, text = ?", (f"{evil}\n", f"{evil}\n", evil)
        )
    connection.close()
    assert history(path) == ['2025-01-15 12:00:00.123 [␛]0;evil␇",␊] ␛]0;evil␇",']
    for line in history(path, "--json"):
        assert json.loads(line)["name"] == '␛]0;evil␇",␊'


async def test_the_readable_part_of_a_damaged_file_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, *[("lobby", n, "a", "x" * 2000) for n in range(100)])
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + b"\xff" * 8192 + whole[middle + 8192 :])
    with reading(path) as reader:
        blocks = [said.text for said in reader.read()]
        assert blocks
        assert set(blocks) == {"x" * 2000}
        assert len(blocks) + reader.damaged == 100
    with pytest.raises(UnknownId), reading(path) as reader:
        reader.read(since="0-1000000000")
