"""What a chat asks the server for, and how it keeps its connection.  Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from multichat.client.timeouts import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.errors import LocalProtocolError
from multichat.protocol.messages import Credentials

__all__ = ["ChatOptions", "check_count", "list_of_rooms"]


def check_count(name: str, count: int, least: int) -> None:
    """Raise `LocalProtocolError` if *count* is not a whole number of at least *least*."""
    if type(count) is not int or count < least:
        raise LocalProtocolError(
            f"{name} must be a whole number of at least {least}, not {count!r}"
        )


def list_of_rooms(rooms: Sequence[str]) -> tuple[str, ...]:
    """Return *rooms*; raises `LocalProtocolError` unless it is a list of names.

    A string is a sequence of its letters, and each of them would be a room.
    """
    if isinstance(rooms, str) or not all(isinstance(each, str) for each in rooms):
        raise LocalProtocolError(f"rooms must be a list of names, not {rooms!r}")
    return tuple(rooms)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """The options of a chat; see `multichat.client.connect.open_chat`.

    The chat is in *room* and, besides, in *rooms*; without *room* the last of *rooms* is the
    current one.  With *login* and without *name* the name is that of the account.  Without
    *reconnect* a lost connection ends the chat, even if there is a way to dial again.  If the
    *name* is not required and the server refuses it, the chat begins without it.  Raises
    `LocalProtocolError` for a *replay* that is negative or not a whole number.
    """

    name: str | None = None
    name_required: bool = True
    room: str | None = None
    rooms: tuple[str, ...] = ()
    login: Credentials | None = None
    password: str | None = None
    plain: bool = False
    replay: int = 0
    reconnect: bool = True
    wait: bool = False
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS

    def __post_init__(self) -> None:
        check_count("replay", self.replay, 0)
