"""What becomes of a message before it is said: the operator's own functions.

A filter takes a `Said` or a `Directed` and returns it, a changed one, or None for nobody to have
it.  Only its text is taken from what it returns.  It stands between one sender and the room:
while it works its sender is not read, and nobody else waits.

Whatever a filter does, the chat goes on: one that raises, and one that is too slow, lets the
message through as it was, and is logged once for each kind of trouble.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from logging import WARNING

import msgspec
import trio

from multichat.config import Filter, Message
from multichat.framing import clean
from multichat.log import Log

__all__ = ["Filters", "load_filter"]

# Plain functions that hang keep a thread each; the others wait for one of the rest, and then for
# no longer than any filter is waited for.
_THREADS = 4


def load_filter(name: str) -> Filter:
    """Return the function that *name*, `package.module:function`, stands for.

    Raises `ValueError` if there is none, or whatever goes wrong inside of the module is raised.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f"{name}: a filter is named as package.module:function")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever stands in there
        raise ValueError(f"{name}: {error!r}") from error
    function = module
    for part in attribute.split("."):
        function = getattr(function, part, None)  # type: ignore[assignment]
    if not callable(function):
        raise ValueError(f"{name}: {module_name} has no function {attribute}")  # noqa: TRY004
    return function


class Filters:
    """The *filters* of one server, in order; any task may call `apply`."""

    def __init__(self, filters: Sequence[Filter], seconds: float, log: Log) -> None:
        self._filters = tuple(filters)
        self._seconds = seconds
        self._log = log
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._told: set[tuple[Filter, str]] = set()

    def __bool__(self) -> bool:
        """Whether there is anything to go through."""
        return bool(self._filters)

    async def apply(self, messages: Sequence[Message]) -> list[Message | None]:
        """Return what became of each of *messages*; their texts are clean and not empty.

        Takes each filter's deadline at most.  Cancelled, a plain function may go on in its thread.
        """
        results: list[Message | None] = list(messages)
        for function in self._filters:
            with trio.move_on_after(self._seconds) as scope:
                if _is_async(function):
                    await self._await_each(function, results)
                else:
                    await trio.to_thread.run_sync(
                        partial(self._call_each, function, results, results.copy()),
                        abandon_on_cancel=True,
                        limiter=self._limiter,
                    )
            if scope.cancelled_caught:
                self._tell(function, "is too slow", f"is not waited for beyond {self._seconds:g} s")
                results = results.copy()  # what a thread still does is too late
        return results

    async def _await_each(self, function: Filter, results: list[Message | None]) -> None:
        for i, message in enumerate(results):
            if message is not None:
                try:
                    results[i] = _checked(message, await function(message))  # type: ignore[misc]
                except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code
                    self._tell(function, type(error).__name__, f"raised {error!r}")

    def _call_each(
        self, function: Filter, results: list[Message | None], messages: list[Message | None]
    ) -> None:
        for i, message in enumerate(messages):
            if message is not None:
                try:
                    results[i] = _checked(message, function(message))
                except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code
                    self._tell(function, type(error).__name__, f"raised {error!r}")

    def _tell(self, function: Filter, kind: str, what: str) -> None:
        if (function, kind) not in self._told:
            self._told.add((function, kind))
            name = getattr(function, "__qualname__", None) or repr(function)
            self._log.line("FILTER", f"{name} {what}; messages go on without it", WARNING)


def _is_async(function: Filter) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async call
    )


def _checked(message: Message, result: object) -> Message | None:
    """Return *message* with the text of what a filter returned, or None for nothing."""
    if result is message:
        return message
    if result is None:
        return None
    text = getattr(result, "text", None)
    if not isinstance(text, str):
        raise TypeError(f"it returned {result!r}, which is no message")
    text = clean(text)
    return msgspec.structs.replace(message, text=text) if text else None
