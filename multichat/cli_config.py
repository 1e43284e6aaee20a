"""How the configuration file gets into the command line, and the command that shows what holds.

Options come before the environment, that before the file, and the file before the defaults; the
order is the command line's own, of which the file is one more layer.
"""

import os
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multichat.shell import one_line_errors

if TYPE_CHECKING:
    from multichat.settings import Settings

__all__ = ["ColorWhen", "config", "default_to_file", "is_colored", "list_servers"]

# What an empty place in the table of `config` says.
_NOTHING = "-"

# What may be in the environment alone: a secret is not for a command line that others can list.
_PASSWORD = "MULTICHAT_PASSWORD"  # noqa: S105 - the variable's name


class ColorWhen(Enum):
    """When what is shown has colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def is_colored(when: ColorWhen) -> bool:
    """Say whether a terminal gets colours: unless NO_COLOR says otherwise (https://no-color.org)."""
    return when is ColorWhen.ALWAYS or (when is ColorWhen.AUTO and not os.environ.get("NO_COLOR"))


def _load() -> "Settings":
    from multichat.settings import load_settings, settings_path

    with one_line_errors():
        return load_settings(settings_path())


def default_to_file(context: typer.Context, host: str | None) -> str | None:
    """Make what the file says of server *host* the defaults of *context*; return its address.

    The callback of an argument that is read before all others.
    """
    if context.resilient_parsing:
        return host
    settings = _load()
    values = settings.values(host)
    # A path or a choice is parsed as if it had been typed.
    context.default_map = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, (value, _) in values.items()
    }
    if host in settings.servers:
        return settings.servers[host].host
    return host


def list_servers(incomplete: str) -> list[str]:
    """Return the file's servers whose names begin with *incomplete*, for the shell."""
    from multichat.errors import InvalidSettings
    from multichat.settings import load_settings, settings_path

    try:
        servers = load_settings(settings_path()).servers
    except InvalidSettings:
        return []  # `connect` will say so
    return [name for name in servers if name.startswith(incomplete)]


def config(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Argument(help="What holds for this server of the file.", autocompletion=list_servers),
    ] = None,
) -> None:
    """Show the settings of `connect` that hold here, and where each comes from.

    An option comes before the environment, that before the file, and the file before the default.
    """
    settings = _load()
    found = "" if settings.found else " (not there)"
    if server is not None and server not in settings.servers:
        typer.echo(f"multichat: no server is called {server} in {settings.path}{found}", err=True)
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
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for setting, value, source in rows:
        typer.echo(f"{setting:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _settings_rows(
    context: typer.Context, settings: "Settings", server: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and source of each option, as `connect` itself finds them."""
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
        yield name.replace("_", "-"), _spelled(made.params[name]), why


def _spelled(value: object) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
