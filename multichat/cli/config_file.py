"""The configuration file, `config.toml` in the platform's directory for configuration.

Owns where the file is, its keys, and which of its values apply to which server.  Options and
environment variables, which override it, are up to `multichat.cli.config`.  A file with a mistake
is an error with its name and the key, never a guess.

Keys are options of `connect`, at the top for every server, and in `[servers.NAME]` for one,
with its address in `host` (also as HOST:PORT) and `port`, or in `unix`.  `[serve]` has options of
`serve`; `multichat.cli.config` knows which there are.
"""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec

from multichat.cli.parameters import (
    Bell,
    Color,
    Login,
    LogStyle,
    Name,
    PassphraseFile,
    PasswordFile,
    Plain,
    Tls,
    TlsCa,
    TlsName,
)
from multichat.errors import InvalidSettings
from multichat.files import decode_text, read_file
from multichat.protocol.address import DEFAULT_PORT, split_address

__all__ = [
    "Preferences",
    "Server",
    "Settings",
    "history_path",
    "load_settings",
    "path_in",
    "settings_path",
]

_NAME = "multichat"

# Thousands of servers.
MAX_FILE_BYTES = 1024 * 1024

# `tomllib` takes quadratic time for a key with many parts: some ms for a line of this length.
MAX_LINE_CHARACTERS = 4096


