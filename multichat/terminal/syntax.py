"""What typed lines mean to the program that receives them: commands, completions, recipients.

An input line asks its `Syntax`, and so imports neither the chat nor the server's console.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from multichat.protocol.commands import ADMIN_COMMANDS, COMMANDS, CommandTable
from multichat.protocol.typed_lines import (
    disguised_command,
    looks_like,
    say_literally,
    without_slash,
)
from multichat.terminal.completion import Completion, complete

if TYPE_CHECKING:
    from multichat.terminal.conversation import Conversation
    from multichat.terminal.render import Line

__all__ = ["AdminSyntax", "ChatSyntax", "Syntax", "TypedLine"]


class TypedLine(NamedTuple):
    """A submitted line; *room* is the one that it was meant for, empty if there are no rooms."""

    text: str
    room: str


class Syntax:
    """The syntax of a receiver with the commands of *table*; it sends messages to everybody."""

    def __init__(self, table: CommandTable) -> None:
        self._table = table

    def disguised(self, line: str) -> str | None:
        """Return the command that *line* resembles without being one, or None."""
        return disguised_command(line, self._table)

    def looks_like(self, line: str) -> str | None:
        """Return the name of the command that *line* is or resembles, or None."""
        return looks_like(line, self._table)

    def literally(self, text: str) -> str:
        """Return the line that sends *text* as a message, even if it begins with a slash."""
        return say_literally(text)

    def audience(self) -> str:
        """Return who receives messages."""
        return "everybody"

    def complete(self, before: str) -> list[Completion]:
        """Return the completions of the text before the cursor."""
        return complete(before, (), (), self._table)

    def expand(self, line: str) -> str:
        """Return *line* with its abbreviations expanded.

        Called while they are typed, because their meaning can change.
        """
        return line

    def address(self, line: str) -> str:  # noqa: ARG002
        """Return the room that a line is meant for; called once, when the line is submitted."""
        return ""


class ChatSyntax(Syntax):
    """The syntax of a chat, whose *conversation* knows the rooms and the names.

    *show* shows lines in it.
    """

    def __init__(self, conversation: "Conversation", show: "Callable[[list[Line]], None]") -> None:
        super().__init__(COMMANDS)
        self._conversation, self._show = conversation, show

    def disguised(self, line: str) -> str | None:
        """Return the command that *line* resembles without being one, or None.

        A login without its slash counts, too: once sent as a message, its passphrase is no secret.
        """
        own_name = self._conversation.identity.name
        return super().disguised(line) or without_slash(line, own_name)

    def looks_like(self, line: str) -> str | None:
        """Return the name of the command that *line* is or resembles, or None."""
        return super().looks_like(self.disguised(line) or line)

    def audience(self) -> str:
        """Return who receives messages: the members of the room."""
        return self._conversation.audience()

    def complete(self, before: str) -> list[Completion]:
        """Return the completions of the text before the cursor; not our own name."""
        return self._conversation.complete(before)

    def expand(self, line: str) -> str:
        """Return *line* with `/r` replaced by the recipient."""
        return self._conversation.expand(line)

    def address(self, line: str) -> str:
        """Return the room that a line is meant for; a `/join` shows a room that we are in."""
        room, lines = self._conversation.address(line)
        self._show(lines)
        return room


class AdminSyntax(Syntax):
    """The syntax of the server's console, which itself answers disguised commands."""

    def __init__(self) -> None:
        super().__init__(ADMIN_COMMANDS)

    def disguised(self, line: str) -> None:
        """Return None: no line needs a confirmation."""

    def literally(self, text: str) -> str:
        """Return the line that sends *text* as a message, even if it begins with a slash."""
        return f"/{text}" if text.startswith("/") else text
