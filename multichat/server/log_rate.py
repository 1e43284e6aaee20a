"""The rate limit of the log: messages per second for each client, and a count of the rest.

Owns the rate of each client, even across its reconnects, and the line that counts the messages that
were not logged.  That line is placed at the gap, before anything else that is logged about the
client.  Events that need a new connection each time, such as connecting, are always logged.

There is a token bucket for each client.  Each message counts once, though it causes two lines, and
so does each change of name or room; a message longer than 1 KiB counts as several, so that the log
is also bounded in bytes.  Once a message is not logged, none is logged for a second: a flood
appears in the log as one block of lines and one number each second.
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable

import trio

from multichat.log import Log
from multichat.log_format import NO_FIELDS, Fields
from multichat.protocol.messages import SaidBlock

__all__ = ["ClientLog", "LogRates"]

# With the default of 100 messages a second, a paste of 500 lines is logged completely.
BURST_SECONDS = 10.0

# Lines of ordinary chat and of stack traces are shorter.
_LINE_CHARACTERS = 1024

# Limits for buckets that were not full when their clients left: addresses, and clients of each.
_MAX_ADDRESSES = 1000
_MAX_OF_ADDRESS = 128


class LogRates:
    """The logs of all clients, each of at most *rate* messages a second; None means no limit.

    *start_soon* starts a task that outlives the call.
    """

    def __init__(
        self,
        log: Log,
        rate: float | None,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.log = log
        self.rate = rate
        self.start_soon = start_soon
        # When the buckets of departed clients will be full, by address.
        self._left: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def open(self, client: int, address: Hashable) -> "ClientLog":
        """Return the log of a client from *address*.

        It reuses the bucket of a departed client of that address if that is not yet full again:
        otherwise each new connection would get a new burst.
        """
        now = trio.current_time()
        left = self._left.get(address)
        full_at = left.pop() if left else now
        if not left:
            self._left.pop(address, None)
        return ClientLog(self, client, address, full_at)

    def close(self, client_log: "ClientLog") -> None:
        """Log how many messages of a departing client were not logged."""
        client_log.log_omitted()
        now = trio.current_time()
        if client_log.full_at > now:
            left = self._left.setdefault(client_log.address, deque(maxlen=_MAX_OF_ADDRESS))
            left.append(client_log.full_at)
            self._left.move_to_end(client_log.address)
            if len(self._left) > _MAX_ADDRESSES:
                self._left.popitem(last=False)


class ClientLog:
    """The log of one client, made by `LogRates.open`; *client* is its number."""

    __slots__ = ("_omitted", "_rates", "address", "client", "full_at")

    def __init__(self, rates: LogRates, client: int, address: Hashable, full_at: float) -> None:
        self.client, self.address = client, address
        self.full_at = full_at  # when the bucket is full, if no line is logged until then
        self._rates = rates
        self._omitted = 0

    @property
    def hides_messages(self) -> bool:
        """See `Log`."""
        return self._rates.log.hides_messages

    def line(self, tag: str, text: str, *, fields: Fields = NO_FIELDS) -> None:
        """Log one line about the client; see `Log.line`."""
        if not self._omitted and self._take(1, len(text)):
            self._rates.log.line(tag, text, fields={"client": self.client, **fields})
        else:
            self._omit(1)

    def said(self, speaker: str, said: SaidBlock, messages: int, clients: int) -> None:
        """Log one publish of the client, with its number of *messages*; see `Log.said`."""
        log, block, logged = self._rates.log, said.text, 0
        fields: Fields = {
            "event": "said",
            "client": self.client,
            "name": said.name,
            "room": said.room,
            "act": said.act,
        }
        if not self._omitted:
            if self._take(messages, len(block)):
                log.said(speaker, block, clients, fields=fields)
                return
            if head := _head(block, self._lines_left()):
                logged = head.count("\n") + 1
                log.said(speaker, head, clients, fields=fields)
        self._omit(messages - logged)

    def log_omitted(self) -> None:
        """Log how many messages were not logged, if any; the next ones are logged again."""
        if self._omitted:
            count, self._omitted = self._omitted, 0
            text = f"... {count:,} more message{'s' * (count > 1)} of Client {self.client}"
            fields = {"event": "omitted", "client": self.client, "messages": count}
            self._rates.log.line("LOG", f"{text} not logged", fields=fields)

    def _lines_left(self) -> int:
        rate, owed_seconds = self._rates.rate or 0, self.full_at - trio.current_time()
        return int(rate * (BURST_SECONDS - max(0.0, owed_seconds)))

    def _take(self, lines: int, characters: int) -> bool:
        """Take that many lines from the bucket if it has enough; return whether it had."""
        rate = self._rates.rate
        if rate is None:
            return True
        cost: float = max(lines, characters // _LINE_CHARACTERS)
        if lines == 1:  # otherwise a long one would never be logged
            cost = min(cost, rate * BURST_SECONDS)
        now = trio.current_time()
        full_at = max(self.full_at, now) + cost / rate
        if full_at > now + BURST_SECONDS:
            return False
        self.full_at = full_at
        return True

    def _omit(self, lines: int) -> None:
        if not self._omitted:
            self.full_at = trio.current_time() + BURST_SECONDS  # what fits has been logged
            self._rates.start_soon(self._log_omitted_later)
        self._omitted += lines

    async def _log_omitted_later(self) -> None:
        await trio.sleep(max(1.0, 1 / (self._rates.rate or 1)))
        self.log_omitted()


def _head(block: str, lines: int) -> str:
    """Return the first messages of *block*, as many as fit into *lines* lines of 1 KiB."""
    head = "\n".join(block.split("\n", lines)[:lines])
    most = lines * _LINE_CHARACTERS
    return head if len(head) <= most else head[: max(0, head.rfind("\n", 0, most))]
