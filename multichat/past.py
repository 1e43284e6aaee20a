"""What was said before, out of a journal: a page for who asks, and what somebody missed."""

from collections.abc import Iterator

from multichat.batch import MAX_BATCH_BYTES
from multichat.ids import message_id
from multichat.journal import RoomJournal
from multichat.messages import HistoryPage, Missed, Nonce, Said, SaidRun
from multichat.voices import JSON, Voice

__all__ = ["PAGE_MESSAGES", "read_history", "spell_page"]

# What is told of the past in one piece; a page is half a batch at most, before it is spelled.
PAGE_MESSAGES = 500
_PAGE_BYTES = MAX_BATCH_BYTES // 2

# The same for who asks: a screenful or three, and what any client takes in one line.
MAX_HISTORY_MESSAGES = 100
MAX_HISTORY_BYTES = 256 * 1024

# A page of the longest lines is read whole before it is cut: 6.4 MiB.
_UNBOUNDED_BYTES = 1 << 62


async def read_history(
    journal: RoomJournal, stop: int, limit: int, nonce: Nonce | None = None
) -> HistoryPage:
    """Return the last messages before number *stop*, oldest first; at most *limit*.

    And at most `MAX_HISTORY_MESSAGES`, in `MAX_HISTORY_BYTES` as JSON spells them, but one in any
    case.  Raises `NotKept` if they cannot be read.
    """
    start = max(journal.first, stop - min(limit, MAX_HISTORY_MESSAGES))
    runs = await journal.read(start, stop, max_bytes=_UNBOUNDED_BYTES)
    messages = [said for run in runs for said in _each(run)]
    size, first = 0, len(messages)
    while first:
        size += len(JSON.spell(messages[first - 1]))
        if size > MAX_HISTORY_BYTES and first < len(messages):
            break
        first -= 1
    more = first > 0 or start > journal.first
    return HistoryPage(messages[first:], more, nonce=nonce)


async def spell_page(
    journal: RoomJournal, position: int, stop: int, voice: Voice, client: int
) -> tuple[bytes, int]:
    """Return what *client* is told next, and the position behind it.

    That is from number *position* to before *stop*, or less where that is more than one piece.
    What it said itself is left out; of what is not kept any more it is told that it missed it.
    Raises `NotKept` if it cannot be read.
    """
    runs = await journal.read(position, stop, max_bytes=_PAGE_BYTES)
    told: list[bytes] = []
    for run in runs:
        if run.first > position:  # what keeps the journal small was faster than we
            told.append(voice.spell(Missed(run.first - position)))
        position = run.first + run.run.count("\n") + 1
        if run.client != client:
            told.append(voice.spell_said(run))
    if not runs:
        told.append(voice.spell(Missed(stop - position)))
        position = stop
    return b"".join(told), position


def _each(run: SaidRun) -> Iterator[Said]:
    for number, text in enumerate(run.run.split("\n"), run.first):
        yield Said(
            id=message_id(run.epoch, number),
            time=run.time,
            room=run.room,
            client=run.client,
            name=run.name,
            text=text,
            act=run.act,
        )
