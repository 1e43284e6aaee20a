"""Entry points of the commands: `multichat`, `python -m multichat`, and the specification's names.

Slow imports come last, so that Ctrl+C during the start ends the command quietly, and a SIGHUP does
not end a server before it can reload: it is blocked first of all, and `HangUps` takes it over.
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

import signal

TYPE_CHECKING = False  # importing `typing` takes longer than all before

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["client_main", "main", "server_main"]


def _keep_hang_ups() -> None:
    """Block SIGHUP, for a server: one that comes during the imports waits for `HangUps`."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def _run(name: str) -> "NoReturn":
    try:
        from multichat.cli import main as cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        pass
    sys.exit(0)


def main() -> "NoReturn":
    """Run `multichat`."""
    if sys.argv[1:2] == ["serve"]:
        _keep_hang_ups()
    _run("main")


def server_main() -> "NoReturn":
    """Run `multi_chat_tcp_server`."""
    _keep_hang_ups()
    _run("server_main")


def client_main() -> "NoReturn":
    """Run `multi_chat_tcp_client`."""
    _run("client_main")


if __name__ == "__main__":
    main()
