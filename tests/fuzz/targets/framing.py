"""Framing: any bytes, split anywhere, give the same lines as the reference."""

from collections.abc import Iterable

from multichat.errors import LineTooLong
from multichat.protocol.framing import LineDecoder, Part, clean
from multichat.protocol.telnet import TelnetResponder
from tests.fuzz import reference
from tests.fuzz.targets.checks import assert_harmless, assert_same
from tests.support.messages import cut

__all__ = ["check_framing"]


def check_framing(data: bytes) -> None:
    """Check framing; the first four bytes are the line limit and three packet boundaries."""
    limit, *cuts = data[:4].ljust(4, b"\0")
    payload = data[4:]
    expected = reference.lines_of(payload, limit)
    for chunks in ([payload], cut(payload, cuts), [bytes([byte]) for byte in payload]):
        assert_same(_decoded(chunks, limit), expected, f"lines of {chunks}, limit {limit}")
    replies = [_replied(chunks) for chunks in ([payload], cut(payload, cuts))]
    assert_same(replies[0], replies[1], "what telnet waits for does not depend on the cuts")
    assert len(replies[0]) <= len(payload), "an answer is no longer than the question"
    for line in expected:
        if line is not None:
            assert_same(clean(line), line, "a line is clean")


def _replied(chunks: Iterable[bytes]) -> bytes:
    """Return the answers to telnet commands, except "yes", which is sent once per read."""
    responder = TelnetResponder()
    return b"".join(responder.answer(chunk).removesuffix(b"[Server] yes\n") for chunk in chunks)


def _decoded(chunks: Iterable[bytes], limit: int) -> list[str | None]:
    decoder = LineDecoder(limit)
    parts: list[Part] = []
    for chunk in chunks:
        parts += decoder.feed(chunk)
        assert decoder.buffered_bytes <= limit + 1, f"{decoder.buffered_bytes} bytes are held back"
    parts += decoder.finish()
    assert decoder.buffered_bytes == 0, "nothing is held back at the end"
    assert_same(decoder.feed(b"\n"), [], "a decoder that finished is as new")
    return [line for part in parts for line in _lines_of_part(part, limit)]


def _lines_of_part(part: Part, limit: int) -> list[str | None]:
    if isinstance(part, LineTooLong):
        assert_same(part.limit_bytes, limit, "the limit that a report tells")
        return [reference.TOO_LONG]
    lines = part.split("\n")
    for line in lines:
        assert line, f"an empty line in {part!r}"
        assert_harmless(line)
    return [*lines]
