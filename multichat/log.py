"""The log in the format of the specification, built on the standard library's `logging`.

The server and the client write to `Log`.  `LogWriter` is a handler that never blocks the event loop
for long: it writes in its own thread from a bounded queue, and counts the lines that do not fit.
For how lines are formatted see `multichat.log_format`.  A whole batch of messages is one record for
a handler that `takes_batches`, as `LogWriter` does; any other gets one record for each line.

Invariants: the lines of one batch are adjacent; a line is written whole or skipped, and skips are
reported; with `Log.hides_messages`, no line has the text of a message or of an exception.
"""

import errno
import logging
import math
import os
import queue
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from traceback import TracebackException

from multichat.log_format import (
    NO_FIELDS,
    Fields,
    JsonFormatter,
    LineFormatter,
    Lines,
    Messages,
    OneEvent,
)
from multichat.protocol.counts import counted
from multichat.protocol.framing import clean, clean_lines

__all__ = ["Log", "LogWriter", "open_log"]

# Large enough that pausing a terminal for a while loses no lines.
MAX_WAITING_BYTES = 8 * 1024 * 1024

# How long a full queue may block the event loop before lines are skipped, if the output is a
# regular file.  For a terminal or a pipe, lines are skipped immediately.
FILE_SECONDS = 1.0

# While little is queued, the thread waits for more lines: otherwise each line would wake it, and it
# would take the interpreter lock from an event loop that is in the middle of deliveries.
LINGER_BYTES = 64 * 1024
LINGER_SECONDS = 0.005

# The minimum time between two records of trio about failing listeners.
REPEAT_SECONDS = 60.0

# The longest time that a slow output may delay the end of the program.
CLOSE_SECONDS = 1.0

# Kinds of faults whose traceback is logged.
_MAX_FAULTS = 100

# Of such a traceback: the text of an exception may quote a long message, and a group of them may
# hold thousands.
_MAX_FAULT_LINES = 100
_MAX_FAULT_CHARACTERS = 300

_Formatter = JsonFormatter | LineFormatter


class Log:
    """The log of one component, `server` or `client`; its logger is `multichat.<component>`.

    With *hides_messages*, what people have written for others is not logged; for what the callers
    pass in other lines, see `shown`.

    Every line may have *fields*: what the text says, and more, for `multichat.log_format`.
    """

    def __init__(self, component: str, *, hides_messages: bool = False) -> None:
        self.hides_messages = hides_messages
        self._logger = logging.getLogger(f"multichat.{component}")
        self._faults: set[tuple[str, type[BaseException]]] = set()

    def shown(self, text: str, otherwise: str = "") -> str:
        """Return *text*, which a person has written; *otherwise* if such texts are not logged."""
        return otherwise if self.hides_messages else text

    def line(
        self, tag: str, text: str, level: int = logging.INFO, *, fields: Fields = NO_FIELDS
    ) -> None:
        """Log one line; *text* is cleaned."""
        if self._logger.isEnabledFor(level):
            self._handle(Lines(tag, clean(text), fields), level)

    def lines(self, tag: str, block: str) -> None:
        """Log one line for each line of *block*, which is clean."""
        self._lines(Lines(tag, block))

    def said(
        self,
        speaker: str,
        block: str,
        clients: int,
        tag: str = "RX",
        *,
        fields: Fields = NO_FIELDS,
    ) -> None:
        """Log the messages of one publish, which are clean, each sent to *clients* clients.

        *speaker* is the prefix of each message: `[Client 1]`, or `* Client 1`.
        """
        if not self._logger.isEnabledFor(logging.INFO):
            return
        if self.hides_messages:
            block = "\n" * block.count("\n")
        messages = Messages(tag, speaker, block, clients, fields, self.hides_messages)
        self._handle(messages, logging.INFO)

    def crash(self, text: str, error: BaseException) -> None:
        """Log a bug of multichat in one line, and its traceback at level DEBUG."""
        shown = _kind(error) if self.hides_messages else repr(error)
        self.line("STATE", f"{text}: {shown}", logging.ERROR, fields={"event": "crashed"})
        if self.hides_messages:
            self._trace("STATE", _places(TracebackException.from_exception(error)), logging.DEBUG)
        else:
            self._logger.debug("[STATE] %s", clean(text), exc_info=error)

    def fault(
        self,
        text: str,
        error: BaseException,
        level: int = logging.ERROR,
        *,
        tag: str = "STATE",
        is_secret: bool = False,
    ) -> None:
        """Log a fault of the program's own function: a line, and the traceback the first time.

        If it *is_secret* what was raised, or may hold a message that is not logged, only its type
        and the places are logged.
        """
        kind = type(error)
        if not is_secret:
            self.line(tag, text, level, fields={"event": "fault"})
        if (text, kind) not in self._faults and len(self._faults) < _MAX_FAULTS:
            self._faults.add((text, kind))
            traced = TracebackException.from_exception(error)
            hides = is_secret or self.hides_messages
            pieces = _places(traced) if hides else traced.format()
            self._trace(tag, chain([f"{text} "] if is_secret else (), pieces), level)

    def _trace(self, tag: str, pieces: Iterable[str], level: int) -> None:
        text = "".join(islice(pieces, _MAX_FAULT_LINES)).rstrip("\n")
        lines = text.split("\n")[:_MAX_FAULT_LINES]
        block = clean_lines("\n".join(line[:_MAX_FAULT_CHARACTERS] for line in lines))
        self._lines(OneEvent(tag, block, {"event": "traceback"}), level)

    def _lines(self, lines: Lines, level: int = logging.INFO) -> None:
        if self._logger.isEnabledFor(level):
            self._handle(lines, level)

    def _handle(self, lines: Lines, level: int) -> None:
        # Not through `Logger.log`, which looks up the caller: that costs more than a whole batch.
        logger = self._logger
        if self._takes_batches():
            logger.handle(logging.LogRecord(logger.name, level, "", 0, lines, (), None))
            return
        for line in lines.split():
            logger.handle(logging.LogRecord(logger.name, level, "", 0, line, (), None))

    def _takes_batches(self) -> bool:
        """Return whether our records have handlers, and each takes a batch as one record."""
        logger: logging.Logger | None = self._logger
        has_writer = False
        while logger is not None:
            for handler in logger.handlers:
                if not getattr(handler, "takes_batches", False):
                    return False
                has_writer = True
            logger = logger.parent if logger.propagate else None
        return has_writer


