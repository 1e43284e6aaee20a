"""Which voice a client speaks, from its hello until that is settled, and the password.  Pure.

A hello asks for JSON and is a line of text, so that any server takes it for something.  Whoever
does not answer in time is spoken to in text, and may answer all the same: then everything that was
sent since the hello has been read as JSON, and what was not JSON is refused, line by line, and has
to be sent again.
"""

from collections import deque

from multichat.errors import LineTooLong
from multichat.framing import clean
from multichat.messages import PROTOCOL, Error, Event, Hello, Invalid, Notice, Welcome
from multichat.names import fold_name
from multichat.preamble import PASSWORD_ACCEPTED, PASSWORD_REQUIRED, WRONG_PASSWORD
from multichat.voices import JSON, TEXT, Voice

__all__ = ["WELCOME_BEGINS", "Handshake", "make_hello"]

# What is remembered of what was sent in text, in case that a welcome comes: a long paste.
_REMEMBERED_CHARACTERS = 1024 * 1024

_OF_PASSWORD = (PASSWORD_REQUIRED, PASSWORD_ACCEPTED, WRONG_PASSWORD)

WELCOME_BEGINS = '{"type":"welcome"'
"""With which a line begins that is a welcome."""


def make_hello(name: str | None = None, room: str | None = None, replay: int = 0) -> Hello:
    """Return a hello with these wishes, which may hold anything."""
    return Hello(
        PROTOCOL,
        None if name is None else clean(name),
        None if room is None else clean(room),
        replay=replay,
    )


class Handshake:
    """What was asked of a server, and what it said to that.

    *voice* is the one that is spoken now and *welcome* the server's answer, if it came.  *ready*
    says whether new lines may be sent, *refusals* why wishes of the hello were not granted, *again*
    holds lines that are to be sent again before any new one; who does so takes them out.

    *password_asked* says that the server wants a password, and has not accepted one;
    *password_refused* that the one that it was told is wrong.
    """

    def __init__(self, hello: Hello, *, plain: bool = False) -> None:
        self.voice: Voice = TEXT
        self.welcome: Welcome | None = None
        self.late = False  # the welcome came after we had given up on it
        self.ready = plain
        self.refusals: list[Error] = []
        self.again: list[str] = []
        self.password_asked = self.password_refused = False
        self._hello = hello
        self._asking = not plain
        self._sent: list[str] = []  # since we gave up
        self._sent_characters = 0
        # What the server has read and not refused yet, and the code with which it will.
        self._owed: deque[tuple[str, str]] = deque()
        self._wishes_refused = 0  # how many refusals the welcome is followed by

    @property
    def unproven(self) -> bool:
        """Whether lines were sent that a late welcome would have us send again."""
        return bool(self._sent)

    @property
    def resending(self) -> bool:
        """Whether there are lines to be sent again, now or when the server refuses them."""
        return bool(self._owed or self.again)

    @property
    def unsaid(self) -> int:
        """How many of these lines have not been sent again yet."""
        return len(self._owed) + len(self.again)

    @property
    def full(self) -> bool:
        """Whether as much was sent as can be remembered: more would be lost by a late welcome."""
        return self._asking and self._sent_characters >= _REMEMBERED_CHARACTERS

    def give_up(self) -> None:
        """Speak text: no answer came in time."""
        self.ready = True

    def conclude(self) -> None:
        """Speak text for good: a welcome that comes now is not for us."""
        self._asking = False
        self._forget()

    def _forget(self) -> None:
        self._sent.clear()
        self._sent_characters = 0

    def forgive(self) -> None:
        """Take what was not refused until now as granted and accepted."""
        self._owed.clear()
        self._wishes_refused = 0
        self.ready = True

    def sent(self, run: str) -> None:
        """Note a run of lines that are being sent in text."""
        if self._asking:
            self._sent += run.split("\n")
            self._sent_characters += len(run)

    def not_sent(self, run: str) -> None:
        """Note that the last of these were not sent after all."""
        lines = run.split("\n")
        if self._sent[-len(lines) :] == lines:
            del self._sent[-len(lines) :]
            self._sent_characters -= len(run)

    def hear(self, run: str) -> list[Event]:
        """Return what the server tells with a run of lines, but what concerns this alone."""
        if not self._may_welcome(run):
            return self._heard(run)
        events: list[Event] = []
        for line in run.split("\n"):
            if self._may_welcome(line) and line.startswith(WELCOME_BEGINS):
                event = next(JSON.parse_events(line), None)
                if isinstance(event, Welcome):
                    self._settle(event)
                    events.append(event)
                    continue
            events += self._heard(line)
        return events

    def _may_welcome(self, run: str) -> bool:
        return self._asking and WELCOME_BEGINS in run

    def _heard(self, run: str) -> list[Event]:
        events = list(self.voice.parse_events(run))
        if self.voice is TEXT and "password" in run:
            for event in events:
                self._hear_of_password(event)
        if self._asking or self._owed or self._wishes_refused:
            return [event for event in events if not self._concerns_this(event)]
        return events

    def _hear_of_password(self, event: Event) -> None:
        match event:
            case Notice(text=text) if text == PASSWORD_REQUIRED:
                self.password_asked = True
            case Notice(text=text) if text == PASSWORD_ACCEPTED:
                self.password_asked = self.password_refused = False
            case Notice(text=text) if text == WRONG_PASSWORD and self.password_asked:
                self.password_refused = True

    def _concerns_this(self, event: Event) -> bool:
        match event:
            case Error(nonce=None) if self._wishes_refused:
                self._wishes_refused -= 1
                self.refusals.append(event)
            case Error(nonce=None, code=code) if self._owed and code in (
                self._owed[0][1],
                LineTooLong.code,
            ):
                self.again.append(self._owed.popleft()[0])
                return True
            case Notice(text=text) if not self.ready and text in _OF_PASSWORD:
                return True
            case Notice(text=text) if self._asking and text.startswith("unknown command /json"):
                self.conclude()
            case _:
                return False
        self.ready = not self._wishes_refused
        return True

    def _settle(self, welcome: Welcome) -> None:
        self.voice, self.welcome, self._asking = JSON, welcome, False
        self.late = self.ready
        if not self.late:
            wishes = (self._hello.room, welcome.room), (self._hello.name, welcome.name)
            self._wishes_refused = sum(
                wish is not None and fold_name(wish) != fold_name(granted)
                for wish, granted in wishes
            )
        for line in self._sent:
            self._owed.extend((line, code) for code in _refused_with(line))
        self._forget()
        self.ready = not (self._owed or self._wishes_refused)


def _refused_with(line: str) -> list[str]:
    """Return the code with which a server refuses a line of text for JSON, if it does."""
    requests = JSON.parse_requests(line)
    return [request.error.code for request in requests if isinstance(request, Invalid)]
