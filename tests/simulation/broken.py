"""Deliberately broken servers, one for each invariant that must detect it."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from types import ModuleType
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from multichat import Slow
from multichat.errors import NotRead, StorageFailed
from multichat.journal.base import PendingWrite, SavedSession
from multichat.net.send_queue import SendQueue, SendResult
from multichat.protocol.ids import MessageIds
from multichat.protocol.json_codec import JsonCodec
from multichat.protocol.lookalikes import NameIndex
from multichat.protocol.messages import (
    Error,
    Goodbye,
    HistoryPage,
    Missed,
    SaidBlock,
    SayBlock,
    Start,
)
from multichat.protocol.text_codec import TextCodec
from multichat.server.broadcast import Batch, Delivery, Receipt
from multichat.server.client import Client
from multichat.server.config import Message, ReplayLimits
from multichat.server.filters import Filters
from multichat.server.greeting import start_from
from multichat.server.history_pages import read_history
from multichat.server.member import Member
from multichat.server.open_rooms import OpenRooms
from multichat.server.recent_messages import Ring
from multichat.server.registry import Registry
from multichat.server.replay import Replayer
from multichat.server.room import Room
from multichat.server.session_store import SessionStore
from multichat.server.slow_clients import SlowClients
from multichat.server.stored_session import StoredSession

from .journal import Disk, FaultyJournal

__all__ = ["MUTATIONS", "Break", "echo", "edited", "wrap"]

Break = Callable[[pytest.MonkeyPatch], None]


def every(nth: int) -> Callable[[], bool]:
    """Return a function that returns True once in *calls* calls."""
    calls = count(1)
    return lambda: next(calls) % nth == 0


def wrap(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrapper: Any) -> None:
    """Replace a method by *wrapper*, which gets the original as its first argument."""
    original = getattr(owner, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    monkeypatch.setattr(owner, name, replacement)


def edited(name: str, owner: Any, method: str, old: str, new: str) -> Break:
    """Return a function that breaks a server by one change in the source of a method."""

    def edit(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, method)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(old) == 1, f"{owner.__name__}.{method} has no {old!r}"
        module = inspect.getmodule(original)
        assert isinstance(module, ModuleType)
        made: dict[str, Any] = {}
        exec(source.replace(old, new), vars(module), made)
        monkeypatch.setattr(owner, method, made[method])

    edit.__name__ = name
    return edit


def reorder(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[SendQueue, bytes] = {}
    now = every(3)

    def try_send(original: Any, send_queue: SendQueue, data: bytes) -> Any:
        if send_queue in held:
            offered = original(send_queue, data)
            original(send_queue, held.pop(send_queue))
            return offered
        if now():
            held[send_queue] = data
            return SendResult.QUEUED
        return original(send_queue, data)

    wrap(monkeypatch, SendQueue, "try_send", try_send)


def say_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(original: Any, room: Room, sender: Member, block: SayBlock, checks: bytes) -> Any:
        text = "\n".join(reversed(block.text.split("\n")))
        return original(room, sender, msgspec.structs.replace(block, text=text), checks)

    wrap(monkeypatch, Room, "publish", say)


def count_ids_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_said(original: Any, codec: JsonCodec, said: SaidBlock) -> Any:
        return original(codec, msgspec.structs.replace(said, first=100_000 - said.first))

    wrap(monkeypatch, JsonCodec, "encode_said", encode_said)


def lose(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    def try_send(original: Any, send_queue: SendQueue, data: bytes) -> Any:
        return SendResult.QUEUED if now() else original(send_queue, data)

    wrap(monkeypatch, SendQueue, "try_send", try_send)


def miscount_what_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(original: Any, send_queue: SendQueue, messages: int, room: str) -> None:
        original(send_queue, messages + 1, room)

    wrap(monkeypatch, SendQueue, "miss", miss)


def swallow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(3)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        return Receipt() if now() else await original(*args, **kwargs)

    wrap(monkeypatch, Room, "publish", say)


def accept_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(3)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        return Receipt(epoch="0", first=1) if now() else await original(*args, **kwargs)

    wrap(monkeypatch, Room, "publish", say)


def duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    def try_send(original: Any, send_queue: SendQueue, data: bytes) -> Any:
        return original(send_queue, data * 2 if now() else data)

    wrap(monkeypatch, SendQueue, "try_send", try_send)


def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    def try_send_to_all(original: Any, room: Room, batch: Batch, delivery: Delivery) -> Any:
        sender, delivery.sender = delivery.sender, None
        full = original(room, batch, delivery)
        delivery.sender = sender
        return full

    wrap(monkeypatch, Room, "_try_send_to_all", try_send_to_all)


def forget_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, room: Room, member: Member, *args: Any, **kwargs: Any) -> None:
        original(room, member, *args, **kwargs)
        room._by_codec[member.client.codec][member.client.number] = member

    wrap(monkeypatch, Room, "leave", leave)


def forge(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_said(original: Any, codec: TextCodec, said: SaidBlock) -> Any:
        return original(codec, msgspec.structs.replace(said, name="Client 1"))

    wrap(monkeypatch, TextCodec, "encode_said", encode_said)


def see_no_lookalikes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, NameIndex, "lookalikes", lambda original, index, name: [])


def filter_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def apply(original: Any, filters: Filters, messages: Sequence[Message]) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return list(messages)

    wrap(monkeypatch, Filters, "apply", apply)


def cut_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def try_send(original: Any, send_queue: SendQueue, data: bytes) -> Any:
        return original(send_queue, data[:-2] + data[-1:])

    wrap(monkeypatch, SendQueue, "try_send", try_send)


def evict_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    def disconnect(original: Any, registry: Registry, client: Client, goodbye: Goodbye) -> None:
        registry.leave(client, goodbye.reason)

    wrap(monkeypatch, Registry, "disconnect", disconnect)


def blame_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(
        original: Any, registry: Registry, client: Client, reason: str = "", **kw: Any
    ) -> None:
        original(registry, client, reason or "connection reset", **kw)

    wrap(monkeypatch, Registry, "leave", leave)


def haunt(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, registry: Registry, client: Client, *args: Any, **kw: Any) -> None:
        original(registry, client, *args, **kw)
        if not client.name.startswith("ghost"):
            registry.rename(client, f"ghost{client.number}")

    wrap(monkeypatch, Registry, "leave", leave)


def take_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(original: Any, *args: Any, max_batches: int, **kwargs: Any) -> None:
        original(*args, max_batches=1000 * max_batches, **kwargs)

    wrap(monkeypatch, SendQueue, "__init__", init)


def leave_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(original: Any, room: Room, client: Client) -> None:
        original(room, client)
        trio.lowlevel.spawn_system_task(trio.sleep_forever)

    wrap(monkeypatch, Room, "join", join)


def keep_empty_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, OpenRooms, "close_if_empty", lambda original, rooms, room: None)


def hang_up_never(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close_gracefully(stream: trio.abc.Stream, linger_seconds: float) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("multichat.net.transport.close_gracefully", close_gracefully)


def crash(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        if now():
            raise RuntimeError("on purpose")
        return await original(*args, **kwargs)  # type: ignore[no-any-return]

    wrap(monkeypatch, Room, "publish", say)


def count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say(original: Any, room: Room, *args: Any, **kwargs: Any) -> Receipt:
        room._counts.messages += 20
        return await original(room, *args, **kwargs)  # type: ignore[no-any-return]

    wrap(monkeypatch, Room, "publish", say)


# --- Reconnects and the journal -------------------------------------------------------------------


def tell_the_past_from(offset: int) -> Break:
    def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
        def number_of(original: Any, room: Room, id_: str) -> int:
            number: int = original(room, id_) + offset
            return max(-1, number)

        wrap(monkeypatch, Room, "number_of", number_of)

    shifted.__name__ = "tell_the_past_one_too_late" if offset > 0 else "tell_the_past_one_too_early"
    return shifted


def miscount_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "multichat.server.replay.Missed", lambda count, room: Missed(count + 1, room)
    )


def forget_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multichat.server.stored_session.MAX_UNACCEPTED", 0)


def restore_no_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    def restored(original: Any, session_store: SessionStore, kept: SavedSession | None) -> Any:
        if kept is not None:
            kept.nonces.clear()
        return original(session_store, kept)

    wrap(monkeypatch, SessionStore, "_restored", restored)


def resume_without_damaged_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def session(original: Any, journal: FaultyJournal, digest: bytes) -> SavedSession | None:
        try:
            return await original(journal, digest)  # type: ignore[no-any-return]
        except NotRead:
            if digest not in journal._disk.sessions:
                return None
            record, _ = journal._disk.sessions[digest]
            return SavedSession(record=record, age_seconds=0.0, nonces=[])

    wrap(monkeypatch, FaultyJournal, "session", session)


def tell_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(original: Any, pending: PendingWrite) -> None:
        await trio.lowlevel.checkpoint()

    wrap(monkeypatch, PendingWrite, "wait", wait)


def say_nothing_of_what_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        try:
            return await original(*args, **kwargs)  # type: ignore[no-any-return]
        except StorageFailed:
            return Receipt()

    wrap(monkeypatch, Room, "publish", say)


def let_anybody_be_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(original: Any, session_store: SessionStore, token: str) -> Any:
        known = [*session_store._connected.values(), *session_store._disconnected.values()]
        return await original(session_store, token) or next(iter(known), None)

    wrap(monkeypatch, SessionStore, "find", find)


def let_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    wrap(monkeypatch, SessionStore, "find", find)


def let_back_after_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(
        original: Any, store: SessionStore, journal: Any, most: int, *_: Any, **more: Any
    ) -> None:
        original(store, journal, most, inf, **more)

    wrap(monkeypatch, SessionStore, "__init__", make)


def let_the_kicked_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, *args: Any, for_good: bool = False, **kwargs: Any) -> None:
        original(*args, **kwargs)

    wrap(monkeypatch, Registry, "leave", leave)


def keep_rooms_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(
        original: Any,
        session_store: SessionStore,
        one: StoredSession,
        name: str,
        rooms: tuple[str, ...],
        login: str,
    ) -> Any:
        one.name, one.rooms, one.login = name, rooms, login  # stored in the journal when it leaves

    wrap(monkeypatch, SessionStore, "update", changed)


def forget_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def resume(original: Any, registry: Registry, client: Client, one: StoredSession) -> Any:
        one.rooms = ("lobby",)
        return original(registry, client, one)

    wrap(monkeypatch, Registry, "resume", resume)


def tell_of_every_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, room: Room, member: Member, reason: str = "", **kwargs: Any) -> None:
        original(room, member, reason)

    wrap(monkeypatch, Room, "leave", leave)


def show_the_past_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*args: Any) -> HistoryPage:
        page = await read_history(*args)
        return msgspec.structs.replace(page, messages=page.messages[::-1])

    monkeypatch.setattr("multichat.server.history_pages.read_history", read)


# --- Epochs and restored backups ------------------------------------------------------------------

keep_the_epoch_of_a_backup = edited(
    "keep_the_epoch_of_a_backup",
    FaultyJournal,
    "room",
    "name, epoch, on_disk,",
    "name, on_disk.epoch or epoch, on_disk,",
)
know_ids_beyond_a_backup = edited(
    "know_ids_beyond_a_backup",
    MessageIds,
    "number_of",
    "self.earlier.get(epoch, 0)",
    "self.next",
)
know_no_earlier_epochs = edited(
    "know_no_earlier_epochs", MessageIds, "number_of", "self.earlier.get(epoch, 0)", "0"
)
call_all_by_the_present_epoch = edited(
    "call_all_by_the_present_epoch",
    MessageIds,
    "id_of",
    "if number >= self.earlier[earlier]:",
    "if True:",
)
keep_nonces_that_a_backup_does_not_have = edited(
    "keep_nonces_that_a_backup_does_not_have", Disk, "copy", "nonces=nonces", "nonces=self.nonces"
)


def back_up_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(original: Any, disk: Disk) -> Disk:
        backup: Disk = original(disk)
        for room in backup.rooms.values():
            room.next = room.blocks.pop().first
        return backup

    wrap(monkeypatch, Disk, "copy", copy)


def pass_over_unknown_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(member: Member, start: Start) -> list[Error]:
        start_from(member, start)
        return []

    for module in ("greeting", "session"):
        monkeypatch.setattr(f"multichat.server.{module}.start_from", start)


# --- Lagging clients ------------------------------------------------------------------------------

lag_from_behind_the_block = edited(
    "lag_from_behind_the_block", Room, "_fall_behind", "batch.said.first", "batch.end"
)
lag_from_one_too_early = edited(
    "lag_from_one_too_early",
    Room,
    "_fall_behind",
    "batch.said.first",
    "max(0, batch.said.first - 1)",
)
pass_over_damaged_pages = edited(
    "pass_over_damaged_pages",
    Replayer,
    "_skip_page",
    "lag.gap_end =",
    "lag.position = lag.gap_end =",
)
go_live_with_something_in_between = edited(
    "go_live_with_something_in_between",
    Replayer,
    "replay_part",
    "lag.position < self._ring.next\n",
    "lag.position < self._ring.next - 1\n",
)
go_live_never = edited(
    "go_live_never", Replayer, "replay_part", "send_queue.is_half_empty()", "False"
)
replay_what_another_lag_asked_for = edited(
    "replay_what_another_lag_asked_for",
    Replayer,
    "_next_part",
    "if member.lag is not lag:",
    "if False:",
)
lose_what_finds_no_room = edited(
    "lose_what_finds_no_room",
    Replayer,
    "replay_part",
    "lag.position, lag.gap_end, lag.missed = start, gap_end, missed",
    "pass",
)
lag_on_after_leaving = edited("lag_on_after_leaving", Room, "leave", "member.lag = None", "pass")
lose_a_block_in_memory = edited(
    "lose_a_block_in_memory",
    Ring,
    "add",
    "self._blocks.append(block)",
    "if block.said.first % 5: self._blocks.append(block)",
)
wait_without_budget = edited(
    "wait_without_budget", SlowClients, "wait", "self._budget.spend(now - started, now)", "pass"
)
wait_for_free = edited(
    "wait_for_free", SlowClients, "_somebody_is_idle", "return any(", "return False and any("
)
cancel_without_paying = edited(
    "cancel_without_paying", SlowClients, "wait", "finally:", "except trio.TooSlowError:"
)
wait_for_the_disconnected = edited(
    "wait_for_the_disconnected",
    Room,
    "_stop_delivery",
    "self.slow_clients.discard(member)",
    "pass",
)
disconnect_at_the_first_stall = edited(
    "disconnect_at_the_first_stall",
    Replayer,
    "_wait_for_space",
    ">= self._stall_timeout",
    ">= 0",
)
see_no_progress = edited(
    "see_no_progress", Replayer, "_wait_for_space", "send_queue.progress != progress", "False"
)
forget_notices = edited("forget_notices", Room, "_go_live", "if client.notices:", "if False:")
lose_the_notice_in_hand = edited(
    "lose_the_notice_in_hand",
    Room,
    "_fall_behind",
    "member.client.keep_notice(delivery.notice)",
    "pass",
)

end_without_a_count = edited(
    "end_without_a_count",
    Registry,
    "close",
    "client.send_queue.miss(member.behind, member.room.name)",
    "pass",
)
count_the_rest_wrong = edited(
    "count_the_rest_wrong", Registry, "close", "miss(member.behind,", "miss(member.behind + 1,"
)


# Caught in the seeds of `test_simulation.SEEDS_WITH_A_COUNT_AT_SHUTDOWN`: few others have any.
AT_SHUTDOWN = [end_without_a_count, count_the_rest_wrong]

WAITS = {"slow": Slow.WAIT}

# No waiting, little memory, and replays in small parts.
LAGS = {
    "slow": Slow.WAIT,
    "slow_timeout_seconds": 0.0,
    "send_queue_batches": 1,
    "replay": ReplayLimits(queue_bytes=1, ring_bytes=1, page_messages=1),
}

LAGS_WITH_RING = {
    **LAGS,
    "replay": ReplayLimits(queue_bytes=300, ring_bytes=2000, page_messages=1),
}

MUTATIONS: list[tuple[Break, str, dict[str, Any]]] = [
    (reorder, "one_order", {"slow": Slow.WAIT}),
    (say_backwards, "sender_order", {}),
    (count_ids_backwards, "ids_are_in_order", {}),
    (lose, "nothing_lost", {"slow": Slow.WAIT}),
    (lose, "skips_add_up", {"slow": Slow.DROP}),
    (miscount_what_was_missed, "skips_add_up", {"slow": Slow.DROP}),
    (swallow, "all_is_said", {}),
    (accept_in_vain, "accepted_messages_are_published", {}),
    (duplicate, "nothing_twice", {}),
    (echo, "no_echo", {}),
    (forget_who_leaves, "only_members_hear", {}),
    (forge, "no_forged_tag", {}),
    (see_no_lookalikes, "no_forged_tag", {}),
    (cut_texts, "texts_are_whole", {}),
    (filter_nothing, "texts_are_whole", {}),
    (evict_silently, "evicted_are_told", {}),
    (blame_the_connection, "nobody_goes_without_reason", {}),
    (haunt, "gone_is_gone", {}),
    (take_without_bound, "send_queues_bounded", {"send_queue_batches": 1}),
    (leave_a_task, "nothing_left_behind", {}),
    (keep_empty_rooms, "nothing_left_behind", {}),
    (hang_up_never, "ends_in_time", {}),
    (crash, "nothing_crashes", {}),
    (count_twice, "counts_add_up", {}),
    (tell_the_past_from(1), "nothing_missed_nor_twice", {}),
    (tell_the_past_from(-1), "nothing_missed_nor_twice", {}),
    (miscount_what_is_too_old, "nothing_missed_nor_twice", {}),
    (lag_from_behind_the_block, "nothing_lost", LAGS),
    (lag_from_one_too_early, "nothing_twice", LAGS),
    (go_live_with_something_in_between, "nothing_lost", LAGS),
    (go_live_with_something_in_between, "nothing_missed_nor_twice", {}),
    (go_live_never, "lags_end", LAGS),
    (
        replay_what_another_lag_asked_for,
        "nothing_missed_nor_twice",
        {**LAGS, "replay": ReplayLimits(queue_bytes=1, ring_bytes=1, page_messages=3)},
    ),
    (lose_what_finds_no_room, "nothing_missed_nor_twice", LAGS_WITH_RING),
    (lag_on_after_leaving, "nothing_missed_nor_twice", LAGS_WITH_RING),
    (lose_a_block_in_memory, "nobody_goes_without_reason", LAGS),
    (wait_without_budget, "rooms_wait_within_budgets", WAITS),
    (cancel_without_paying, "rooms_wait_within_budgets", WAITS),
    (wait_for_free, "rooms_wait_within_budgets", WAITS),
    (wait_for_the_disconnected, "rooms_wait_within_budgets", WAITS),
    (disconnect_at_the_first_stall, "only_the_stalled_are_too_slow", WAITS),
    (see_no_progress, "only_the_stalled_are_too_slow", WAITS),
    (forget_notices, "nothing_lost", LAGS),
    (lose_the_notice_in_hand, "nothing_lost", LAGS),
    (forget_nonces, "nonces_are_once", {}),
    (forget_nonces, "nothing_twice", {}),
    (restore_no_nonces, "nonces_are_once", {}),
    (resume_without_damaged_nonces, "nonces_are_once", {"damaged_reads": 0.5}),
    (pass_over_damaged_pages, "nothing_missed_nor_twice", {}),
    (tell_before_it_is_kept, "journal_first", {}),
    (say_nothing_of_what_is_not_kept, "what_is_not_kept_is_not_said", {}),
    (let_anybody_be_somebody, "sessions_hold", {}),
    (let_nobody_back, "sessions_hold", {}),
    (let_back_after_any_time, "sessions_hold", {}),
    (forget_the_room, "sessions_hold", {}),
    (keep_rooms_late, "sessions_are_kept_with_messages", {}),
    (let_the_kicked_back, "sessions_hold", {}),
    (tell_of_every_absence, "short_absences_are_not_told", {}),
    (keep_the_epoch_of_a_backup, "ids_are_unique", {"restores": True}),
    (know_ids_beyond_a_backup, "unknown_ids_are_told", {"restores": True}),
    (
        keep_nonces_that_a_backup_does_not_have,
        "accepted_messages_are_published",
        {"restores": True},
    ),
    (back_up_too_little, "one_order", {"restores": True}),
    (back_up_too_little, "nothing_missed_nor_twice", {"restores": True}),
    (know_no_earlier_epochs, "nothing_missed_nor_twice", {"restores": True}),
    (call_all_by_the_present_epoch, "ids_are_in_order", {"restores": True}),
    (pass_over_unknown_ids, "unknown_ids_are_told", {}),
    (show_the_past_backwards, "history_is_what_was_said", {}),
]
