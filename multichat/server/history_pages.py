"""Answers to `history`: a page of earlier messages, from a room's ring and its log."""

from collections.abc import Iterator

from multichat.backend.base import RoomLog
from multichat.protocol.ids import message_id
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import HistoryPage, Nonce, Said, SaidBlock
from multichat.server.recent_messages import Ring

__all__ = ["read_history"]

# A few screens, and no longer as one line than any client accepts.
MAX_HISTORY_MESSAGES = 100
MAX_HISTORY_BYTES = 256 * 1024


async def read_history(
    log: RoomLog, ring: Ring, stop: int, limit: int, nonce: Nonce | None = None
) -> HistoryPage:
    """Return the last messages before number *stop*, oldest first; at most *limit*.

    At most `MAX_HISTORY_MESSAGES`, and `MAX_HISTORY_BYTES` as JSON, but at least one.  The
    *log* is read only for what the *ring* does not have.  The page says how many messages after
    its first one are missing.  Raises `NotRead` if the log cannot be read.
    """
    limit = min(limit, MAX_HISTORY_MESSAGES)
    blocks = ring.newest(stop, max_messages=limit, max_bytes=MAX_HISTORY_BYTES)
    first = blocks[0].first if blocks else stop
    left = limit - sum(block.text.count("\n") + 1 for block in blocks)
    bytes_left = MAX_HISTORY_BYTES - sum(len(block.text.encode()) for block in blocks)
    if first <= ring.first and first > log.first and left and bytes_left > 0:
        older = await log.read_before(first, max_messages=left, max_bytes=bytes_left)
        blocks = [*older, *blocks]
    messages: list[Said] = []  # the newest first
    bytes_left = MAX_HISTORY_BYTES
    for number, said in _backwards(blocks):
        bytes_left -= JSON.said_bytes(said)
        if bytes_left < 0 and messages:
            break
        messages.append(said)
        first = number
    oldest = log.id_of(min(log.first, ring.first))
    more = bool(messages) and messages[-1].id > oldest
    if not messages:  # nothing that is stored can be read
        first = min(stop, log.first, ring.first)
    missed = stop - first - len(messages)
    return HistoryPage(messages[::-1], more, missed, nonce=nonce)


def _backwards(blocks: list[SaidBlock]) -> Iterator[tuple[int, Said]]:
    for block in reversed(blocks):
        texts = block.text.split("\n")
        for index in reversed(range(len(texts))):
            number = block.first + index
            yield (
                number,
                Said(
                    id=message_id(block.epoch, number),
                    timestamp=block.time,
                    room=block.room,
                    client=block.client,
                    name=block.name,
                    text=texts[index],
                    act=block.act,
                ),
            )
