"""Which text is safe to show."""

# Written without a look at how the filter does it: what ECMA-48, Unicode's Bidirectional Algorithm
# and its line breaking have terminals and viewers obey.
_C0 = {chr(code) for code in range(0x20)} - {"\t"}
_C1 = {chr(code) for code in range(0x80, 0xA0)}
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINES = set("\u2028\u2029")
_SURROGATES = {chr(code) for code in range(0xD800, 0xE000)}
HARMFUL = _C0 | _C1 | _BIDI | _LINES | _SURROGATES | {"\x7f"}


def is_harmless(text: str) -> bool:
    """Whether *text* may be shown as it is; a line feed is the end of a line of ours."""
    return not HARMFUL & set(text.replace("\n", ""))


def is_one_harmless_line(text: str) -> bool:
    return not HARMFUL & set(text)
