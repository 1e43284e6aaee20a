"""Processes that the tests start end with them, even when pytest is killed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from .support.processes import WAIT_SECONDS, module, program

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent

# Each prints the process id of its child, and hangs.
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

UNIT_TEST = """
import os, subprocess
import pytest

@pytest.mark.unit
def test_it():
    {}
"""
SETTINGS_TEST = """
import os
import re
import pytest

@pytest.mark.unit
def test_it():
    ours = {key: os.environ[key] for key in os.environ if key.startswith("MULTICHAT_")}
    assert ours == {"MULTICHAT_CONFIG": os.devnull, "MULTICHAT_KILL_SEED": "7"}
"""


@pytest.mark.parametrize(
    ("code", "needed"),
    [(IN_A_TERMINAL, "tmux"), (A_COMMAND, "setpriv")],
    ids=["terminal", "command"],
)
async def test_processes_of_a_test_end_when_pytest_is_killed(
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
        while _runs(started):
            await trio.sleep(0.02)


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended stays as a zombie until it is reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_ci_installs_the_programs_that_the_tests_need() -> None:
    lines = (ROOT / ".ci" / "programs").read_text("utf-8").splitlines()
    listed = {line.split()[0] for line in lines}
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    needed = set(re.findall(r'program\("([a-z]+)"\)', sources))
    everywhere = {"env", "nohup", "sh"}
    assert needed - everywhere <= listed


def test_a_process_that_is_not_reaped_counts_as_ended() -> None:
    process = subprocess.Popen(["/bin/true"])
    assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None
    assert Path(f"/proc/{process.pid}").exists()
    assert not _runs(process.pid)
    process.wait()


@pytest.mark.parametrize(
    "start",
    [
        "os.system('true')",
        "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
        "os.fork() or os._exit(0)",
        "subprocess.run(['true'])",
    ],
)
def test_a_unit_test_that_starts_a_process_fails(start: str, tmp_path: Path) -> None:
    module = tmp_path / "test_it.py"
    module.write_text(UNIT_TEST.format(start), "utf-8")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", str(module)]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "mark it with `process`" in result.stdout


def test_commands_do_not_see_the_environment_of_the_developer(tmp_path: Path) -> None:
    module = tmp_path / "test_it.py"
    module.write_text(SETTINGS_TEST, "utf-8")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", str(module)]
    environment = {**os.environ, "MULTICHAT_ROOM": "den", "MULTICHAT_KILL_SEED": "7"}
    result = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("find", [program, module])
def test_a_missing_program_skips_a_test_and_fails_it_under_ci(
    find: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        find("no_such_thing")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception):
        find("no_such_thing")
