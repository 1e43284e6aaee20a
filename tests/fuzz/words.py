"""Likely parts of inputs: words that random mutation would hardly produce.

Only lists.  Both engines insert them anywhere.
"""

from typing import get_args

import msgspec

from multichat.protocol.messages import Event, WireRequest

__all__ = [
    "CHARACTERS",
    "COMMANDS",
    "CONTROL",
    "EVENTS",
    "FRAMES",
    "LETTERS",
    "REQUESTS",
    "STEPS",
    "TAGS",
    "TELNET",
]


def _utf8(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode("utf-8", "surrogatepass") for text in texts)


def _types_and_fields(union: object) -> tuple[bytes, ...]:
    """Return the JSON names of every type of *union* and of their fields."""
    kinds = get_args(union)
    types = {f'"type":"{kind.__struct_config__.tag}"' for kind in kinds}
    fields = {f'"{field.name}":' for kind in kinds for field in msgspec.structs.fields(kind)}
    return _utf8(*sorted(types | fields))


CHARACTERS = (
    *(b"\n", b"\r\n", b"\r", b"\t", b" ", b"\0", b"\x1b[2J", b"\x7f", b"\xc2\x9b", b"\x9b"),
    *_utf8("\u2028", "\u202e", "\u2066", "\ud800", "é→😀"),
)

TELNET = (
    *(b"\xff", b"\xff\xf0", b"\xff\xf4", b"\xff\xfa", b"\xff\xfb", b"\xff\xfe", b"\xff\xff"),
    b"\xff\xfd\x06",
)

# Masked with zeros, which changes nothing.
FRAMES = (
    *(b"\x81\x82\0\0\0\0hi", b"\x01\x81\0\0\0\0h", b"\x00\x80\0\0\0\0", b"\x80\x81\0\0\0\0i"),
    *(b"\x89\x81\0\0\0\0?", b"\x8a\x80\0\0\0\0", b"\x88\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe8"),
    *(b"\x81\xfe\0\x80\0\0\0\0", b"\x81\xff\0\0\0\0\0\x01\0\0\0\0\0\0", b"\x82\x80\0\0\0\0"),
    *(b"\x81\x02hi", b"\x81\x82\x37\xfa\x21\x3d", b"\xc1\x80\0\0\0\0", b"\x81\x82\0\0\0\0\xc3\xa9"),
)

COMMANDS = _utf8(
    *("/name ", "/nick ", "/me ", "/msg ", "/join ", "/ping ", "/who", "/rooms", "/help", "/quit"),
    *("/auth ", "//", "/", "Client 7 ", "bob ", "0042 ", "\u0664\u0662 "),
    *("/json", '/json {"protocol":1}\n', '"protocol":1', '"name":"alice"', '"room":"den"'),
)

TAGS = _utf8("[Client 7] ", "[Server] ", "[Server] goodbye: ", "[bob → you] ", "* bob ")

_JSON = _utf8(
    *('{"', '":"', '","', '"}', '"}\n{"', "[", "]", "{}", '""', "null", "true", "-1", "1.0", "1e3"),
    *("NaN", "1e999", "9007199254740993", "18446744073709551616", "9" * 40, "[" * 40),
    *("\\", '\\"', r"\n", r"\u001b", r"\u202e", r"\u2028", r"\ud83d\ude00", r"\ud800"),
    *('"nonce":1,', '"nonce":"n",'),
)

REQUESTS = (*_JSON, *_types_and_fields(WireRequest))

CONTROL = (
    *_JSON,
    *_utf8('"command":"', '"arguments":"', '"ok":true,', '"ok":false,', '"lines":["', '"result":['),
    *_utf8('"code":"usage"', '"error":"', '"client":', '"name":"', '"rooms":["', '"address":"['),
    *_utf8('"clients":', '"disconnects":{"quit":', '"loop_lag":{"buckets":[', '"total_seconds":'),
    *_utf8("kick", "ban", "account", "bob 10m too loud", "203.0.113.7:9000"),
)

EVENTS = (*_JSON, *_types_and_fields(Event))

# For the scripts of the handshake target.
STEPS = _utf8(
    *("\n|\n", "=", "~\n", "!\n"),
    '{"type":"welcome","protocol":1,"client":7,"name":"Client 7","room":"lobby","members":2,'
    '"limits":{"line":65536,"name":32},"last":null,"server":"multichat 1","resumed":false}\n',
    *('{"type":"error","code":"', '","text":"x"}\n', "name-taken", "invalid-name"),
    *("[Server] unknown command /json\n", "[Server] goodbye: banned\n", "[bob] hello\n"),
    *("[Server] a password is required: /auth PASSWORD\n", "[Server] wrong password\n"),
    "[Server] password accepted\n",
)

LETTERS = _utf8(
    *("Server", "client", "7", "-", "_", ".", "ſ", "İ", "ı", "ß", "ŉ", "ﬃ", "Ⅶ", "Ａ", "µ", "ς"),
    *("α", "Я", "е", "ل", "한", "\u1112\u1161", "क", "\u093f", "\u094d", "\u0301", "\u0345"),
    *("\u034f", "\u20dd", "\u0336", "\u3164", "\ufe0f", "\u200d", "\ufdfa", "\u0640", "\ud800"),
)
