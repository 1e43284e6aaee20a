"""The command `history`: shows the messages in a journal or a cluster, for people or programs."""

import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from multichat.errors import JournalFailed, OutputLost
from multichat.journal.sqlite.reader import open_reader
from multichat.protocol.counts import counted
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import SaidBlock, room_of
from multichat.protocol.text_codec import TEXT
from multichat.stdio import write_output

if TYPE_CHECKING:
    from multichat.cluster.connection import ConnectionConfig

__all__ = ["parse_since", "show_cluster_history", "show_history"]

_ID = re.compile(r"[0-9a-f]{11}-\d{10,}")


def parse_since(text: str) -> float | str:
    """Return *text* as the id of a message, or as a time in seconds since 1970.

    A time without a zone is local.  Raises `ValueError`.
    """
    if _ID.fullmatch(text):
        return text
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text} is neither a message's id nor a time such as 2025-01-15T10:30"
        ) from None


def show_history(
    path: Path,
    output_fd: int,
    *,
    room: str | None = None,
    since: float | str | None = None,
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Write the messages that `Reader.read` yields to *output_fd*, a page at a time.

    Returns if the output is a pipe that was closed.  Raises `OutputLost`, `UnknownId`, or
    `JournalFailed`; if messages are damaged, only after the others have been written.
    """
    room = None if room is None else room_of(room)
    with open_reader(path) as reader:
        one_room = room is not None or not reader.has_several_rooms()
        for said in reader.read(room=room, since=since, limit=limit):
            data = JSON.encode_said(said) if json else _encode(said, with_room=not one_room)
            try:
                write_output(output_fd, data)
            except OutputLost as lost:
                if isinstance(lost.__cause__, BrokenPipeError):
                    return
                raise
        if reader.damaged:
            places = counted(reader.damaged, "place")
            reason = f"the file is damaged: messages cannot be read in {places}"
            raise JournalFailed(path, reason)


def show_cluster_history(
    connection: "ConnectionConfig",
    output_fd: int,
    *,
    room: str | None = None,
    since: float | str | None = None,
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Write the messages in the engine of a cluster to *output_fd*; as `show_history` does.

    Raises `KeyboardInterrupt` if a signal ended it.
    """
    import trio

    from multichat.cluster.engine_session import open_session
    from multichat.cluster.history import open_history
    from multichat.stdio import until_signal

    room = None if room is None else room_of(room)

    async def show() -> None:
        async with open_session(connection) as session:
            history = await open_history(session)
            one_room = room is not None or not history.has_several_rooms
            async for said in history.read(room=room, since=since, limit=limit):
                data = JSON.encode_said(said) if json else _encode(said, with_room=not one_room)
                # In a thread: while a pager waits for its user, the connection stays in use.
                # A signal leaves it, since the pager may never read on.
                await trio.to_thread.run_sync(write_output, output_fd, data, abandon_on_cancel=True)

    try:
        if not trio.run(until_signal, show):
            raise KeyboardInterrupt
    except OutputLost as lost:
        if not isinstance(lost.__cause__, BrokenPipeError):
            raise


def _encode(said: SaidBlock, *, with_room: bool) -> bytes:
    where = f"{said.room}: " if with_room else ""
    return TEXT.encode_said(said, f"{_local(said.time)} {where}")


@lru_cache(maxsize=1)  # consecutive blocks often have the same time
def _local(time: str) -> str:
    """Format a time of the wire as in the log."""
    try:
        local = datetime.fromisoformat(time).astimezone()
    except (ValueError, OverflowError, OSError):
        return time
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03}"
