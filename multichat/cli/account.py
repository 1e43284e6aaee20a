"""The command `account`: adds, removes and lists accounts in the journal of a stopped server."""

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.process import (
    UsageMistake,
    are_terminals,
    ask_secret,
    one_line_errors,
    read_secret_file,
)
from multichat.errors import JournalFailed

if TYPE_CHECKING:
    from multichat.server.accounts import Accounts

__all__ = ["Action", "account"]


class Action(Enum):
    """What to do with accounts."""

    ADD = "add"
    REMOVE = "remove"
    LIST = "list"


def account(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(metavar="JOURNAL", help="The journal: a file written by serve --journal."),
    ],
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
) -> None:
    """Add, remove or list the accounts in a journal.

    Its server must not be running: while it runs, its console does the same with /account. Removing
    an account logs its sessions out when the server starts again.
    """
    if (name is None) is not (action is Action.LIST):
        raise UsageMistake("NAME is missing" if name is None else "list takes no NAME")
    if passphrase_file is not None and action is not Action.ADD:
        raise UsageMistake(f"--passphrase-file has no effect with {action.value}")
    with one_line_errors():
        import trio

        from multichat.journal.sqlite.file_lock import IN_USE

        passphrase = ""
        if action is Action.ADD:
            _check(name or "")
            if passphrase_file is None:
                passphrase = _ask_passphrase(name or "")
            else:
                passphrase = read_secret_file(passphrase_file, "passphrase")
        elif not file.exists():
            raise JournalFailed(file, "no such file")
        try:
            lines = trio.run(_run, file, action, name or "", passphrase)
        except JournalFailed as error:
            if error.reason != IN_USE:
                raise
            reason = "its server is running: stop it first, or type /account at its console"
            raise JournalFailed(file, reason) from None
    for line in lines:
        typer.echo(line)


def _check(name: str) -> None:
    """Raise `InvalidName` for a name that no account can have, before a passphrase is asked for."""
    from multichat.protocol.names import parse_person_name

    parse_person_name(name)


def _ask_passphrase(name: str) -> str:
    if not are_terminals(sys.stdin, sys.stderr):
        raise UsageMistake("no terminal to ask for a passphrase: use --passphrase-file")
    passphrase = ask_secret(f"Passphrase for {name}: ")
    if ask_secret("Again: ") != passphrase:
        raise UsageMistake("the two passphrases differ")
    return passphrase


async def _run(file: Path, action: Action, name: str, passphrase: str) -> list[str]:
    """Do as *action* says with the journal, and return what to print."""
    import trio

    from multichat.backend.local import LocalBackend
    from multichat.errors import NameTaken, RemoteProtocolError, lone_exception
    from multichat.journal.sqlite.journal import SqliteJournal
    from multichat.server.accounts import Accounts
    from multichat.server.config import ServerConfig

    backend = LocalBackend(SqliteJournal(file))
    with lone_exception():
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run)
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


async def _act(
    accounts: "Accounts", action: Action, name: str, passphrase: str, file: Path
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
