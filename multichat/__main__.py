"""Where the commands start: `multichat`, `python -m multichat`, and the specification's names.

Imports nothing that takes time before Ctrl+C can be answered with a quiet end.
"""

import os
import sys

# `python -m` looks for modules in the working directory first: no file there, whoever put it
# there, must stand in for a module of ours or of Python's.  With -P it is not there.
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
