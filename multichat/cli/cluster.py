"""The engine of a cluster on the command line: addresses, passwords, the backend of a node."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from multichat.cli.process import UsageMistake, read_secret_file, utf8_text

if TYPE_CHECKING:
    from multichat.cluster.backend import ValkeyBackend
    from multichat.cluster.connection import ConnectionConfig
    from multichat.journal.retention import Retention
    from multichat.log import Log
    from multichat.server.config import ServerConfig

__all__ = [
    "CLUSTER_PASSWORD_VARIABLE",
    "ClusterUrl",
    "EngineAccess",
    "JournalPlace",
    "cluster_connection",
    "open_cluster",
    "parse_place",
    "refuse_engine_options",
]

# Also with a typo after the scheme, which the error names; a file is written as ./valkey://.
_URL = re.compile(r"(valkey|redis)s?(\+\w+)?://")
_OTHER_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

CLUSTER_PASSWORD_VARIABLE = "MULTICHAT_CLUSTER_PASSWORD"  # noqa: S105 - the variable's name


class EngineAccess(NamedTuple):
    """The options besides the URL: the password file, and settings of TLS."""

    password_file: Path | None = None
    authority: Path | None = None
    tls_name: str | None = None


def open_cluster(
    url: str,
    access: EngineAccess,
    config: "ServerConfig",
    retention: "Retention",
    log: "Log",
    *,
    given: str,
) -> "ValkeyBackend":
    """Return the backend of a node that shares the engine at *url*; *given* names the option.

    Raises `UsageMistake`, `BadPasswordFile` or `BadCertificate`.
    """
    connection = cluster_connection(url, access, given=given)

    from multichat.cluster.backend import ClusterConfig, ValkeyBackend
    from multichat.cluster.changes import Settings
    from multichat.cluster.directory import DirectoryConfig

    session = int(config.timeouts.session * 1000)
    settings = Settings(
        away=int(config.away_seconds * 1000),
        session=session,
        nonces=session,
        max_sessions=config.max_sessions,
        session_bytes=config.sessions_bytes,
    )
    cluster = ClusterConfig(
        connection=connection,
        directory=DirectoryConfig(
            settings=settings, direct_seconds=config.slow_timeout_seconds + 1
        ),
        retention=retention,
        max_accounts=config.accounts.max_accounts,
    )
    return ValkeyBackend(cluster, log)


def cluster_connection(url: str, access: EngineAccess, *, given: str) -> "ConnectionConfig":
    """Return the connection settings for the engine at *url*, given as the option *given*.

    Raises `UsageMistake`, `BadPasswordFile` or `BadCertificate`.
    """
    if importlib.util.find_spec("hiredis") is None:
        what = given if given.startswith("-") else "the engine of a cluster"
        raise UsageMistake(f"{what} needs the extra multichat-trio[cluster]: pip install hiredis")
    from multichat.client.connect import client_tls
    from multichat.cluster.address import ClusterAddress
    from multichat.cluster.connection import ConnectionConfig
    from multichat.cluster.link import Login

    try:
        address = ClusterAddress.parse(url)
    except ValueError as error:
        raise UsageMistake(f"{given}: {error}") from None
    if not address.tls and (access.authority or access.tls_name) is not None:
        raise UsageMistake("--cluster-ca and --cluster-tls-name need an address with valkeys://")
    login = Login(
        password=_password(access.password_file),
        tls=client_tls(access.authority) if address.tls else None,
        tls_name=access.tls_name,
    )
    return ConnectionConfig(address=address, login=login)


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """The address of a cluster's engine, for commands that also accept a file."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse_place(text: str) -> Path | ClusterUrl:
    """Return the argument *text* as the URL of an engine if it is one, otherwise as a path.

    Raises `UsageMistake` for a URL with another scheme.
    """
    if _URL.match(text):
        return ClusterUrl(text)
    if scheme := _OTHER_URL.match(text):
        raise UsageMistake(
            f"JOURNAL: {scheme[0]} is unknown: give a file, or the engine of a cluster as "
            "valkey://HOST:PORT, valkeys:// with TLS"
        )
    return Path(text)


JournalPlace = Annotated[
    Any,  # a path or a `ClusterUrl`
    typer.Argument(
        metavar="JOURNAL",
        help="The journal: a file written by serve --journal, or the engine of a cluster as "
        "valkey://HOST:PORT.",
        parser=parse_place,
    ),
]


def refuse_engine_options(context: typer.Context) -> None:
    """Raise `UsageMistake` if an option for an engine is on the command line along with a file.

    Environment variables for these are ignored: they may be meant for other commands.
    """
    for name in ("cluster_password_file", "cluster_ca", "cluster_tls_name"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageMistake(f"--{name.replace('_', '-')} has no effect with a file")


def _password(file: Path | None) -> str:
    """Return the password of the engine; empty if none is given."""
    if file is not None:
        return read_secret_file(file)
    return utf8_text(os.environ.get(CLUSTER_PASSWORD_VARIABLE, ""), CLUSTER_PASSWORD_VARIABLE)
