"""The command `serve`: parse, build the configuration, run.

The options that set a field of `ServerConfig` are generated from that field; see `Setting`.
"""

import inspect
import os
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from multichat.cli.cluster import CLUSTER_PASSWORD_VARIABLE, EngineAccess, open_cluster
from multichat.cli.config import serve_from_file
from multichat.cli.metrics import LOOPBACK, MetricsHost, MetricsPort, check_extra
from multichat.cli.notices import warn
from multichat.cli.option_rules import described
from multichat.cli.parameters import (
    ClusterCa,
    ClusterPasswordFile,
    ClusterTlsName,
    ColorWhen,
    PasswordFile,
    is_colored,
)
from multichat.cli.process import (
    PASSWORD_VARIABLE,
    UsageMistake,
    fileno,
    is_terminal,
    one_line_errors,
    read_password_file,
)
from multichat.cli.server_files import ServerFiles, split_names
from multichat.journal.retention import Retention
from multichat.journal.sqlite.limits import Durability
from multichat.protocol.address import DEFAULT_PORT
from multichat.server.config import Filter, ServerConfig
from multichat.signals import HangUps
from multichat.web.config import WebConfig

if TYPE_CHECKING:
    from multichat.journal.base import Journal
    from multichat.log import LogWriter
    from multichat.server.server import Server

__all__ = ["SETTINGS", "LogFormat", "LogLevel", "make_config", "serve"]

_MIB = 1024 * 1024
_DAY_SECONDS = 24 * 3600.0
_MAX_DAYS = 36_500  # a century; a calendar ends somewhere


