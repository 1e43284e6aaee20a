"""Reloading: the parts of a running server's configuration that come from files.

Owns the list of these parts and the order of reloads.  Knows nothing of the files' content: each
part consists of two functions, one that reads in a worker thread, and one that changes the server
in the event loop.

Invariants:

1. A part whose file is invalid, or not readable in time, stays unchanged; the others are reloaded.
2. A part changes in one step, without waiting: no client sees it half changed.
3. Reloads run one after another.  A reload that is requested during another one starts after it,
   because the files may have changed since.
4. The event loop never reads a file.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

# A disk that hangs blocks one of these threads, but not the parts on other disks.
_THREADS = 8

# Half of systemd's default timeout, and longer than a disk under load takes.
_SECONDS = 30.0


class Reloading:
    """The reloadable parts of one server; *log* gets a line for each reload and each error.

    Each part has *seconds* to read its files.
    """

    def __init__(self, log: Log, *, seconds: float = _SECONDS) -> None:
        self._log, self._seconds = log, seconds
        self._parts: dict[str, Callable[[], Callable[[], str | None]]] = {}
        self._contexts: list[Callable[[], AbstractContextManager[object]]] = []
        self._lock = trio.Lock()
        self._threads = trio.CapacityLimiter(_THREADS)

    def add(self, name: str, read: Callable[[], T], change: Callable[[T], str | None]) -> None:
        """Add a part, or replace the part of that name; *name* appears in the log and in answers.

        *read* is called in a worker thread and may block.  Its result is passed to *change*, which
        is called in the event loop and changes the server at once.  *change* may return a line of
        advice for the operator, for example that a certificate expires soon.  Either may raise
        `MultichatError`, `OSError` or `ValueError`; then it MUST NOT have changed anything.  The
        text of the error is shown, and must not contain a secret.
        """

        def read_part() -> Callable[[], str | None]:
            return partial(change, read())

        self._parts[name] = read_part

    @contextmanager
    def observed(self, context: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Within the block, enter *context*, which must not fail, around each reload."""
        self._contexts.append(context)
        try:
            yield
        finally:
            self._contexts.remove(context)

    async def reload(self) -> list[str]:
        """Reload all parts, and return a line that lists them, followed by all advice.

        Waits for reloads that began earlier.  If cancelled, each part is either unchanged or as in
        its file.  Raises `ReloadFailed` if any part was not reloaded; the others are.
        """
        async with self._lock:
            answers: dict[str, str | None] = {}
            faults: dict[str, str] = {}
            with ExitStack() as stack:
                for context in self._contexts:
                    stack.enter_context(context())
                async with trio.open_nursery() as nursery:
                    for name in self._parts:
                        nursery.start_soon(self._reload, name, answers, faults)
            # In the order of the parts, whichever was read first.
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
