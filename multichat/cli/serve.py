"""The command `serve`: parse, build the configuration, run.  No logic."""

import os
import re
import sys
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.config import ColorWhen, is_colored
from multichat.cli.notices import warn
from multichat.cli.process import (
    PasswordFile,
    UsageMistake,
    fileno,
    is_terminal,
    one_line_errors,
    read_password_file,
)
from multichat.files import is_readable_by_others
from multichat.protocol.address import DEFAULT_PORT
from multichat.server.config import MAX_CLIENTS_PER_ADDRESS, Filter, ServerConfig, Slow

if TYPE_CHECKING:
    from multichat.journal.base import Journal

__all__ = ["DurabilityOption", "LogLevel", "serve"]

_PASSWORD = "MULTICHAT_PASSWORD"  # noqa: S105 - the variable's name
_DEFAULTS = ServerConfig()
_MIB = 1024 * 1024
_DAY_SECONDS = 24 * 3600.0
_MOST_DAYS = 36_500  # a century; what is longer is no time that a calendar has


class DurabilityOption(Enum):
    """What a journal survives; see `multichat.journal.sqlite.journal.Durability`."""

    FULL = "full"
    NORMAL = "normal"


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
            help="TCP port; 0: the system chooses one. With --unix and no port, no TCP.",
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
        typer.Option(
            help="Permissions of the Unix socket, in octal.", envvar="MULTICHAT_UNIX_MODE"
        ),
    ] = "0600",
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Use TLS on the TCP port, with this certificate chain (PEM).",
            envvar="MULTICHAT_TLS_CERT",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            help="Private key of the certificate (PEM).",
            envvar="MULTICHAT_TLS_KEY",
            show_default="in the same file",
        ),
    ] = None,
    password_file: PasswordFile = None,
    max_line: Annotated[
        int,
        typer.Option(min=1, help="Longest line accepted, in bytes.", envvar="MULTICHAT_MAX_LINE"),
    ] = _DEFAULTS.max_line_bytes,
    send_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Size of a client's send queue, in batches.", envvar="MULTICHAT_SEND_QUEUE"
        ),
    ] = _DEFAULTS.send_queue_batches,
    slow: Annotated[
        Slow,
        typer.Option(
            help="What to do when a client's send queue is full: let the sender wait for a "
            "bounded time and then replay the rest at the client's pace, drop messages and tell "
            "the client how many, or disconnect the client.",
            envvar="MULTICHAT_SLOW",
        ),
    ] = _DEFAULTS.slow,
    slow_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that slow clients may keep a room waiting at once.",
            envvar="MULTICHAT_SLOW_TIMEOUT",
        ),
    ] = _DEFAULTS.slow_timeout_seconds,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Disconnect a client that is behind and takes nothing for this many seconds.",
            envvar="MULTICHAT_STALL_TIMEOUT",
        ),
    ] = _DEFAULTS.stall_timeout_seconds,
    timeout: Annotated[float | None, typer.Option(hidden=True, envvar="MULTICHAT_PATIENCE")] = None,
    max_clients: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of clients, at most 8 for each MiB of --memory.",
            envvar="MULTICHAT_MAX_CLIENTS",
        ),
    ] = _DEFAULTS.max_clients,
    max_clients_per_address: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Maximum number of clients from one IPv4 address, or one IPv6 /64; 0: no limit.",
            envvar="MULTICHAT_MAX_CLIENTS_PER_ADDRESS",
            show_default=f"{MAX_CLIENTS_PER_ADDRESS}, no limit for loopback",
        ),
    ] = _DEFAULTS.max_clients_per_address,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Messages per second accepted from a client; a faster one is slowed down.",
            envvar="MULTICHAT_RATE",
            show_default="no limit",
        ),
    ] = _DEFAULTS.rate,
    burst: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --rate, messages accepted at once.",
            envvar="MULTICHAT_BURST",
        ),
    ] = _DEFAULTS.burst,
    byte_rate: Annotated[
        float | None,
        typer.Option(
            help="Bytes per second accepted from a client; a faster one is slowed down.",
            envvar="MULTICHAT_BYTE_RATE",
            show_default="no limit",
        ),
    ] = _DEFAULTS.byte_rate,
    memory: Annotated[
        int,
        typer.Option(
            min=4,
            help="MiB of memory for messages (half of it), sessions and clients; above this, old "
            "messages and sessions are deleted and the slowest client is disconnected.",
            envvar="MULTICHAT_MEMORY",
        ),
    ] = _DEFAULTS.memory_bytes // _MIB,
    idle: Annotated[
        float | None,
        typer.Option(
            help="Disconnect a client that is idle for this many seconds; pings do not count.",
            envvar="MULTICHAT_IDLE",
            show_default="never",
        ),
    ] = _DEFAULTS.idle_seconds,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Pass each message through this function, package.module:function; "
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
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Keep messages in this SQLite file, so that they survive a restart and a kill -9.",
            envvar="MULTICHAT_JOURNAL",
            show_default="in memory",
        ),
    ] = None,
    durability: Annotated[
        DurabilityOption,
        typer.Option(
            help="What messages in --journal survive: full: a power cut; normal: a kill -9.",
            envvar="MULTICHAT_DURABILITY",
        ),
    ] = DurabilityOption.FULL,
    keep_messages: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of messages to keep for each room.",
            envvar="MULTICHAT_KEEP_MESSAGES",
            show_default="all with --journal, else what fits into 16 MiB a room",
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="With --journal, days to keep a message.",
            envvar="MULTICHAT_KEEP_DAYS",
            show_default="for ever",
        ),
    ] = None,
    keep_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="MiB of messages to keep in all; above this, the oldest are deleted.",
            envvar="MULTICHAT_KEEP_MIB",
            show_default="all with --journal, else half of --memory",
        ),
    ] = None,
    away: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait for a client to reconnect before others are told that it left.",
            envvar="MULTICHAT_AWAY",
        ),
    ] = _DEFAULTS.away_seconds,
    max_sessions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of disconnected clients that can resume their session.",
            envvar="MULTICHAT_MAX_SESSIONS",
        ),
    ] = _DEFAULTS.max_sessions,
    max_rooms: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of rooms.", envvar="MULTICHAT_MAX_ROOMS"),
    ] = _DEFAULTS.max_rooms,
    max_new_rooms: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rooms that nobody has used before which one address may open an hour.",
            envvar="MULTICHAT_MAX_NEW_ROOMS",
        ),
    ] = _DEFAULTS.max_new_rooms,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce",
            help="Tell clients of the text protocol (nc), too, who joins and leaves.",
            envvar="MULTICHAT_ANNOUNCE",
        ),
    ] = _DEFAULTS.announce,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to deliver queued messages to a client that leaves, and at shutdown.",
            envvar="MULTICHAT_GRACE",
        ),
    ] = _DEFAULTS.grace_seconds,
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="Append the log to this file too; a new file has mode 0600.",
            envvar="MULTICHAT_LOG_FILE",
        ),
    ] = None,
    log_rate: Annotated[
        float,
        typer.Option(
            min=0,
            help="Messages of a client logged per second; the others are counted. 0: no limit.",
            envvar="MULTICHAT_LOG_RATE",
        ),
    ] = _DEFAULTS.log_rate or 0,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="Lowest level to log.", envvar="MULTICHAT_LOG_LEVEL"),
    ] = LogLevel.INFO,
) -> None:
    """Run a chat server until Ctrl+C.

    Anybody on the network can join with `multichat connect HOST PORT` or `nc HOST PORT`, unless
    you set a password with --password-file or the variable MULTICHAT_PASSWORD.

    On a terminal, what you type is sent to everybody as [Server]; /help lists the operator's
    commands.
    """
    _check_environment(context)
    if timeout is not None:
        raise UsageMistake(
            "--patience is now called --slow-timeout, and its variable MULTICHAT_SLOW_TIMEOUT"
        )
    if keep_days is not None and not 0 < keep_days <= _MOST_DAYS:
        raise UsageMistake(f"--keep-days is more than 0 and at most {_MOST_DAYS}")
    source = context.get_parameter_source("port")
    is_said = source is not None and source.name != "DEFAULT"
    try:
        config = ServerConfig(
            max_line_bytes=max_line,
            send_queue_batches=send_queue,
            slow=slow,
            slow_timeout_seconds=slow_timeout,
            stall_timeout_seconds=stall_timeout,
            max_clients=max_clients,
            max_clients_per_address=max_clients_per_address,
            rate=rate,
            burst=burst,
            byte_rate=byte_rate,
            memory_bytes=memory * _MIB,
            idle_seconds=idle,
            password=read_password_file(password_file),
            filters=_filters(filter_ or []),
            max_rooms=max_rooms,
            max_new_rooms=max_new_rooms,
            announce=announce,
            max_sessions=max_sessions,
            away_seconds=away,
            grace_seconds=grace,
            log_rate=log_rate or None,
        )
        if not re.fullmatch("0?[0-7]{3}", unix_mode):
            raise ValueError(f"{unix_mode} is no mode such as 0600")  # noqa: TRY301
    except ValueError as error:
        # A setting is named as its option is.
        raise UsageMistake(_SETTING.sub(_option, str(error))) from None
    import logging

    from multichat.log import Log, LogWriter, open_log

    level = getattr(logging, log_level.name)
    with (
        one_line_errors(),
        open_log(fileno(sys.stdout), level=level, file=log_file, warn=warn) as writer,
        ExitStack() as stack,
    ):
        import trio

        from multichat.net.listeners import server_tls
        from multichat.server.process import serve_until_signal
        from multichat.server.server import Server
        from multichat.terminal.admin_console import run_console
        from multichat.terminal.admin_prompt import run_prompted_console

        kept = _journal(
            journal,
            durability.value,
            max_messages=keep_messages,
            max_age_seconds=keep_days and keep_days * _DAY_SECONDS,
            max_bytes=keep_mib and keep_mib * _MIB,
            memory_bytes=config.history_bytes,
        )
        server = Server(config, journal=kept)
        if is_terminal():
            color = is_colored(ColorWhen.AUTO)
            console = partial(run_prompted_console, server, writer, color=color)
        else:
            console_writer = writer
            if sys.stdout is None or not sys.stdout.isatty():  # None where it was closed
                console_writer = LogWriter(fileno(sys.stderr), "standard error")
                console_writer.start()
                stack.callback(console_writer.close)
            console = partial(run_console, server, console_writer.show)
        tls = None if tls_cert is None else server_tls(tls_cert, tls_key)
        for secret in filter(None, (password_file, tls_cert and (tls_key or tls_cert))):
            if is_readable_by_others(secret):
                advice = f"{secret} can be read by other users: chmod 600 {secret}"
                Log("server").line("start", advice, logging.WARNING)
        if ban_file is not None:
            server.keep_bans(ban_file)
        tcp_port = port if is_said or unix is None else None
        run = partial(
            server.run, tcp_port, host=host, tls=tls, unix=unix, unix_mode=int(unix_mode, 8)
        )
        trio.run(serve_until_signal, server, run, console)


