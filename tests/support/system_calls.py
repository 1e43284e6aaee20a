"""Traces a process that creates, writes and closes a journal, and copies the files at each step.

    python -m tests.support.system_calls FOLDER

Before and after each system call, changed files are copied to FOLDER/0, FOLDER/1 and so on: each
copy is what a `kill -9` at that moment would leave.  Exits with 77 if tracing is not permitted.
"""

import ctypes
import os
import shutil
import signal
import sys
from contextlib import closing
from pathlib import Path

from multichat.journal.base import SessionRecord
from multichat.journal.sqlite.file import open_file
from multichat.journal.sqlite.queries import Rows, SessionRow

_TRACE_ME, _SYSCALL = 0, 24

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def use(path: Path) -> None:
    """Use a journal file as a server does."""
    with closing(open_file(path, durable=True)) as opened:
        rows = Rows(opened.connection, opened.pin)
        rows.load()
        rows.checkpoint()
        for n in range(4):
            with rows.transaction():
                record = SessionRecord(digest=bytes([n]) * 32, client=n, name="", rooms=("lobby",))
                rows.save_session(SessionRow(record, 0.0))
            if n == 1:
                rows.checkpoint()
        rows.checkpoint()


def begin(path: Path) -> int:
    """Start a process that stops itself and then calls `use`; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if _ptrace(_TRACE_ME, 0, None, None):
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSTOP)
        use(path)
    except BaseException:  # noqa: BLE001 - of the parent's code nothing may run here
        os._exit(1)
    os._exit(0)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files except lock and shared-memory files, which are recreated."""
    return {e.name: e.read_bytes() for e in folder.iterdir() if not e.name.endswith("-shm")}


def main(folder: Path) -> None:
    place = folder / "files"
    place.mkdir()
    pid = begin(place / "chat.db")
    count = 0
    before: dict[str, bytes] = {}
    while True:
        _, status = os.waitpid(pid, 0)
        if (now := contents(place)) != before:
            shutil.copytree(place, folder / str(count))
            before, count = now, count + 1
        if os.WIFEXITED(status):
            shutil.rmtree(place)
            sys.exit(os.WEXITSTATUS(status))
        _ptrace(_SYSCALL, pid, None, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
