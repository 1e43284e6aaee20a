"""Answers to `history`: a page of earlier messages, out of a journal."""

from collections.abc import Iterator

from multichat.ids import message_id
from multichat.journal import RoomJournal
from multichat.messages import HistoryPage, Nonce, Said, SaidRun
from multichat.voices import JSON

__all__ = ["read_history"]

# A screenful or three, and what any client takes in one line.
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
