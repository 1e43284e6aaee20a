"""The configuration file as defaults of the command line, and the command `config`.

Options override environment variables, which override the file, which overrides the defaults.
"""

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multichat.cli.notices import tell
from multichat.cli.process import UsageMistake, one_line_errors
from multichat.client.timeouts import ClientTimeouts
from multichat.protocol.address import DEFAULT_PORT
from multichat.protocol.framing import clean

if TYPE_CHECKING:
    from multichat.cli.config_file import Server, Settings

__all__ = [
    "ColorWhen",
    "client_timeouts",
    "config",
    "default_to_file",
    "find_server",
    "is_colored",
    "list_servers",
    "parse_server",
    "split_port",
]

# The key in a context's `meta` for the server of the file that HOST names.
_SERVER = "multichat.server"

# Shown by `config` for a setting without a value.
_NOTHING = "-"

# Not an option: other users can list the command lines of processes.
_PASSWORD = "MULTICHAT_PASSWORD"  # noqa: S105 - the variable's name


class ColorWhen(Enum):
    """When names are shown in color."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def is_colored(when: ColorWhen) -> bool:
    """Return whether to use colors; NO_COLOR (https://no-color.org) turns off AUTO."""
    return when is ColorWhen.ALWAYS or (when is ColorWhen.AUTO and not os.environ.get("NO_COLOR"))


def _load() -> "Settings":
    from multichat.cli.config_file import load_settings, settings_path

    with one_line_errors():
        return load_settings(settings_path())


def default_to_file(context: typer.Context, host: str | None) -> str | None:
    """Make the settings of the file for *host* the defaults of *context*; return its address.

    The callback of an argument that is parsed before all others.
    """
    if context.resilient_parsing:
        return host
    settings = _load()
    # With --unix the first word of `send` is text.
    is_send = context.command.name == "send"
    is_text = is_send and context.params.get("unix") is not None
    values = settings.values(None if is_text else host)
    # Strings are parsed as if they had been typed.
    context.default_map = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, (value, _) in values.items()
        if not (is_send and name == "unix")
    }
    if host is None or is_text or host not in settings.servers:
        return host
    context.meta[_SERVER] = server = settings.servers[host]
    return host if server.host is None else server.host


def find_server(
    context: typer.Context, host: str, port: int | None
) -> tuple[str, int, Path | None]:
    """Return the host and port, or the Unix socket, for the HOST and PORT of a command.

    Raises `UsageMistake`.
    """
    server: Server | None = context.meta.get(_SERVER)
    if server is None:
        return (*parse_server(host, port), None)
    if server.unix is not None and port is not None:
        raise UsageMistake(f"{host} is a Unix socket, {server.unix}: leave out PORT")
    return host, port or server.port or 0, server.unix


def parse_server(host: str, port: int | None) -> tuple[str, int]:
    """Return the host and port in HOST, or HOST:PORT, and PORT; raises `UsageMistake`."""
    from multichat.protocol.address import split_address

    try:
        name, ours = split_address(host)
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    if ours is not None and port is not None:
        raise UsageMistake(f"{host} contains a port: leave out {port}")
    return name, ours or port or DEFAULT_PORT


def split_port(context: typer.Context, host: str, words: list[str]) -> tuple[int | None, list[str]]:
    """Return the port and the text after HOST in `send`; raises `UsageMistake`.

    A first word of digits is the port, never text, unless HOST contains the port or is a server of
    the configuration file.
    """
    from multichat.protocol.address import parse_port, split_address

    first, *others = words
    try:
        if _SERVER in context.meta or split_address(host)[1] is not None:
            return None, words
        if not (first.isascii() and first.isdigit()):
            return None, words
        port = parse_port(first)
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    if not others:
        said = f"{host}:{DEFAULT_PORT}" if host.count(":") == 0 else f"[{host}]:{DEFAULT_PORT}"
        raise UsageMistake(
            f"TEXT is missing after port {port}; to send a number: send {said} {port}"
        )
    return port, others


def list_servers(incomplete: str) -> list[str]:
    """Return the servers of the file whose names begin with *incomplete*, for the shell."""
    from multichat.cli.config_file import load_settings, settings_path
    from multichat.errors import InvalidSettings

    try:
        servers = load_settings(settings_path()).servers
    except InvalidSettings:
        return []  # `connect` reports it
    # A shell shows them unfiltered.
    return [name for name in servers if name.startswith(incomplete) and clean(name) == name]


def config(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Argument(
            help="Show the settings for this server of the file.", autocompletion=list_servers
        ),
    ] = None,
) -> None:
    """Show the settings that `connect` uses here, and where each comes from.

    Options override environment variables, which override the configuration file, which overrides
    the defaults.
    """
    settings = _load()
    found = "" if settings.found else " (does not exist)"
    if server is not None and server not in settings.servers:
        tell(f"there is no server {server} in {settings.path}{found}")
        raise typer.Exit(1)
    rows = [("file", f"{settings.path}{found}", "MULTICHAT_CONFIG" * _is_set("MULTICHAT_CONFIG"))]
    for name, each in settings.servers.items():
        address = each.unix if each.host is None else f"{each.host} {each.port}"
        rows.append((f"server {name}", str(address), "file"))
    rows += _settings_rows(context, settings, server)
    secret = _is_set(_PASSWORD)
    rows.append(
        ("password", "(secret)" if secret else _NOTHING, _PASSWORD if secret else "default")
    )
    rows = [(clean(setting), clean(value), clean(source)) for setting, value, source in rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for setting, value, source in rows:
        typer.echo(f"{setting:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _settings_rows(
    context: typer.Context, settings: "Settings", server: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and source of each option, as `connect` finds them."""
    group = context.parent.command if context.parent is not None else None
    connect: Any = getattr(group, "commands", {})["connect"]
    made = connect.make_context(
        "connect", [] if server is None else [server], parent=context.parent
    )
    values = settings.values(server)
    for parameter in connect.params:
        name = parameter.name
        if name in ("help", "host", "port"):
            continue
        source = made.get_parameter_source(name)
        match source.name if source is not None else "DEFAULT":
            case "ENVIRONMENT":
                why = parameter.envvar
            case "DEFAULT_MAP":
                table = values[name][1]
                why = f"file, [{table}]" if table else "file"
            case _:
                why = "default"
        yield name.replace("_", "-"), _format_value(made.params[name]), why


def _format_value(value: object) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def client_timeouts(seconds: float | None) -> ClientTimeouts:
    """Return the timeouts of a client with a `--timeout` of *seconds*; raises `UsageMistake`."""
    if seconds is None:
        return ClientTimeouts()
    if not seconds > 0:
        raise UsageMistake("--timeout must be more than 0 seconds")
    return ClientTimeouts(
        connect=seconds, handshake=seconds, answer=seconds, wait=seconds, delivery=seconds
    )
