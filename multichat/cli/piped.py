"""Which lines of a pipe were accepted: the error names the first that was not.

Lines are counted from 1 on as they are read, without empty ones.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.client.typed_input import Typed
from multichat.errors import ConnectionLost, LineTooLong, Refused
from multichat.protocol.framing import Part
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Error, Nonce
from multichat.protocol.text_codec import TEXT
from multichat.stdio import read_input

__all__ = ["Piped", "for_pipe", "send_input"]

# Less than the limit of unaccepted messages, so that some are always on their way.
_PIECE_LINES = 64


def for_pipe(options: ChatOptions) -> ChatOptions:
    """Return *options* whose timeouts also limit how long sending may wait without progress."""
    return replace(options, timeouts=replace(options.timeouts, blocked=options.timeouts.progress))


class Piped:
    """The lines that are read from a pipe and sent over *chat*.

    *read* counts the lines that were read, *sent* those that were sent or left out, which are noted
    in the order of the input; *all_read* says that there are no more.

    A command that is refused counts as accepted: the refusal is its answer.  In the text protocol
    no refusal is known, and on a terminal, with *attended*, somebody sees them.
    """

    def __init__(self, chat: LineChat, *, attended: bool = False) -> None:
        self.read = self.sent = 0
        self.all_read = False
        self._chat = chat
        self._unaccepted: deque[tuple[int, Nonce]] = deque()
        self._errors = {} if attended else chat.collect_refused()
        self._refused = 0
        self._first_refused: tuple[int, Error] | None = None

    def note_read(self, part: Part) -> None:
        """Note what was read."""
        self.read += 1 if isinstance(part, LineTooLong) else part.count("\n") + 1

    async def send(self, typed: Sequence[Typed]) -> None:
        """Send typed lines, in pieces in JSON."""
        if self._chat.codec is TEXT:
            lines = sum(each.line_count for each in typed)
            self.note_sent(lines, await self._chat.send_typed(typed))
            return
        for each in typed:
            for piece in each.split(_PIECE_LINES):
                self.note_sent(piece.line_count, await self._chat.send_typed([piece]))

    async def say(self, block: str) -> None:
        """Say each line of a block, in pieces in JSON, whatever it holds."""
        texts = block.split("\n")
        size = _PIECE_LINES if self._chat.codec is JSON else len(texts)
        for start in range(0, len(texts), size):
            piece = texts[start : start + size]
            self.note_sent(len(piece), await self._chat.send(*piece))

    async def pass_lines(self, block: str) -> None:
        """Send lines as they are, in the text protocol."""
        await self._chat.link.send_lines(block)
        self.note_sent(block.count("\n") + 1)

    def note_sent(self, lines: int, nonces: Sequence[Nonce | None] = ()) -> None:
        """Count *lines* that were sent or left out; the last of them have these *nonces*."""
        self._settle()
        self.sent += lines
        for number, nonce in enumerate(nonces, self.sent - len(nonces) + 1):
            if nonce is not None:
                self._unaccepted.append((number, nonce))

    def _settle(self) -> None:
        """Count the refused lines among those that are answered, up to the first that is not."""
        while self._unaccepted and not self._chat.is_unaccepted(self._unaccepted[0][1]):
            number, nonce = self._unaccepted.popleft()
            if (error := self._errors.pop(nonce, None)) is not None:
                self._refused += 1
                self._first_refused = self._first_refused or (number, error)

    def discard_rest(self) -> None:
        """Note that lines which were read and not sent are not going to be."""
        self.read = self.sent

    def describe(self) -> str:
        """Return how many lines were not accepted and which is the first.

        Empty if all were accepted, or none was read.
        """
        chat = self._chat
        self._settle()
        waiting = [
            number
            for number, nonce in self._unaccepted
            if chat.is_unaccepted(nonce) or nonce in self._errors
        ]
        count = self._refused + len(waiting) + self.read - self.sent
        if not count or not self.read:
            return ""
        if self._first_refused is not None:
            first, _ = self._first_refused
        else:
            first = waiting[0] if waiting else self.sent + 1
        accepted = "sent" if chat.codec is TEXT else "accepted"
        were = "1 line was" if count == 1 else f"{count} lines were"
        rest = "" if self.all_read else ", and what follows was not read"
        return (
            f"{were} not {accepted}, the first is line {first} of the input "
            f"(empty lines not counted){rest}"
        )

    def check_refused(self) -> None:
        """Raise the first refusal as `Refused`, explained as by `explain`, if there was one."""
        self._settle()
        if self._first_refused is not None:
            _, error = self._first_refused
            raise Refused(error.code, self.explained(error.text))

    def explain(self, error: ConnectionLost) -> ConnectionLost:
        """Return *error* with what `describe` returns added to it."""
        return ConnectionLost(self.explained(error.reason))

    def explained(self, reason: str) -> str:
        """Return *reason* with what `describe` returns added to it."""
        return "; ".join(filter(None, (reason, self.describe())))

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add what `describe` returns to a `ConnectionLost` that the block raises."""
        try:
            yield
        except ConnectionLost as error:
            raise self.explain(error) from None


async def send_input(fd: int, piped: Piped, send: Callable[[str], Awaitable[None]]) -> None:
    """Read *fd* to its end and *send* its lines; raises `LineTooLong`, and as *send* does."""
    async with aclosing(read_input(fd)) as reads:
        async for parts in reads:
            for part in parts:
                if isinstance(part, LineTooLong):
                    raise part
                piped.note_read(part)
                await send(part)
    piped.all_read = True
