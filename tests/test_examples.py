"""The examples do what they say, as the programs that they are."""

import subprocess
import sys
from pathlib import Path

from .processes import LOOPBACK, Command, serve, tcp

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(folder: Path, name: str, *arguments: object) -> Command:
    return Command(folder, sys.executable, str(EXAMPLES / name), *map(str, arguments))


async def test_the_echo_bot_repeats_what_people_say(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        tcp(server) as person,
        example(tmp_path, "echo_bot.py", LOOPBACK, server.port) as bot,
    ):
        await server.wait_for("Client 2 connected")
        await person.send_all(b"hello\n")
        await server.wait_for("echo: hello")
        assert await person.receive_some() == b"[Client 2] echo: hello\n"
        server.process.terminate()
        assert await bot.wait() == 0


async def test_the_echo_bot_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    async with example(tmp_path, "echo_bot.py", "no-such-host.invalid", 9000) as bot:
        assert await bot.wait() == 1
        assert bot.err.startswith("echo_bot: cannot connect to no-such-host.invalid port 9000: ")


async def test_a_server_lives_in_somebody_elses_nursery(tmp_path: Path) -> None:
    async with example(tmp_path, "server_in_a_nursery.py", 0, 2) as program:
        await program.wait_for("listening on 0.0.0.0:")
        port = program.out.partition("0.0.0.0:")[2].partition(",")[0].strip()
        async with Command(
            tmp_path, sys.executable, "-m", "multichat", "connect", LOOPBACK, port
        ) as nc:
            await nc.wait_for("[RX] [Server] 2 seconds")
            await nc.wait_for("[RX] [Server] goodbye: the server is shutting down")
            assert await nc.wait() == 0
        assert await program.wait() == 0
        assert "told 1 clients: 2 seconds" in program.out


def test_the_example_of_a_test_passes() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", str(EXAMPLES / "test_in_memory.py")]
    result = subprocess.run(argv, capture_output=True, text=True)
    assert "1 passed" in result.stdout, result.stdout


def test_each_example_says_how_to_run_it_and_what_it_leaves_out() -> None:
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text("utf-8")
        assert "Run it" in text, path.name
        assert "leaves out" in text, path.name
