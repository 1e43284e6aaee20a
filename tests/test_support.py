"""What the tests start ends with them, also when pytest is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from .support.processes import WAIT_SECONDS, program

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent

# Each prints the process id of what it has started, and hangs.
IN_A_TERMINAL = """
import sys
import trio
from pathlib import Path
from tests.support.terminals import Terminal

async def main():
    terminal = Terminal(Path(sys.argv[1]))
    await terminal.open("t", "true")
    print(await terminal.run("display-message", "-p", "-t", "t", "#{pane_pid}"), flush=True)
    await trio.sleep_forever()

trio.run(main)
"""
A_COMMAND = """
import sys
import trio
from pathlib import Path
from tests.support.processes import Command

async def main():
    script = "echo started; exec sleep 600"
    async with Command(Path(sys.argv[1]), "/bin/sh", "-c", script) as command:
        await command.wait_for("started")
        print(command.process.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize(
    ("code", "needed"),
    [(IN_A_TERMINAL, "tmux"), (A_COMMAND, "setpriv")],
    ids=["terminal", "command"],
)
async def test_what_a_test_has_started_ends_when_pytest_is_killed(
    code: str, needed: str, tmp_path: Path
) -> None:
    program(needed)
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        started = int(process.stdout.readline())
        os.kill(started, 0)
        process.kill()
    with trio.fail_after(WAIT_SECONDS):
        while Path(f"/proc/{started}").exists():
            await trio.sleep(0.02)
