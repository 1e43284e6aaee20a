"""Departures that clients have received, and whether each is allowed.  Pure.

A member that is away may return within `--away` seconds; until then no client gets a `left` about
it.  Imports nothing from multichat: the reference is docs/protocol.md.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Departure", "Presence", "check_departures"]

# The default of `--away`.
AWAY_SECONDS = 5.0

# On a busy machine a client may read late, so that it was away for longer than it knows.
_MARGIN_SECONDS = 1.0

# A node that is frozen for 8 s tells of a leaving afterwards.
_TOLD_SECONDS = 15.0

# A connection without a session leaves at once, or when its node, which was killed, is taken for
# dead; its client may notice its end later.
_STRAY_BEFORE_SECONDS = 5.0
_STRAY_AFTER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Departure:
    """A client received at the time *at* that *name*, or *count* members, left *room*."""

    at: float
    room: str
    name: str = ""
    count: int = 1
    reason: str = ""

    @classmethod
    def of(cls, event: dict[str, Any], at: float) -> "Departure | None":
        """Return what *event* tells about members that left; None if nothing."""
        if event["type"] == "left":
            return cls(at, event["room"], event["name"], reason=event["reason"])
        if event["type"] == "presence" and event.get("left"):
            return cls(at, event["room"], count=event["left"])
        return None

    def __str__(self) -> str:
        who = self.name or f"{self.count} clients"
        return f"{who} left {self.room}: {self.reason}"


@dataclass
class Presence:
    """When a member was away: from the last that it received until its next welcome.

    *strays* are when connections of it ended before they had a session: nothing resumes those.
    """

    name: str
    client: int = 0
    absences: list[tuple[float, float]] = field(default_factory=list)
    strays: list[float] = field(default_factory=list)

    @property
    def longest_absence(self) -> float:
        return max((end - start for start, end in self.absences), default=0.0)

    def may_have_left(self, at: float) -> bool:
        """Whether others may get its `left` at the time *at*."""
        least = AWAY_SECONDS - _MARGIN_SECONDS
        return any(
            end - start >= least and start + least <= at <= end + _TOLD_SECONDS
            for start, end in self.absences
        )

    def may_have_strayed(self, at: float) -> bool:
        """Whether others may get a `left` then for a connection of it without a session."""
        return _count_near(at, self.strays) > 0

    def is_called(self, name: str) -> bool:
        """Whether *name* is one of its names: its own, perhaps with a number, or its client's."""
        own = re.fullmatch(rf"{re.escape(self.name)}(-\d+)?", name)
        return own is not None or name == f"Client {self.client}"


def check_departures(
    departures: Sequence[Departure], members: Sequence[Presence], strays: Sequence[float] = ()
) -> list[str]:
    """Return the violations: the *departures* of *members* that were not away for long enough.

    *strays* are when connections of other clients ended, which do not return.
    """
    strays = [*strays, *(at for each in members for at in each.strays)]
    wrong = [each for each in departures if not _is_allowed(each, members, strays)]
    return [
        f"{count} were told at {next(each.at for each in wrong if str(each) == what):.1f}: {what}"
        for what, count in Counter(map(str, wrong)).items()
    ]


def _is_allowed(departure: Departure, members: Sequence[Presence], strays: Sequence[float]) -> bool:
    at = departure.at
    gone = _count_near(at, strays)
    if not departure.name:
        return departure.count <= gone + sum(each.may_have_left(at) for each in members)
    named = [each for each in members if each.is_called(departure.name)]
    if not named:
        return gone > 0
    return any(each.may_have_left(at) or each.may_have_strayed(at) for each in named)


def _count_near(at: float, strays: Sequence[float]) -> int:
    return sum(-_STRAY_BEFORE_SECONDS <= at - ended <= _STRAY_AFTER_SECONDS for ended in strays)
