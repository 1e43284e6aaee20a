"""Retention of a SQLite journal: what is deleted, when, and how it is logged."""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from multichat import ServerConfig
from multichat.errors import TooManyRooms
from multichat.journal.base import SessionRecord
from multichat.journal.retention import Deleted, SteadyClock, SteadyTime, format_seconds
from multichat.journal.sqlite.deletion import DeletionLog, DeletionResult
from multichat.journal.sqlite.journal import Retention, SqliteJournal, SqliteLimits
from multichat.journal.sqlite.limits import Durability
from multichat.log import Log
from multichat.protocol.timestamps import read_clocks
from multichat.server.config import ReplayLimits
from multichat.server.server import Server, serve
from multichat.testing import MemoryServer, memory_server
from tests.support.journals import (
    ALICE,
    LOTS,
    encode,
    nonces_of,
    record_of,
    running,
    say,
    texts_of,
    tidy,
    wait_stored,
)
from tests.support.programs import JsonClient, join

pytestmark = pytest.mark.process

HOUR = 3600.0
DAY = 24 * HOUR
YEAR = 365 * DAY
NOW = 1_750_000_000.0
MIB = 1024 * 1024
MONTH = Retention(max_age_seconds=30 * DAY)


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self, wall: float = NOW) -> None:
        self.wall, self.monotonic = wall, 5000.0

    def __call__(self) -> tuple[float, float]:
        return self.wall, self.monotonic

    async def run(self, journal: SqliteJournal, seconds: float) -> None:
        """Let time pass, while the journal deletes now and then."""
        await tidy(journal)
        while seconds > 0:
            step = min(seconds, 60.0)
            self.wall += step
            self.monotonic += step
            seconds -= step
            await tidy(journal)


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


async def write_dated(path: Path, *texts_and_times: tuple[str, float]) -> None:
    """Write one message each, with its date."""
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        for text, seconds in texts_and_times:
            pending = room.append(encode(room, text, time=stamp(seconds)))
        await wait_stored(pending)


def opened(path: Path, clocks: Clocks, retention: Retention = MONTH) -> SqliteJournal:
    # Nothing is deleted but by the test, which sets the clock in between.
    return SqliteJournal(
        path, retention=retention, clocks=clocks, limits=SqliteLimits(tidy_seconds=1e6)
    )


async def left(journal: SqliteJournal, room: str = "lobby") -> list[str]:
    return await texts_of(journal.room(room), 0, LOTS)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "multichat.server")
    return caplog


