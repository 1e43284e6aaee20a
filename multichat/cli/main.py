"""The command line: the commands of `multichat`, of which only the one that runs is imported."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from multichat import __version__
from multichat.cli.option_rules import CheckedCommand
from multichat.cli.process import command_line

__all__ = ["COMMANDS", "client_main", "load_command", "main", "make_app", "server_main"]

COMMANDS = {
    "serve": "serve",
    "connect": "commands",
    "send": "commands",
    "who": "commands",
    "ctl": "ctl",
    "history": "commands",
    "journal": "journal",
    "account": "account",
    "config": "config",
}
"""The commands of `multichat` in the order of its help, and their modules in `multichat.cli`."""


def load_command(name: str) -> Callable[..., None]:
    """Import and return the function of the command *name*, a key of `COMMANDS`."""
    command: Callable[..., None] = getattr(import_module(f"multichat.cli.{COMMANDS[name]}"), name)
    return command


class _Commands(TyperGroup):
    """`COMMANDS`; one is imported when it runs, and all are for the help that lists them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Only the names are used, to list them and to suggest one for a mistyped name.
        self.commands = {name: CheckedCommand(name) for name in COMMANDS}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return the command *cmd_name*, or None if there is no such command."""
        return get_command(make_app(load_command(cmd_name))) if cmd_name in COMMANDS else None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"multichat {__version__}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Group chat over plain TCP, and in the browser.

    `multichat serve` on one machine, `multichat connect HOST PORT` (or plain `nc HOST PORT`) on
    the others, and everybody talks. With `multichat serve --web 8080`, people without a terminal
    open a page in their browser.
    """


_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def make_app(command: Callable[..., None] | None = None) -> typer.Typer:
    """Return the command line of *command* alone, without its name, or that of `multichat`."""
    # Plain help: rich takes a third of the start and draws boxes too wide for narrow terminals.
    app = typer.Typer(
        # A single command, as the two of the specification, has nothing to complete.
        add_completion=command is None,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    if command is None:
        app.callback(cls=_Commands, no_args_is_help=True, context_settings=_HELP_OPTIONS)(_options)
    else:
        app.command(cls=CheckedCommand, context_settings=_HELP_OPTIONS)(command)
    return app


def _run(app: typer.Typer) -> NoReturn:
    with command_line():
        sys.exit(app(standalone_mode=False))


def main() -> NoReturn:
    """Run `multichat`."""
    _run(make_app())


def server_main() -> NoReturn:
    """Run `multi_chat_tcp_server`."""
    _run(make_app(load_command("serve")))


def client_main() -> NoReturn:
    """Run `multi_chat_tcp_client`."""
    from multichat.cli.commands import connect_plain

    _run(make_app(connect_plain))
