"""The result of a change of the directory, for the task that waits for it."""

from collections.abc import Sequence
from typing import Any

import trio

from multichat.cluster.errors import (
    EngineRefused,
    NotOurs,
    PerhapsMade,
    Rejected,
    ResultNotOurs,
)
from multichat.cluster.results import refusal_of
from multichat.errors import StorageFailed

__all__ = ["Decision"]


class Decision:
    """The result of a change; one task calls `wait`, and `resolve` or `fail` is called once."""

    __slots__ = ("_done", "_failure", "_is_sent", "_result")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._result: Sequence[Any] = ()
        self._failure, self._is_sent = "", False

    def resolve(self, result: Sequence[Any]) -> None:
        """Note a *result* that `results.read_results` has returned."""
        self._result = result
        self._done.set()

    def fail(self, reason: str, *, is_sent: bool) -> None:
        """Note that no result is waited for any more; the change may be made if it *is_sent*."""
        self._failure, self._is_sent = reason, is_sent
        self._done.set()

    async def wait(self) -> Sequence[Any]:
        """Return what follows `ok` in the result.

        Raises `Rejected`, or `StorageFailed`; `PerhapsMade` if the change may still be made.
        """
        await self._done.wait()
        if self._failure:
            raise (PerhapsMade if self._is_sent else StorageFailed)(self._failure)
        if self._result[0] == "ok":
            return self._result[1:]
        match refusal_of(self._result):
            case NotOurs(meaning=meaning):
                raise ResultNotOurs(meaning.told)
            case EngineRefused(meaning=meaning):
                raise StorageFailed(meaning.told)
        raise Rejected(self._result[1], self._result[2:])
