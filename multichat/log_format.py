"""Formats log records: as the specification's lines, or as JSON.

A record of multichat holds `Lines`, or `Messages` for a publish.  `LineFormatter` formats them as
text, one line for each message and one for its broadcast; `JsonFormatter` makes one JSON object for
each message, with separate fields.  Both format a whole batch at once.

Invariant: input from a peer cannot start or end a line.
"""

import logging
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from multichat.protocol.framing import clean, clean_lines
from multichat.protocol.json_codec import encode_fields, encode_lines
from multichat.protocol.timestamps import TimeFormatter

__all__ = ["NO_FIELDS", "Fields", "JsonFormatter", "LineFormatter", "Lines", "Messages", "OneEvent"]

Fields: TypeAlias = Mapping[str, object]
"""The fields of a line, by their names in JSON.

Strings, numbers and booleans; None, False and empty strings are left out.
"""

NO_FIELDS: Fields = MappingProxyType({})
"""No fields besides the text."""

# A record of another part of the program, or of the writer itself.
_TAGGED = re.compile(r"\[(\w+)\] (.*)", re.DOTALL)


class Lines:
    """The unformatted lines of one batch: one for each line of *text*, which is clean.

    As text, each begins with `[tag]`; as JSON, each is an object with *fields* and its `text`.
    """

    __slots__ = ("after", "before", "fields", "text")

    def __init__(self, tag: str, text: str, fields: Fields = NO_FIELDS) -> None:
        self.before, self.text, self.after, self.fields = f"[{tag}] ", text, "", fields

    def encode(self, start: str) -> str:
        """Format all lines, each starting with *start*, without a final line break."""
        tail = f"\n{start}{self.after}" if self.after else ""
        head = f"{start}{self.before}"
        lines = self.text.replace("\n", f"{tail}\n{head}")
        return f"{head}{lines}{tail}"

    def format_bytes(self, start: str) -> bytes:
        """Format all lines as UTF-8 with a final line break, in a third of the time."""
        head = f"{start}{self.before}".encode()
        tail = f"\n{start}{self.after}\n".encode() if self.after else b"\n"
        return b"".join((head, self.text.encode().replace(b"\n", tail + head), tail))

    def format_json(self, about: Fields) -> bytes:
        """Format all lines as JSON with a final line break; each object begins with *about*."""
        return encode_lines(self._known(about), self.text)

    def _known(self, about: Fields) -> dict[str, object]:
        """Return *about* and the fields of all lines."""
        known = {**about, "tag": self.before[1 : self.before.index("]")]}
        for name, value in self.fields.items():
            if isinstance(value, str):
                if value:
                    known[name] = value if value.isprintable() else clean(value)
            elif value is not None and value is not False:
                known[name] = value
        return known

    def __str__(self) -> str:
        """Return the lines, for a filter or handler that asks a record for its message."""
        return self.encode("")

    def split(self) -> list[str]:
        """Return the lines."""
        return str(self).split("\n")


class Messages(Lines):
    """The messages of one publish, one for each line of *text*, each sent to *clients* clients.

    As text, each begins with `[tag]` and the *speaker*, and is followed by a line about its
    broadcast.  If *is_blank*, the lines of *text* are empty and only their number matters.
    """

    __slots__ = ("clients", "is_blank")

    def __init__(
        self,
        tag: str,
        speaker: str,
        text: str,
        clients: int,
        fields: Fields = NO_FIELDS,
        is_blank: bool = False,
    ) -> None:
        self.before = f"[{tag}] {speaker}" if is_blank else f"[{tag}] {speaker} "
        self.text, self.fields = text, fields
        self.after = f"[BROADCAST] Broadcasting to {clients} clients"
        self.clients, self.is_blank = clients, is_blank

    def format_json(self, about: Fields) -> bytes:
        """Format them like `Lines`, each with the number of *clients*."""
        known = self._known(about)
        known["clients"] = self.clients
        if self.is_blank:
            return (encode_fields(known) + b"\n") * (self.text.count("\n") + 1)
        return encode_lines(known, self.text)


class OneEvent(Lines):
    """Lines that form one object in JSON, such as a traceback."""

    __slots__ = ()

    def format_json(self, about: Fields) -> bytes:
        """Format all lines as one object with a final line break."""
        return encode_fields({**self._known(about), "text": self.text}) + b"\n"


class LineFormatter(logging.Formatter):
    """Formats `2025-01-15 10:30:45.123 [INFO] [server] …`, in local time, for every line."""

    def __init__(self) -> None:
        super().__init__()
        self._time = TimeFormatter(time.localtime, "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format all lines of *record*, without a final line break."""
        start = self._start(record)
        message = record.msg
        if isinstance(message, Lines):
            return message.encode(start)
        text = clean(record.getMessage())
        if not _is_ours(record):
            return f"{start}[STATE] {text}"
        text = start + text
        if record.exc_info:
            text += "\n" + clean_lines(self.formatException(record.exc_info))
        return text

    def format_bytes(self, record: logging.LogRecord) -> bytes:
        """Format all lines of *record* as they are written to a file."""
        if isinstance(record.msg, Lines):
            return record.msg.format_bytes(self._start(record))
        return f"{self.format(record)}\n".encode("utf-8", "backslashreplace")

    def _start(self, record: logging.LogRecord) -> str:
        package, _, component = record.name.partition(".")
        if package != "multichat":  # records of trio about the listeners
            component = "server"
        return f"{self._time.format(record.created)} [{record.levelname}] [{component}] "


class JsonFormatter(logging.Formatter):
    """Formats one object per line: `time` (RFC 3339, UTC), `level`, `component`, `tag` and more."""

    def __init__(self) -> None:
        super().__init__()
        self._time = TimeFormatter(time.gmtime, "%Y-%m-%dT%H:%M:%S", "Z")

    def format(self, record: logging.LogRecord) -> str:
        """Format all lines of *record*, without a final line break."""
        return self.format_bytes(record).decode().removesuffix("\n")

    def format_bytes(self, record: logging.LogRecord) -> bytes:
        """Format all lines of *record* as they are written to a file."""
        about: dict[str, object] = {
            "time": self._time.format(record.created),
            "level": record.levelname,
            "component": record.name.partition(".")[2] if _is_ours(record) else "server",
        }
        message = record.msg
        if isinstance(message, Lines):
            return message.format_json(about)
        text = clean(record.getMessage())
        tagged = _TAGGED.fullmatch(text)
        about["tag"], about["text"] = (tagged[1], tagged[2]) if tagged else ("STATE", text)
        if record.exc_info and _is_ours(record):
            about["traceback"] = clean_lines(self.formatException(record.exc_info))
        return encode_fields(about) + b"\n"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "multichat"