def _kind(error: BaseException) -> str:
    """Return the type of *error*, with those of the exceptions in a group."""
    name = type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        kinds = dict.fromkeys(map(_kind, error.exceptions))  # each once
        return f"{name} of {', '.join(kinds)}"
    return name


def _type_name(traced: TracebackException) -> str:
    if sys.version_info >= (3, 13):
        name = traced.exc_type_str
    else:
        name = traced.exc_type.__qualname__ if traced.exc_type else ""
    return name.rpartition(".")[2] if name else "an exception"


def _places(traced: TracebackException) -> Iterator[str]:
    """Yield where an exception was raised, its type, and the same of its causes and members."""
    waiting, seen = [("", traced)], set[tuple[str, str]]()
    while waiting:
        relation, each = waiting.pop()
        kind = _type_name(each)
        place = "".join(each.stack.format())
        if (kind, place) in seen:  # the same, raised again out of a group
            continue
        seen.add((kind, place))
        yield f"{relation}{kind}, in\n" if place else f"{relation}{kind}\n"
        yield place
        waiting += [("one of them: ", other) for other in reversed(each.exceptions or ())]
        behind = each.__cause__ or each.__context__
        if behind is not None:
            waiting.append(("while handling: ", behind))


class LogWriter(logging.Handler):
    """Writes records to file descriptor *fd* in a thread, without blocking `emit`.

    At most `MAX_WAITING_BYTES` are queued.  Above that, lines are skipped, and one line says how
    many as soon as there is space; for a regular file, `emit` first waits up to *file_seconds*.  A
    closed pipe or a full disk loses its lines and has no other effect; `failure` is the reason, and
    `first_failure` the first one.  A disk is tried again with each batch.

    Always formats with `LineFormatter` or, with *json*, `JsonFormatter`.  The first failure is
    reported to the writers in `others` or, if there are none, to `warn`, with *name* as the name of
    the output.

    `start` starts the thread; `close` waits up to `CLOSE_SECONDS` for it.  The caller closes `fd`,
    which `reopen` changes.
    """

    takes_batches = True  # see `Log`

    def __init__(
        self,
        fd: int,
        name: str = "the output",
        *,
        json: bool = False,
        file_seconds: float = FILE_SECONDS,
    ) -> None:
        super().__init__()
        self.others: list[LogWriter] = []  # report our first failure there
        self.file: LogWriter | None = None  # the writer of the log file, of `open_log`
        self.warn: Callable[[str], object] | None = None  # or here, if there are no others
        # Shows lines above an input line; called in the thread; returns False if it cannot.
        self.sink: Callable[[bytes], bool] | None = None
        self._name = name
        self._new_formatter = JsonFormatter if json else LineFormatter
        self._encode = self._new_formatter().format_bytes
        self.failure: OSError | None = None
        self.first_failure: OSError | None = None
        self.fd = fd
        self._file_seconds = file_seconds
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._next_fd: int | None = None  # from `reopen`
        self._is_changing = False
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._skipped = 0
        self._logger_name = "multichat.server"  # for notices of the writer itself
        self._lost = 0
        self._torn = False
        self._ending = False
        self._thread = threading.Thread(target=self._write_all, name="multichat log", daemon=True)

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format *record* and queue it; called with the handler's lock held."""
        self._logger_name = record.name
        data = self._encode(record)
        with self._changed:
            # Once a line is skipped, all are, until the thread has reported it in their place.
            if self._skipped or not (self._has_room(len(data)) or self._wait_for_file(len(data))):
                self._skipped += data.count(b"\n")
                return
            self._waiting_bytes += len(data)
        self._queue.put(data)

    def show(self, line: str) -> None:
        """Write *line* unformatted among the log's lines."""
        self.queue(f"{line}\n".encode("utf-8", "backslashreplace"))

    def queue(self, data: bytes) -> None:
        """Write complete lines that are not a record, if there is space for them."""
        with self._changed:
            if not self._has_room(len(data)):
                return
            self._waiting_bytes += len(data)
        self._queue.put(data)

    def _has_room(self, size: int) -> bool:
        return not self._waiting_bytes or self._waiting_bytes + size <= MAX_WAITING_BYTES

    def _wait_for_file(self, size: int) -> bool:
        # A flood overtakes our thread sooner than it overtakes a disk, and waiting releases the
        # interpreter lock to the thread.  A hung disk times out once; further lines are skipped
        # without waiting.
        return self._is_file and self._changed.wait_for(
            lambda: self._has_room(size), self._file_seconds
        )

    def wait_below(self, waiting_bytes: int) -> None:
        """Block the calling thread, not the event loop's, until at most *waiting_bytes* wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes <= waiting_bytes)

    def wait_for_failure(self) -> None:
        """Block the calling thread until there is a `first_failure`, or this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.first_failure is not None or self._ending)

    def reopen(self, file: Path) -> None:
        """Write to *file* from the next lines on, and close what was written to until now.

        For a log file that was renamed: no line is lost or torn, and those that are queued are
        written to the new file.  Blocks the calling thread, which must not be the event loop's,
        until the old file is closed, or for `CLOSE_SECONDS` if its disk hangs.  Raises `OSError`
        if *file* cannot be opened; the old one stays then.  For one thread at a time.
        """
        fd = _open_log_file(file)
        with self._changed:
            earlier, self._next_fd = self._next_fd, fd
            if earlier is not None:  # a disk that hangs has not let us change to that one
                os.close(earlier)
            self._queue.put(b"")  # wakes the thread
            self._changed.wait_for(self._has_changed, CLOSE_SECONDS)

    def _has_changed(self) -> bool:
        return self._ending or (self._next_fd is None and not self._is_changing)

    @property
    def waiting_bytes(self) -> int:
        """The number of bytes queued and not yet written."""
        return self._waiting_bytes

    def close(self) -> None:
        """Write what is queued, for at most `CLOSE_SECONDS`; the rest is lost."""
        if self._thread.is_alive() and not self._ending:
            self._ending = True  # `logging` calls `close` again at exit
            self._queue.put(None)
            self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write_all(self) -> None:
        formatter = self._new_formatter()  # the handler's own is used by other threads
        end = False
        while not end:
            # Everything that waits in one write: the thread seldom runs while the loop is busy.
            pieces = [self._queue.get()]
            if self._waiting_bytes < LINGER_BYTES and not self._ending:
                time.sleep(LINGER_SECONDS)
            with suppress(queue.Empty):
                while pieces[-1] is not None:
                    pieces.append(self._queue.get_nowait())
            end = pieces[-1] is None
            data = b"".join(filter(None, pieces))
            # `reopen` sets it before it wakes this thread, and only this thread resets it: no lock.
            if self._next_fd is not None:
                self._change_file()
            if data:
                self._write(data, formatter)
            with self._changed:
                self._waiting_bytes -= len(data)
                skipped = 0 if self._waiting_bytes else self._skipped
                self._skipped -= skipped
                self._changed.notify_all()
            if skipped:
                text = f"{counted(skipped, 'line')} skipped: the output is too slow"
                notice = self._notice(formatter, text)
                self._write(notice, formatter)

    def _change_file(self) -> None:
        """Write to the file of `reopen` from now on."""
        with self._changed:
            assert self._next_fd is not None  # noqa: S101 - the caller has looked
            former, self.fd, self._next_fd = self.fd, self._next_fd, None
            self._is_changing = True
        # Without the lock: a disk may hang.
        now = os.fstat(self.fd)
        with suppress(OSError):  # a network file system fails only now; this thread continues
            before = os.fstat(former)
            if (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino):
                self._torn = False
            os.close(former)
        self._is_file = stat.S_ISREG(now.st_mode)
        self.first_failure = None  # that of the new file is reported, too
        if not self._is_file:
            self.failure = None  # a FIFO may have a reader again
        with self._changed:
            self._is_changing = False
            self._changed.notify_all()

    def _notice(self, formatter: _Formatter, text: str) -> bytes:
        name = self._logger_name
        record = logging.LogRecord(name, logging.WARNING, "", 0, f"[LOG] {text}", (), None)
        return formatter.format_bytes(record)

    def _write(self, data: bytes, formatter: _Formatter) -> None:
        if self.failure is not None:
            if not self._is_file:
                return  # a closed pipe or terminal stays closed
            # A disk that was full may have space by now.  End a partially written line first.
            why = os.strerror(self.failure.errno or 0).lower()
            notice = self._notice(formatter, f"{counted(self._lost, 'line')} lost: {why}")
            if self._put(b"\n" * self._torn + notice):
                self._lost += data.count(b"\n")
                return
            self._lost = 0
        self._lost += self._put(data)

    def _tell_others(self, error: OSError) -> None:
        text = f"{self._name} cannot be written to: {os.strerror(error.errno or 0).lower()}"
        for other in self.others:
            other.queue(self._notice(self._new_formatter(), text))
        if self.warn is not None and not self.others:
            with suppress(OSError, ValueError):  # standard error may have failed too
                self.warn(f"{text}; its lines are lost")

    def _put(self, data: bytes) -> int:
        """Write *data* and return how many lines of it could not be written."""
        sink = self.sink
        if sink is not None and sink(data):
            return 0
        rest = memoryview(data)
        self.failure = None
        while rest and self.failure is None:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:
                # Another process shares this terminal or pipe and has made it non-blocking.  A
                # closed one counts as writable, and the next write reports the error.
                select.select([], [self.fd], [], 1.0)
            except OSError as error:
                self.failure = error
                if self.first_failure is None:
                    self.first_failure = error
                    self._tell_others(error)
        if written := len(data) - len(rest):
            self._torn = data[written - 1] != ord("\n")
        return bytes(rest).count(b"\n")


