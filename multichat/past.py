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


async def read_history(
    journal: RoomJournal, stop: int, limit: int, nonce: Nonce | None = None
) -> HistoryPage:
    """Return the last messages before number *stop*, oldest first; at most *limit*.

    And at most `MAX_HISTORY_MESSAGES`, in `MAX_HISTORY_BYTES` as JSON spells them, but one in any
    case.  Raises `NotKept` if they cannot be read.
    """
    runs = await journal.read_before(
        stop, max_messages=min(limit, MAX_HISTORY_MESSAGES), max_bytes=MAX_HISTORY_BYTES
    )
    messages: list[Said] = []  # the newest first
    bytes_left = MAX_HISTORY_BYTES
    for said in _backwards(runs):
        bytes_left -= JSON.said_bytes(said)
        if bytes_left < 0 and messages:
            break
        messages.append(said)
    more = bool(messages) and messages[-1].id > message_id(journal.epoch, journal.first)
    return HistoryPage(messages[::-1], more, nonce=nonce)


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


def _backwards(runs: list[SaidRun]) -> Iterator[Said]:
    for run in reversed(runs):
        texts = run.run.split("\n")
        for index in reversed(range(len(texts))):
            yield Said(
                id=message_id(run.epoch, run.first + index),
                time=run.time,
                room=run.room,
                client=run.client,
                name=run.name,
                text=texts[index],
                act=run.act,
            )
