"""Copies a journal into an engine that no node is using: `multichat journal import`.

Messages keep their ids, so that clients can resume; accounts, topics and sessions are copied, too.
Existing data is left alone, and an aborted import continues when it is repeated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import index

import msgspec

from multichat.cluster.calls import Call, Tail, encode_nonce, pack_block
from multichat.cluster.engine_session import EngineSession
from multichat.errors import JournalFailed
from multichat.journal.base import SavedSession, slice_block
from multichat.journal.sqlite.contents import Contents, RoomContents
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.messages import SaidBlock
from multichat.protocol.names import fold_name

__all__ = ["Imported", "import_contents"]

# A call takes the engine some milliseconds, and Lua's stack has room for 8,000 values.
_BLOCKS_AT_ONCE = 200
_BYTES_AT_ONCE = 512 * 1024

# How long a session without a connection is kept by default.
_NONCE_SECONDS = 86_400

_OCCUPIED = "nodes are running on it: stop them all; one that was killed counts for ten seconds"


@dataclass(slots=True)
class Imported:
    """How much was imported, and which rooms, accounts and sessions were left out as foreign."""

    rooms: int = 0
    messages: int = 0
    accounts: int = 0
    topics: int = 0
    sessions: int = 0
    other_rooms: Sequence[str] = ()
    other_accounts: tuple[str, ...] = ()
    other_sessions: int = 0


async def import_contents(
    contents: Contents, engine: EngineSession, *, add: bool, tell: Callable[[str, int], None]
) -> Imported:
    """Import *contents*; *tell* is called with a room and its number of imported messages.

    With *add* the engine may have other rooms; those of the same name are left alone.  Raises
    `JournalFailed`.
    """
    await engine.load_library(write=True)
    await _call(engine, "begin", 0, 0)  # changes nothing, and is refused while nodes run
    done = Imported()
    rooms = contents.rooms()
    names = [room.name for room in rooms]
    there = await engine.rooms()
    tails = await engine.tails(list(dict.fromkeys((*names, *there))))
    used = [room.name for room in rooms if _was_used(room, tails[room.name])]
    if used:
        raise engine.failed(f"{used[0]} has messages of its own since an import that was not ended")
    others = [room.name for room in rooms if not _is_ours(room, tails[room.name])]
    strange = [*others, *(name for name in there if name not in set(names))]
    if strange and not add:
        has = f"it already has rooms, such as {strange[0]}"
        raise engine.failed(f"{has}: with --add these stay unchanged, and the others are imported")
    done.other_rooms = others
    await _call(engine, "begin", contents.clients_ever, contents.last_epoch)
    for room in rooms:
        if room.name not in others:
            count = await _import_room(contents, engine, room, tails[room.name], tell)
            done.rooms, done.messages = done.rooms + (count > 0), done.messages + count
    await _import_rest(contents, engine, done)
    return done


def _is_ours(room: RoomContents, tail: Tail) -> bool:
    """Whether the engine has nothing of that room, or only messages of this journal."""
    return not tail.epoch or bool({epoch for epoch, _ in tail.epochs} & dict(room.epochs).keys())


def _was_used(room: RoomContents, tail: Tail) -> bool:
    """Whether nodes appended to the room before its import was complete."""
    known = dict(room.epochs)
    if not tail.epoch or tail.epoch in known or not _is_ours(room, tail):
        return False
    return min(start for epoch, start in tail.epochs if epoch not in known) < room.next


async def _import_room(
    contents: Contents,
    engine: EngineSession,
    room: RoomContents,
    tail: Tail,
    tell: Callable[[str, int], None],
) -> int:
    is_new = not tail.epoch
    next_ = room.first if is_new else tail.next
    if next_ >= room.next and not (is_new and room.next):
        return 0
    total = 0
    for blocks in _batches(contents.blocks(room.name), next_):
        words: list[str | bytes | int] = [room.name, room.first, next_, len(room.epochs)]
        words += [word for epoch in room.epochs for word in epoch]
        for said in blocks:
            count = said.text.count("\n") + 1
            words += [said.first, count, said.epoch, _milliseconds(said.time), pack_block(said)]
            total += count
        next_ = await _call(engine, "room", *words)
        tell(room.name, total)
    return total


def _batches(blocks: Iterator[SaidBlock], start: int) -> Iterator[list[SaidBlock]]:
    """Yield the messages from number *start* on, in batches for one call each; one may be empty."""
    batch: list[SaidBlock] = []
    size, is_first = 0, True
    for block in blocks:
        said = slice_block(block, start, 1 << 62)
        if said is None:
            continue
        batch.append(said)
        size += len(said.text)
        if len(batch) >= _BLOCKS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield batch
            batch, size, is_first = [], 0, False
    if batch or is_first:
        yield batch


async def _import_rest(contents: Contents, engine: EngineSession, done: Imported) -> None:
    for account in contents.accounts:
        fold = fold_name(account.name)
        keys = lookalike_keys(account.name)
        result = await _call(engine, "account", fold, account.name, account.hash, *keys)
        done.accounts += result == 1
        if result < 0:
            done.other_accounts += (account.name,)
    for room, topic in contents.topics.items():
        done.topics += await _call(engine, "topic", room, topic)
    for session in contents.sessions():
        result = await _call(engine, "session", *_session_words(session))
        done.sessions += result == 1
        done.other_sessions += result < 0


def _session_words(session: SavedSession) -> list[str | bytes | int]:
    """Return the arguments for a session: see `backend.ValkeyBackend.save_session`."""
    record = session.record
    state = {"name": record.name, "rooms": record.rooms, "login": record.login}
    words: list[str | bytes | int] = [record.digest.hex(), record.client]
    words += [msgspec.json.encode(state), _NONCE_SECONDS * 1000]
    for nonce in session.nonces:
        check, epoch = nonce.check.hex() or "-", nonce.epoch or "-"
        words.append(encode_nonce(nonce.nonce))
        words.append(f"{check} {epoch} {nonce.number} {nonce.room}")
    return words


async def _call(engine: EngineSession, what: str, *words: str | bytes | int) -> int:
    call = Call(
        f"multichat_import_{what}", words, lambda reply: 0 if reply == b"OK" else index(reply)
    )
    try:
        return await engine.call(call)
    except JournalFailed as error:
        if "a node runs" in error.reason:
            raise engine.failed(_OCCUPIED) from None
        raise


def _milliseconds(time: str) -> int:
    """Return the time of a message in milliseconds since 1970; 0 if it is damaged."""
    try:
        return max(0, int(datetime.fromisoformat(time).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        return 0
