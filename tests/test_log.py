"""The log: its format, and outputs that must not block the event loop."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from multichat.log import MAX_WAITING_BYTES, Log, LogWriter, open_log
from multichat.log_format import LineFormatter, Lines, Messages

pytestmark = pytest.mark.unit

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[(DEBUG|INFO|WARNING|ERROR)\] "
    r"\[(server|client)\] \[\w+\] .*"
)


@contextmanager
def open_file_log(file: Path, level: int = logging.INFO) -> Iterator[None]:
    with Path(os.devnull).open("wb") as null, open_log(null.fileno(), level=level, file=file):
        yield


def record(message: object, name: str = "multichat.server") -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "", 0, message, (), None)
    made.created = time.mktime((2025, 1, 15, 10, 30, 45, 0, 0, -1)) + 0.1235
    return made


def test_log_lines_match_the_specification_to_the_letter() -> None:
    format_ = LineFormatter().format
    start = "2025-01-15 10:30:45.123 [INFO] "
    assert format_(record(Lines("STATE", "Client 1 connected"))) == (
        start + "[server] [STATE] Client 1 connected"
    )
    said = Messages("RX", "[Client 1]", "a\nb", 2)
    assert format_(record(said)).split("\n") == [
        start + "[server] [RX] [Client 1] a",
        start + "[server] [BROADCAST] Broadcasting to 2 clients",
        start + "[server] [RX] [Client 1] b",
        start + "[server] [BROADCAST] Broadcasting to 2 clients",
    ]
    assert format_(record(Lines("TX", "Hello back!"), "multichat.client")) == (
        start + "[client] [TX] Hello back!"
    )


def test_log_times_follow_the_clock() -> None:
    formatter = LineFormatter()
    first, second, third = (record("[X] y") for _ in range(3))
    second.created += 0.001
    third.created += 1
    assert [formatter.format(each)[17:23] for each in (first, second, third)] == [
        "45.123",
        "45.124",
        "46.123",
    ]


def test_a_log_record_is_always_one_line() -> None:
    text = LineFormatter().format(record("[STATE] Client 1 disconnected (x\n[STATE] forged\x1b)"))
    assert "\n" not in text
    assert "␊[STATE] forged␛)" in text


def write_batches() -> list[str]:
    """Log what takes several lines; return the lines."""
    log = Log("server")
    log.line("STATE", "one")
    log.lines("STATE", "two\nthree 100%s")
    log.said("[Client 1]", "a\nb", 2)
    log.crash("a task crashed", LookupError("x\ny"))
    sent = "[BROADCAST] Broadcasting to 2 clients"
    states = ["[STATE] one", "[STATE] two", "[STATE] three 100%s"]
    said = ["[RX] [Client 1] a", sent, "[RX] [Client 1] b", sent]
    return [*states, *said, "[STATE] a task crashed: LookupError('x\\ny')"]


def test_other_handlers_get_one_record_for_each_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "multichat"):
        lines = write_batches()
    assert caplog.messages == lines
    assert all(type(each.msg) is str for each in caplog.records)


def test_a_filter_gets_the_lines_as_the_message_of_a_record(tmp_path: Path) -> None:
    messages: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        messages.extend(record.getMessage().split("\n"))
        return True

    logger = logging.getLogger("multichat.server")
    with open_file_log(tmp_path / "log"):
        logger.addFilter(take)
        try:
            lines = write_batches()
        finally:
            logger.removeFilter(take)
    assert messages == lines


def test_a_log_writer_beside_another_handler_writes_the_same_lines(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name in ("alone", "beside"):
        with open_file_log(tmp_path / name):
            if name == "beside":
                logging.getLogger("multichat").addHandler(caplog.handler)
            lines = write_batches()
            logging.getLogger("multichat").removeHandler(caplog.handler)
    assert caplog.messages == lines
    written = [(tmp_path / name).read_text().splitlines() for name in ("alone", "beside")]
    alone, beside = ([line[24:] for line in each] for each in written)
    assert (
        alone
        == beside
        == [f"[{'ERROR' if 'crashed' in line else 'INFO'}] [server] {line}" for line in lines]
    )


def test_without_a_handler_a_warning_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("multichat")
    logger.propagate = False  # pytest's own handlers
    try:
        Log("server").line("LOG", "a warning", logging.WARNING)
    finally:
        logger.propagate = True
    assert capsys.readouterr().err == "[LOG] a warning\n"


def test_levels_are_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with open_file_log(file, level=logging.WARNING):
        Log("server").line("STATE", "quiet")
        Log("server").line("STATE", "loud", logging.WARNING)
    [line] = file.read_text("utf-8").splitlines()
    assert line.endswith("[WARNING] [server] [STATE] loud")


def test_a_crash_is_one_line_and_its_traceback_is_for_debugging(tmp_path: Path) -> None:
    for level in (logging.INFO, logging.DEBUG):
        file = tmp_path / str(level)
        with open_file_log(file, level=level):
            Log("server").crash("a session crashed", RuntimeError("boo"))
        lines = file.read_text("utf-8").splitlines()
        assert lines[0].endswith("[ERROR] [server] [STATE] a session crashed: RuntimeError('boo')")
        assert (lines[-1] == "RuntimeError: boo") == (level == logging.DEBUG)


def test_errors_of_the_listener_are_logged_too(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with open_file_log(file):
        error = OSError(24, "Too many open files")
        for _ in range(2):
            logging.getLogger("trio.serve_listeners").error("accept failed", exc_info=error)
    [line] = file.read_text("utf-8").splitlines()  # once, and not ten times a second
    assert line.endswith("[ERROR] [server] [STATE] accept failed")


def test_a_log_file_is_appended_to_and_everything_is_undone(tmp_path: Path) -> None:
    file = tmp_path / "log"
    before = [
        (logger.handlers[:], logger.level, logger.propagate)
        for logger in (logging.getLogger("multichat"), logging.getLogger("trio.serve_listeners"))
    ]
    read, write = os.pipe()
    for text in ("first 한국어", "second"):
        with open_log(write, file=file):
            Log("server").line("STATE", text)
    os.close(write)
    assert os.read(read, 10_000).decode() == file.read_text("utf-8")
    os.close(read)
    lines = file.read_text("utf-8").splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == ["first 한국어", "second"]
    assert all(LINE.fullmatch(line) for line in lines)
    assert before == [
        (logger.handlers[:], logger.level, logger.propagate)
        for logger in (logging.getLogger("multichat"), logging.getLogger("trio.serve_listeners"))
    ]


def test_a_log_file_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "log"
    with pytest.raises(FileNotFoundError) as caught, open_log(1, file=missing):
        pass
    assert caught.value.filename == str(missing)


def test_a_new_log_file_is_private_and_the_mode_of_an_old_one_stays(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    old.chmod(0o644)
    for file, mode in ((tmp_path / "new", 0o600), (old, 0o644)):
        with open_file_log(file):
            Log("server").line("STATE", "hello")
        assert file.stat().st_mode & 0o777 == mode
        assert "hello" in file.read_text("utf-8")


def test_a_log_file_that_is_a_fifo_needs_a_reader_and_never_waits_for_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="no program reads from it"), open_file_log(fifo):
        pass
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with open_file_log(fifo):
            Log("server").line("STATE", "hello")
        assert b"hello" in os.read(reader, 1000)
    finally:
        os.close(reader)


class Pipe:
    """A pipe with a log writer and, at first, without a reader."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.writer = LogWriter(self.write_fd)
        self.writer.start()

    def emit(self, text: str) -> None:
        self.writer.emit(record(Lines("X", text)))

    def read_all(self) -> list[str]:
        """Read until EOF, after the writer has closed."""
        chunks: list[bytes] = []

        def read() -> None:
            while data := os.read(self.read_fd, 1 << 20):
                chunks.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        self.writer.wait_below(0)
        self.writer.close()
        os.close(self.write_fd)
        reader.join()
        return b"".join(chunks).decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_fd)


