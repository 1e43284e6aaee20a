"""Sessions survive restarts and kills: room, name and nonces.

Real servers with a real file, which are killed or stopped, or keep few sessions in memory.
"""

import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.processes import ServerCommand, serve
from tests.support.programs import program

pytestmark = pytest.mark.process

DURABILITY = pytest.mark.parametrize("durability", ["full", "normal"])

CLIENTS = 30


def server(folder: Path, *options: str) -> ServerCommand:
    return serve(folder, "--journal", str(folder / "chat.db"), *options)


@DURABILITY
async def test_after_a_kill_a_client_is_in_the_room_in_which_its_message_was_accepted(
    durability: str, tmp_path: Path
) -> None:
    """However soon it sent the message after joining and taking its name."""
    async with server(tmp_path, "--durability", durability) as one, AsyncExitStack() as stack:
        alice = await stack.enter_async_context(program(one))
        bob = await stack.enter_async_context(program(one, name="bob", room="kitchen"))
        await alice.send(
            {"type": "name", "name": "alice"},
            {"type": "join", "room": "kitchen"},
            {"type": "say", "text": "hello", "nonce": 1},
        )
        accepted = await alice.answer(1)
        assert (await bob.hear("said"))["name"] == "alice"
        await bob.send({"type": "say", "text": "welcome", "nonce": 1})
        await bob.answer(1)
        one.process.kill()
    async with (
        server(tmp_path) as one,
        program(one, session=alice.welcome["session"], since=accepted["id"]) as again,
    ):
        welcome = again.welcome
        assert (welcome["resumed"], welcome["name"]) == (True, "alice")
        assert (welcome["room"], welcome["client"]) == ("kitchen", alice.welcome["client"])
        assert (await again.hear("said", "error"))["text"] == "welcome"
        assert await again.ask("say", text="hello", nonce=1) == accepted
        assert await again.history() == ["hello", "welcome"]


@pytest.mark.parametrize(
    "end", [signal.SIGTERM, signal.SIGKILL, None], ids=["ended", "killed", "runs on"]
)
async def test_sessions_evicted_from_memory_resume_from_the_journal(
    end: signal.Signals | None, tmp_path: Path
) -> None:
    tokens, accepted = [], []
    async with AsyncExitStack() as servers:
        one = await servers.enter_async_context(server(tmp_path, "--max-sessions", "1"))
        async with AsyncExitStack() as connections:
            for number in range(CLIENTS):
                each = await connections.enter_async_context(
                    program(one, name=f"guest{number}", room=f"room{number % 3}")
                )
                tokens.append(each.welcome["session"])
                accepted.append(await each.ask("say", text=f"{number}", nonce=1))
            if end is not None:
                one.signal(end)
                await one.wait()
        if end is not None:
            one = await servers.enter_async_context(server(tmp_path, "--max-sessions", "1"))
        for number, token in enumerate(tokens):
            async with program(one, session=token) as again:
                welcome = again.welcome
                assert (welcome["resumed"], welcome["name"]) == (True, f"guest{number}")
                assert welcome["room"] == f"room{number % 3}"
                assert await again.ask("say", text=f"{number}", nonce=1) == accepted[number]
        async with program(one, room="room0") as reader:
            assert await reader.history() == [f"{number}" for number in range(0, CLIENTS, 3)]


@pytest.mark.parametrize(
    "end", [signal.SIGTERM, signal.SIGKILL, None], ids=["ended", "killed", "evicted"]
)
async def test_a_private_message_that_is_sent_again_is_delivered_once(
    end: signal.Signals | None, tmp_path: Path
) -> None:
    message = {"to": "bob", "text": "psst", "nonce": 1}
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(server(tmp_path, "--max-sessions", "1"))
        bob = await stack.enter_async_context(program(one, name="bob"))
        async with program(one) as alice:
            accepted = await alice.ask("direct", **message)
            assert (await bob.hear("direct"))["text"] == "psst"
        if end is not None:
            one.signal(end)
            await one.wait()
            one = await stack.enter_async_context(server(tmp_path))
            session = bob.welcome["session"]
            bob = await stack.enter_async_context(program(one, session=session))
        else:
            for _ in range(3):
                async with program(one):
                    pass
        async with program(one, session=alice.welcome["session"]) as again:
            assert again.welcome["resumed"]
            assert await again.ask("direct", **message) == accepted
            changed = await again.ask("direct", to="bob", text="another", nonce=1)
            assert changed["code"] == "nonce-reused"
            await again.ask("direct", to="bob", text="the next", nonce=2)
        assert (await bob.hear("direct"))["text"] == "the next"


async def test_the_session_of_a_client_that_quit_is_deleted(tmp_path: Path) -> None:
    async with (
        server(tmp_path, "--max-sessions", "1") as one,
        program(one) as alice,
        program(one) as bob,
    ):
        await alice.send({"type": "quit"})
        await alice.hear("goodbye")
        for session in (alice.welcome["session"], "0" * 32, "x"):
            async with program(one, session=session) as again:
                assert not again.welcome["resumed"]
        one.process.kill()
    async with server(tmp_path) as one:
        async with program(one, session=alice.welcome["session"]) as again:
            assert not again.welcome["resumed"]
        async with program(one, session=bob.welcome["session"]) as again:
            assert again.welcome["resumed"]
