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

# Says the process id of what runs in the terminal, and hangs.
HANGING_TEST = """
import sys
import trio
from pathlib import Path
from tests.support.terminals import Terminal

async def main():
    await terminal.open("t", "true")
    print(await terminal.run("display-message", "-p", "-t", "t", "#{pane_pid}"), flush=True)
    await trio.sleep_forever()

terminal = Terminal(Path(sys.argv[1]))
trio.run(main)
"""


async def test_a_terminal_ends_when_pytest_is_killed(tmp_path: Path) -> None:
    program("tmux")
    command = [sys.executable, "-c", HANGING_TEST, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pane = int(process.stdout.readline())
        os.kill(pane, 0)
        process.kill()
    with trio.fail_after(WAIT_SECONDS):
        while Path(f"/proc/{pane}").exists():
            await trio.sleep(0.02)
