"""Entry points of the commands: `multichat`, `python -m multichat`, and the specification's names.

Slow imports come last, so that Ctrl+C during the start ends the command quietly, with the exit
status that shells have for it, and a SIGHUP does not end a server before it can reload: it is
blocked first of all, and `HangUps` takes it over.
"""

import os
import sys

# `python -m` looks for modules in the working directory first, where a file must not replace a
# module of ours or of Python.  With -P the directory is not in the path.
if __name__ == "__main__":
    try:
        _FIRST = "", os.getcwd()  # noqa: PTH109 - imports nothing
    except OSError:  # the working directory is gone
        _FIRST = "", ""
    if sys.path[:1] and sys.path[0] in _FIRST:
        del sys.path[0]

TYPE_CHECKING = False  # importing `typing` takes longer than all before

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["client_main", "main", "server_main"]

# A shell's status for a command that Ctrl+C has ended: 128 and the number of SIGINT.
_INTERRUPTED = 130


def _run(name: str, *, is_server: bool = False) -> "NoReturn":
    """Call *name* of the command line; SIGHUP waits for `HangUps` if it *is_server*."""
    try:
        import signal

        if is_server and sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is not ignored
            signal.signal(signal.SIGINT, _exit_at_once)  # until `one_line_errors`

        from multichat.cli import main as cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        pass
    sys.exit(_INTERRUPTED)


def _exit_at_once(*_: object) -> "NoReturn":
    """End the process: imports run callbacks, which would only report an exception."""
    os._exit(_INTERRUPTED)


def main() -> "NoReturn":
    """Run `multichat`."""
    _run("main", is_server=sys.argv[1:2] == ["serve"])


def server_main() -> "NoReturn":
    """Run `multi_chat_tcp_server`."""
    _run("server_main", is_server=True)


def client_main() -> "NoReturn":
    """Run `multi_chat_tcp_client`."""
    _run("client_main")


if __name__ == "__main__":
    main()
