"""Decodes lines of JSON strictly, within bounds and through the filter.  Pure.

Limits how deep JSON may be nested, and ensures that its escapes cannot bypass the filter of
`multichat.protocol.framing`.

1. Whether a line is nested too deeply depends on the line alone.
2. No decoded string has a character that `multichat.protocol.framing.clean` would replace.
3. A string that is sent back to the peer is unchanged, or the line is refused.
"""

import re
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import msgspec

from multichat.protocol.framing import Filtered, clean, clean_lines, marked

__all__ = [
    "MAX_NESTING",
    "JsonDecoder",
    "NestedTooDeeply",
    "NotExact",
    "clean_json",
    "lone_surrogate",
]

# Escapes that may encode a character that the filter has not seen.
_ESCAPED = re.compile(r"\\[nrbfu]")

# Our own messages have three levels; unknown fields of later versions may have more.  The decoder's
# own limit is the depth of Python's stack, which differs from call to call.
MAX_NESTING = 32

# A line that is nested too deeply is at least this long: each level has two brackets.
_NESTED_CHARACTERS = 2 * (MAX_NESTING + 1)

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


class NestedTooDeeply(Exception):
    """A line has more than `MAX_NESTING` nested arrays and objects."""

    def __init__(self) -> None:
        super().__init__(f"that is nested too deeply: at most {MAX_NESTING} levels")


class NotExact(Exception):
    """A string that is sent back to the peer has a character that the filter replaces."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"the {field} has a character that cannot be sent back unchanged, such as a control"
        )


def _most(lines: list[str], character: str) -> int:
    return max(map(str.count, lines, repeat(character)), default=0)


def _may_be_nested(block: str, lines: list[str]) -> bool:
    """Return whether one of *lines* may be nested too deeply, or is not JSON.

    A cheap test with an upper bound, first for the whole block, in which each line has at least
    one bracket.
    """
    arrays = block.count("[") if "[" in block else 0
    if block.count("{") + arrays - len(lines) < MAX_NESTING:
        return False
    long = [line for line in lines if len(line) >= _NESTED_CHARACTERS]
    return _most(long, "{") + (_most(long, "[") if arrays else 0) > MAX_NESTING


def _check_nesting(line: str) -> None:
    if line.count("{") + line.count("[") <= MAX_NESTING:
        return
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", line)):
        depth += 1 if bracket in "{[" else -1
        if depth > MAX_NESTING:
            raise NestedTooDeeply


class JsonDecoder:
    """Decodes values of one type strictly, and filters every string in them.

    *exact* are the fields that the filter must not change.
    """

    def __init__(self, type_: Any, exact: Iterable[str] = ()) -> None:
        self._type = type_
        self._exact = tuple(exact)
        self._decode = msgspec.json.Decoder(type_).decode

    def decode_block(self, block: str) -> list[Any] | None:
        """Return the value of each line, or None if the lines have to be decoded one by one."""
        if self._exact and (isinstance(block, Filtered) or "\ufffd" in block):
            return None
        lines = block.split("\n")
        decode: Callable[[str], Any]
        if _may_be_nested(block, lines):
            decode = self.decode
        else:
            decode = self._decode_clean if "\\" in block else self._decode
        # msgspec's `decode_lines` accepts values that are not separated by line ends.
        try:
            return list(map(decode, lines))
        except (msgspec.MsgspecError, NestedTooDeeply, NotExact, RecursionError):
            # RecursionError: of a line that is not JSON.
            return None

    def decode(self, line: str, raw: str = "") -> Any:
        """Return the value of one line, which was sent as *raw* if the filter has changed it.

        Raises `msgspec.MsgspecError`, `NestedTooDeeply` or `NotExact`.
        """
        _check_nesting(line)
        value = self._decode_clean(line)
        raw = raw or line
        if self._exact and (raw != line or "\ufffd" in line):
            sent = _marked(raw)
            _check_nesting(sent)
            self._check_exact(self._decode(sent))
        return value

    def _decode_clean(self, line: str) -> Any:
        value = self._decode(line)
        if "\\" in line and _ESCAPED.search(line):
            self._check_exact(value)
            value = msgspec.convert(_clean_strings(msgspec.to_builtins(value)), self._type)
        return value

    def _check_exact(self, value: Any) -> None:
        for field in self._exact:
            text = getattr(value, field, None)
            # U+FFFD may replace bytes that were not UTF-8.
            if isinstance(text, str) and ("\ufffd" in text or clean(text) != text):
                raise NotExact(field)


def _marked(raw: str) -> str:
    """Return *raw*, cleaned, with U+FFFD for each character that the filter changes in strings."""
    return clean_lines(_STRING.sub(lambda string: marked(string[0]), raw))


def _clean_strings(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [_clean_strings(each) for each in value]
    if isinstance(value, dict):
        return {clean(key): _clean_strings(each) for key, each in value.items()}
    return value


_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{0,4}|.)"
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]..")
_SHORT_ESCAPES = {"\\n": "\n", "\\r": "\r", "\\b": "\b", "\\f": "\f"}


def lone_surrogate(line: str) -> str:
    """Return the first escape in *line* that is half of a surrogate pair, or an empty string."""
    return next(filter(_SURROGATE.fullmatch, _ESCAPE.findall(line)), "")


def clean_json(line: str) -> str:
    """Return a line of JSON with its strings filtered, for programs that decode and show them.

    Works on the escapes, without a decoder: another decoder may accept what ours refuses.
    """
    return _ESCAPE.sub(_clean_escape, line) if "\\" in line else line


def _clean_escape(match: re.Match[str]) -> str:
    escape = match[0]
    if not escape.startswith("\\u") or len(escape) > len("\\u0000"):
        # Two surrogates are one character, which the filter never changes.
        character = _SHORT_ESCAPES.get(escape, "")
    elif len(escape) == len("\\u0000"):
        character = chr(int(escape.removeprefix("\\u"), 16))
    else:  # incomplete; it must not become an escape when something after it is dropped
        return "\ufffd"
    cleaned = clean(character)
    return escape if cleaned == character else cleaned