_SETTING = re.compile("^([a-z_]+?)(?:_seconds|_bytes|_batches)? must ")


def _option(setting: re.Match[str]) -> str:
    return f"--{setting[1].replace('_', '-')} must "


def _check_environment(context: typer.Context) -> None:
    """Raise `UsageMistake` for a variable that is set and empty.

    Whoever sets it wants something, and must not get a server without its password, its TLS or
    its journal.
    """
    for variable in (_PASSWORD, *(each.envvar for each in context.command.params)):
        if isinstance(variable, str) and os.environ.get(variable) == "":
            raise UsageMistake(f"{variable} is set but empty: unset it, or give it a value")


def _journal(
    path: Path | None,
    durability: str,
    *,
    max_messages: int | None,
    max_age_seconds: float | None,
    max_bytes: int | None,
    memory_bytes: int,
) -> "Journal":
    if path is None:
        from multichat.journal.memory import MemoryJournal

        return MemoryJournal(
            max_messages=max_messages,
            max_bytes=max_bytes or memory_bytes,
        )
    from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal

    retention = Retention(
        max_messages=max_messages, max_age_seconds=max_age_seconds, max_bytes=max_bytes
    )
    return SqliteJournal(path, durability=Durability(durability), retention=retention)


def _filters(names: list[str]) -> tuple[Filter, ...]:
    if not names:
        return ()
    from multichat.server.filters import load_filter

    # The working directory.  Last: no file there stands in for a module of Python's or of ours.
    sys.path.append("")
    return tuple(map(load_filter, names))
