"""Pages of earlier messages, read from the logs once for all clients that replay them."""

from collections import OrderedDict

import trio

from multichat.backend.base import RoomLog
from multichat.errors import NotRead
from multichat.server.broadcast import MAX_BATCH_BYTES, Block
from multichat.server.config import ReplayLimits

__all__ = ["PageCache"]

# A page is at most half a batch before it is encoded.
_PAGE_BYTES = MAX_BATCH_BYTES // 2


class _Page:
    __slots__ = ("blocks", "done", "failure")

    def __init__(self) -> None:
        self.blocks: list[Block] | None = None  # None, too, if the reading task was cancelled
        self.failure = ""
        self.done = trio.Event()


class PageCache:
    """Pages of messages from the logs of a server's rooms, shared by all replays.

    A page begins where a replay is and ends at a multiple of *page_messages*, so that all replays
    continue with the same pages, unless long messages end a page sooner.  At most *max_pages* are
    kept.
    """

    def __init__(
        self, page_messages: int = ReplayLimits().page_messages, max_pages: int = 32
    ) -> None:
        self._page_messages = page_messages
        self._max_pages = max_pages
        self._pages: OrderedDict[tuple[str, int], _Page] = OrderedDict()

    def page_end(self, number: int) -> int:
        """Return where the page of the message with that *number* ends."""
        return number - number % self._page_messages + self._page_messages

    async def read(self, log: RoomLog, start: int, delivered: int) -> list[Block]:
        """Return messages from number *start* on, to the end of its page, but before *delivered*.

        Messages that the log has deleted are left out.  Raises `NotRead` if it cannot be read.
        """
        key = log.epoch, start
        while True:
            if (page := self._pages.get(key)) is None:
                return await self._read(key, log, start, delivered)
            self._pages.move_to_end(key)
            await page.done.wait()
            if page.failure:
                raise NotRead(page.failure)
            if page.blocks is not None:
                return page.blocks

    def forget(self, epoch: str) -> None:
        """Drop the pages that were read in that *epoch*: the log has lost messages."""
        for key in [key for key in self._pages if key[0] == epoch]:
            del self._pages[key]

    async def _read(
        self, key: tuple[str, int], log: RoomLog, start: int, delivered: int
    ) -> list[Block]:
        page = self._pages[key] = _Page()
        if len(self._pages) > self._max_pages:
            self._pages.popitem(last=False)
        stop = min(delivered, self.page_end(start))
        try:
            stored = await log.read(start, stop, max_bytes=_PAGE_BYTES)
            page.blocks = [Block(said, said.text.count("\n") + 1) for said in stored]
        except NotRead as error:
            page.failure = error.reason
            raise
        finally:
            if not page.blocks and self._pages.get(key) is page:
                del self._pages[key]
            page.done.set()
        return page.blocks
