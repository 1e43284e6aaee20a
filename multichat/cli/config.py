"""The configuration file as defaults of the command line, and the command `config`.

Options override environment variables, which override the file, which overrides the defaults.
"""

import os
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any

import msgspec
import typer

from multichat.cli.config_file import (
    Preferences,
    Settings,
    load_settings,
    path_in,
    settings_path,
)
from multichat.cli.notices import tell
from multichat.cli.option_rules import reworded
from multichat.cli.process import PASSPHRASE_VARIABLE, PASSWORD_VARIABLE, one_line_errors
from multichat.errors import InvalidSettings
from multichat.protocol.framing import clean

__all__ = [
    "SERVER_KEY",
    "config",
    "default_to_file",
    "list_servers",
    "serve_from_file",
]

# The key in a context's `meta` for the server of the file that HOST names.
SERVER_KEY = "multichat.server"

# Shown by `config` for a setting without a value.
_NOTHING = "-"


def _load() -> Settings:
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
        name: _for_option(context, name, msgspec.to_builtins(value, enc_hook=str))
        for name, (value, _) in values.items()
        if not (is_send and name == "unix")
    }
    if host is None or is_text or host not in settings.servers:
        return host
    context.meta[SERVER_KEY] = server = settings.servers[host]
    return host if server.host is None else server.host


def serve_from_file(context: typer.Context, port: int) -> int:
    """Make `[serve]` of the file the defaults of *context*; return the port, which may be there.

    The callback of the argument *port*, which is parsed before all others.  A file that
    `MULTICHAT_CONFIG` names must exist: otherwise a service whose file is missing would run without
    its password, TLS and journal.
    """
    if context.resilient_parsing:
        return port
    with one_line_errors():
        settings = load_settings(settings_path())
        if not settings.found and _is_set("MULTICHAT_CONFIG"):
            raise InvalidSettings(settings.path, "", "no such file, and MULTICHAT_CONFIG names it")
        values = _serve_options(context, settings)
    source = context.get_parameter_source("port")
    file_port = values.pop("port", None)
    context.default_map = values
    if file_port is None or source is None or source.name != "DEFAULT":
        return port
    context.set_parameter_source("port", type(source).DEFAULT_MAP)
    return int(file_port)


def _serve_options(context: Any, settings: Settings) -> dict[str, Any]:
    """Return the options in `[serve]` by their names; raises `InvalidSettings`."""
    known = {each.name.rstrip("_").replace("_", "-"): each for each in context.command.params}
    known.pop("help", None)
    values: dict[str, Any] = {}
    for key, value in settings.serve.items():
        shown = f"serve.{key}"
        option = known.get(key)
        if option is None:
            raise InvalidSettings(settings.path, shown, "serve has no such option")
        each = value if isinstance(value, list) else [value]
        if not each or not all(isinstance(one, str | int | float) for one in each):
            raise InvalidSettings(settings.path, shown, "expected a text, a number or a list")
        if option.type.name == "path":
            try:
                each = [str(path_in(settings.path, str(one))) for one in each]
            except (ValueError, RuntimeError) as error:
                raise InvalidSettings(settings.path, shown, str(error)) from None
        if len(each) > 1 and not getattr(option, "multiple", False):
            raise InvalidSettings(settings.path, shown, "expected one value")
        try:  # as the option itself does it, so that the error names the key
            converted = [option.type.convert(one, option, context) for one in each]
        except typer.BadParameter as error:
            reason = reworded(error.message, option.type.name)
            raise InvalidSettings(settings.path, shown, reason) from None
        values[option.name] = each if getattr(option, "multiple", False) else converted[0]
    return values


def _for_option(context: typer.Context, name: str, value: Any) -> Any:
    """Return *value* as the option takes it: several values, or one, which is the last."""
    is_multiple = any(each.name == name and each.multiple for each in context.command.params)
    if is_multiple:
        return value if isinstance(value, list) else [value]
    return value[-1] if isinstance(value, list) and value else value


def list_servers(incomplete: str) -> list[str]:
    """Return the servers of the file whose names begin with *incomplete*, for the shell."""
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
    """Show the settings and where each comes from.

    The settings are the options of `connect`. The environment can set each, the file those that
    have no note beside them. Behind them come those of `serve` that are in the file.

    Options override environment variables, which override the configuration file, which overrides
    the defaults.
    """
    settings = _load()
    found = "" if settings.found else " (does not exist)"
    if server is not None and server not in settings.servers:
        tell(f"there is no server {server!r} in {settings.path}{found}")
        raise typer.Exit(1)
    rows = [("file", f"{settings.path}{found}", "MULTICHAT_CONFIG" * _is_set("MULTICHAT_CONFIG"))]
    for name, each in settings.servers.items():
        address = each.unix if each.host is None else f"{each.host} {each.port}"
        rows.append((f"server {name}", str(address), "file"))
    rows += _settings_rows(context, settings, server)
    for key, value in settings.serve.items():
        rows.append((f"serve {key}", _format_value(value), "file, [serve]"))
    for what, variable in ("password", PASSWORD_VARIABLE), ("passphrase", PASSPHRASE_VARIABLE):
        secret = _is_set(variable)
        rows.append((what, "(secret)", variable) if secret else (what, _NOTHING, "default"))
    rows = [(clean(setting), clean(value), clean(source)) for setting, value, source in rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for setting, value, source in rows:
        typer.echo(f"{setting:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _settings_rows(
    context: typer.Context, settings: Settings, server: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and source of each option, as `connect` finds them."""
    group: Any = context.parent and context.parent.command
    connect = group.get_command(context.parent, "connect")
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
        value = made.params[name]
        if name == "tls" and not value:
            # As `make_endpoint` has it.
            for implies in ("tls_ca", "tls_name"):
                if made.params[implies] is not None:
                    value, why = True, f"because of {implies.replace('_', '-')}"
        if name not in Preferences.__struct_fields__ and why == "default":
            why += f"; only --{name.replace('_', '-')} or {parameter.envvar} sets it"
        yield name.replace("_", "-"), _format_value(value), why


def _format_value(value: object) -> str:
    if value is None or value in ([], ()):
        return _NOTHING
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
