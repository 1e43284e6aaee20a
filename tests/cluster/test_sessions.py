"""Sessions in the engine: their size, and which are evicted."""

from collections.abc import AsyncIterator, Sequence

import pytest

from multichat.cluster.calls import Status, append
from multichat.cluster.changes import (
    Gone,
    PutClient,
    ReadSession,
    SaveSession,
    Settings,
    TakeSession,
)
from multichat.cluster.library import library_text
from multichat.protocol.messages import MAX_UNACCEPTED, Nonce

from .engine import Engine
from .functions import block
from .scripted_node import ScriptedNode, digest, record

pytestmark = pytest.mark.process

# The longest that a client can send: 128 characters of four bytes.
_LONG = ["😀" * 124 + f"{number:04d}" for number in range(MAX_UNACCEPTED)]

# A node's key for the record of a session.
_RECORD = '{"name":"alice","rooms":["lobby"],"login":""}'


class Visits:
    """Clients that join and leave on a node, each with a session."""

    def __init__(self, engine: Engine, **limits: int) -> None:
        self._engine, self._calls = engine, 0
        self.node = ScriptedNode(engine, "a", Settings(**limits))

    async def open(self) -> None:
        await self._engine.call("FUNCTION", "LOAD", library_text())
        await self.node.join()

    async def come(self, *clients: int, origin: str, nonces: Sequence[Nonce] = ()) -> None:
        """Connect them, and let each send a message with each of these *nonces*."""
        for client in clients:
            session = SaveSession(digest(f"{client}"), client, 1, _RECORD, True)
            await self.node.change(PutClient.of(record(client, origin=origin)), session)
            await self.say(client, nonces)

    async def leave(self, *clients: int) -> None:
        for client in clients:
            left = SaveSession(digest(f"{client}"), client, 1, _RECORD, False)
            await self.node.change(left, Gone(client, 1, "", -1))

    async def visit(self, *clients: int, origin: str, nonces: Sequence[Nonce] = ()) -> None:
        await self.come(*clients, origin=origin, nonces=nonces)
        await self.leave(*clients)

    async def known(self, *clients: int) -> set[int]:
        """Return which of *clients* have a session."""
        found = await self._engine.call(
            "HMGET", "multichat:sessions", *(digest(f"{client}") for client in clients)
        )
        return {client for client, each in zip(clients, found, strict=True) if each is not None}

    async def resume(self, client: int) -> None:
        assert (await self.node.one(TakeSession(digest(f"{client}"), 1)))[0] == "ok"

    async def say(self, client: int, nonces: Sequence[Nonce]) -> None:
        """Append a message for each of *nonces*."""
        if not nonces:
            return
        self._calls += 1
        said = block("\n".join("x" for _ in nonces), client=client, nonces=tuple(nonces))
        call = append(self.node.name, self.node.run, self._calls, [said], nonce_seconds=3600)
        [answer] = call.read(await self._engine.call(*call.words))
        assert answer.status == Status.APPENDED

    async def counted(self) -> int:
        return int(await self._engine.call("GET", "multichat:sessions:bytes") or 0)

    async def used(self) -> int:
        await self._engine.call("DEL", "multichat:directory:log", "multichat:log:lobby")
        return int((await self._engine.info("memory"))["used_memory"])

    async def is_consistent(self) -> None:
        """Check the invariant of sessions.lua."""
        call, counted = self._engine.call, await self.counted()
        of = [int(each) for each in await call("HVALS", "multichat:sessions:of")]
        assert sum(of) == counted
        ranks = await call("ZRANGE", "multichat:sessions:places", 0, -1)
        assert len(ranks) == len(of)
        places = [rank.decode().partition(" ")[2] for rank in ranks]
        sizes = [await call("ZCARD", f"multichat:sessions:of:{place}") for place in places]
        left = await call("ZCARD", "multichat:sessions:left")
        assert sum(sizes) == left == await call("HLEN", "multichat:sessions:away")


@pytest.fixture
async def visits(engine: Engine) -> AsyncIterator[Visits]:
    made = Visits(engine, max_sessions=100, session_bytes=1 << 20)
    await made.open()
    yield made
    await made.is_consistent()


async def test_session_churn_from_one_address_does_not_evict_other_addresses(
    visits: Visits,
) -> None:
    others = range(80)
    for client in others:
        await visits.visit(client, origin=f"192.0.2.{client}" if client % 2 else "")
    for client in range(100, 400):
        await visits.visit(client, origin="192.0.2.200")
    assert await visits.known(*others, 399) == {*others, 399}
    # Nor do those whose nonces take more than all that is allowed.
    for client in range(400, 440):
        await visits.visit(client, origin="192.0.2.200", nonces=_LONG)
        assert await visits.counted() <= 1 << 20
    assert await visits.known(*others, 439) == {*others, 439}


async def test_among_addresses_with_one_session_each_the_oldest_is_evicted(visits: Visits) -> None:
    for client in range(150):
        # The longer name of some does not matter, nor a few messages.
        await visits.visit(client, origin=f"192.0.2.{client}", nonces=range(client % 3))
    assert await visits.known(*range(150)) == set(range(50, 150))


async def test_a_session_that_was_resumed_or_has_ended_is_not_counted(visits: Visits) -> None:
    await visits.visit(*range(5), origin="192.0.2.1", nonces=range(10))
    await visits.visit(*range(5, 10), origin="", nonces=range(10))
    for client in range(10):
        assert await visits.counted() > 0
        await visits.is_consistent()
        await visits.resume(client)
    assert await visits.counted() == 0


async def test_nonces_that_come_after_their_client_has_left_are_counted(visits: Visits) -> None:
    await visits.visit(1, 2, origin="192.0.2.1")
    before = await visits.counted()
    await visits.say(1, _LONG)
    assert await visits.counted() > before + 10_000


async def test_the_longest_nonces_of_many_clients_do_not_fill_the_engine(engine: Engine) -> None:
    """The engine's memory equals the counted bytes within a tenth, and both are bounded."""
    most = 4 << 20
    visits = Visits(engine, session_bytes=most)
    await visits.open()
    before = await visits.used()
    await visits.come(*range(20), origin="192.0.2.1", nonces=_LONG)
    connected = (await visits.used() - before) / 20
    assert connected < 100_000
    await visits.leave(*range(20))
    for client in range(20, 120):
        await visits.visit(client, origin=f"192.0.2.{client}", nonces=_LONG)
    counted, used = await visits.counted(), await visits.used() - before
    assert counted <= most
    assert used < 1.1 * most + 200_000


async def test_answers_that_are_kept_have_no_nonces_and_repeated_ones_have_them(
    engine: Engine,
) -> None:
    visits = Visits(engine)
    await visits.open()
    await visits.visit(1, origin="192.0.2.1", nonces=_LONG)
    node = visits.node
    reads = [ReadSession(digest("1"))] * 20
    results = await node.change(*reads, TakeSession(digest("1"), 1))
    assert {len(result[4]) for result in results} == {2 * MAX_UNACCEPTED}  # each with its value
    assert await node.repeat(*reads, TakeSession(digest("1"), 1)) == results
    kept = f"multichat:run:{node.run}:answer"
    assert await engine.call("MEMORY", "USAGE", kept, "SAMPLES", 0) < 10_000  # once they take 90 KB


def test_sessions_take_at_most_a_quarter_of_an_engine_that_is_bounded() -> None:
    settings = Settings(session_bytes=64 << 20)
    assert settings.within(0) == settings
    assert settings.within(1 << 30) == settings
    assert settings.within(64 << 20).session_bytes == 16 << 20
