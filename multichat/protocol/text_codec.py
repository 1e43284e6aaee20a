"""The text protocol, for `nc`: one message on each line; commands start with a slash.  Pure."""

import re
from collections.abc import Iterator
from typing import ClassVar

from multichat.protocol.commands import FOREVER
from multichat.protocol.counts import counted
from multichat.protocol.framing import behind
from multichat.protocol.json_codec import JSON, decode_hello, is_hello
from multichat.protocol.messages import (
    MAX_DECOMPOSED,
    Act,
    Announce,
    Ban,
    BanInfo,
    BanList,
    Bans,
    ChangePassphrase,
    Direct,
    Directed,
    Enter,
    Entered,
    Error,
    Event,
    Exit,
    Exited,
    Goodbye,
    Help,
    History,
    HistoryPage,
    Join,
    Joined,
    Kick,
    Left,
    LoggedIn,
    LoggedOut,
    Login,
    Logout,
    Members,
    Missed,
    Nonce,
    Notice,
    Ping,
    Pong,
    Presence,
    Quit,
    Register,
    Rename,
    Renamed,
    Request,
    RoomList,
    Rooms,
    Said,
    SaidBlock,
    Say,
    SayBlock,
    SetTopic,
    TopicChanged,
    Unban,
    Welcome,
    Who,
    WireRequest,
)
from multichat.protocol.names import SERVER_NAME
from multichat.protocol.typed_lines import may_be_disguised, parse_line, say_literally

__all__ = ["TEXT", "TextCodec"]

_GOODBYE = "goodbye: "

# A tag that is longer than any name is text; see `multichat.protocol.messages`.
_DIRECTED = re.compile(rf"\[([^\]]{{1,{MAX_DECOMPOSED}}}) → you\] (.*)", re.DOTALL)
_TAGGED = re.compile(rf"\[([^\]]{{1,{MAX_DECOMPOSED}}})\] (.*)", re.DOTALL)
_ACTED = re.compile(rf"\* (Client \d{{1,15}}|\S{{1,{MAX_DECOMPOSED}}}) (.*)", re.DOTALL)


