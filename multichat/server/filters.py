"""Filters: the operator's own functions, which change or reject messages before they are published.

A filter gets a `Said` or a `Directed`, and with `ServerConfig.filter_joins` a `Joining` or a
`Renaming`, too.  It returns the same, a changed one, or None to reject it.  Only the text of what
it returns is used.  While it runs its sender is not read, and no other client waits.

A filter that raises or takes too long lets the message through unchanged, and is logged once for
each kind of failure.  The time limit is for each message: otherwise a client that sends many at
once would get past the filter.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from logging import WARNING
from typing import Any

import msgspec
import trio

from multichat.errors import Rejected
from multichat.log import Log
from multichat.protocol.framing import clean
from multichat.server.config import Filter, Filtered, Joining, Renaming

__all__ = ["Filters", "load_filter", "passed"]

# A plain function that hangs keeps its thread.  If all do, messages wait for a thread as long as
# for a slow filter, and pass unchanged.
_THREADS = 16

# Of what a filter returned or raised, in the log; it may quote a message.
_SHOWN_CHARACTERS = 200


def load_filter(name: str) -> Filter:
    """Return the function that *name*, `package.module:function`, stands for.

    Raises `ValueError` with the reason if it cannot be imported or is no filter.
    """
    module_name, colon, attribute = name.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if not (colon and all(map(str.isidentifier, names))):
        raise ValueError(f"{name}: a filter is named as package.module:function")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: no module {error.name}") from error
    except (Exception, SystemExit) as error:  # whatever stands in there
        raise ValueError(f"{name}: importing {module_name} raises {error!r}") from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or "a part of Python"
        raise ValueError(f"{name}: {module_name} has no function {attribute}; it is {where}")  # noqa: TRY004
    if reason := _why_no_filter(function):
        raise ValueError(f"{name}: {reason}")
    found: Filter = function
    return found


def _why_no_filter(function: Callable[..., object]) -> str:
    """Return why *function* cannot be a filter; empty if no reason is found."""
    if inspect.isclass(function):
        return "a class is not a filter"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "a generator is not a filter: a filter returns a message or None"
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return "a filter takes one argument, the message"
    except ValueError:  # some functions in C have no signature
        pass
    return ""


class Filters:
    """The *filters* of one server, in order; any task may call any method.

    Each has *seconds* for a message.  With *joins* they get joins and renames, too.
    """

    def __init__(
        self, filters: Sequence[Filter], seconds: float, log: Log, *, joins: bool = False
    ) -> None:
        self._joins = joins
        self._filters = tuple(filters)
        self._seconds = seconds
        self._log = log
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._told: set[tuple[Filter, str]] = set()

    def __bool__(self) -> bool:
        """Whether there is anything to go through."""
        return bool(self._filters)

    async def apply(self, messages: Sequence[Filtered]) -> list[Filtered | None]:
        """Return each of *messages* as the filters leave it, None for a rejected one.

        Their texts are clean and not empty.  Takes at most the time limit for each message and
        filter.  Cancelled, a plain function may continue in its thread.
        """
        results: list[Filtered | None] = list(messages)
        for function in self._filters:
            if _is_async(function):
                await self._await_each(function, results)
            else:
                await self._call_in_thread(function, results)
        return results

    async def apply_to_request(self, request: Joining | Renaming) -> str | None:
        """Return the room or name that *request* asks for, after the filters; None if rejected.

        No checkpoint if the filters do not get joins.
        """
        if not (self._joins and self._filters):
            return request.text
        [result] = await self.apply([request])
        return None if result is None else result.text

    async def _await_each(self, function: Filter, results: list[Filtered | None]) -> None:
        for i, message in enumerate(results):
            if message is not None:
                with trio.move_on_after(self._seconds) as scope:
                    try:
                        results[i] = _checked(message, await function(message))  # type: ignore[misc,arg-type]
                    except BaseException as error:
                        if _is_ours(error):
                            raise
                        self._tell_raised(function, error)
                if scope.cancelled_caught:
                    self._tell_slow(function)

    async def _call_in_thread(self, function: Filter, results: list[Filtered | None]) -> None:
        """Have *function* called for each of *results*, many in one thread while that is fast."""
        start = 0
        while start < len(results):
            messages = results[start:]
            done: list[Filtered | None] = []
            with trio.move_on_after(self._seconds) as scope:
                await trio.to_thread.run_sync(
                    partial(self._call_some, function, messages, done),
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
            finished = done.copy()  # what a thread still does is too late
            if scope.cancelled_caught:
                self._tell_slow(function)
                finished += messages[len(finished) :][:1]  # that one is passed on unchanged
            results[start : start + len(finished)] = finished
            start += len(finished)

    def _call_some(
        self, function: Filter, messages: list[Filtered | None], done: list[Filtered | None]
    ) -> None:
        """Append the results for *messages* to *done*, until half of the time limit is over."""
        until = time.monotonic() + self._seconds / 2
        for message in messages:
            result = message
            if message is not None:
                try:
                    result = _checked(message, function(message))  # type: ignore[arg-type]
                except BaseException as error:  # noqa: BLE001 - somebody else's code, in a thread
                    self._tell_raised(function, error)
            done.append(result)
            if time.monotonic() > until:
                return

    def _tell_raised(self, function: Filter, error: BaseException) -> None:
        kind = type(error).__name__
        self._tell(function, kind, f"raised {self._log.shown(_shown(error), kind)}", error)

    def _tell_slow(self, function: Filter) -> None:
        self._tell(function, "is too slow", f"took more than {self._seconds:g} s")

    def _tell(
        self, function: Filter, kind: str, what: str, error: BaseException | None = None
    ) -> None:
        if (function, kind) not in self._told:
            self._told.add((function, kind))
            name = getattr(function, "__qualname__", None) or repr(function)
            text = f"{name} {what}; messages pass unchanged"
            if error is None:
                self._log.line("FILTER", text, WARNING)
            else:
                self._log.fault(text, error, WARNING, tag="FILTER")


def passed(text: str | None) -> str:
    """Return *text*, the result of `Filters.apply_to_request`; raises `Rejected` if it is None."""
    if text is None:
        raise Rejected
    return text


def _is_ours(error: BaseException) -> bool:
    """Return whether *error* does not come from the filter: a cancellation, or Ctrl+C."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None
    return isinstance(error, trio.Cancelled | KeyboardInterrupt)


def _shown(value: object) -> str:
    """Return the start of the `repr` of a foreign object, or its type if `repr` fails."""
    try:
        return repr(value)[:_SHOWN_CHARACTERS]
    except Exception:  # noqa: BLE001 - somebody else's code
        return f"a {type(value).__name__}"


def _is_async(function: Filter) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async call
    )


def _checked(message: Filtered, result: object) -> Filtered | None:
    """Return *message* with the text of what a filter returned, or None for nothing."""
    if result is None:
        return None
    text = getattr(result, "text", None)
    if not isinstance(text, str):
        raise TypeError(f"it returned {_shown(result)}, which is not a message")
    text = clean(text)
    if result is message and text == message.text:
        return message
    return msgspec.structs.replace(message, text=text) if text else None
