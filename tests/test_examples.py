"""Runs the examples as programs."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from multichat.testing import ScriptedClient

from .support.processes import (
    BIN,
    LOOPBACK,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    listening,
    program,
    serve,
)

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parent.parent / "examples"

# Each example with the name of its client, and its arguments besides the server.
CLIENTS = {
    "echo_bot.py": ("echo", []),
    "dice.py": ("dice", []),
    "follow_log.py": ("log", [__file__]),
}
SERVERS = {"server_in_a_nursery.py": ["3600"], "bot_in_the_server.py": []}
PROGRAMS = [*CLIENTS, *SERVERS, "bridge.py"]


def example(folder: Path, name: str, *arguments: object) -> Command:
    return Command(folder, sys.executable, str(EXAMPLES / name), *map(str, arguments))


@asynccontextmanager
async def joined(
    folder: Path, server: ServerCommand, name: str, *arguments: object
) -> AsyncIterator[Command]:
    """Start a bot, and wait until it is in the room."""
    called, _ = CLIENTS[name]
    async with example(folder, name, LOOPBACK, server.port, *arguments) as command:
        await server.wait_for(f"is now called {called}\n")
        yield command


@asynccontextmanager
async def bridged(
    folder: Path, server: ServerCommand, other: ServerCommand
) -> AsyncIterator[Command]:
    """Start a bridge, and wait until it is in both rooms."""
    ends = LOOPBACK, server.port, LOOPBACK, other.port
    async with example(folder, "bridge.py", *ends) as command:
        await server.wait_for("is now called bridge\n")
        await other.wait_for("is now called bridge\n")
        yield command


async def port_of(command: Command) -> int:
    """Return the port of an example once it listens."""
    await command.wait_for("listening on 0.0.0.0:")
    await command.wait_for("\n")
    return int(command.out.partition("0.0.0.0:")[2].partition(",")[0])


@asynccontextmanager
async def person(port: int, name: str = "") -> AsyncIterator[ScriptedClient]:
    """Connect a person with `nc` under *name*; the block has a time limit."""
    with trio.fail_after(WAIT_SECONDS):
        stream = await trio.open_tcp_stream(LOOPBACK, port)
        try:
            client = ScriptedClient(stream)
            if name:
                await client.send(f"/name {name}")
                assert (await client.line()).endswith(f" is now {name}")
            yield client
        finally:
            await trio.aclose_forcefully(stream)


# --- Bots -----------------------------------------------------------------------------------------


async def test_the_echo_bot_repeats_what_people_say(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        joined(tmp_path, server, "echo_bot.py") as bot,
        person(server.port, "alice") as alice,
    ):
        await alice.send("hello", "echo: not this", "bye")
        assert await alice.lines(2) == ["[echo] echo: hello", "[echo] echo: bye"]
        bot.signal(signal.SIGINT)
        assert await bot.wait() == 0
        assert bot.err == ""


async def test_dice_are_rolled_for_everybody(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        joined(tmp_path, server, "dice.py"),
        person(server.port, "alice") as alice,
        person(server.port, "bob") as bob,
    ):
        await alice.send("!roll 2d6")
        rolled = await alice.line()
        found = re.fullmatch(r"\[dice\] alice rolls 2d6: ([1-6]) \+ ([1-6]) = (\d+)", rolled)
        assert found, rolled
        assert int(found[1]) + int(found[2]) == int(found[3])
        assert await bob.lines(2) == ["[alice] !roll 2d6", rolled]

        await bob.send("!roll 100D1000")
        assert await alice.line() == "[bob] !roll 100D1000"
        rolled = await alice.line()
        assert rolled == await bob.line()
        assert rolled.startswith("[dice] bob rolls 100d1000: ")
        dice, total = rolled.partition(": ")[2].split(" = ")
        shown = [int(number) for number in dice.split(" + ")]
        assert len(shown) == 100
        assert all(1 <= number <= 1000 for number in shown)
        assert sum(shown) == int(total)


async def test_dice_are_rolled_for_one_person_alone(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        joined(tmp_path, server, "dice.py"),
        person(server.port, "alice") as alice,
        person(server.port, "bob") as bob,
    ):
        await alice.send("/msg dice 3d1")
        assert await alice.line() == "[dice → you] 3d1: 1 + 1 + 1 = 3"
        await alice.send("/msg dice !roll d1")
        assert await alice.line() == "[dice → you] 1d1: 1"
        await alice.send("that was private")
        assert await bob.line() == "[alice] that was private"  # and nothing before it
        assert "d1" not in server.out


async def test_a_request_for_impossible_dice_is_answered_privately(tmp_path: Path) -> None:
    usage = "[dice → you] 2d6 is two dice of six sides: up to 100 of up to 1000"
    nonsense = ["banana", "d", "0d6", "2d0", "101d6", "2d1001", "9999999999d6", "-1d6", "٣d6"]
    async with (
        serve(tmp_path) as server,
        joined(tmp_path, server, "dice.py"),
        person(server.port, "alice") as alice,
        person(server.port, "bob") as bob,
    ):
        for request in nonsense:
            await alice.send(f"!roll {request}", f"/msg dice {request}")
            assert await alice.lines(2) == [usage, usage]
        await bob.send("thank you")
        assert await bob.lines(len(nonsense)) == [
            f"[alice] !roll {request}" for request in nonsense
        ]
        assert await alice.line() == "[bob] thank you"


async def test_the_bot_survives_a_client_that_leaves_before_the_answer(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, joined(tmp_path, server, "dice.py") as bot:
        async with person(server.port, "alice") as alice:
            await alice.send("!roll banana", "/msg dice banana", "/quit")
            await alice.rest()
        await server.wait_for("Client 2 disconnected")
        async with person(server.port, "bob") as bob:
            await bob.send("/msg dice 1d1")
            assert await bob.line() == "[dice → you] 1d1: 1"
        bot.signal(signal.SIGINT)
        assert await bot.wait() == 0


# --- A bridge -------------------------------------------------------------------------------------


async def test_a_bridge_carries_messages_and_names_both_ways(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as here,
        serve(tmp_path) as there,
        bridged(tmp_path, here, there) as bridge,
        person(here.port, "alice") as alice,
        person(there.port, "bob") as bob,
    ):
        await alice.send("hello over there", "/me waves")
        assert await bob.lines(2) == [
            "[bridge] <alice> hello over there",
            "[bridge] * alice waves",
        ]
        await bob.send("hello back", "/me bows", "//usr is full")
        # Alice received none of her own messages before that.
        assert await alice.lines(3) == [
            "[bridge] <bob> hello back",
            "[bridge] * bob bows",
            "[bridge] <bob> /usr is full",
        ]
        await alice.send("é" * 30_000)  # less than 64 KiB, but not with a name before it
        assert await bob.line() == "[bridge] <alice> " + "é" * 15_000
        await bob.send("still there?")
        assert await alice.line() == "[bridge] <bob> still there?"

        bridge.signal(signal.SIGINT)
        assert await bridge.wait() == 0
        assert bridge.err == ""
        await there.wait_for("Client 1 disconnected (bridge)\n")


async def test_a_second_bridge_cannot_make_a_loop(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as here,
        serve(tmp_path) as there,
        bridged(tmp_path, here, there),
        example(tmp_path, "bridge.py", LOOPBACK, there.port, LOOPBACK, here.port) as second,
    ):
        assert await second.wait() == 1
        assert second.err == "bridge: the name 'bridge' is taken\n"


async def test_a_bridge_recovers_when_both_sides_reconnect(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as here,
        serve(tmp_path) as there,
        bridged(tmp_path, here, there) as bridge,
    ):
        async with person(here.port, "alice") as alice, person(there.port, "bob") as bob:
            await alice.send("does it stand?")
            assert await bob.line() == "[bridge] <alice> does it stand?"
        for server in here, there:
            server.process.kill()
            await server.wait()
        async with (
            serve(tmp_path, port=here.port) as here_again,
            serve(tmp_path, port=there.port) as there_again,
        ):
            for server in here_again, there_again:
                await server.wait_for("is now called bridge")
            async with person(here.port, "alice") as alice, person(there.port, "bob") as bob:
                await bob.send("it does")
                assert await alice.line() == "[bridge] <bob> it does"
            bridge.signal(signal.SIGINT)
            assert await bridge.wait() == 0


async def test_a_bridge_needs_a_server_that_grants_names(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as here,
        listening() as (listener, port),
        example(tmp_path, "bridge.py", LOOPBACK, here.port, LOOPBACK, port) as bridge,
        await listener.accept() as stream,
    ):
        await stream.send_all(b"a banner\n")
        assert await bridge.wait() == 1
        assert bridge.err == "bridge: a server that grants no names could have two bridges\n"


async def test_a_bridge_needs_a_server_that_answers(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as here,
        listening() as (_, port),  # a server that never answers
        example(tmp_path, "bridge.py", LOOPBACK, here.port, LOOPBACK, port) as bridge,
    ):
        assert await bridge.wait() == 1
        assert bridge.err.startswith("bridge: the server did not answer in 10 s")
        assert bridge.err.count("\n") == 1


# --- A log ----------------------------------------------------------------------------------------


def append(path: Path, text: str) -> None:
    with path.open("a") as file:  # in one write
        file.write(text)


async def test_a_log_is_followed_through_rotation(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("old\n")
    async with (
        serve(tmp_path) as server,
        person(server.port, "alice") as alice,
        joined(tmp_path, server, "follow_log.py", log) as follower,
    ):
        append(log, "one\n\ntwo\nthr")
        assert await alice.lines(2) == ["[log] one", "[log] two"]
        append(log, "ee\n")
        assert await alice.line() == "[log] three"

        # Rotated: lines written to the old file count, and for a while there is no new file.
        rotated = log.rename(tmp_path / "app.log.1")
        append(rotated, "late\nunfinished")
        assert await alice.line() == "[log] late"
        log.write_text("new\n")
        assert await alice.lines(2) == ["[log] unfinished", "[log] new"]

        append(log.rename(tmp_path / "app.log.2"), "last\n")  # usually between two polls
        log.write_text("newest\n")
        assert await alice.lines(2) == ["[log] last", "[log] newest"]

        log.write_text("x\n")  # truncated, and written to
        assert await alice.line() == "[log] x"
        append(log, "y" * 20_000 + "\n\x1b[2J\n")
        assert await alice.lines(2) == [
            "[log] the line was longer than 16384 bytes and was dropped",
            "[log] ␛[2J",
        ]
        append(log, "".join(f"{number}\n" for number in range(5000)))
        assert await alice.lines(5000) == [f"[log] {number}" for number in range(5000)]

        follower.signal(signal.SIGINT)
        assert await follower.wait() == 0
        assert follower.err == ""


async def test_a_log_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.log"
    async with example(tmp_path, "follow_log.py", LOOPBACK, 9000, missing) as follower:
        assert await follower.wait() == 1
        assert follower.err == (
            f"follow_log: [Errno 2] No such file or directory: {str(missing)!r}\n"
        )


# --- A notifier -----------------------------------------------------------------------------------


def notify(folder: Path, *arguments: object) -> Command:
    script = program("sh"), str(EXAMPLES / "notify_ci.sh")
    path = f"PATH={BIN}{os.pathsep}{os.environ['PATH']}"
    return Command(folder, program("env"), path, *script, *map(str, arguments))


async def test_the_notifier_says_whether_a_command_passed(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, person(server.port, "alice") as alice:
        async with notify(tmp_path, LOOPBACK, server.port, "echo", "a  b") as passing:
            assert await alice.line() == "[ci] passed: echo a  b"
            assert await passing.wait() == 0
            assert (passing.out, passing.err) == ("a  b\n", "")
        await server.wait_for("Client 2 disconnected (ci)\n")
        async with notify(tmp_path, LOOPBACK, server.port, "sh", "-c", "exit 3") as failing:
            assert await alice.line() == "[ci] failed with status 3: sh -c exit 3"
            assert await failing.wait() == 3
            assert (failing.out, failing.err) == ("", "")


@pytest.mark.parametrize("status", [0, 3])
async def test_an_unreachable_chat_does_not_fail_the_build(tmp_path: Path, status: int) -> None:
    async with listening() as (_, port):
        pass
    async with notify(tmp_path, LOOPBACK, port, "sh", "-c", f"exit {status}") as command:
        assert await command.wait() == status
        assert command.err == (
            f"multichat: cannot connect to {LOOPBACK} port {port}: connection refused\n"
        )


async def test_the_notifier_prints_its_usage(tmp_path: Path) -> None:
    assert os.access(EXAMPLES / "notify_ci.sh", os.X_OK)
    async with notify(tmp_path, LOOPBACK, 9000) as command:
        assert await command.wait() == 2
        assert command.err == "usage: notify_ci.sh HOST PORT COMMAND [ARGUMENT ...]\n"


# --- Servers --------------------------------------------------------------------------------------


async def test_a_server_runs_in_another_programs_nursery(tmp_path: Path) -> None:
    async with example(tmp_path, "server_in_a_nursery.py", 0, 3) as server:
        port = await port_of(server)
        async with person(port) as client:
            goodbye = "[Server] goodbye: the server is shutting down"
            assert (await client.rest())[-2:] == ["[Server] 3 seconds", goodbye]
        assert await server.wait() == 0
        assert "told 1 clients: 3 seconds" in server.out
        assert server.err == ""


async def test_a_greeter_in_the_server_welcomes_clients_that_join(tmp_path: Path) -> None:
    async with example(tmp_path, "bot_in_the_server.py", 0) as server:
        port = await port_of(server)
        async with person(port) as early:
            answer = ""
            while answer != "[Server] pong":  # the server does not wait for bots
                await early.send("/msg greeter hello", "/ping")
                answer = await early.line()
                if answer == "[Server] nobody here is called 'greeter'":
                    assert await early.line() == "[Server] pong"
            async with person(port) as late:  # unnamed, because it may miss the welcome
                while await late.line() != "[greeter] welcome, Client 3!":
                    pass
            while await early.line() != "[greeter] welcome, Client 3!":
                pass


@pytest.mark.parametrize("name", SERVERS)
async def test_a_port_that_is_taken_is_one_line(tmp_path: Path, name: str) -> None:
    async with example(tmp_path, "bot_in_the_server.py", 0) as first:
        port = await port_of(first)
        async with example(tmp_path, name, port, *SERVERS[name]) as second:
            assert await second.wait() == 1
            reason = f"cannot listen on port {port}: address already in use"
            assert second.err == f"{name.removesuffix('.py')}: {reason}\n"


# --- All of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLIENTS, "bridge.py"])
async def test_an_unreachable_server_is_one_line(tmp_path: Path, name: str) -> None:
    async with listening() as (_, port):
        pass
    _, more = CLIENTS.get(name, ("", [LOOPBACK, str(port)]))
    async with example(tmp_path, name, LOOPBACK, port, *more) as command:
        assert await command.wait() == 1
        reason = f"cannot connect to {LOOPBACK} port {port}: connection refused"
        assert command.err == f"{name.removesuffix('.py')}: {reason}\n"


@pytest.mark.parametrize("name", PROGRAMS)
async def test_each_example_exits_quietly_on_ctrl_c(tmp_path: Path, name: str) -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if name in SERVERS:
            command = await enter(example(tmp_path, name, 0, *SERVERS[name]))
            await port_of(command)
        elif name in CLIENTS:
            server = await enter(serve(tmp_path))
            command = await enter(joined(tmp_path, server, name, *CLIENTS[name][1]))
        else:
            here, there = await enter(serve(tmp_path)), await enter(serve(tmp_path))
            command = await enter(bridged(tmp_path, here, there))
        command.signal(signal.SIGINT)
        assert await command.wait() == 0
        assert command.err == ""


async def test_each_example_prints_its_usage(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        commands = [await stack.enter_async_context(example(tmp_path, name)) for name in PROGRAMS]
        for name, command in zip(PROGRAMS, commands, strict=True):
            assert await command.wait() == 1, name
            assert f"python examples/{name} " in command.err


def test_the_examples_of_tests_pass() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", str(EXAMPLES / "test_in_memory.py")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert "3 passed" in result.stdout, result.stdout


def test_each_example_says_how_to_run_it_and_what_it_leaves_out() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert names == {*PROGRAMS, "notify_ci.sh", "test_in_memory.py"}
    for name in names:
        text = (EXAMPLES / name).read_text("utf-8")
        assert "Run it" in text, name
        assert "leaves out: " in text, name
