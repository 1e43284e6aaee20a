"""Measures the progress of a connection, for time limits without progress."""

from multichat.client.connection import Connection
from multichat.client.session import ClientSession
from multichat.protocol.text_codec import TEXT

__all__ = ["Progress"]


class Progress:
    """Measures how much of the sent data has arrived.

    In JSON that is the number of answered requests, and of bytes that the server has received since
    the last answer: receiving the same bytes again on the next connection is not progress.  In the
    text protocol it is the number of bytes that the server has received and, once it has all, also
    of those that it has sent.
    """

    def __init__(self) -> None:
        self._answered = self._most_bytes = 0

    def value(self, session: ClientSession, connection: Connection) -> tuple[int, int]:
        """Return a value that changes when there is progress."""
        if session.codec is TEXT:
            is_delivered = not connection.undelivered_bytes
            return 0, connection.moved_bytes if is_delivered else connection.delivered_bytes
        if session.answered != self._answered:
            self._answered, self._most_bytes = session.answered, 0
        self._most_bytes = max(self._most_bytes, connection.delivered_bytes)
        return self._answered, self._most_bytes
