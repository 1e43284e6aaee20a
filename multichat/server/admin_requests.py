"""Runs the commands of `ADMIN_COMMANDS` for the operator, at the console or over the admin socket.

Maps each command to a method of `multichat.server.admin_commands`.  Knows neither terminals nor
sockets, and does not format tables: an answer has data, which `multichat.terminal.admin_answers`
formats for people.

1. Every command of the table is run here, and no other.
2. A command that does not wait has been carried out when `run_command` returns.  For the others it
   returns an async function, so that the caller decides about their order.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import trio

from multichat.protocol.commands import (
    ADMIN_COMMANDS,
    Command,
    parse_ban,
    parse_kick,
    split_who,
)
from multichat.protocol.messages import room_of
from multichat.server.admin_commands import AdminCommands

__all__ = ["Answer", "Task", "run_command"]

_SECONDS = re.compile(r"\d{1,9}(\.\d*)?s?", re.ASCII)


class Answer(NamedTuple):
    """The answer to a command: *lines* for people, a *result* for programs; either may be empty.

    They may contain text of other people, which is not cleaned.  The result consists of types that
    msgspec can encode: dataclasses, structs, lists and plain values.
    """

    lines: tuple[str, ...] = ()
    result: Any = None


Task: TypeAlias = Callable[[], Awaitable[Answer]]
"""The part of a command that waits; raises `MultichatError` if the command fails."""


def run_command(admin: AdminCommands, command: Command, rest: str) -> Answer | Task | None:
    """Run *command* of `ADMIN_COMMANDS`; *rest* is what was typed after its name.

    Returns the answer, or, for a command that waits, a task to be called once; None if *rest* is
    invalid.  Raises `MultichatError` if the command fails.
    """
    text = rest.strip()
    match command.name:
        case "/who":
            return _clients(admin, room_of(text))
        case "/rooms" if not text:
            rooms = admin.rooms()
            return Answer(() if rooms else ("nobody is connected",), rooms)
        case "/stats" if not text:
            return Answer(result=admin.statistics())
        case "/announce" if text:
            return partial(_line, admin.announce, text)
        case "/send" if split_who(text)[1]:
            who, said = split_who(text)
            return partial(_nothing, partial(admin.send, admin.find(who), said))
        case "/kick" if (kick := parse_kick(text)) is not None:
            return Answer((admin.kick(kick.who, kick.reason),))
        case "/ban" if (ban := parse_ban(text)) is not None:
            return Answer((admin.ban(ban.what, ban.time, ban.reason),))
        case "/unban" if text:
            return Answer((admin.unban(text),))
        case "/bans" if not text:
            return Answer(tuple(admin.describe_bans()), admin.bans())
        case "/topic" if text:
            return partial(_line, admin.topic, text)
        case "/reload" if not text:
            return partial(_reload, admin)
        case "/drain" if not text or _SECONDS.fullmatch(text):
            return partial(_drain, admin, float(text.removesuffix("s")) if text else None)
        case "/account" if text:
            # It ends with a passphrase, which may contain spaces.
            return partial(_account, admin, rest.lstrip())
        case "/help":
            return Answer(tuple(ADMIN_COMMANDS.plain_help_lines()))
        case "/quit" if not text:
            return partial(_quit, admin)
    return None


def _clients(admin: AdminCommands, room: str) -> Answer:
    clients = admin.clients(room)
    if clients:
        return Answer(result=clients)
    return Answer((f"nobody is in {room[:40]}" if room else "nobody is connected",), clients)


async def _line(command: Callable[[str], Coroutine[Any, Any, str]], text: str) -> Answer:
    return Answer((await command(text),))


async def _nothing(command: Callable[[], Coroutine[Any, Any, None]]) -> Answer:
    await command()
    return Answer()


async def _reload(admin: AdminCommands) -> Answer:
    return Answer(tuple(await admin.reload()))


async def _drain(admin: AdminCommands, seconds: float | None) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer((admin.drain(seconds),))


async def _account(admin: AdminCommands, rest: str) -> Answer:
    lines = tuple(await admin.account(rest))
    return Answer(lines, admin.accounts() if rest.strip().lower() == "list" else None)


async def _quit(admin: AdminCommands) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer((admin.quit(),))
