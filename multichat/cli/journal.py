"""The command `journal`: imports a journal into the engine of a cluster."""

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.cluster import EngineAccess, cluster_connection
from multichat.cli.parameters import ClusterCa, ClusterPasswordFile, ClusterTlsName
from multichat.cli.process import one_line_errors
from multichat.protocol.counts import counted

if TYPE_CHECKING:
    from multichat.cluster.importing import Imported

__all__ = ["JournalAction", "journal"]

# Between two lines about the progress.
_TELL_SECONDS = 1.0


class JournalAction(Enum):
    """What to do with a journal."""

    IMPORT = "import"


def journal(
    _action: Annotated[
        JournalAction, typer.Argument(metavar="import", help="What to do.", show_default=False)
    ],
    file: Annotated[
        Path,
        typer.Argument(metavar="JOURNAL", help="The journal: a file written by serve --journal."),
    ],
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="The engine of the cluster, as valkey://HOST:PORT."),
    ],
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="Import into an engine that has rooms already; rooms, accounts and sessions that "
            "it has are left alone.",
            show_envvar=False,
        ),
    ] = False,
    cluster_password_file: ClusterPasswordFile = None,
    cluster_ca: ClusterCa = None,
    cluster_tls_name: ClusterTlsName = None,
) -> None:
    """Import a journal into the engine of a cluster.

    All of it: messages, accounts, topics and sessions. Messages keep their ids, so that clients
    which reconnect miss nothing. The server of the journal and all nodes of the cluster must have
    stopped. Nothing is written to the file. An import that was aborted continues when the command
    is run again.
    """
    with one_line_errors("interrupted: run it again to continue"):
        access = EngineAccess(cluster_password_file, cluster_ca, cluster_tls_name)
        connection = cluster_connection(url, access, given="URL")

        import trio

        from multichat.cluster.engine_session import open_session
        from multichat.cluster.importing import import_contents
        from multichat.journal.sqlite.contents import open_contents
        from multichat.stdio import until_signal

        told = -_TELL_SECONDS

        def tell(room: str, messages: int) -> None:
            nonlocal told
            if (now := trio.current_time()) - told >= _TELL_SECONDS:
                told = now
                typer.echo(f"{room}: {counted(messages, 'message')}", err=True)

        results: list[Imported] = []

        async def run() -> None:
            async with open_session(connection) as session:
                results.append(await import_contents(contents, session, add=add, tell=tell))

        with open_contents(file) as contents:
            if not trio.run(until_signal, run):
                raise KeyboardInterrupt
            [done] = results
            damaged = contents.damaged
    for line in _summary(done, damaged):
        typer.echo(line)
    sys.exit(1 if damaged else 0)


def _summary(done: "Imported", damaged: int) -> list[str]:
    messages = f"{counted(done.messages, 'message')} of {counted(done.rooms, 'room')}"
    accounts, topics = counted(done.accounts, "account"), counted(done.topics, "topic")
    sessions = counted(done.sessions, "session")
    lines = [f"imported {messages}, {accounts}, {topics}, {sessions}"]
    lines += [
        f"not imported: the room {room}, which the cluster has already" for room in done.other_rooms
    ]
    lines += [
        f"not imported: the account {name}, because the cluster has one with such a name"
        for name in done.other_accounts
    ]
    if done.other_sessions:
        others = counted(done.other_sessions, "session")
        lines.append(f"not imported: {others}, because other clients have their numbers")
    if damaged:
        lines.append(f"damaged, and not imported: {counted(damaged, 'place')}")
    return lines
