"""A passphrase typed into the terminal: it is sent, and stays nowhere."""

from pathlib import Path

import pytest
import trio

from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, serve
from tests.support.terminals import Terminal, connect_alice, wait_for_input

pytestmark = pytest.mark.process

SECRET = "swordfish"


async def assert_forgotten(terminal: Terminal, session: str = "t") -> None:
    """Check the screen, what has scrolled away, and the file of typed lines."""
    assert SECRET not in await terminal.scrollback(session)
    history = terminal.home / "history"
    assert not history.exists() or SECRET not in history.read_text("utf-8")


async def test_a_passphrase_is_not_on_the_screen_nor_in_the_input_history(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server)
        await terminal.type("t", "before")
        await terminal.wait_for("t", "alice  before")
        await terminal.type("t", f"/register correct horse {SECRET}")
        await terminal.wait_for("t", "· you are logged in as alice")
        await assert_forgotten(terminal)
        for line in (
            f"/login alice wrong {SECRET}",
            f"/passphrase a new {SECRET}",
            f"/regsiter correct horse {SECRET}",
            f"/login alice{SECRET}",
        ):
            await terminal.type("t", line)
            await wait_for_input(terminal, "t", "")
        await terminal.type("t", "after")
        await terminal.wait_for("t", "alice  after")
        await assert_forgotten(terminal)
        await terminal.press("t", "Up")
        await wait_for_input(terminal, "t", "after")
        await terminal.press("t", "Up")
        await wait_for_input(terminal, "t", "before")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")
        await assert_forgotten(terminal)
        assert SECRET not in server.out


async def test_a_line_that_looks_like_a_login_needs_confirmation_and_is_not_stored(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server)
        await terminal.type("t", f" /login alice {SECRET}")
        await terminal.wait_for("t", "looks like /login: Enter again runs it")
        await terminal.press("t", "Enter")
        await wait_for_input(terminal, "t", "")
        await terminal.type("t", "after")
        await terminal.wait_for("t", "alice  after")
        await assert_forgotten(terminal)
        assert SECRET not in server.out


async def test_a_login_without_its_slash_is_asked_about_and_then_run(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server)
        await terminal.type("t", f"register {SECRET}")
        await terminal.wait_for("t", "looks like /register: Enter again runs it")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", "· you are logged in as alice")
        await terminal.type("t", f"login alice and {SECRET}")
        await terminal.wait_for("t", "looks like /login: Enter again runs it")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", "the name or the passphrase is wrong")
        await terminal.type("t", "login page broken")
        await terminal.wait_for("t", "alice  login page broken")
        await assert_forgotten(terminal)
        assert SECRET not in server.out


async def test_a_passphrase_typed_while_the_server_is_away_is_not_among_the_unsent_lines(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server)
        server.process.kill()
        await terminal.wait_for("t", "reconnecting (")
        await terminal.type("t", f"/login alice {SECRET}")
        await terminal.type("t", "hello?")
        await terminal.wait_for("t", "a passphrase is not kept to be sent")
        await terminal.wait_for("t", "alice  hello?")
        await assert_forgotten(terminal)
        await terminal.run("send-keys", "-t", "t", "-l", f"/register {SECRET}")
        await terminal.wait_for("t", f"> /register {SECRET}")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")
        await terminal.wait_for_match("t", r"! not accepted: \d\d:\d\d alice  hello\?")
        await assert_forgotten(terminal)


async def test_the_log_of_a_client_in_a_pipe_holds_no_passphrase(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        lines = (
            f"hello\n/login alice {SECRET}\n/register {SECRET} 2\n/path/to/{SECRET[:5]}\n"
            f"/logn alice {SECRET}\n /Login alice {SECRET}\n/pasphrase {SECRET}\n"
        )
        with trio.fail_after(WAIT_SECONDS):
            result = await trio.run_process(
                [MULTICHAT, "connect", "--log-style", LOOPBACK, str(server.port)],
                stdin=lines.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        output = (result.stdout + result.stderr).decode()
        assert "[TX] hello" in output
        assert f"[TX] /path/to/{SECRET[:5]}" in output
        assert SECRET not in output
        assert SECRET not in server.out