class LogLevel(Enum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(Enum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


SETTINGS = {
    re.sub("_(seconds|bytes|batches)$", "", each.name): each
    for each in fields(ServerConfig)
    if "setting" in each.metadata and each.metadata["setting"].help
}
"""The fields of `ServerConfig` that are set by options, by the names of the options."""


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option to *command* for each of `SETTINGS`; it receives them as keywords."""
    signature = inspect.signature(command)
    parameters = [
        each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD
    ]
    types = get_type_hints(ServerConfig)
    for name, field in SETTINGS.items():
        setting = field.metadata["setting"]
        default: Any = field.default
        option = typer.Option(
            default if setting.unit == 1 else default // setting.unit,
            f"--{name.replace('_', '-')}",
            help=setting.help,
            min=setting.at_least if setting.option_at_least is None else setting.option_at_least,
            max=setting.at_most,
            show_default=setting.shown_default or True,
        )
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(name, kind, default=option, annotation=types[field.name])
        )
    # Typer reads both.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


@_with_settings
def serve(
    context: typer.Context,
    port: Annotated[
        int,
        typer.Argument(
            min=0,
            max=65535,
            help="TCP port; 0: the system chooses one. With --unix and no port, TCP is not used.",
            callback=serve_from_file,
            is_eager=True,
        ),
    ] = DEFAULT_PORT,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or name to listen on; may be repeated.", show_default="all, IPv4 and IPv6"
        ),
    ] = None,
    unix: Annotated[Path | None, typer.Option(help="Listen on this Unix socket.")] = None,
    unix_mode: Annotated[
        str, typer.Option(help="Permissions of the Unix socket, in octal.")
    ] = "0600",
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Use TLS on the TCP ports, with this certificate chain (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Private key of the certificate (PEM).", show_default="in the same file"),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a load balancer, whose connections begin with a PROXY "
            "header (version 1 or 2) with the client's address; may be repeated.",
            show_default="none",
        ),
    ] = None,
    web: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="TCP port of the web page and of WebSockets; 0: the system chooses one.",
            show_default="no page",
        ),
    ] = None,
    web_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or name for the web page to listen on; may be repeated.",
            show_default="as --host",
        ),
    ] = None,
    web_url: Annotated[
        str | None,
        typer.Option(
            help="Public URL of the web page, such as https://chat.example/; required behind a "
            "proxy, and for names other than the machine's own.",
            show_default="http://HOST:PORT/",
        ),
    ] = None,
    web_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy in front of the web page, whose X-Forwarded-For "
            "and X-Forwarded-Proto are trusted; may be repeated.",
            show_default="none",
        ),
    ] = None,
    webhook_token_file: Annotated[
        Path | None,
        typer.Option(
            help="Let scripts post messages to /rooms/ROOM/messages on the web page's port with a "
            "token in this file, one per line.",
            show_default="no webhook",
        ),
    ] = None,
    metrics: MetricsPort = None,
    metrics_host: MetricsHost = None,
    password_file: PasswordFile = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Pass each message through this function, package.module:function; "
            "may be repeated.",
        ),
    ] = None,
    operators: Annotated[
        str | None,
        typer.Option(
            help="The accounts that may use /kick, /ban and the like in the chat, as alice,bob.",
            show_default="none",
        ),
    ] = None,
    operators_file: Annotated[
        Path | None,
        typer.Option(help="Read the names of operators from this file, one per line."),
    ] = None,
    ban_file: Annotated[
        Path | None,
        typer.Option(
            help="Store the operator's bans in this file.", show_default="until the server ends"
        ),
    ] = None,
    admin: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET",
            help="Accept the operator's commands from `multichat ctl` on this Unix socket, which "
            "only this user can open.",
            show_default="only at the console",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Keep messages in this SQLite file, so that they survive a restart and a kill -9.",
            show_default="in memory",
        ),
    ] = None,
    durability: Annotated[
        Durability,
        typer.Option(
            help="What messages in --journal survive: full: a power cut; normal: a kill -9."
        ),
    ] = Durability.FULL,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Share rooms, names and sessions with all servers that use the same engine, "
            "Valkey or Redis: valkey://HOST:PORT, valkeys:// with TLS, "
            "valkey+sentinel://HOST:PORT/NAME.",
            show_default="a single server",
        ),
    ] = None,
    cluster_password_file: ClusterPasswordFile = None,
    cluster_ca: ClusterCa = None,
    cluster_tls_name: ClusterTlsName = None,
    keep_messages: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of messages to keep for each room.",
            show_default="all with --journal or --cluster, else what fits into 16 MiB a room",
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="With --journal or --cluster, days to keep a message.", show_default="for ever"
        ),
    ] = None,
    keep_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="MiB of messages to keep in all; above this, the oldest are deleted.",
            show_default="all with --journal or --cluster, else half of --memory",
        ),
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option(help="Append the log to this file too; a new file has mode 0600.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(help="Write the log as text, or as one JSON object per line.")
    ] = LogFormat.TEXT,
    **settings: Any,
) -> None:
    """Run a chat server until Ctrl+C.

    Anybody on the network can join with `multichat connect HOST PORT` or `nc HOST PORT`, unless
    you set a password with --password-file or the variable MULTICHAT_PASSWORD. With --web, people
    without a terminal join in a browser.

    SIGHUP reopens the log file and reloads certificate, password, operators, bans and tokens from
    their files; connected clients stay.

    On a terminal, what you type is sent to everybody as [Server]; /help lists the operator's
    commands.
    """
    _check_environment(context)
    if keep_days is not None and not 0 < keep_days <= _MAX_DAYS:
        raise UsageMistake(
            f"{described(context, 'keep_days')} must be more than 0 and at most {_MAX_DAYS}"
        )
    files = ServerFiles(
        certificate=tls_cert,
        key=tls_key,
        password=password_file,
        operators=split_names(operators),
        operator_list=operators_file,
        tokens=webhook_token_file,
        log=log_file,
        engine_password=cluster_password_file,
    )
    hang_ups = HangUps()  # before the files are read
    try:
        names, tokens = files.read_operators(), files.read_tokens()
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    site = _web_config(web_url, web_proxy, tokens)
    config = make_config(
        context,
        password_file,
        filter_ or [],
        settings,
        operators=names,
        web=site,
        proxies=tuple(proxy or ()),
    )
    if not re.fullmatch("0?[0-7]{3}", unix_mode):
        given = described(context, "unix_mode")
        raise UsageMistake(f"{given} must be a mode such as 0600, not {unix_mode!r}")
    from multichat.cli.activation import own_listeners
    from multichat.net.activation import take_passed_sockets

    passed = take_passed_sockets()
    own = own_listeners(
        context, passed, port=port, unix=unix, web=web, admin=admin, metrics=metrics
    )
    if passed.metrics or metrics is not None:
        check_extra(described(context, "metrics"))
    import logging

    from multichat.log import Log, open_log

    level = getattr(logging, log_level.name)
    with (
        one_line_errors(hang_up=False),
        open_log(
            fileno(sys.stdout),
            level=level,
            json=log_format is LogFormat.JSON,
            file=log_file,
            warn=warn,
        ) as writer,
        ExitStack() as stack,
    ):
        import trio

        from multichat.net.certificates import server_tls
        from multichat.server.process import serve_until_signal
        from multichat.server.server import Server
        from multichat.server.systemd import ServiceManager

        manager = ServiceManager.from_environment()
        stack.callback(manager.close)
        retention = Retention(
            max_age_seconds=keep_days and keep_days * _DAY_SECONDS,
            max_messages=keep_messages,
            max_bytes=keep_mib and keep_mib * _MIB,
        )
        if cluster is not None:
            given = described(context, "cluster")
            backend = open_cluster(
                cluster,
                EngineAccess(cluster_password_file, cluster_ca, cluster_tls_name),
                config,
                retention,
                Log("server"),
                given=given,
            )
            server = Server(config, backend=backend)
            files.add_to(server, writer, backend.change_password)
        else:
            opened = _journal(journal, durability, retention, memory_bytes=config.history_bytes)
            server = Server(config, journal=opened)
            files.add_to(server, writer)
        tls = None if tls_cert is None else server_tls(tls_cert, tls_key)
        for advice in files.exposed():
            Log("server").line("start", advice, logging.WARNING)
        if ban_file is not None:
            server.keep_bans(ban_file)
        run = partial(
            server.run,
            own.port,
            host=host,
            tls=tls,
            unix=own.unix,
            unix_mode=int(unix_mode, 8),
            web=own.web,
            web_host=web_host,
            admin=own.admin,
            metrics=own.metrics,
            metrics_host=metrics_host or LOOPBACK,
            passed=passed,
        )
        console = _console(server, writer, stack)
        trio.run(partial(serve_until_signal, server, run, hang_ups, console, manager=manager))


def make_config(
    context: typer.Context,
    password_file: Path | None,
    filters: list[str],
    settings: dict[str, Any],
    *,
    operators: tuple[str, ...] = (),
    web: WebConfig = WebConfig(),  # noqa: B008 - immutable
    proxies: tuple[str, ...] = (),
) -> ServerConfig:
    """Return the configuration that the options describe; raises `UsageMistake`."""
    values = {}
    for name, value in settings.items():
        field = SETTINGS[name]
        unit = field.metadata["setting"].unit
        values[field.name] = value if unit == 1 else value * unit
    values["log_rate"] = values["log_rate"] or None
    try:
        return ServerConfig(
            password=read_password_file(password_file),
            filters=_filters(filters),
            operators=operators,
            web=web,
            proxies=proxies,
            **values,
        )
    except ValueError as error:
        message = str(error)
        for name, field in SETTINGS.items():  # operators know the name of the option
            if message.startswith(f"{field.name} must "):
                message = described(context, name) + message.removeprefix(field.name)
        raise UsageMistake(message) from None


def _web_config(url: str | None, proxies: list[str] | None, tokens: tuple[str, ...]) -> WebConfig:
    """Return the configuration of the web port; raises `UsageMistake`."""
    try:
        return WebConfig(url=url, proxies=tuple(proxies or ()), webhook_tokens=tokens)
    except ValueError as error:
        raise UsageMistake(str(error)) from None


def _console(
    server: "Server", writer: "LogWriter", stack: ExitStack
) -> Callable[[], Awaitable[None]]:
    """Return the operator's console; *stack* closes what it opens."""
    from multichat.log import LogWriter
    from multichat.terminal.admin_console import run_console
    from multichat.terminal.admin_prompt import run_prompted_console

    if is_terminal():
        return partial(run_prompted_console, server, writer, color=is_colored(ColorWhen.AUTO))
    if sys.stdout is None or not sys.stdout.isatty():  # None where it was closed
        writer = LogWriter(fileno(sys.stderr), "standard error")
        writer.start()
        stack.callback(writer.close)
    return partial(run_console, server, writer.show)


def _check_environment(context: typer.Context) -> None:
    """Raise `UsageMistake` for a variable that is set but empty.

    Otherwise a mistake in a script could start a server without password, TLS or journal.
    """
    secrets = PASSWORD_VARIABLE, CLUSTER_PASSWORD_VARIABLE
    for variable in (*secrets, *(each.envvar for each in context.command.params)):
        if isinstance(variable, str) and os.environ.get(variable) == "":
            raise UsageMistake(f"{variable} is set but empty: unset it, or give it a value")


def _journal(
    path: Path | None, durability: Durability, retention: Retention, *, memory_bytes: int
) -> "Journal":
    if path is None:
        from multichat.journal.memory import MemoryJournal

        max_bytes = retention.max_bytes or memory_bytes
        return MemoryJournal(max_messages=retention.max_messages, max_bytes=max_bytes)
    from multichat.journal.sqlite.journal import SqliteJournal

    return SqliteJournal(path, durability=durability, retention=retention)


def _filters(names: list[str]) -> tuple[Filter, ...]:
    if not names:
        return ()
    from multichat.server.filters import load_filter

    # The working directory comes last, so that no file there replaces a module of Python or ours.
    sys.path.append("")
    return tuple(map(load_filter, names))
