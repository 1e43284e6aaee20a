"""Entry points of the commands: `multichat`, `python -m multichat`, and the specification's names.

Slow imports come last, so that Ctrl+C during the start ends the command quietly.
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

from typing import NoReturn

__all__ = ["client_main", "main", "server_main"]


def _run(name: str) -> NoReturn:
    try:
        from multichat.cli import main as cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        pass
    sys.exit(0)


def main() -> NoReturn:
    """Run `multichat`."""
    _run("main")


def server_main() -> NoReturn:
    """Run `multi_chat_tcp_server`."""
    _run("server_main")


def client_main() -> NoReturn:
    """Run `multi_chat_tcp_client`."""
    _run("client_main")


if __name__ == "__main__":
    main()
