"""Checks what members of rooms received against the promises.  Pure.

Imports nothing from multichat: the reference is docs/protocol.md.  A message is identified by its
text, which is unique; the ids of a room, compared as strings, are its order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Heard", "History", "Missed", "Record", "check_room"]

# A violation that is repeated for each message is shown so often.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that arrived."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Missed:
    """The server said that it cannot deliver this many messages of others."""

    count: int


History = Sequence[Heard]


@dataclass
class Record:
    """What one member of a room sent and received there.

    *said* are its texts in the order in which it sent them for the first time.  *refused* were
    certainly not published, *unsure* were given up, *late* were repeated after a refusal, so that
    their place in the order is open.  *repeated* were sent again after a lost connection, each with
    how many had been said by then: a refusal may have been lost, and the message comes after those.
    """

    name: str
    said: list[str] = field(default_factory=list)
    accepted: dict[str, str] = field(default_factory=dict)  # texts, and their ids
    refused: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    repeated: dict[str, int] = field(default_factory=dict)
    heard: list[Heard | Missed] = field(default_factory=list)

    def messages(self) -> list[Heard]:
        return [each for each in self.heard if isinstance(each, Heard)]


def check_room(
    room: str,
    records: Sequence[Record],
    history: History,
    *,
    lossy: bool = False,
    retained: bool = False,
) -> tuple[list[str], int]:
    """Return the violations in *room*, and how many acknowledged messages are lost.

    *history* is what a new client gets as a replay in the end.  With *lossy* acknowledged messages
    may be missing there, and one that was delivered before the loss may be delivered again.  With
    *retained* it has only the newest messages; the others are known by what members got of them.
    Those that were deleted before their delivery may be reported as missed.
    """
    untold = 0
    if retained:
        newest, history = list(history), _everything_told(records, history)
        if newest != history[len(history) - len(newest) :]:
            return [f"{room}: the history is not what the members were told last"], 0
        known = {each.text for each in history}
        untold = sum(len(record.unsure - known) for record in records)
    every = _check(records, history, lossy=lossy, untold=untold)
    found = [f"{room}: {each}" for each in every]
    stored = {each.text for each in history}
    lost = sum(text not in stored for record in records for text in record.accepted)
    return found, lost


def _everything_told(records: Sequence[Record], history: History) -> list[Heard]:
    told = {each for record in records for each in record.messages()} | set(history)
    told |= {Heard(id_, text) for record in records for text, id_ in record.accepted.items()}
    return sorted(told, key=lambda each: each.id)


def _check(
    records: Sequence[Record], history: History, *, lossy: bool, untold: int
) -> Iterator[str]:
    stored = {each.text: each.id for each in history}
    yield from _few(
        "stored twice", (t for t, n in Counter(e.text for e in history).items() if n > 1)
    )
    if not _rises([each.id for each in history]):
        yield "the ids of the history do not rise"
    said = {text for record in records for text in record.said}
    yield from _few("stored and never said", stored.keys() - said)
    ids: dict[str, set[str]] = {each.id: {each.text} for each in history}
    for record in records:
        for text, id_ in record.accepted.items():
            ids.setdefault(id_, set()).add(text)
        for each in record.messages():
            ids.setdefault(each.id, set()).add(each.text)
    yield from _few(
        "one id for several messages", (f"{i} {t}" for i, t in ids.items() if len(t) > 1)
    )
    for record in records:
        yield from _check_sender(record, history, stored, lossy=lossy)
        theirs = set(record.said)
        others = [each for each in history if each.text not in theirs]
        yield from (
            f"{record.name} {each}"
            for each in _check_heard(record, others, theirs, history, lossy, untold)
        )


def _check_sender(
    record: Record, history: History, stored: dict[str, str], *, lossy: bool
) -> Iterator[str]:
    if not lossy:
        yield from _few("acknowledged and lost", (t for t in record.accepted if t not in stored))
    yield from _few("refused and published", (text for text in record.refused if text in stored))
    wrong = (
        f"{text}: {id_}, stored as {stored[text]}"
        for text, id_ in record.accepted.items()
        if stored.get(text, id_) != id_ and not lossy
    )
    yield from _few("acknowledged with another id", wrong)
    decided = set(record.accepted) | record.refused | record.unsure
    yield from _few("never answered", (text for text in record.said if text not in decided))
    if not lossy:
        yield from _check_order(record, history, stored)


def _check_order(record: Record, history: History, stored: dict[str, str]) -> Iterator[str]:
    places = {text: place for place, text in enumerate(record.said) if text not in record.late}
    last = -1
    for each in history:
        place = places.get(each.text, last)
        if last > place and last >= record.repeated.get(each.text, 0):
            early = record.said[last]
            where = f"{early} ({stored[early]}) before {each.text} ({each.id})"
            again = [record.repeated.get(text, "once") for text in (early, each.text)]
            what = f"the messages of {record.name} are stored in another order: {where}"
            yield f"{what}, repeated after: {again}"
            return
        last = max(last, place)


def _check_heard(
    record: Record, others: History, theirs: set[str], history: History, lossy: bool, untold: int
) -> Iterator[str]:
    messages = record.messages()
    stored = {each.text: each.id for each in history}
    counts = Counter(each.text for each in messages)
    if not lossy:
        yield from _few("heard twice", (text for text, count in counts.items() if count > 1))
        strange = (e.text for e in messages if e.text not in stored)
        yield from _few("heard what is not stored", strange)
        other = (f"{e.text}: {e.id}" for e in messages if stored.get(e.text, e.id) != e.id)
        yield from _few("heard with another id", other)
    yield from _few("heard its own", (each.text for each in messages if each.text in theirs))
    if not _rises([each.id for each in messages]):
        yield "heard ids that do not rise: " + _falls([each.id for each in messages])
    yield from _check_gaps(record, others, theirs, history, lossy, untold)


def _check_gaps(
    record: Record, others: History, theirs: set[str], history: History, lossy: bool, untold: int
) -> Iterator[str]:
    """Check that exactly the messages that were not received are `missed`, in their place."""
    heard = {each.text for each in record.messages()}
    after, missed = "", 0
    for each in (*record.heard, None):
        if isinstance(each, Missed):
            missed += each.count
            continue
        before = each.id if each is not None else "~"
        gap = [e.text for e in others if after < e.id < before and e.text not in heard]
        own = sum(after < e.id < before and e.text in theirs for e in history)
        most = len(gap) + own + untold
        if not len(gap) <= missed <= most and not (lossy and missed > len(gap)):
            where = f"between {after or 'the start'} and {'the end' if each is None else before}"
            yield f"was not told {len(gap)} messages {where}, and of {missed}: {gap[:_SHOWN]}"
        after, missed = before, 0


def _rises(ids: Sequence[str]) -> bool:
    return all(one < other for one, other in pairwise(ids))


def _falls(ids: Sequence[str]) -> str:
    falls = [f"{a} {b}" for a, b in pairwise(ids) if a >= b]
    return f"{len(falls)} times, {', '.join(falls[:_SHOWN])}"


def _few(what: str, found: "Iterator[str] | set[str]") -> Iterator[str]:
    every = list(found)
    if every:
        more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
        yield f"{what}: {', '.join(every[:_SHOWN])}{more}"