def lines(log: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [str(record.msg) for record in log.records if part in str(record.msg)]


def deleted_from(log: pytest.LogCaptureFixture) -> Counter[str]:
    """Return the deletions in the log: how many of what, for which reason."""
    deleted: Counter[str] = Counter()
    for line in lines(log, "Deleted from the journal: "):
        count, what = line.partition("journal: ")[2].split(" ", 1)
        deleted[what] += int(count)
    return deleted


# --- While clients resume -------------------------------------------------------------------------


def number_of(id_: str) -> int:
    return int(id_.rpartition("-")[2])


class Turns:
    """The turns of a writer, for which others wait."""

    def __init__(self) -> None:
        self._next, self._over = trio.Event(), False

    def take(self, *, last: bool = False) -> None:
        self._next.set()
        self._over = last
        if not last:
            self._next = trio.Event()

    async def wait_for(self, turns: int) -> None:
        """Wait for that many deletion steps, or for the last one."""
        while turns and not self._over:
            await self._next.wait()
            turns -= 1


class Resumer:
    """A client that resumes all the time, and records what it receives."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._hello: dict[str, object] = {}
        self._nonces = 0
        self._unaccepted: dict[str, object] | None = None
        self._said: set[int] = set()
        self._heard: list[tuple[int, int]] = []  # the number of a message, the `missed` before it
        self._end = False

    async def run(self, network: MemoryServer, turns: Turns) -> None:
        """Resume, read a little, break off and stay away, until the last message is there."""
        while not self._end:
            client = await join(network, **self._hello)
            self._hello.setdefault("since", client.welcome["last"])
            self._hello["session"] = client.welcome["session"]
            await self._read(client)
            await client.reset()
            await turns.wait_for(self._random.choice((0, 2, 30)))

    async def _read(self, client: JsonClient) -> None:
        if self._random.random() < 0.3 and self._unaccepted is None:
            self._nonces += 1
            self._unaccepted = {"type": "say", "text": "mine", "nonce": self._nonces}
        if self._unaccepted is not None:
            await client.send(self._unaccepted)
        missed, left = 0, self._random.choice((1, 5, 60))
        while left > 0 or (self._end and self._unaccepted is not None):
            event = await client.hear("said", "missed", "accepted", "error")
            assert event["type"] != "error"
            if event["type"] == "missed":
                missed += event["count"]
            elif event["type"] == "accepted":
                self._said.add(number_of(event["id"]))
                self._unaccepted = None
            else:
                self._heard.append((number_of(event["id"]), missed))
                missed, left = 0, left - 1
                self._hello["since"] = event["id"]
                if event["text"] == "the end":
                    self._end, left = True, 0

    def check(self) -> int:
        """Check that each message of others was received or counted; return the count of missed."""
        for (last, _), (number, missed) in pairwise(self._heard):
            own = sum(last < each < number for each in self._said)
            assert number - last - 1 - own == missed, f"between {last} and {number}"
        return sum(missed for _, missed in self._heard)


@pytest.mark.parametrize(
    "retention",
    [Retention(max_messages=30), Retention(max_bytes=MIB)],
    ids=["messages", "bytes"],
)
async def test_clients_that_resume_during_deletion_get_each_message_or_the_count_of_missed_ones(
    retention: Retention, tmp_path: Path
) -> None:
    journal = SqliteJournal(
        tmp_path / "chat.db",
        durability=Durability.NORMAL,  # 1,000 waits for a disk that others use may take a minute
        retention=retention,
        limits=SqliteLimits(tidy_seconds=0.01),
    )
    # Of the newest messages only two are in memory.
    config = ServerConfig(replay=ReplayLimits(ring_bytes=1, page_messages=7))
    random, turns, resumers = Random(0), Turns(), [Resumer(seed) for seed in range(6)]
    with trio.fail_after(60):
        async with memory_server(config, journal=journal) as network:
            writer = await join(network)
            await writer.ask("say", text="the beginning")
            async with trio.open_nursery() as nursery:
                for each in resumers:
                    nursery.start_soon(each.run, network, turns)
                for _ in range(150):
                    texts = ["x" * random.choice((5, 3000))] * random.choice((1, 5, 40))
                    await writer.send(*({"type": "say", "text": text} for text in texts))
                    await writer.ask("say", text="y")
                    turns.take()
                await writer.ask("say", text="the end")
                turns.take(last=True)
    assert sum(each.check() for each in resumers) > 100


# --- By age ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_start", [True, False])
async def test_a_clock_that_is_ahead_for_six_seconds_deletes_nothing(
    tmp_path: Path, at_start: bool, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, ("a year ago", NOW - YEAR), ("a day ago", NOW - DAY))
    clocks = Clocks()
    if at_start:
        clocks.wall += 400 * DAY
    async with running(opened(path, clocks)) as journal:
        if not at_start:
            await clocks.run(journal, 60.0)
            clocks.wall += 400 * DAY
        await clocks.run(journal, 6.0)
        clocks.wall -= 400 * DAY
        await clocks.run(journal, 5 * HOUR)
        assert await left(journal) == ["a year ago", "a day ago"]
        await clocks.run(journal, 2 * HOUR)
        assert await left(journal) == ["a day ago"]
    assert lines(log, "Deleted") == [
        "[STATE] Deleted from the journal: 1 message of 1 room (older than 30 days)"
    ]


async def test_a_server_that_was_down_for_400_days_logs_deletions_in_advance(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, *((f"{n}", NOW) for n in range(1200)))
    clocks = Clocks(NOW + 400 * DAY)
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 5 * HOUR)
        assert len(await left(journal)) == 1200
        [warning] = lines(log, "Messages older")
        assert "older than 30 days are deleted in 6 hours, if the clock" in warning
        assert not lines(log, "Deleted")
        await clocks.run(journal, 2 * HOUR)
        assert await left(journal) == []
        room = journal.room("lobby")
        assert (room.first, room.next) == (1200, 1200)
    assert lines(log, "Deleted") == [
        "[STATE] Deleted from the journal: 1200 messages of 1 room (older than 30 days)"
    ]


async def test_messages_dated_ahead_do_not_protect_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    ahead = [(f"ahead {n}", NOW + 400 * DAY) for n in range(1200)]
    await write_dated(path, *ahead, ("old", NOW - 40 * DAY), ("new", NOW - DAY))
    clocks = Clocks()
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 7 * HOUR)
        assert await left(journal) == ["new"]


async def test_messages_dated_ahead_are_kept_as_long_as_those_that_follow(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, ("old", NOW - YEAR), ("ahead", NOW + YEAR), ("new", NOW - DAY))
    clocks = Clocks()
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 7 * HOUR)
        assert await left(journal) == ["ahead", "new"]


async def test_messages_dated_too_early_are_kept_as_long_as_those_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, ("old", NOW - YEAR), ("new", NOW - DAY), ("behind", NOW - YEAR))
    clocks = Clocks()
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 7 * HOUR)
        assert await left(journal) == ["new", "behind"]


async def test_messages_since_the_start_are_never_older_than_the_server(tmp_path: Path) -> None:
    clocks = Clocks(NOW - YEAR)
    retention = Retention(max_age_seconds=18 * HOUR)
    async with running(opened(tmp_path / "chat.db", clocks, retention)) as journal:
        room = journal.room("lobby")
        text = "while the clock was behind"
        await wait_stored(room.append(encode(room, text, time=stamp(clocks.wall))))
        await clocks.run(journal, HOUR)
        clocks.wall += YEAR
        await clocks.run(journal, 16 * HOUR)
        assert await left(journal) == [text]
        await clocks.run(journal, 2 * HOUR)
        assert await left(journal) == []


@pytest.mark.parametrize(
    "column", ["room", "first", "messages", "bytes", "time", "shown", "client", "name", "text"]
)
@pytest.mark.parametrize("value", ["NULL", "x'ff'", "-1"])
async def test_retention_continues_after_a_damaged_row(
    tmp_path: Path, column: str, value: str
) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, ("older", NOW - YEAR), ("old", NOW - YEAR), ("new", NOW - DAY))
    with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.IntegrityError):
        connection.execute(f"UPDATE runs SET {column} = {value} WHERE seq = 1")
        connection.commit()
    clocks = Clocks()
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 7 * HOUR)
        assert (await left(journal))[-1] == "new"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT text FROM runs").fetchall() == [("new",)]


async def test_a_short_age_does_not_wait_for_hours(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, ("old", NOW - HOUR))
    clocks = Clocks()
    async with running(opened(path, clocks, Retention(max_age_seconds=60))) as journal:
        await clocks.run(journal, 50)
        assert await left(journal) == ["old"]
        await clocks.run(journal, 20)
        assert await left(journal) == []


async def test_numbers_continue_after_all_messages_of_a_room_were_deleted(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write_dated(path, *((f"{n}", NOW - YEAR) for n in range(700)))
    clocks = Clocks()
    async with running(opened(path, clocks)) as journal:
        await clocks.run(journal, 7 * HOUR)
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        assert (room.first, room.next) == (700, 700)
        await say(room, "on")
        assert await left(journal) == ["on"]
        assert room.next == 701


async def test_sessions_are_deleted_after_a_day_whatever_the_wall_clock_says(
    tmp_path: Path,
) -> None:
    clocks = Clocks()
    path = tmp_path / "chat.db"
    async with running(opened(path, clocks, Retention())) as journal:
        clocks.wall -= YEAR  # it is behind, and right again
        journal.save_session(ALICE, connected=False)
        await say(journal.room("den"), "x", nonces=("n",))
        clocks.wall += YEAR
        await clocks.run(journal, HOUR)
        clocks.wall += YEAR  # it is ahead
        await clocks.run(journal, HOUR)
        clocks.wall -= YEAR
        await clocks.run(journal, 10 * HOUR)
    clocks.wall += YEAR  # so long it is off, which counts as nothing
    async with running(opened(path, clocks, Retention())) as journal:
        kept = await journal.session(ALICE.digest)
        assert kept is not None
        assert kept.age_seconds == pytest.approx(12 * HOUR, abs=1000)
        assert len(kept.nonces) == 1
        await clocks.run(journal, 13 * HOUR)
        assert await record_of(journal, ALICE.digest) is None
        assert await nonces_of(journal, ALICE) == []


async def test_the_session_of_a_connected_client_never_expires(tmp_path: Path) -> None:
    clocks = Clocks()
    path = tmp_path / "chat.db"
    async with running(opened(path, clocks, Retention())) as journal:
        journal.save_session(ALICE, connected=True)
        await clocks.run(journal, 3 * DAY)
        kept = await journal.session(ALICE.digest)
        assert kept is not None
        assert kept.age_seconds == 0
    async with running(opened(path, clocks, Retention())) as journal:  # as after a `kill -9`
        await clocks.run(journal, 23 * HOUR)
        assert await record_of(journal, ALICE.digest) == ALICE
        await clocks.run(journal, 2 * HOUR)
        assert await record_of(journal, ALICE.digest) is None


def record(client: int) -> SessionRecord:
    return SessionRecord(digest=b"%032d" % client, client=client, name="", rooms=("lobby",))


async def known_sessions(journal: SqliteJournal, clients: range) -> list[int]:
    return [each for each in clients if await record_of(journal, record(each).digest) is not None]


def session_bytes(path: Path) -> int:
    """Return how many bytes sessions and nonces take, with nothing but their own values."""
    with closing(sqlite3.connect(path)) as connection:
        return sum(
            connection.execute(sql).fetchone()[0]
            for sql in (
                "SELECT total(length(digest) + length(room)) FROM sessions",
                "SELECT total(length(nonces) + length(checks)) FROM nonces",
            )
        )


async def test_above_the_size_limit_of_sessions_the_oldest_are_deleted(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """This is logged at first, and when the server shuts down."""
    limits = SqliteLimits(session_bytes=100_000, tidy_seconds=1e6, tell_seconds=1e6)
    clocks = Clocks()
    async with running(
        SqliteJournal(tmp_path / "chat.db", limits=limits, clocks=clocks)
    ) as journal:
        for client in range(1, 1001):
            journal.save_session(record(client), connected=client <= 10)
            if client % 50 == 0:
                await say(journal.room("lobby"), "x")
                await clocks.run(journal, 60)
        known = await known_sessions(journal, range(1, 1001))
        assert known[:10] == [*range(1, 11)]
        assert known[10:] == [*range(known[10], 1001)]
        assert 300 < len(known) < 400
        deleted = 1000 - len(known)
    assert len(lines(log, "Deleted")) <= 2
    assert deleted_from(log) == {"sessions (sessions above 0.0953674 MiB)": deleted}


async def keep_all(journal: SqliteJournal, clients: range, *, connected: bool) -> None:
    """Keep these sessions, each with 256 long nonces of private messages."""
    for client in clients:
        journal.save_session(record(client), connected=connected)
        for number in range(256):
            pending = journal.save_nonce(client, f"{number} {'z' * 120}", b"1234")
        await wait_stored(pending)


@pytest.mark.parametrize("connected", [False, True])
async def test_sessions_and_nonces_do_not_push_out_messages(
    connected: bool, tmp_path: Path, log: pytest.LogCaptureFixture, thread_clock: MockClock
) -> None:
    """Regression: they filled the file, and each new message was deleted."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path, retention=Retention(max_bytes=2 * MIB))) as journal:
        room = journal.room("lobby")
        texts = [f"{number} {'x' * 1000}" for number in range(800)]
        for text in texts:
            pending = room.append(encode(room, text))
        await wait_stored(pending)
        await keep_all(journal, range(1, 61), connected=connected)
        await say(room, "new")
        texts.append("new")
        await tidy(journal)
        assert await left(journal) == texts
        known = await known_sessions(journal, range(1, 61))
        assert known == [*range(61 - len(known), 61)]
        assert len(known) == 60 if connected else 5 < len(known) < 15
        kept = await journal.session(record(60).digest)
        assert kept is not None
        assert len(kept.nonces) == 256
    assert 300_000 < session_bytes(path) < 2 * MIB / 4
    what = "nonces" if connected else "sessions"
    deleted = deleted_from(log)
    assert [*deleted] == [f"{what} (sessions above 0.5 MiB)"]
    assert connected or sum(deleted.values()) == 60 - len(known)


async def test_many_sessions_do_not_push_out_messages(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    async with running(
        SqliteJournal(tmp_path / "chat.db", retention=Retention(max_bytes=2 * MIB))
    ) as journal:
        room = journal.room("lobby")
        texts = [f"{number} {'x' * 1000}" for number in range(800)]
        for text in texts:
            room.append(encode(room, text))
        for client in range(1, 20_001):
            journal.save_session(record(client), connected=False)
            if client % 500 == 0:
                await say(room, f"at {client}")
                texts.append(f"at {client}")
        await tidy(journal)
        assert await left(journal) == texts
        known = await known_sessions(journal, range(1, 20_001, 50))
        assert known == [*range(known[0], 20_001, 50)]
        assert 1000 < 50 * len(known) < 2500


async def test_a_session_that_is_about_to_be_written_keeps_its_nonces(tmp_path: Path) -> None:
    """It was deleted, and opened again without them."""
    clocks = Clocks()
    async with running(opened(tmp_path / "chat.db", clocks, Retention())) as journal:
        await keep_all(journal, range(1, 3), connected=False)
        clocks.wall += DAY
        for _ in range(30 * 60):
            clocks.monotonic += 60.0
            journal._clock.observe(*clocks())
        async with journal._writing:  # the disk is busy
            journal.save_session(record(1), connected=True)
            now = journal._clock.observe(*clocks())
            journal._deletions.step({}, [], now, journal._queue.kept_sessions())
        await say(journal.room("lobby"), "x")
        assert await known_sessions(journal, range(1, 3)) == [1]
        kept = await journal.session(record(1).digest)
        assert kept is not None
        assert len(kept.nonces) == 256


class TestSteadyClock:
    def test_a_clock_is_trusted_once_it_was_steady_for_long_enough(self) -> None:
        clock = SteadyClock(100)
        waits = [clock.observe(NOW + n, n).wait for n in range(0, 120, 30)]
        assert waits == [100, 70, 40, 10]
        assert clock.observe(NOW + 120, 120).wait == 0

    @pytest.mark.parametrize("step", [-YEAR, -61.0, 61.0, YEAR])
    def test_a_clock_that_was_set_must_be_steady_again(self, step: float) -> None:
        clock = SteadyClock(100)
        for n in range(0, 200, 10):
            assert clock.observe(NOW + n, n).wait == max(0, 100 - n)
        for n in range(200, 400, 10):
            assert clock.observe(NOW + n + step, n).wait == max(0, 300 - n)

    def test_ntp_corrections_do_not_make_a_clock_unsteady(self) -> None:
        clock = SteadyClock(HOUR)
        for n in range(0, 7200, 5):
            moment = clock.observe(NOW + n * 1.0005, n)
        assert moment.wait == 0

    def test_a_jump_of_both_clocks_counts_as_a_moment(self) -> None:
        clock = SteadyClock(HOUR)
        clock.observe(NOW, 0)
        moment = clock.observe(NOW + YEAR, YEAR)
        assert moment.wait == HOUR - 60
        assert moment.run == 60

    @given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e9, 1e9)), max_size=50))
    def test_a_single_clock_reading_does_not_advance_time(
        self, steps: list[tuple[float, float]]
    ) -> None:
        clock = SteadyClock(HOUR)
        wall = passed = 0.0
        clock.observe(wall, passed)
        for seconds, jump in steps:
            wall, passed = wall + seconds + jump, passed + seconds
            moment = clock.observe(wall, passed)
            assert moment.run <= passed + 1e-6
            assert moment.wait >= HOUR - passed - 1e-6
            if abs(jump) > 121:
                assert moment.wait == HOUR


