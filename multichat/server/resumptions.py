"""Sessions that are being resumed: a hello takes one from the backend, and waits for other answers.

Only with other nodes.  Until the hello is carried out, its connection has another number than its
session, under which the operators of all nodes know the client, and may kick it.

Invariant: a session that was taken is resumed, given back, or ended if its client was kicked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from multichat.backend.base import Backend
from multichat.server.client import Client
from multichat.server.session_store import SessionStore
from multichat.server.stored_session import StoredSession

__all__ = ["Resumptions"]


class Resumptions:
    """The connections of one server that resume sessions of *store* now.

    A session that is given back can be resumed; its client is announced as gone *away_seconds*
    later.
    """

    def __init__(self, backend: Backend, store: SessionStore, away_seconds: float) -> None:
        self._backend, self._store, self._away_seconds = backend, store, away_seconds
        self._numbers: dict[Client, int] = {}
        self._ended: dict[Client, str] = {}  # why

    @contextmanager
    def taking(self, client: Client, number: int) -> Iterator[None]:
        """Note for the block that *client* takes the session of client *number*."""
        self._numbers[client] = number
        try:
            yield
        finally:
            del self._numbers[client]
            self._ended.pop(client, None)

    def end(self, number: int, reason: str) -> list[Client]:
        """End the session of client *number* for the *reason*; return the clients that take it."""
        found = [client for client, taken in self._numbers.items() if taken == number]
        self._ended.update(dict.fromkeys(found, reason))
        return found

    def put_back(self, session: StoredSession, taker: Client) -> None:
        """Give *session* back, which *taker* has taken and does not resume, or end it; see `end`.

        MUST be called in the block of `taking`.
        """
        client, generation = session.client, session.generation
        if (reason := self._ended.get(taker)) is not None:
            self._store.end(session)
            self._backend.remove_client(client, generation, reason, keep_seconds=None)
        else:
            self._store.put_back(session)
            away = self._away_seconds
            self._backend.remove_client(client, generation, "", keep_seconds=away)
