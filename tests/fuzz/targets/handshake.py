"""The handshake: a client's life until it is settled which voice is spoken, as a script."""

from collections.abc import Callable, Iterator

from multichat import handshake
from multichat.handshake import Handshake, make_hello
from multichat.voices import JSON, TEXT
from tests.fuzz.targets.checks import assert_harmless, assert_same, run_of, strings_in

__all__ = ["check_handshake"]

# The bound is looked at before more is sent, so that the run that is sent last comes on top.
_REMEMBERED = handshake._REMEMBERED_CHARACTERS
_PASTE = "x" * (_REMEMBERED // 4)


class _Shaken:
    """A handshake as a client drives it, and a second one that hears every line by itself.

    A script has one line for each step, told by its first character:

        =name room   (the first line) the hello's wishes; `~` instead of it: plain
        >line        send it, in one run with those that follow; #line: after a long paste
        <line        hear it, in one run with those that follow, as any other line
        |            the end of a run
        !  ?  .      give up; forgive; conclude
        -            the run that was sent last was not
        ^            send again what is to be
    """

    def __init__(self, first: str) -> None:
        name, _, room = first[1:].partition(" ") if first.startswith("=") else ("", "", "")
        hello = make_hello(name or None, room or None)
        self.shake, self.twin = (Handshake(hello, plain=first == "~") for _ in range(2))
        self.sent: set[str] = set()
        self.last_run = ""
        self.longest_run = 0
        self.welcomed: object = None

    def step(self, kind: str, lines: list[str]) -> None:
        run = "\n".join(lines)
        match kind:
            case ">" | "#" if self.shake.ready and self.shake.voice is TEXT:
                self._send(run)
            case "<":
                self._hear(lines)
            case "!" if self.shake.welcome is None:
                self._both(Handshake.give_up)
            case "?":
                self._both(Handshake.forgive)
            case ".":
                self._both(Handshake.conclude)
            case "-" if self.last_run:
                last, self.last_run = self.last_run, ""
                self._both(lambda shake: shake.not_sent(last))
            case "^":
                self._both(lambda shake: shake.again.clear())
        self.check()

    def _both(self, act: Callable[[Handshake], None]) -> None:
        act(self.shake)
        act(self.twin)

    def _send(self, run: str) -> None:
        if self.shake.full:  # the client waits for a welcome first, and none came
            self._both(Handshake.conclude)
        self._both(lambda shake: shake.sent(run))
        self.sent.update(run.split("\n"))
        self.last_run = run
        self.longest_run = max(self.longest_run, len(run))

    def _hear(self, lines: list[str]) -> None:
        told = self.shake.hear("\n".join(lines))
        alone = [event for line in lines for event in self.twin.hear(line)]
        assert_same(told, alone, "a run tells what its lines tell")
        for event in told:
            for text in strings_in(event):
                assert_harmless(text)

    def check(self) -> None:
        shake, twin = self.shake, self.twin
        assert_same(vars(shake), vars(twin), "a run leaves behind what its lines do")
        assert (shake.voice is JSON) == (shake.welcome is not None), "a welcome, and JSON"
        assert self.welcomed in (None, shake.welcome), "the first welcome counts"
        self.welcomed = shake.welcome
        assert self.sent.issuperset(shake.again), f"{shake.again} was never sent"
        assert len(shake.refusals) <= 2, "there are two wishes"
        assert not (shake.unproven and shake.welcome), "a welcome proves what was sent"
        owed = [line for line, _ in shake._owed]
        kept = sum(map(len, [*shake._sent, *owed, *shake.again]))
        assert kept <= _REMEMBERED + self.longest_run, f"{kept} characters are kept"


def check_handshake(data: bytes) -> None:
    """A client's life until it is settled which voice is spoken; see `_Shaken`."""
    script = run_of(data).split("\n")
    shaken = _Shaken(script[0])
    if script[0][:1] in ("=", "~"):
        del script[0]
    for kind, lines in _steps(script):
        shaken.step(kind, lines)


def _steps(script: list[str]) -> Iterator[tuple[str, list[str]]]:
    run: list[str] = []
    running = ""
    for line in script:
        kind = line[:1] if line[:1] in tuple("><#|!?.-^") else "<"
        if kind != running and run:
            yield running, run
            run = []
        running = kind
        text = line.removeprefix(kind)
        if kind not in "><#":
            yield kind, []
        elif text:
            run += [_PASTE, text] if kind == "#" else [text]
    if run:
        yield running, run
