"""Reads the messages of all rooms in an engine, in order of time: `multichat history valkey://…`.

Reads one page of a room at a time, and writes nothing.  Messages that are added while it reads are
not included.
"""

import heapq
from collections.abc import AsyncIterator, Sequence

import msgspec

from multichat.cluster.calls import Packet, Tail, read, read_before
from multichat.cluster.engine_session import EngineSession
from multichat.errors import UnknownId
from multichat.journal.base import slice_block
from multichat.protocol.framing import clean, clean_lines
from multichat.protocol.ids import message_number
from multichat.protocol.messages import SaidBlock
from multichat.protocol.names import fold_name

__all__ = ["EngineHistory", "open_history"]

# One page of each room is in memory.
_PAGE_BYTES = 64 * 1024


class EngineHistory:
    """The messages in *engine*; created by `open_history`.  *tails* has the rooms with messages."""

    def __init__(self, engine: EngineSession, tails: dict[str, Tail]) -> None:
        self._engine, self._tails = engine, tails

    @property
    def has_several_rooms(self) -> bool:
        """Whether more than one room has messages."""
        return len(self._tails) > 1

    async def read(
        self, *, room: str | None = None, since: float | str | None = None, limit: int | None = None
    ) -> AsyncIterator[SaidBlock]:
        """Yield messages; the arguments and errors are those of `sqlite.reader.Reader.read`."""
        tails = self._tails
        if room is not None:
            key = fold_name(room)
            if key not in tails:
                raise self._engine.failed(f"it has no room {room}")
            tails = {key: tails[key]}
        if isinstance(since, str):
            starts = self._after(since, tails)
        elif since is not None:
            starts = {key: await self._first_since(key, since) for key in tails}
        elif limit is not None:
            starts = await self._last(list(tails), limit)
        else:
            starts = {key: tail.first for key, tail in tails.items()}
        left = limit
        async for said in self._merged(starts):
            part = said if left is None else slice_block(said, said.first, said.first + left)
            if part is None:
                return
            yield part
            if left is not None:
                left -= part.text.count("\n") + 1

    def _after(self, id_: str, tails: dict[str, Tail]) -> dict[str, int]:
        epoch = id_.partition("-")[0]
        number = message_number(epoch, id_)
        for key, tail in tails.items():
            ends = [start for _, start in tail.epochs[1:]] + [tail.next]
            for (each, _), end in zip(tail.epochs, ends, strict=True):
                if each == epoch and number is not None and number < end:
                    return {key: number + 1}
        raise UnknownId

    async def _first_since(self, room: str, since: float) -> int:
        """Return the number of the first message since a time, by bisection."""
        low, high = self._tails[room].first, self._tails[room].next
        while low < high:
            middle = (low + high) // 2
            found = await self._page(room, middle, high, 1)
            if not found:
                high = middle
            elif found[0].header.ms < since * 1000:
                low = found[0].header.end
            else:
                high = min(middle, found[0].header.first)
        return low

    async def _last(self, rooms: Sequence[str], limit: int) -> dict[str, int]:
        """Return where the last *limit* messages of all rooms begin in each."""
        starts = {room: self._tails[room].next for room in rooms}
        heap: list[tuple[int, str, list[Packet]]] = []

        async def push(room: str, page: list[Packet]) -> None:
            if not page and starts[room] > self._tails[room].first:
                call = read_before(
                    room, starts[room], max_messages=min(limit, 500), max_bytes=_PAGE_BYTES
                )
                page = await self._engine.call(call)
            if page:
                heapq.heappush(heap, (-page[0].header.ms, room, page))

        for room in rooms:
            await push(room, [])
        while heap and limit > 0:
            _, room, page = heapq.heappop(heap)
            packet = page.pop(0)
            end = min(packet.header.end, starts[room])
            count = min(end - packet.header.first, limit)
            starts[room], limit = end - count, limit - count
            await push(room, page)
        return {room: start for room, start in starts.items() if start < self._tails[room].next}

    async def _merged(self, starts: dict[str, int]) -> AsyncIterator[SaidBlock]:
        heap: list[tuple[int, str, list[Packet]]] = []

        async def push(room: str, page: list[Packet]) -> None:
            if not page:
                page = await self._page(room, starts[room], self._tails[room].next, _PAGE_BYTES)
            if page:
                heapq.heappush(heap, (page[0].header.ms, room, page))

        for room in starts:
            await push(room, [])
        while heap:
            _, room, page = heapq.heappop(heap)
            packet = page.pop(0)
            assert packet.said is not None  # noqa: S101 - only pushes have none
            said = slice_block(packet.said, starts[room], self._tails[room].next)
            starts[room] = packet.header.end
            if said is not None:
                yield _cleaned(said)
            await push(room, page)

    async def _page(self, room: str, start: int, stop: int, max_bytes: int) -> list[Packet]:
        if start >= stop:
            return []
        return await self._engine.call(read(room, start, stop, max_bytes=max_bytes))


def _cleaned(said: SaidBlock) -> SaidBlock:
    """Return *said* for a terminal: others than multichat may have written to the engine."""
    return msgspec.structs.replace(
        said,
        time=clean(said.time),
        room=clean(said.room),
        name=clean(said.name),
        text=clean_lines(said.text),
    )


async def open_history(engine: EngineSession) -> EngineHistory:
    """Return the history that *engine* has now; raises `JournalFailed`."""
    keys = await engine.rooms()
    if keys and not await engine.load_library(write=False):
        raise engine.failed("it has no functions of multichat: a node loads them at its start")
    return EngineHistory(engine, await engine.tails(keys))
