"""Logs what a journal cannot keep or read, without a line for each message."""

import math
from collections.abc import Hashable
from logging import ERROR

from multichat.log import Log

__all__ = ["FailureLog"]

# How many kinds of failures are remembered.
_MAX_KINDS = 100


class FailureLog:
    """Logs one failure of each kind in *seconds*."""

    def __init__(self, log: Log, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._logged: dict[Hashable, float] = {}  # when, by the clock of the loop

    def note(self, text: str, now: float, kind: Hashable = None) -> None:
        """Log *text*, unless one of its *kind* was logged a short while ago.

        Without a *kind*, the same text is one.
        """
        kind = text if kind is None else kind
        if now - self._logged.get(kind, -math.inf) < self._seconds:
            return
        if len(self._logged) >= _MAX_KINDS:
            self._logged.clear()
        self._logged[kind] = now
        self._log.line("STATE", text, ERROR)

    def note_once(self, text: str) -> None:
        """Log *text* the first time: it is about damage, which stays until the file is repaired."""
        if text not in self._logged:
            self.note(text, math.inf)