def test_a_slow_output_never_blocks_and_says_what_it_skipped(pipe: Pipe) -> None:
    size, count = 100_000, 200
    for i in range(count):
        pipe.emit(f"{i} " + "x" * size)
        assert pipe.writer.waiting_bytes <= MAX_WAITING_BYTES
    lines = pipe.read_all()
    numbers = [int(line.split()[5]) for line in lines if line.endswith("x" * size)]
    assert numbers == list(range(len(numbers)))
    skipped = [line for line in lines if "skipped" in line]
    assert [int(line.split()[5]) for line in skipped] == [count - len(numbers)]
    assert skipped[0].split("] ", 1)[0].endswith("[WARNING")
    assert lines[-1] == skipped[0]


def test_closing_waits_a_second_for_an_output_that_takes_nothing(pipe: Pipe) -> None:
    pipe.emit("x" * 1_000_000)
    started = time.monotonic()
    pipe.writer.close()
    assert time.monotonic() - started >= 1.0
    assert len(pipe.read_all()) == 1  # it is still delivered to a late reader


def test_a_closed_output_loses_only_its_lines(pipe: Pipe) -> None:
    os.close(pipe.read_fd)
    pipe.emit("nobody reads this")
    pipe.writer.wait_below(0)
    assert isinstance(pipe.writer.failure, BrokenPipeError)
    pipe.emit("nor this")
    pipe.writer.wait_below(0)
    pipe.writer.close()
    os.close(pipe.write_fd)
    pipe.read_fd = os.open(os.devnull, os.O_RDONLY)  # for the fixture


def test_a_terminal_made_non_blocking_by_another_process_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_fd, False)
    pipe.emit("x" * 1_000_000)
    [line] = pipe.read_all()
    assert line.endswith("x" * 1_000_000)


def test_the_lines_of_a_file_are_not_skipped_while_it_takes_them(tmp_path: Path) -> None:
    """However fast they arrive: `emit` waits for the log's thread."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(fd, file_seconds=60)  # the machine may be busy
    writer.start()
    text = "x" * 1000
    for _ in range(100):
        writer.emit(record(Lines("RX", "\n".join([text] * 1000))))
        assert writer.waiting_bytes <= MAX_WAITING_BYTES
    writer.wait_below(0)
    writer.close()
    os.close(fd)
    lines = (tmp_path / "log").read_text("utf-8").splitlines()
    assert len(lines) == 100_000
    assert all(line.endswith(text) for line in lines)


def test_a_file_that_hangs_is_given_up_on(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(fd, file_seconds=0.01)  # not started, which simulates a hung disk
    data = "x" * 1_000_000
    for _ in range(20):
        writer.emit(record(data))
    assert writer.waiting_bytes <= MAX_WAITING_BYTES
    writer.start()
    writer.wait_below(0)
    writer.emit(record("[X] on again"))
    writer.close()
    os.close(fd)
    lines = (tmp_path / "log").read_text("utf-8").splitlines()
    assert "12 lines skipped" in lines[-2]
    assert lines[-1].endswith("on again")