class TextCodec:
    """Encodes each message as a line tagged with its sender; nonces and ids are left out."""

    name: ClassVar[str] = "text"
    is_text: ClassVar[bool] = True
    least_said_bytes: ClassVar[int] = len("[a] ")

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield the requests in a block of lines; the messages between two commands are one.

        What follows a `Hello` is decoded as JSON.
        """
        if not may_be_disguised(block):
            yield SayBlock(str(block))  # drops the `raw` text of a `Filtered`
            return
        said: list[str] = []
        lines = block.split("\n")
        for number, line in enumerate(lines, 1):
            request = None if is_hello(line) else parse_line(line)
            if isinstance(request, str):
                said.append(request)
                continue
            if said:
                yield SayBlock("\n".join(said))
                said.clear()
            if request is None:
                yield from decode_hello(line)
                if number < len(lines):
                    yield from JSON.parse_requests(behind(block, number))
                return
            yield request
        if said:
            yield SayBlock("\n".join(said))

    def encode_request(self, request: WireRequest) -> str:
        """Encode one request as the line that a person would type, without its nonce."""
        match request:
            case Say(text=text):
                return say_literally(text)
            case Act(text=text):
                return f"/me {text}"
            case Direct(to=to, text=text):
                return f"/msg {to} {text}"
            case Rename(name=name):
                return f"/name {name}"
            case Join(room=room) | Enter(room=room):
                return f"/join {room}"
            case Exit(room=room):
                return f"/leave {room}"
            case Register(passphrase=passphrase):
                return f"/register {passphrase}"
            case Login(name=name, passphrase=passphrase):
                return f"/login {name} {passphrase}"
            case Logout():
                return "/logout"
            case ChangePassphrase(passphrase=passphrase):
                return f"/passphrase {passphrase}"
            case Kick(who=who, reason=reason):
                return f"/kick {who} {reason}".rstrip()
            case Ban(what=what, time=time, reason=reason):
                if reason and not time:
                    time = FOREVER  # else a word of the reason could be one
                return " ".join(filter(None, ("/ban", str(what), time, reason)))
            case Unban(what=what):
                return f"/unban {what}"
            case Bans():
                return "/bans"
            case Announce(text=text):
                return f"/announce {text}"
            case SetTopic(text=text):
                return "/topic" if text is None else f"/topic {text}"
            case Ping(token=token):
                return f"/ping {token}" if token else "/ping"
            case Who(room=room):
                return f"/who {room}" if room else "/who"
            case Rooms():
                return "/rooms"
            case History(limit=limit):
                return f"/history {limit}"
            case Help():
                return "/help"
            case Quit():
                return "/quit"

    def encode_said(self, said: SaidBlock, prefix: str = "") -> bytes:
        """Encode the messages of one publish, each on a line with *prefix* and the sender."""
        tag = f"{prefix}{self.format_sender(said.name, act=said.act)} ".encode()
        return b"".join((tag, said.text.encode().replace(b"\n", b"\n" + tag), b"\n"))

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:  # noqa: ARG002
        """Return *encoded*: the text protocol has no nonces."""
        return encoded

    def format_sender(self, name: str, *, act: bool) -> str:
        """Return the tag in front of a message, or an action, of *name*."""
        return f"* {name}" if act else f"[{name}]"

    def format(self, event: Event) -> str:
        """Return the lines that show one event; empty if there is nothing to show."""
        match event:
            case Said(name="", text=text):
                return text
            case Said(name=name, text=text, act=act):
                return f"{self.format_sender(name, act=act)} {text}"
            case Directed(name=name, text=text):
                return f"[{name} → you] {text}"
        return "\n".join(f"[{SERVER_NAME}] {text}" for text in self.describe(event))

    def describe(self, event: Event) -> list[str]:
        """Return the lines that describe an event that comes from the server itself."""
        match event:
            case Welcome(name=name, room=room, members=members):
                return [f"you are {name} in {room}; {_are_here(members)}"]
            case Joined(name=name):
                return [f"{name} joined"]
            case Entered(room=room, members=members, topic=topic):
                lines = [f"you are in {room}; {_are_here(members)}"]
                return [*lines, f"topic: {topic}"] if topic else lines
            case Exited(room=room):
                return [f"you have left {room}"]
            case Left(name=name, reason=reason):
                return [f"{name} left ({reason})" if reason else f"{name} left"]
            case Renamed(old=old, name=name):
                return [f"{old} is now {name}"]
            case Presence(members=members):
                kinds = ("joined", "left", "renamed")
                changes = [f"{n} {kind}" for kind in kinds if (n := getattr(event, kind))]
                return [f"{', '.join(changes)}; {_are_here(members)}"]
            case Missed(count=count):
                return [f"{counted(count, 'message')} skipped"]
            case Members(room=room, members=[], person_in=person_in):
                if not person_in:
                    return [f"nobody is in {room}"]
                return [f"{room} is not a room; a person with that name is in {person_in}"]
            case Members(room=room, members=names):
                return [f"{len(names)} in {room}:", *(f"{m.client} {m.name}" for m in names)]
            case BanList(bans=[]):
                return ["no bans"]
            case BanList(bans=bans):
                return ["bans:", *map(_describe_ban, bans)]
            case TopicChanged(room=room, text="", name=""):
                return [f"{room} has no topic"]
            case TopicChanged(room=room, text=text, name=""):
                return [f"the topic of {room}: {text}"]
            case TopicChanged(room=room, text="", name=name):
                return [f"{name} removed the topic of {room}"]
            case TopicChanged(room=room, text=text, name=name):
                return [f"{name} set the topic of {room}: {text}"]
            case LoggedIn(name=name):
                return [f"you are logged in as {name}"]
            case LoggedOut(name=name, reason=reason):
                why = f" ({reason})" if reason else ""
                return [f"you are logged out{why}, and called {name} now"]
            case RoomList(rooms=rooms):
                return [
                    "rooms and their members:",
                    *(f"{r.room} {r.members}" for r in rooms),
                ]
            case HistoryPage(messages=messages, missed=missed):
                unreadable = f" and {missed} that cannot be read" if missed else ""
                return [
                    f"{counted(len(messages), 'message')}{unreadable}, times in UTC:",
                    *(f"{_format_time(said.timestamp)} {self.format(said)}" for said in messages),
                ]
            case Pong(token=token):
                return [f"pong {token}".rstrip(" ")]
            case Goodbye(reason=reason):
                return [f"{_GOODBYE}{reason}"]
            case Notice(text=text) | Error(text=text):
                return [text]
        return []

    def encode(self, event: Event) -> bytes:
        """Encode one event."""
        lines = self.format(event)
        return f"{lines}\n".encode() if lines else b""

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield the events in a block of lines from a server; every line is an event."""
        return map(self._parse_event, block.split("\n"))

    def _parse_event(self, line: str) -> Event:
        if directed := _DIRECTED.fullmatch(line):
            return Directed(name=directed[1], text=directed[2])
        if tagged := _TAGGED.fullmatch(line):
            name, text = tagged.groups()
            if name != SERVER_NAME:
                return Said(name=name, text=text)
            if text.startswith(_GOODBYE):
                return Goodbye(text.removeprefix(_GOODBYE))
            return Notice(text)
        if acted := _ACTED.fullmatch(line):
            return Said(name=acted[1], text=acted[2], act=True)
        return Said(name="", text=line)


def _are_here(members: int) -> str:
    return "nobody else is here" if members == 1 else f"{members} are here"


def _describe_ban(ban: BanInfo) -> str:
    time = "" if ban.seconds is None else f" for {_describe_seconds(ban.seconds)}"
    return f"{ban.what}{time}" + (f": {ban.reason}" if ban.reason else "")


def _describe_seconds(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _format_time(time: str) -> str:
    """Format a time of the wire for people, without its fraction."""
    return f"{time[:10]} {time[11:19]}"


TEXT = TextCodec()