def test_the_real_clocks_advance_alike() -> None:
    (wall, monotonic), (later, after) = read_clocks(), read_clocks()
    assert 0 <= after - monotonic < 60
    assert abs((later - wall) - (after - monotonic)) < 60


# --- What the log says ----------------------------------------------------------------------------


async def test_deletions_are_logged_once_a_minute_and_at_the_end(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    retention = Retention(max_messages=10)
    async with running(opened(tmp_path / "chat.db", Clocks(), retention)) as journal:
        for name in ("loud", "den", "loud"):
            room = journal.room(name)
            for n in range(600):
                pending = room.append(encode(room, f"{n}"))
            await wait_stored(pending)
            await tidy(journal)
            assert not await journal._tidy()  # deletes nothing, but learns what was deleted
        assert lines(log, "Deleted") == [
            "[STATE] Deleted from the journal: 590 messages of 1 room (above 10 a room)"
        ]
    assert lines(log, "Deleted")[1:] == [
        "[STATE] Deleted from the journal: 1190 messages of 2 rooms (above 10 a room)"
    ]


def test_deletions_are_logged_when_they_have_stopped_or_gone_on_for_a_minute(
    log: pytest.LogCaptureFixture,
) -> None:
    """Not one step earlier, and the rest a minute later."""
    deletions = DeletionLog(Log("server"), Retention(max_messages=1), 60.0)
    moment = SteadyTime(wall=0.0, wait=0.0, run=0.0)

    def note(now: float, messages: int, *, more: bool = False) -> list[str]:
        result = DeletionResult(more=more)
        if messages:
            result.deleted.add("test", messages, {1})
        log.clear()
        deletions.note(result, moment, now)
        return [line.split()[5] for line in lines(log, "Deleted")]

    assert note(0, 500, more=True) == note(1, 90) == []
    assert note(5, 0) == ["590"]
    for n in range(10, 70, 5):  # each five seconds, as with a limit for each room
        assert note(n, 10) == []
    assert note(70, 10) == ["130"]
    assert note(75, 10) == note(80, 0) == note(125, 0) == []
    assert note(130, 0) == ["10"]


async def test_deletions_are_logged_before_the_shutdown_line(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    limits = SqliteLimits(tidy_seconds=0.01)
    retention = Retention(max_messages=1)
    journal = SqliteJournal(tmp_path / "chat.db", retention=retention, limits=limits)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            start = partial(serve, 0, host="127.0.0.1", journal=journal)
            server: Server = await nursery.start(start)
            room = journal.room("lobby")
            for wait_for_line in (True, False):
                for n in range(5):
                    await say(room, f"{n}")
                    await wait_until(lambda: room.first == room.next - 1)
                if wait_for_line:
                    await wait_until(lambda: bool(lines(log, "Deleted")))
            server.shutdown()
    texts = [str(record.msg) for record in log.records]
    assert "Shutting down" in texts[-1]
    counts = [int(line.split()[5]) for line in lines(log, "Deleted")]
    assert (len(counts), sum(counts)) == (2, 9)


async def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await trio.sleep(0.01)


def test_deleted_messages_are_counted_for_each_reason() -> None:
    deleted, more = Deleted(), Deleted()
    assert not deleted
    deleted.add("old", 1_200_000, {1})
    more.add("old", 2, {1, 2})
    more.add("too many", 1, {3})
    more.add("old", 2, noun="session")
    deleted.update(more)
    assert deleted
    assert (
        str(deleted)
        == "1200002 messages of 2 rooms (old), 1 message of 1 room (too many), 2 sessions (old)"
    )


@pytest.mark.parametrize(
    ("seconds", "formatted"),
    [
        (30 * DAY, "30 days"),
        (DAY, "1 day"),
        (1.5 * HOUR, "1.5 hours"),
        (60.0, "1 minute"),
        (8.64, "8.6 seconds"),
        (0.01, "0 seconds"),
    ],
)
def test_durations_are_formatted_for_people(seconds: float, formatted: str) -> None:
    assert format_seconds(seconds) == formatted


# --- Rooms ----------------------------------------------------------------------------------------


async def test_new_rooms_are_refused_before_others_lose_messages(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path, limits=SqliteLimits(rooms=10))) as journal:
        for n in range(10):
            await say(journal.room(f"{n}"), "x")
        for name in ("new", "newer"):
            with pytest.raises(TooManyRooms, match="10"):
                journal.room(name)
        [told] = lines(log, "rooms")
        assert "accepts no new ones: limit the days of its history, or start a new file" in told
        await tidy(journal)
        for n in range(10):
            assert await left(journal, f"{n}") == ["x"]
        await say(journal.room("lobby"), "the lobby is always there")
    async with running(SqliteJournal(path, limits=SqliteLimits(rooms=10))) as journal:
        await tidy(journal)
        assert await left(journal, "0") == ["x"]
        with pytest.raises(TooManyRooms):
            journal.room("new")


async def test_rooms_without_messages_are_replaced_by_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    clocks = Clocks()
    limits = SqliteLimits(rooms=10, tidy_seconds=1e6)
    journal = SqliteJournal(path, retention=MONTH, limits=limits, clocks=clocks)
    async with running(journal):
        pass
    async with running(SqliteJournal(path)) as writer:
        for n in range(10):
            room = writer.room(f"{n}")
            age = YEAR if n < 3 else DAY
            await wait_stored(room.append(encode(room, "x", time=stamp(NOW - age))))
    async with running(journal):
        entered = journal.room("1")
        await clocks.run(journal, 7 * HOUR)
        epochs = {entered.epoch}
        # A room in use continues; one that is opened later has a new epoch.
        await say(entered, "on")
        assert (entered.first, entered.next) == (1, 2)
        assert await texts_of(entered, 0, LOTS) == ["on"]
        assert journal.room("2").epoch not in epochs
        assert journal.room("2").next == 0
        for n in range(3, 10):
            assert await left(journal, f"{n}") == ["x"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM rooms").fetchone() == (8,)


async def test_rooms_left_in_a_damaged_file_by_a_deletion_step_accept_messages(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    """Regression: they were dropped from memory, and refused messages until a restart."""
    path = tmp_path / "chat.db"
    limits = SqliteLimits(rooms=3, tidy_seconds=1e6)
    async with running(SqliteJournal(path, limits=limits)) as journal:
        for name in ("lobby", "a", "b"):
            await say(journal.room(name), "hello")
        room = journal.room("b")
        for number in range(1500):
            pending = room.append(encode(room, f"{number} {'y' * 900}"))
        await wait_stored(pending)
    with closing(sqlite3.connect(path)) as connection:
        [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("DELETE FROM runs WHERE room = (SELECT id FROM rooms WHERE name = 'a')")
        connection.execute("UPDATE rooms SET first = next WHERE name = 'a'")
        connection.commit()
    data = path.read_bytes()
    start = data.find(b"300 yyy") // page_bytes * page_bytes
    path.write_bytes(data[:start] + bytes(page_bytes) + data[start + page_bytes :])
    retention = Retention(max_messages=100)
    async with running(SqliteJournal(path, limits=limits, retention=retention)) as journal:
        more = True
        while more:
            more = await journal._tidy()
            with closing(sqlite3.connect(path)) as connection:
                names = {name for (name,) in connection.execute("SELECT name FROM rooms")}
            assert names == set(journal._rooms)
        await say(journal.room("a"), "again")


async def test_deleted_messages_are_counted_even_if_the_file_cannot_shrink(
    tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    limits = SqliteLimits(tidy_seconds=1e6)
    retention = Retention(max_messages=5)
    async with running(SqliteJournal(path, retention=retention, limits=limits)) as journal:
        room = journal.room("lobby")
        for _ in range(60):
            pending = room.append(encode(room, "x" * 60_000))
        await wait_stored(pending)
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

            def lock(statement: str) -> None:
                if statement.startswith("PRAGMA incremental_vacuum") and not other.in_transaction:
                    other.execute("BEGIN IMMEDIATE")

            journal._rows.connection.execute("PRAGMA busy_timeout=0")
            journal._rows.connection.set_trace_callback(lock)
            await tidy(journal)
            assert other.in_transaction
            assert room.first == 55
            journal._rows.connection.set_trace_callback(None)
            other.execute("ROLLBACK")
        assert len(await left(journal)) == 5


@pytest.mark.parametrize("wall", [-1e6, 0.0, 1e11])
async def test_a_clock_that_is_wrong_by_centuries_leaves_a_journal_that_opens(
    tmp_path: Path, wall: float
) -> None:
    path = tmp_path / "chat.db"
    texts: list[str] = []
    for second, text in ((wall, "one"), (NOW, "two"), (wall, "three")):
        async with running(SqliteJournal(path, clocks=Clocks(second))) as journal:
            await say(journal.room("lobby"), text)
            texts.append(text)
            assert await left(journal) == texts
