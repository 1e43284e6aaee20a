"""What typed lines mean to their receiver: commands, completions, and who gets a message.

An input line asks its `Syntax`, and imports neither the chat nor the server's console.
"""

from typing import TYPE_CHECKING

from multichat.protocol.commands import ADMIN_COMMANDS, COMMANDS, CommandTable
from multichat.protocol.typed_lines import disguised_command, looks_like, say_literally
from multichat.terminal.completion import Completion, complete, expand_reply

if TYPE_CHECKING:
    from multichat.client.line_chat import LineChat
    from multichat.protocol.messages import Directed

__all__ = ["AdminSyntax", "ChatSyntax", "Syntax"]


class Syntax:
    """The syntax of a receiver with the commands of *table*, who sends messages to everybody."""

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


class ChatSyntax(Syntax):
    """The syntax of a chat, which begins in *room* as soon as there is a *chat*.

    *names* and *rooms* are those to complete; *last_direct* is what `/r` answers.
    """

    def __init__(self, room: str | None) -> None:
        super().__init__(COMMANDS)
        self._first_room = room
        self.chat: LineChat | None = None
        self.names: set[str] = set()
        self.rooms: set[str] = set()
        self.last_direct: Directed | None = None

    def audience(self) -> str:
        """Return who receives messages: the members of the room."""
        room = self._first_room if self.chat is None else self.chat.room
        return f"everybody in {room}" if room else "everybody"

    def complete(self, before: str) -> list[Completion]:
        """Return the completions of the text before the cursor; not our own name."""
        own = set() if self.chat is None else {self.chat.name}
        return complete(before, self.names - own, self.rooms)

    def expand(self, line: str) -> str:
        """Return *line* with `/r` replaced by the recipient."""
        return expand_reply(line, None if self.last_direct is None else self.last_direct.client)


class AdminSyntax(Syntax):
    """The syntax of the server's console, which itself answers disguised commands."""

    def __init__(self) -> None:
        super().__init__(ADMIN_COMMANDS)

    def disguised(self, line: str) -> None:
        """Return None: no line needs a confirmation."""

    def literally(self, text: str) -> str:
        """Return the line that sends *text* as a message, even if it begins with a slash."""
        return f"/{text}" if text.startswith("/") else text
