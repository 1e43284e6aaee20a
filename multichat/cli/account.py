"""The command `account`: accounts in the journal of a stopped server, or in a cluster."""

import logging
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.cluster import (
    ClusterUrl,
    EngineAccess,
    JournalPlace,
    cluster_connection,
    refuse_engine_options,
)
from multichat.cli.parameters import ClusterCa, ClusterPasswordFile, ClusterTlsName
from multichat.cli.process import (
    UsageMistake,
    are_terminals,
    ask_secret,
    one_line_errors,
    read_secret_file,
)
from multichat.errors import JournalFailed

if TYPE_CHECKING:
    from multichat.backend.base import Backend
    from multichat.server.accounts import Accounts

__all__ = ["Action", "account", "ask_passphrase"]


class Action(Enum):
    """What to do with accounts."""

    ADD = "add"
    REMOVE = "remove"
    LIST = "list"


def account(
    context: typer.Context,
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    file: JournalPlace,
    name: Annotated[
        str | None, typer.Argument(help="The name of the account.", show_default=False)
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the passphrase of a new account from this file; by default the command asks "
            "for it, and does not show it.",
            show_envvar=False,
        ),
    ] = None,
    cluster_password_file: ClusterPasswordFile = None,
    cluster_ca: ClusterCa = None,
    cluster_tls_name: ClusterTlsName = None,
) -> None:
    """Add, remove or list the accounts in a journal or a cluster.

    JOURNAL is a file, or the address of a cluster's engine. The server of a file must not be
    running: while it runs, its console does the same with /account. Removing an account logs its
    sessions out when the server starts again. The nodes of a cluster may be running, and know of
    it at once.
    """
    if (name is None) is not (action is Action.LIST):
        raise UsageMistake("NAME is missing" if name is None else "list takes no NAME")
    if passphrase_file is not None and action is not Action.ADD:
        raise UsageMistake(f"--passphrase-file has no effect with {action.value}")
    is_cluster = isinstance(file, ClusterUrl)
    if name is not None and not is_cluster and not file.exists() and Path(name).is_file():
        raise UsageMistake(f"JOURNAL comes before NAME: {action.value} {name} {file}")
    import trio

    from multichat.journal.sqlite.file_lock import IN_USE
    from multichat.stdio import until_signal

    with one_line_errors("interrupted: nothing was changed"):
        if is_cluster:
            access = EngineAccess(cluster_password_file, cluster_ca, cluster_tls_name)
            backend = _cluster(file, access)
        else:
            refuse_engine_options(context)
            backend = partial(_local, file)
        passphrase = ""
        if action is Action.ADD:
            _check(name or "")
            if passphrase_file is None:
                passphrase = ask_passphrase(name or "")
            else:
                passphrase = read_secret_file(passphrase_file, "passphrase")
        elif not is_cluster and not file.exists():
            raise JournalFailed(file, "no such file")
        lines: list[str] = []

        async def act() -> None:
            lines.extend(await _run(backend, file, action, name or "", passphrase))

        try:
            finished = trio.run(until_signal, act)
        except JournalFailed as error:
            if error.reason != IN_USE:
                raise
            reason = "its server is running: stop it first, or type /account at its console"
            raise JournalFailed(file, reason) from None
        if not finished:
            raise JournalFailed(file, "interrupted")
    for line in lines:
        typer.echo(line)


def _check(name: str) -> None:
    """Raise `InvalidName` for a name that no account can have, before a passphrase is asked for."""
    from multichat.protocol.names import parse_person_name

    parse_person_name(name)


def ask_passphrase(name: str) -> str:
    """Ask twice for the passphrase of *name*, and return it.

    Raises `UsageMistake`, also if none is typed, and `KeyboardInterrupt`.
    """
    if not are_terminals(sys.stdin, sys.stderr):
        raise UsageMistake("no terminal to ask for a passphrase: use --passphrase-file")
    passphrase = ask_secret(f"Passphrase for {name}: ")
    if not passphrase:  # also the end of the input
        raise UsageMistake("no passphrase was typed: nothing was changed")
    if ask_secret("Again: ") != passphrase:
        raise UsageMistake("the two passphrases differ")
    return passphrase


def _local(file: Path) -> "Backend":
    from multichat.backend.local import LocalBackend
    from multichat.journal.sqlite.journal import SqliteJournal

    return LocalBackend(SqliteJournal(file))


def _cluster(url: ClusterUrl, access: EngineAccess) -> "Callable[[], Backend]":
    connection = cluster_connection(url.text, access, given="JOURNAL")

    from multichat.cluster.backend import ClusterConfig, ValkeyBackend
    from multichat.log import Log

    # The nodes' logs have what is to be said of the engine.
    logging.getLogger("multichat.account").addHandler(logging.NullHandler())
    return lambda: ValkeyBackend(ClusterConfig(connection=connection), Log("account"))


async def _run(
    open_backend: "Callable[[], Backend]",
    file: Path | ClusterUrl,
    action: Action,
    name: str,
    passphrase: str,
) -> list[str]:
    """Do as *action* says with the journal, and return what to print."""
    import trio

    from multichat.errors import NameTaken, RemoteProtocolError, lone_exception
    from multichat.server.accounts import Accounts
    from multichat.server.config import ServerConfig

    backend = open_backend()
    with lone_exception():
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run)
            nursery.start_soon(_discard_events, backend)
            accounts = Accounts(ServerConfig(), backend)
            accounts.load()
            try:
                return await _act(accounts, action, name, passphrase, file)
            except NameTaken as error:
                other = error.holder or error.name
                raise JournalFailed(file, f"{other} has an account; remove it first") from error
            except RemoteProtocolError as error:
                raise JournalFailed(file, str(error)) from error
            finally:
                nursery.cancel_scope.cancel(reason="done")
    raise AssertionError  # it returns or raises


async def _discard_events(backend: "Backend") -> None:
    while True:
        await backend.receive()


async def _act(
    accounts: "Accounts", action: Action, name: str, passphrase: str, file: Path | ClusterUrl
) -> list[str]:
    match action:
        case Action.ADD:
            added = await accounts.add(name, passphrase)
            return [f"{added.name} has an account in {file}"]
        case Action.REMOVE:
            removed = await accounts.remove(name)
            if removed is None:
                raise JournalFailed(file, f"it has no account {name}")
            return [f"{removed.name} has no account in {file} any more"]
        case Action.LIST:
            return [each.name for each in accounts]
