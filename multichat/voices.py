"""How requests and events are spelled on the wire: the text voice.  Pure.

Spelling is done once per publish, never once per member: what these functions return is shared,
immutable bytes.  Lines have been through `multichat.framing` and are clean; so is every text that
is spelled here.
"""

import re
from collections.abc import Iterator

from multichat.messages import (
    Event,
    Goodbye,
    Help,
    Notice,
    Ping,
    Quit,
    Request,
    Said,
    Say,
    Unknown,
)

__all__ = ["HTTP_ANSWER", "SERVER_NAME", "TEXT", "TextVoice", "looks_like_http", "looks_like_tls"]

SERVER_NAME = "Server"
_GOODBYE = "goodbye: "

# Enough of a mistyped command to recognise it; a 64 KiB "/aaaa…" need not come back whole.
_SHOWN_COMMAND_CHARACTERS = 40

_HELP = """\
commands, each on a line of its own:
/help   this list
/ping   is anybody there?
/quit   leave
//TEXT  say a line that starts with /"""

_TAGGED = re.compile(r"\[([^\]]+)\] (.*)", re.DOTALL)


class TextVoice:
    """What `nc` speaks: one message a line, tagged with its sender; commands start with a slash."""

    def parse_requests(self, run: str) -> Iterator[Request]:
        """Yield what a client asks with a run of lines, chat between two commands as one `Say`."""
        # A slash anywhere is looked for first: that search is much the faster one.
        if "/" not in run or not (run[0] == "/" or "\n/" in run):
            yield Say(run)
            return
        said: list[str] = []
        for line in run.split("\n"):
            if line[0] != "/":
                said.append(line)
            elif line.startswith("//"):
                said.append(line[1:])
            else:
                if said:
                    yield Say("\n".join(said))
                    said.clear()
                yield self._parse_command(line)
        if said:
            yield Say("\n".join(said))

    def _parse_command(self, line: str) -> Request:
        word, *rest = line.split(maxsplit=1)
        match word.lower():
            case "/help":
                return Help()
            case "/ping":
                return Ping("".join(rest))
            case "/quit":
                return Quit()
        return Unknown(word)

    def spell_say(self, text: str) -> str:
        """Spell one message so that no text is taken for a command."""
        return f"/{text}" if text.startswith("/") else text

    def spell_said(self, name: str, run: str) -> bytes:
        """Spell the messages of one publish, each on a line tagged with *name*."""
        tag = f"[{name}] ".encode()
        return b"".join((tag, run.encode().replace(b"\n", b"\n" + tag), b"\n"))

    def line(self, event: Event) -> str:
        """Spell one event as the line that it is."""
        match event:
            case Said(name="", text=text):
                return text
            case Said(name=name, text=text):
                return f"[{name}] {text}"
            case Notice(text=text):
                return f"[{SERVER_NAME}] {text}"
            case Goodbye(reason=reason):
                return f"[{SERVER_NAME}] {_GOODBYE}{reason}"

    def spell(self, event: Event) -> bytes:
        """Spell one event as it stands on the wire."""
        return f"{self.line(event)}\n".encode()

    def spell_help(self) -> bytes:
        """Spell the answer to `Help`, within 60 columns."""
        return self.spell_said(SERVER_NAME, _HELP)

    def spell_pong(self, token: str) -> bytes:
        """Spell the answer to `Ping`."""
        return self.spell(Notice(f"pong {token}".rstrip(" ")))

    def spell_unknown(self, command: str) -> bytes:
        """Spell the answer to `Unknown`, whose *command* starts with its slash."""
        if len(command) > _SHOWN_COMMAND_CHARACTERS:
            command = command[:_SHOWN_COMMAND_CHARACTERS] + "…"
        return self.spell(
            Notice(
                f"unknown command {command}; /help lists them; "
                "start with // to say a line that starts with /"
            )
        )

    def spell_missed(self, count: int) -> bytes:
        """Spell what a member is told who was too slow for *count* messages."""
        return self.spell(Notice(f"{count} message{'' if count == 1 else 's'} skipped"))

    def parse_event(self, line: str) -> Event:
        """Read what a server tells us with *line*; any line at all is an event."""
        if tagged := _TAGGED.fullmatch(line):
            name, text = tagged.groups()
            if name != SERVER_NAME:
                return Said(name, text)
            if text.startswith(_GOODBYE):
                return Goodbye(text.removeprefix(_GOODBYE))
            return Notice(text)
        return Said("", line)


TEXT = TextVoice()

# --- Strangers: clients that opened the right port with the wrong protocol. ---------------------

_HTTP = re.compile(r"[A-Z]{3,20} \S+ HTTP/[0-9.]+")

HTTP_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
    b"This is a multichat server, not a web server: use nc or multichat connect.\n"
)
"""One line to whoever looks, behind the header without which a browser would show nothing."""


def looks_like_http(line: str) -> bool:
    """Whether a client's first *line* is an HTTP request."""
    return _HTTP.fullmatch(line) is not None


def looks_like_tls(data: bytes | bytearray) -> bool:
    """Whether a client's first bytes are a TLS handshake record (RFC 8446, section 5.1)."""
    return data.startswith(b"\x16\x03")
