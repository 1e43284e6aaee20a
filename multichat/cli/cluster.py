"""`serve --cluster`: makes the backend of a cluster's node of the options."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from multichat.cli.process import UsageMistake, read_secret_file, utf8_text

if TYPE_CHECKING:
    from multichat.cluster.backend import ValkeyBackend
    from multichat.journal.retention import Retention
    from multichat.log import Log
    from multichat.server.config import ServerConfig

__all__ = ["CLUSTER_PASSWORD_VARIABLE", "EngineAccess", "open_cluster"]

CLUSTER_PASSWORD_VARIABLE = "MULTICHAT_CLUSTER_PASSWORD"  # noqa: S105 - the variable's name


class EngineAccess(NamedTuple):
    """What the options say beside the URL: the file of the password, and about TLS."""

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
    if importlib.util.find_spec("hiredis") is None:
        raise UsageMistake(f"{given} needs another package: pip install 'multichat-trio[cluster]'")
    from multichat.client.connect import client_tls
    from multichat.cluster.address import ClusterAddress
    from multichat.cluster.backend import ClusterConfig, ValkeyBackend
    from multichat.cluster.changes import Settings
    from multichat.cluster.connection import ConnectionConfig
    from multichat.cluster.directory import DirectoryConfig
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
    session = int(config.timeouts.session * 1000)
    settings = Settings(
        away=int(config.away_seconds * 1000),
        session=session,
        nonces=session,
        max_sessions=config.max_sessions,
    )
    cluster = ClusterConfig(
        connection=ConnectionConfig(address=address, login=login),
        directory=DirectoryConfig(
            settings=settings, direct_seconds=config.slow_timeout_seconds + 1
        ),
        retention=retention,
        max_accounts=config.accounts.max_accounts,
    )
    return ValkeyBackend(cluster, log)


def _password(file: Path | None) -> str:
    """Return the password of the engine; empty if none is given."""
    if file is not None:
        return read_secret_file(file)
    return utf8_text(os.environ.get(CLUSTER_PASSWORD_VARIABLE, ""), CLUSTER_PASSWORD_VARIABLE)
