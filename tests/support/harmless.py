"""Defines which text is safe to show."""

# Independent of the filter: the characters that terminals and viewers obey according to ECMA-48,
# Unicode's Bidirectional Algorithm and its line breaking.
_C0 = {chr(code) for code in range(0x20)} - {"\t"}
_C1 = {chr(code) for code in range(0x80, 0xA0)}
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINES = set("\u2028\u2029")
_SURROGATES = {chr(code) for code in range(0xD800, 0xE000)}
HARMFUL = _C0 | _C1 | _BIDI | _LINES | _SURROGATES | {"\x7f"}


def is_harmless(text: str) -> bool:
    """Return whether *text* is safe to show; LF is allowed as a line end."""
    return not HARMFUL & set(text.replace("\n", ""))


def is_one_harmless_line(text: str) -> bool:
    return not HARMFUL & set(text)
