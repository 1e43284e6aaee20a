"""The command line: parse, build the configuration, run.  No logic.

An expected failure is one line on standard error and exit status 1; a usage error is status 2.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from multichat.config import DEFAULT_PORT, ServerConfig, Slow
from multichat.errors import MultichatError
from multichat.log import open_log

__all__ = ["LogLevel", "client_main", "connect", "main", "send", "serve", "server_main", "who"]

_DEFAULTS = ServerConfig()


class LogLevel(Enum):
    """What is logged: this and whatever is worse."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    port: Annotated[
        int, typer.Argument(min=0, max=65535, help="TCP port; 0 lets the system choose.")
    ] = DEFAULT_PORT,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or name to listen on; may be repeated.",
            envvar="MULTICHAT_HOST",
            show_default="all, IPv4 and IPv6",
        ),
    ] = None,
    max_line: Annotated[
        int,
        typer.Option(
            min=1, help="Longest line taken from a client, in bytes.", envvar="MULTICHAT_MAX_LINE"
        ),
    ] = _DEFAULTS.max_line_bytes,
    mailbox: Annotated[
        int,
        typer.Option(
            min=1, help="Batches that may wait for one client.", envvar="MULTICHAT_MAILBOX"
        ),
    ] = _DEFAULTS.mailbox_batches,
    slow: Annotated[
        Slow,
        typer.Option(
            help="What to do when a client's mailbox is full: make the sender wait, "
            "skip messages and say so, or disconnect it.",
            envvar="MULTICHAT_SLOW",
        ),
    ] = _DEFAULTS.slow,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that a slow client may keep the others waiting.",
            envvar="MULTICHAT_PATIENCE",
        ),
    ] = _DEFAULTS.patience_seconds,
    max_clients: Annotated[
        int,
        typer.Option(min=1, help="Clients at a time.", envvar="MULTICHAT_MAX_CLIENTS"),
    ] = _DEFAULTS.max_clients,
    max_rooms: Annotated[
        int,
        typer.Option(min=1, help="Rooms at a time.", envvar="MULTICHAT_MAX_ROOMS"),
    ] = _DEFAULTS.max_rooms,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce",
            help="Tell those who use nc, too, who comes and goes.",
            envvar="MULTICHAT_ANNOUNCE",
        ),
    ] = _DEFAULTS.announce,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to deliver what waits to clients that leave.",
            envvar="MULTICHAT_GRACE",
        ),
    ] = _DEFAULTS.grace_seconds,
    log_file: Annotated[
        Path | None,
        typer.Option(help="Append the log to this file too.", envvar="MULTICHAT_LOG_FILE"),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="The least serious lines to log.", envvar="MULTICHAT_LOG_LEVEL"),
    ] = LogLevel.INFO,
) -> None:
    """Run a chat server until Ctrl+C.

    Anybody on the network can join: with `multichat connect HOST PORT`, or with `nc HOST PORT`.
    """
    try:
        config = ServerConfig(
            max_line_bytes=max_line,
            mailbox_batches=mailbox,
            slow=slow,
            patience_seconds=patience,
            max_clients=max_clients,
            max_rooms=max_rooms,
            announce=announce,
            grace_seconds=grace,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    level = getattr(logging, log_level.name)
    with (
        _one_line_errors(),
        open_log(_fileno(sys.stdout), level=level, file=log_file),
    ):
        import trio

        from multichat.server import serve_until_signal

        trio.run(partial(serve_until_signal, port, host=host, config=config))


_Host = Annotated[str, typer.Argument(help="Address or name of the server.")]
_Port = Annotated[int, typer.Argument(min=1, max=65535, help="Its TCP port.")]


_Name = Annotated[
    str | None,
    typer.Option(help="What to be called.", envvar="MULTICHAT_NAME", show_default="Client N"),
]
_Room = Annotated[
    str | None,
    typer.Option(help="The room to be in.", envvar="MULTICHAT_ROOM", show_default="lobby"),
]
_Plain = Annotated[
    bool,
    typer.Option("--plain", help="Speak plain text, as nc does.", envvar="MULTICHAT_PLAIN"),
]


def connect(
    host: _Host,
    port: _Port,
    name: _Name = None,
    room: _Room = None,
    listen: Annotated[
        bool,
        typer.Option(
            "--listen", help="Only listen; ignore standard input.", envvar="MULTICHAT_LISTEN"
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Pass JSON lines between the server and standard input and output.",
            envvar="MULTICHAT_JSON",
        ),
    ] = False,
    plain: _Plain = False,
) -> None:
    """Join the chat on a server.

    What you type goes to everybody else, a line at a time. The end of input (Ctrl+D) sends what
    is left and leaves, Ctrl+C leaves at once. Local commands: /quit, /exit, /status; the server
    answers /help.
    """
    if json and plain:
        raise typer.BadParameter("--json and --plain exclude each other")
    input_fd = None if listen else _fileno(sys.stdin)
    with _one_line_errors():
        import trio

        if json:
            from multichat.console import until_signal
            from multichat.errands import pass_json

            errand = partial(
                pass_json,
                host,
                port,
                input_fd=input_fd,
                output_fd=_fileno(sys.stdout),
                name=name,
                room=room,
            )
            trio.run(until_signal, errand)
            return
        with open_log(_fileno(sys.stdout)) as writer:
            from multichat.console import Console

            console = Console(
                host,
                port,
                writer=writer,
                input_fd=input_fd,
                name=name,
                room=room,
                plain=plain,
            )
            trio.run(console.run)


def _connect_plain(host: _Host, port: _Port) -> None:
    """Join the chat on a server; the same as `multichat connect --plain HOST PORT`."""
    connect(host, port, plain=True)


def send(
    host: _Host,
    port: _Port,
    text: Annotated[
        list[str],
        typer.Argument(help="What to say, in one message; - for each line of standard input."),
    ],
    name: _Name = None,
    room: _Room = None,
    plain: _Plain = False,
) -> None:
    """Say one thing and leave when the server has accepted it.

    A name that is taken is no reason not to say it; a room that cannot be had is.
    """
    with _one_line_errors():
        import trio

        from multichat.console import until_signal
        from multichat.errands import send

        said = None if text == ["-"] else " ".join(text)
        errand = partial(
            send,
            host,
            port,
            said,
            input_fd=_fileno(sys.stdin),
            name=name,
            room=room,
            plain=plain,
        )
        if not trio.run(until_signal, errand):
            raise typer.Exit(1)  # interrupted: who knows what was said


def who(host: _Host, port: _Port, room: _Room = None) -> None:
    """List who is in a room, by number and name, one on a line."""
    with _one_line_errors():
        import trio

        from multichat.console import until_signal
        from multichat.errands import who

        async def show() -> None:
            for line in await who(host, port, room=room):
                typer.echo(line)

        if not trio.run(until_signal, show):
            raise typer.Exit(1)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what can be expected to go wrong into one line on standard error and status 1."""
    # Where trio does not listen for it, before and after its run, SIGTERM is a quiet end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:  # before trio took over, or after it let go
        raise typer.Exit from None
    except MultichatError as error:
        reason = str(error)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.filename:
            reason = f"{error.filename}: {reason}"
    else:
        return
    typer.echo(f"multichat: {reason}", err=True)
    raise typer.Exit(1)


def _fileno(stream: TextIO | None) -> int:
    """Return the descriptor of a standard stream, or of nothing if it was closed before us."""
    return os.open(os.devnull, os.O_RDWR) if stream is None else stream.fileno()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"multichat {version('multichat')}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Group chat over plain TCP.

    `multichat serve` on one machine, `multichat connect HOST PORT` (or plain `nc HOST PORT`) on
    the others, and everybody talks.
    """


def _run(*commands: Callable[..., None]) -> NoReturn:
    # Plain help: rich costs a third of the start and draws boxes that no narrow terminal holds.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    for command in commands:
        app.command()(command)
    if len(commands) > 1:
        app.callback(no_args_is_help=True)(_options)
    sys.exit(app())


def main() -> NoReturn:
    """Run `multichat`."""
    _run(serve, connect, send, who)


def server_main() -> NoReturn:
    """Run `multi_chat_tcp_server`."""
    _run(serve)


def client_main() -> NoReturn:
    """Run `multi_chat_tcp_client`."""
    _run(_connect_plain)
