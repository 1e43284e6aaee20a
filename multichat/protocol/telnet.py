"""The commands of telnet clients: removed from the text, and answered (RFC 854, 855, 860).  Pure.

1. Every request for an option is refused, except for TIMING-MARK: after Ctrl+C a client discards
   what it receives until that is answered.
2. Only requests are answered; otherwise two sides that refuse everything would never stop.
3. The answers do not depend on how the input was split.
4. No command reaches past the end of its line, so that no LF is lost.
"""

import re

__all__ = ["TelnetResponder", "remove_commands"]

_IAC = b"\xff"
_LF = ord("\n")
_SB, _SE, _AYT, _WILL, _WONT, _DO, _DONT = 0xFA, 0xF0, 0xF6, 0xFB, 0xFC, 0xFD, 0xFE
_TIMING_MARK = 6

# "Are you there" is answered with a line that a person can see.
_HERE = b"[Server] yes\n"

_SUBNEGOTIATION = re.compile(rb"(?:[^\xff\n]|\xff[^\xf0\n])*+")
_ESCAPED = re.compile(rb"(?:\xff\xff)++")

# A two-byte command, an option negotiation, an escaped 255, a subnegotiation up to its IAC SE.
# Inside a subnegotiation IAC IAC is data, so that IAC IAC SE does not end it.
_COMMAND = re.compile(
    rb"\xff(?:"
    rb"[\xf0-\xf9\xff]"
    rb"|[\xfb-\xfe][^\n]?"
    rb"|\xfa(?:[^\xff\n]|\xff(?!\xf0)[^\n]?)*(?:\xff\xf0)?"
    rb")"
)


def remove_commands(block: bytes) -> bytes:
    """Return whole lines without the telnet commands in them."""
    return _COMMAND.sub(b"", block) if _IAC in block else block


class TelnetResponder:
    """Answers the commands of one connection; buffers at most three bytes of a command."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""  # an incomplete command; of a subnegotiation only its beginning

    @property
    def is_amid_command(self) -> bool:
        """Whether the bytes so far end within a command."""
        return bool(self._begun)

    def answer(self, data: bytes) -> bytes:
        """Return what to send for the commands in the next bytes, mostly nothing."""
        if not self._begun and _IAC not in data:
            return b""
        data, self._begun = self._begun + data, b""
        answers: list[bytes] = []
        is_asked = False
        start = data.find(_IAC)
        while start >= 0:
            command = data[start + 1 : start + 2]
            end = start + 2
            match command and command[0]:
                case b"":
                    self._begun = _IAC
                case 0xFF:
                    found = _ESCAPED.match(data, start)
                    assert found is not None  # noqa: S101 - there is one pair at least
                    end = found.end()
                case 0xFA:
                    end = self._skip_subnegotiation(data, end)
                case 0xF6:
                    is_asked = True
                case int(verb) if _WILL <= verb <= _DONT:
                    option = data[end : end + 1]
                    if not option:
                        self._begun = data[start:]
                    elif option[0] != _LF:
                        end += 1
                        answers.append(_answer_to(verb, option[0]))
            start = data.find(_IAC, end)
        return b"".join(answers) + _HERE * is_asked

    def _skip_subnegotiation(self, data: bytes, start: int) -> int:
        found = _SUBNEGOTIATION.match(data, start)
        assert found is not None  # noqa: S101 - matches an empty string, too
        end = found.end()
        rest = data[end : end + 2]
        if rest in (b"", _IAC):
            self._begun = bytes((0xFF, _SB)) + rest
            return len(data)
        return end + 2 if rest == bytes((0xFF, _SE)) else end + rest.index(b"\n")


def _answer_to(verb: int, option: int) -> bytes:
    if verb == _DO:
        return bytes((0xFF, _WILL if option == _TIMING_MARK else _WONT, option))
    return bytes((0xFF, _DONT, option)) if verb == _WILL else b""