class _RepeatFilter(logging.Filter):
    """Passes one record per `REPEAT_SECONDS`; trio retries a failing accept ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether *record* may pass."""
        if record.created - self._last < REPEAT_SECONDS:
            return False
        self._last = record.created
        return True


def _open_log_file(file: Path) -> int:
    """Open *file*, which may be a FIFO or a device, without waiting for a reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.open(file, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no program reads from it", str(file)) from error
        raise


@contextmanager
def open_log(
    fd: int,
    *,
    level: int = logging.INFO,
    json: bool = False,
    file: Path | None = None,
    warn: Callable[[str], object] | None = None,
) -> Iterator[LogWriter]:
    """Write multichat's log to *fd*, and append it to *file*, while the block runs.

    With *json*, each line is an object.  *warn* is called in another thread, with the reason, if
    *fd* cannot be written to and there is no *file* to report it in.  A new file is readable only
    by its owner.  Yields the writer of *fd*, whose `file` is that of *file*.  Raises `OSError` if
    *file* cannot be opened.
    """
    with ExitStack() as stack:
        writers = [LogWriter(fd, "standard output", json=json)]
        writers[0].warn = warn
        if file is not None:
            writers.append(LogWriter(_open_log_file(file), str(file), json=json))
            stack.callback(lambda: os.close(writers[1].fd))
            writers[0].file = writers[1]
            writers[0].others, writers[1].others = [writers[1]], [writers[0]]
        loggers = [logging.getLogger("multichat"), logging.getLogger("trio.serve_listeners")]
        repeat_filter = _RepeatFilter()
        loggers[1].addFilter(repeat_filter)
        stack.callback(loggers[1].removeFilter, repeat_filter)
        for writer in writers:
            writer.start()
            stack.callback(writer.close)
            for logger in loggers:
                logger.addHandler(writer)
                stack.callback(logger.removeHandler, writer)
        for logger in loggers:
            stack.callback(logger.setLevel, logger.level)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            logger.setLevel(level)
            logger.propagate = False
        yield writers[0]
