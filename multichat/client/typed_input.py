"""Parses typed lines, from a person or a pipe, into requests and local commands.  Pure.

Every front end parses its input here, once.
"""

from collections.abc import Collection
from typing import NamedTuple, TypeAlias

from multichat.protocol.commands import COMMANDS, split_command
from multichat.protocol.json_codec import is_hello
from multichat.protocol.messages import Hello, Request, SayBlock, room_of
from multichat.protocol.typed_lines import may_be_disguised, parse_line, say_unless_command

__all__ = ["LocalCommand", "Typed", "parse_typed", "room_command"]


class LocalCommand(NamedTuple):
    """A command that the client runs itself: its *name* and its *argument*."""

    name: str
    argument: str


TypedRequest: TypeAlias = Request | LocalCommand
"""The request, or the local command, of a typed line."""


class Typed(NamedTuple):
    """*lines* as they were typed, with LF between them, and the *request* that they make.

    Only a `SayBlock` has several lines.  *request* is None for a disguised command, which is not
    sent.
    """

    lines: str
    request: TypedRequest | None

    @property
    def line_count(self) -> int:
        """How many lines these are."""
        return self.lines.count("\n") + 1

    def split(self, most_lines: int) -> "list[Typed]":
        """Return the same in pieces of at most that many lines."""
        if not isinstance(self.request, SayBlock) or self.line_count <= most_lines:
            return [self]
        lines, texts = self.lines.split("\n"), self.request.text.split("\n")
        return [
            Typed(
                "\n".join(lines[start : start + most_lines]),
                SayBlock("\n".join(texts[start : start + most_lines])),
            )
            for start in range(0, len(lines), most_lines)
        ]


def parse_typed(block: str, local: Collection[str] = (), *, piped: bool = False) -> list[Typed]:
    """Parse a block of lines, as `multichat.protocol.framing` returns them.

    *local* are the names of the commands that the front end runs itself.  In a *piped* block an
    unknown command, such as a path, is a message, and a disguised command is not sent.
    """
    if not may_be_disguised(block):
        return [Typed(block, SayBlock(block))]
    parsed: list[Typed] = []
    said: list[tuple[str, str]] = []  # lines, and the texts that they say

    def end_block() -> None:
        if said:
            lines, texts = map("\n".join, zip(*said, strict=True))
            parsed.append(Typed(lines, SayBlock(texts)))
            said.clear()

    for line in block.split("\n"):
        request = _parse_line(line, local, piped=piped)
        if isinstance(request, str):
            said.append((line, request))
        else:
            end_block()
            parsed.append(Typed(line, request))
    end_block()
    return parsed


def _parse_line(line: str, local: Collection[str], *, piped: bool) -> TypedRequest | str | None:
    if line.startswith("/"):
        word, argument = split_command(line)
        command = COMMANDS.find(word)
        argument = argument.strip()
        has_unwanted_argument = argument and command is not None and command.name == "/quit"
        if command is not None and command.name in local and not has_unwanted_argument:
            return LocalCommand(command.name, argument)
    if is_hello(line):
        return Hello()
    meant = say_unless_command(line) if piped else line
    return None if meant is None else parse_line(meant)


def room_command(line: str) -> tuple[str, str]:
    """Return the name of the command that *line* is, and its argument as a room; empty if none.

    For a client that may be in several rooms: its `/join` and `/part` enter and leave a room,
    whereas the requests that `parse_typed` returns for them move from room to room.
    """
    if not line.startswith("/"):
        return "", ""
    word, rest = split_command(line)
    command = COMMANDS.find(word)
    return ("" if command is None else command.name), room_of(rest.strip())
