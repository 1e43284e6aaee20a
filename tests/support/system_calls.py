"""Has a process make a journal, write to it and close it, and keeps what there is at each moment.

    python -m tests.support.system_calls FOLDER

Before each system call, and behind it, the files are copied to FOLDER/0, FOLDER/1 and so on, where
they have changed: each is what a `kill -9` in that moment leaves.  Ends with 77 where processes
cannot be traced.
"""

import ctypes
import os
import shutil
import signal
import sys
from contextlib import closing
from pathlib import Path

from multichat.journal import SessionRecord
from multichat.journal.sqlite_file import connect, open_file
from multichat.journal.sqlite_rows import Rows, SessionRow

_TRACE_ME, _SYSCALL = 0, 24

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def use(path: Path) -> None:
    """What a server does with its file."""
    opened = open_file(path, durable=True)
    with closing(opened.lock), closing(opened.connection), closing(connect(path, "ro")) as pin:
        rows = Rows(opened.connection, pin)
        rows.load()
        rows.checkpoint()
        for n in range(4):
            with rows.transaction():
                record = SessionRecord(digest=bytes([n]) * 32, client=n, name="", room="lobby")
                rows.keep_session(SessionRow(record, 0.0))
            if n == 1:
                rows.checkpoint()
        rows.checkpoint()


def begin(path: Path) -> int:
    """Begin a process that stops itself, and then does `use`; return its id."""
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
    """All files but those by which processes agree, which are made anew."""
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
