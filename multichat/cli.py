"""The command line: parse, build the configuration, run.  No logic.

An expected failure is one line on standard error and exit status 1; a usage error is status 2.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer

from multichat.config import DEFAULT_PORT, Filter, ServerConfig, Slow
from multichat.errors import MultichatError
from multichat.log import open_log

if TYPE_CHECKING:
    from multichat.client import Endpoint

__all__ = ["LogLevel", "client_main", "connect", "main", "send", "serve", "server_main", "who"]

_DEFAULTS = ServerConfig()
_MIB = 1024 * 1024

_PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="The password is in this file; or in the variable MULTICHAT_PASSWORD.",
        envvar="MULTICHAT_PASSWORD_FILE",
    ),
]


class LogLevel(Enum):
    """What is logged: this and whatever is worse."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    context: typer.Context,
    port: Annotated[
        int,
        typer.Argument(
            min=0,
            max=65535,
            help="TCP port; 0 lets the system choose, and with --unix it may be left out.",
        ),
    ] = DEFAULT_PORT,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or name to listen on; may be repeated.",
            envvar="MULTICHAT_HOST",
            show_default="all, IPv4 and IPv6",
        ),
    ] = None,
    unix: Annotated[
        Path | None,
        typer.Option(help="Listen on this Unix socket.", envvar="MULTICHAT_UNIX"),
    ] = None,
    unix_mode: Annotated[
        str,
        typer.Option(help="Its permissions, in octal.", envvar="MULTICHAT_UNIX_MODE"),
    ] = "0600",
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Speak TLS on the port, with this certificate (PEM, the whole chain).",
            envvar="MULTICHAT_TLS_CERT",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            help="Its private key.",
            envvar="MULTICHAT_TLS_KEY",
            show_default="in the same file",
        ),
    ] = None,
    password_file: _PasswordFile = None,
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
    max_clients_per_address: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Clients at a time from one address; of IPv6, from one /64.",
            envvar="MULTICHAT_MAX_CLIENTS_PER_ADDRESS",
            show_default="as many as in all",
        ),
    ] = _DEFAULTS.max_clients_per_address,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Messages a second taken from a client; faster ones are slowed down.",
            envvar="MULTICHAT_RATE",
            show_default="as they come",
        ),
    ] = _DEFAULTS.rate,
    burst: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --rate, messages that may come at once.",
            envvar="MULTICHAT_BURST",
        ),
    ] = _DEFAULTS.burst,
    byte_rate: Annotated[
        float | None,
        typer.Option(
            help="Bytes a second taken from a client.",
            envvar="MULTICHAT_BYTE_RATE",
            show_default="as they come",
        ),
    ] = _DEFAULTS.byte_rate,
    memory: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB that may wait for all clients together; beyond, who is furthest behind goes.",
            envvar="MULTICHAT_MEMORY",
        ),
    ] = _DEFAULTS.memory_bytes // _MIB,
    idle: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a client that says nothing has to go.",
            envvar="MULTICHAT_IDLE",
            show_default="never",
        ),
    ] = _DEFAULTS.idle_seconds,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Function that each message goes through, as package.module:function; "
            "may be repeated.",
            envvar="MULTICHAT_FILTER",
        ),
    ] = None,
    ban_file: Annotated[
        Path | None,
        typer.Option(
            help="Keep the operator's bans in this file.",
            envvar="MULTICHAT_BAN_FILE",
            show_default="until the server ends",
        ),
    ] = None,
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

    Anybody on the network can join: with `multichat connect HOST PORT`, or with `nc HOST PORT`;
    with --password-file, or the password itself in MULTICHAT_PASSWORD, who knows the password.

    In a terminal what you type is told to everybody as [Server]; /help lists what else you can do.
    """
    if tls_key is not None and tls_cert is None:
        raise typer.BadParameter("--tls-key needs --tls-cert")
    source = context.get_parameter_source("port")
    is_said = source is not None and source.name != "DEFAULT"
    try:
        config = ServerConfig(
            max_line_bytes=max_line,
            mailbox_batches=mailbox,
            slow=slow,
            patience_seconds=patience,
            max_clients=max_clients,
            max_clients_per_address=max_clients_per_address,
            rate=rate,
            burst=burst,
            byte_rate=byte_rate,
            memory_bytes=memory * _MIB,
            idle_seconds=idle,
            password=_password(password_file),
            filters=_filters(filter_ or []),
            max_rooms=max_rooms,
            announce=announce,
            grace_seconds=grace,
        )
        if not re.fullmatch("0?[0-7]{3}", unix_mode):
            raise ValueError(f"{unix_mode} is no mode such as 0600")  # noqa: TRY301
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    level = getattr(logging, log_level.name)
    with (
        _one_line_errors(),
        open_log(_fileno(sys.stdout), level=level, file=log_file) as writer,
    ):
        import trio

        from multichat.listen import server_tls
        from multichat.operator import run_console
        from multichat.server import Server, serve_until_signal

        server = Server(config)
        show = writer.show if sys.stdout.isatty() else partial(typer.echo, err=True)
        tls = None if tls_cert is None else server_tls(tls_cert, tls_key)
        if ban_file is not None:
            server.keep_bans(ban_file)
        tcp_port = port if is_said or unix is None else None
        run = partial(
            server.run, tcp_port, host=host, tls=tls, unix=unix, unix_mode=int(unix_mode, 8)
        )
        trio.run(serve_until_signal, server, run, partial(run_console, server, show))


def _filters(names: list[str]) -> tuple[Filter, ...]:
    if not names:
        return ()
    from multichat.filters import load_filter

    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    return tuple(map(load_filter, names))


def _password(file: Path | None) -> str | None:
    """Return the password that a file or the environment holds; raises `ValueError`."""
    if file is None:
        return os.environ.get("MULTICHAT_PASSWORD") or None
    try:
        password = file.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{file}: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8") from None
    return password.removesuffix("\n").removesuffix("\r")


_Host = Annotated[str, typer.Argument(help="Address or name of the server.")]
_Port = Annotated[int, typer.Argument(min=1, max=65535, help="Its TCP port.")]
_Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS.", envvar="MULTICHAT_TLS")]
_TlsCa = Annotated[
    Path | None,
    typer.Option(
        help="Speak TLS, and trust this certificate (PEM) alone.",
        envvar="MULTICHAT_TLS_CA",
        show_default="what the system trusts",
    ),
]
_TlsName = Annotated[
    str | None,
    typer.Option(
        help="Speak TLS, with a certificate for this name.",
        envvar="MULTICHAT_TLS_NAME",
        show_default="HOST",
    ),
]


def _endpoint(
    host: str, port: int, *, tls: bool, tls_ca: Path | None, tls_name: str | None
) -> "Endpoint":
    from multichat.client import Endpoint, client_tls

    encrypted = tls or tls_ca is not None or tls_name is not None
    context = client_tls(tls_ca) if encrypted else None
    return Endpoint(host=host, port=port, tls=context, tls_name=tls_name)


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
    host: Annotated[str | None, typer.Argument(help="Address or name of the server.")] = None,
    port: Annotated[int | None, typer.Argument(min=1, max=65535, help="Its TCP port.")] = None,
    unix: Annotated[
        Path | None,
        typer.Option(help="Join at this Unix socket instead.", envvar="MULTICHAT_UNIX"),
    ] = None,
    name: _Name = None,
    room: _Room = None,
    password_file: _PasswordFile = None,
    tls: _Tls = False,
    tls_ca: _TlsCa = None,
    tls_name: _TlsName = None,
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
    if host is None and unix is None:
        raise typer.BadParameter("HOST and PORT, or --unix PATH, are missing")
    if host is not None and port is None:
        raise typer.BadParameter("PORT is missing")
    input_fd = None if listen else _fileno(sys.stdin)
    with _one_line_errors():
        import trio

        from multichat.client import Endpoint

        if host is not None and port is not None:
            endpoint = _endpoint(host, port, tls=tls, tls_ca=tls_ca, tls_name=tls_name)
        else:
            endpoint = Endpoint(unix=unix)
        password = _checked_password(password_file)
        if json:
            from multichat.console import until_signal
            from multichat.errands import pass_json

            errand = partial(
                pass_json,
                endpoint,
                input_fd=input_fd,
                output_fd=_fileno(sys.stdout),
                name=name,
                room=room,
                password=password,
            )
            trio.run(until_signal, errand)
            return
        with open_log(_fileno(sys.stdout)) as writer:
            from multichat.console import Console

            console = Console(
                endpoint,
                writer=writer,
                input_fd=input_fd,
                name=name,
                room=room,
                password=password,
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
    password_file: _PasswordFile = None,
    tls: _Tls = False,
    tls_ca: _TlsCa = None,
    tls_name: _TlsName = None,
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
            _endpoint(host, port, tls=tls, tls_ca=tls_ca, tls_name=tls_name),
            said,
            input_fd=_fileno(sys.stdin),
            name=name,
            room=room,
            password=_checked_password(password_file),
            plain=plain,
        )
        if not trio.run(until_signal, errand):
            raise typer.Exit(1)  # interrupted: who knows what was said


def who(
    host: _Host,
    port: _Port,
    room: _Room = None,
    password_file: _PasswordFile = None,
    tls: _Tls = False,
    tls_ca: _TlsCa = None,
    tls_name: _TlsName = None,
) -> None:
    """List who is in a room, by number and name, one on a line."""
    with _one_line_errors():
        import trio

        from multichat.console import until_signal
        from multichat.errands import who

        endpoint = _endpoint(host, port, tls=tls, tls_ca=tls_ca, tls_name=tls_name)
        password = _checked_password(password_file)

        async def show() -> None:
            for line in await who(endpoint, room=room, password=password):
                typer.echo(line)

        if not trio.run(until_signal, show):
            raise typer.Exit(1)


def _checked_password(file: Path | None) -> str | None:
    try:
        return _password(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


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
