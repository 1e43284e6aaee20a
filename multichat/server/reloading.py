"""Reloading: the parts of a running server that come from files, and can be read again.

Owns the list of these parts and the order of reloads.  Knows nothing of what is in the files: each
part is two functions, one that reads in a worker thread, and one that changes the server in the
event loop.

Invariants:

1. A part whose file is wrong, or cannot be read in time, stays as it was; all others are reloaded.
2. A part changes in one step, without waiting: no client meets half of it.
3. Reloads follow each other.  One that is asked for during another one begins after it, because
   the files may have changed since.
4. The event loop reads no file.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from logging import WARNING
from typing import TypeVar

import trio

from multichat.errors import MultichatError, ReloadFailed
from multichat.log import Log
from multichat.net import transport
from multichat.protocol.framing import clean
from multichat.server import log_lines

__all__ = ["Reloading"]

T = TypeVar("T")

# A disk that hangs keeps one of these threads busy, and the parts that it has not.
_THREADS = 8

# Half of what systemd waits for by default, and longer than a disk under load takes.
_SECONDS = 30.0


class Reloading:
    """What can be reloaded of one server; *log* gets a line for each reload and each fault.

    A part has *seconds* to read its files.  *around* returns a context that is entered for each
    reload, in which all parts are read.
    """

    def __init__(self, log: Log, *, seconds: float = _SECONDS) -> None:
        self._log, self._seconds = log, seconds
        self._parts: dict[str, Callable[[], Callable[[], str | None]]] = {}
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext
        self._lock = trio.Lock()
        self._threads = trio.CapacityLimiter(_THREADS)

    def add(self, name: str, read: Callable[[], T], change: Callable[[T], str | None]) -> None:
        """Add a part, which log and answers call *name*, or replace the one of that name.

        *read* is called in a worker thread, and may block.  It returns what *change* is then called
        with in the event loop, which changes the server at once; it may return a line of advice for
        the operator, such as on a certificate that expires soon.  Either may raise
        `MultichatError`, `OSError` or `ValueError`, whose text is shown, and then MUST have changed
        nothing.  No secret may be in that text.
        """

        def read_part() -> Callable[[], str | None]:
            return partial(change, read())

        self._parts[name] = read_part

    async def reload(self) -> list[str]:
        """Read all parts again, and return what was done: a line on the parts, and all advice.

        Waits for reloads that have begun before.  Cancelled, each part is either as it was or as it
        is in its file.  Raises `ReloadFailed` if any part was not reloaded; the others are.
        """
        async with self._lock:
            answers: dict[str, str | None] = {}
            faults: dict[str, str] = {}
            with self.around():
                async with trio.open_nursery() as nursery:
                    for name in self._parts:
                        nursery.start_soon(self._reload, name, answers, faults)
            # In the order of the parts, whichever was ready first.
            done = [name for name in self._parts if name in answers]
            what = ", ".join(done) if done else "nothing"
            failed = {
                name: f"Could not reload the {name} (unchanged): {faults[name]}"
                for name in self._parts
                if name in faults
            }
            advice = [text for name in done if (text := answers[name])]
            for name, text in failed.items():
                log_lines.not_reloaded(self._log, name, text)
            for text in advice:
                self._log.line("reload", text, WARNING)
            log_lines.reloaded(self._log, what)  # the last: then, the reload is over
            lines = [*failed.values(), f"Reloaded: {what}", *advice]
            if failed:
                raise ReloadFailed(lines)
            return lines

    async def _reload(
        self, name: str, answers: dict[str, str | None], faults: dict[str, str]
    ) -> None:
        """Reload the part *name*, and note the answer or the fault."""
        try:
            with trio.move_on_after(self._seconds) as in_time:
                change = await trio.to_thread.run_sync(
                    self._parts[name], abandon_on_cancel=True, limiter=self._threads
                )
                answers[name] = change()
            if in_time.cancelled_caught:
                faults[name] = f"its file was not read in {self._seconds:g} s"
        except (MultichatError, OSError, ValueError) as error:
            faults[name] = clean(_reason(error))
        except Exception as error:  # noqa: BLE001 - a bug of one part must not keep the others
            self._log.crash(f"reloading the {name} crashed", error)
            faults[name] = "internal error; see the log"


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = transport.describe_error(error) if error.strerror is None else error.strerror.lower()
    return f"{error.filename}: {reason}" if error.filename else reason