class Preferences(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """The settings for one server, or for all; None if not set."""

    name: Name = None
    room: str | list[str] | None = None
    login: Login = None
    passphrase_file: PassphraseFile = None
    password_file: PasswordFile = None
    tls: Tls | None = None
    tls_ca: TlsCa = None
    tls_name: TlsName = None
    plain: Plain | None = None
    color: Color | None = None
    bell: Bell | None = None
    log_style: LogStyle | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Server(Preferences, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A server with a name."""

    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    unix: Path | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the file at *path*; empty if it does not exist."""

    path: Path
    found: bool = False
    preferences: Preferences = Preferences()
    servers: dict[str, Server] = {}
    serve: dict[str, Any] = {}

    def values(self, server: str | None) -> dict[str, tuple[Any, str]]:
        """Return the values for *server* by names of options, each with its table."""
        said = {key: (value, "") for key, value in _given(self.preferences).items()}
        if server is not None and server in self.servers:
            table = f"servers.{server}"
            said |= {key: (value, table) for key, value in _given(self.servers[server]).items()}
        return said


def _given(preferences: Preferences) -> dict[str, Any]:
    values = msgspec.structs.asdict(preferences)
    return {key: value for key, value in values.items() if value is not None}


def settings_path() -> Path:
    """Return the path of the file; the variable `MULTICHAT_CONFIG` overrides it."""
    if path := os.environ.get("MULTICHAT_CONFIG"):
        return Path(path)
    import platformdirs

    return platformdirs.user_config_path(_NAME, appauthor=False) / "config.toml"


def history_path() -> Path:
    """Return the path of the input history; the variable `MULTICHAT_HISTORY` overrides it."""
    if path := os.environ.get("MULTICHAT_HISTORY"):
        return Path(path)
    import platformdirs

    return platformdirs.user_state_path(_NAME, appauthor=False) / "history"


def load_settings(path: Path) -> Settings:
    """Read the file at *path*, which may be missing; raises `InvalidSettings`."""
    try:
        text = decode_text(read_file(path, max_bytes=MAX_FILE_BYTES))
    except FileNotFoundError:
        return Settings(path=path)
    except OSError as error:
        raise InvalidSettings(path, "", (error.strerror or "").lower()) from error
    except ValueError as error:
        raise InvalidSettings(path, "", str(error)) from error
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE_CHARACTERS:
            reason = f"line {number} is longer than {MAX_LINE_CHARACTERS} characters"
            raise InvalidSettings(path, "", reason)
    import tomllib  # most people have no file

    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # a number with thousands of digits is no TOMLDecodeError
        raise InvalidSettings(path, "", str(error)) from error
    except RecursionError as error:
        raise InvalidSettings(path, "", "nested too deeply") from error
    servers = tables.pop("servers", {})
    if not isinstance(servers, dict):
        raise InvalidSettings(path, "servers", "expected tables [servers.NAME]")
    serve = tables.pop("serve", {})
    if not isinstance(serve, dict):
        raise InvalidSettings(path, "serve", "expected a table [serve]")
    return Settings(
        path=path,
        found=True,
        preferences=_read(path, tables, Preferences, ""),
        serve=serve,
        servers={
            name: _read_server(path, table, f"servers.{name}") for name, table in servers.items()
        },
    )


def _read_server(path: Path, table: object, where: str) -> Server:
    server: Server = _read(path, table, Server, where)
    if (server.host is None) == (server.unix is None):
        raise InvalidSettings(path, where, "needs either host or unix")
    if server.host is None:
        if server.port is not None:
            raise InvalidSettings(path, f"{where}.port", "a Unix socket has none")
        return server
    try:
        host, port = split_address(server.host)
    except ValueError as error:
        raise InvalidSettings(path, f"{where}.host", str(error)) from None
    if port is not None and server.port is not None:
        raise InvalidSettings(path, f"{where}.port", "host contains a port, too")
    return msgspec.structs.replace(server, host=host, port=port or server.port or DEFAULT_PORT)


def path_in(file: Path, value: str) -> Path:
    """Return the path *value* in the configuration *file*; raises `ValueError`."""
    if "\0" in value:
        raise ValueError("a path has no null character")
    # Relative to the file, not to the working directory.
    return file.parent / Path(value).expanduser()


def _read(path: Path, table: object, kind: type[Any], where: str) -> Any:
    """Return *table* as a *kind*; raises `InvalidSettings` with the wrong key."""

    def to_path(expected: type[object], value: object) -> object:
        if expected is Path and isinstance(value, str):
            return path_in(path, value)
        raise ValueError("expected a path")

    if isinstance(table, dict):
        for key, value in table.items():
            if key not in kind.__struct_encode_fields__:
                shown = ".".join(filter(None, (where, key)))
                raise InvalidSettings(path, shown, _no_such_setting(kind, key, value))
    try:
        return msgspec.convert(table, kind, dec_hook=to_path)
    except msgspec.ValidationError as error:
        # The keys are ours; only the reason may quote a value, which comes before the last ` - at`.
        reason, at, key = str(error).rpartition(" - at `$.")
        key = key.rstrip("`")
        if not at:  # not a table
            reason, key = str(error), ""
        reason = reason[:1].lower() + reason[1:]
        if reason.startswith("invalid enum value"):
            reason += f": expected one of {_choices(kind, key)}"
        else:
            reason = reason.replace("`", "").replace(" | null", "")
        raise InvalidSettings(path, ".".join(filter(None, (where, key))), reason) from None
    except (RuntimeError, OSError) as error:  # ~name of an unknown user
        raise InvalidSettings(path, where, str(error)) from None


def _no_such_setting(kind: type[Any], unknown: str, value: object) -> str:
    """Return the answer to the key *unknown* with *value*, with the key that was perhaps meant."""
    from difflib import get_close_matches

    if kind is Preferences and isinstance(value, dict):
        tables = (name for name, table in value.items() if isinstance(table, dict))
        known = {"servers": f"[servers.{next(tables, 'NAME')}]"}
    else:
        known = {key: key for key in kind.__struct_encode_fields__}
    similar = "".join(known[key] for key in get_close_matches(unknown, known, 1))
    return "there is no such setting" + (f"; did you mean {similar}?" if similar else "")


def _choices(kind: type[Any], key: str) -> str:
    """Return the values that *key* can have, an enumeration."""
    hints = get_args(get_type_hints(kind)[key.replace("-", "_")])
    [names] = [list(each) for each in hints if isinstance(each, type) and issubclass(each, Enum)]
    return ", ".join(str(each.value) for each in names)
