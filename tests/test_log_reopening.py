"""A log file that is opened again: after it was renamed, no line is lost or torn."""

import errno
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from multichat.log import Log, LogWriter, open_log
from multichat.log_format import Lines

pytestmark = pytest.mark.unit

NUMBERED = re.compile(r"\S+ \S+ \[INFO\] \[server\] \[STATE\] line (\d+) x{50}")


@contextmanager
def file_writer(file: Path) -> Iterator[LogWriter]:
    with Path(os.devnull).open("wb") as null, open_log(null.fileno(), file=file) as writer:
        assert writer.file is not None
        yield writer.file


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("multichat.server", logging.INFO, "", 0, Lines("X", text), (), None)


def numbers_in(*files: Path) -> list[int]:
    """The numbers of all lines, each of which must be whole."""
    found: list[int] = []
    for file in files:
        data = file.read_bytes()
        assert not data or data.endswith(b"\n")
        for line in data.decode().splitlines():
            match = NUMBERED.fullmatch(line)
            assert match, line
            found.append(int(match[1]))
    return found


def test_rotation_under_a_flood_loses_and_tears_no_line(tmp_path: Path) -> None:
    file, log = tmp_path / "log", Log("server")
    rotated, count, done = [file], 0, threading.Event()

    with file_writer(file) as writer:

        def flood() -> None:
            nonlocal count
            while not done.is_set() or count < 20_000:
                log.line("STATE", f"line {count} {'x' * 50}")
                count += 1

        flooding = threading.Thread(target=flood)
        flooding.start()
        for number in range(30):
            seen = count
            renamed = tmp_path / f"log.{number}"
            file.rename(renamed)
            writer.reopen(file)
            rotated.insert(number, renamed)
            while count < seen + 200:
                os.sched_yield()
        done.set()
        flooding.join()
    assert numbers_in(*rotated) == list(range(count))
    assert sum(bool(each.stat().st_size) for each in rotated) > 5  # it did happen in between


def test_the_old_file_is_closed_when_reopening_returns(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file_writer(file) as writer:
        for number in range(3):
            old = os.readlink(f"/proc/self/fd/{writer.fd}")  # noqa: PTH115
            assert old == str(file)
            renamed = tmp_path / str(number)
            file.rename(renamed)
            writer.reopen(file)
            opened = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
            assert str(renamed) not in opened


@pytest.mark.parametrize("kind", ["folder", "no folder", "FIFO"])
def test_a_file_that_cannot_be_opened_keeps_the_old_one(kind: str, tmp_path: Path) -> None:
    file, log = tmp_path / "there" / "log", Log("server")
    file.parent.mkdir()
    with file_writer(file) as writer:
        log.line("STATE", f"line 0 {'x' * 50}")
        renamed = file.rename(tmp_path / "log.1")
        match kind:
            case "folder":
                file.mkdir()
            case "no folder":
                file.parent.rmdir()
            case _:
                os.mkfifo(file)
        with pytest.raises(OSError, match=re.escape(str(file))):
            writer.reopen(file)
        log.line("STATE", f"line 1 {'x' * 50}")
    assert numbers_in(renamed) == [0, 1]


def test_reopening_an_unchanged_file_appends_to_it(tmp_path: Path) -> None:
    file, log = tmp_path / "log", Log("server")
    with file_writer(file) as writer:
        for number in range(5):
            log.line("STATE", f"line {number} {'x' * 50}")
            writer.reopen(file)
    assert numbers_in(file) == list(range(5))


def test_a_fifo_whose_reader_has_gone_is_written_to_again(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = Log("server")
    with file_writer(fifo) as writer:
        log.line("STATE", "first")
        writer.wait_below(0)
        assert b"first" in os.read(reader, 1000)
        os.close(reader)
        log.line("STATE", "lost")
        writer.wait_below(0)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        log.line("STATE", "lost, too")
        writer.wait_below(0)
        writer.reopen(fifo)
        log.line("STATE", "third")
        writer.wait_below(0)
        assert b"third" in os.read(reader, 1000)
    os.close(reader)


def test_lines_that_a_full_disk_lost_are_counted_in_the_new_file(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    file, log = tmp_path / "log", Log("server")
    with file_writer(file) as writer:
        disk = os.open(full, os.O_WRONLY)
        os.dup2(disk, writer.fd)  # the disk is full from now on
        for _ in range(3):
            log.line("STATE", "lost")
        writer.wait_below(0)
        assert writer.failure is not None
        os.close(disk)
        writer.reopen(file)
        log.line("STATE", f"line 7 {'x' * 50}")
    lines = file.read_text("utf-8").splitlines()
    assert lines[0].endswith("[LOG] 3 lines lost: no space left on device")
    assert NUMBERED.fullmatch(lines[1])


def test_a_disk_that_fails_when_the_old_file_is_closed_does_not_end_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log, close = tmp_path / "log", Log("server"), os.close
    with file_writer(file) as writer:
        old = writer.fd

        def close_in_vain(fd: int) -> None:
            close(fd)
            if fd == old:  # as a network's disk does that is full
                raise OSError(errno.EDQUOT, "disk quota exceeded")

        monkeypatch.setattr(os, "close", close_in_vain)
        writer.reopen(file)
        monkeypatch.undo()
        log.line("STATE", f"line 0 {'x' * 50}")
    assert numbers_in(file) == [0]


def test_reopening_when_the_log_has_ended_does_not_wait(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file_writer(file) as writer:
        writer.close()
        writer.reopen(file)
