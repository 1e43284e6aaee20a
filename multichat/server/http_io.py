"""Reads one HTTP request of a stream, and sends the response, each within a deadline."""

import time
from email.utils import formatdate

import trio

from multichat.net import transport
from multichat.web.http import HttpError, Request, RequestReader

__all__ = ["READ_BYTES", "http_date", "read_head", "send_response"]

# The head of a browser's request comes in one read.
READ_BYTES = 16 * 1024

# How often a connection is read after its response, so that this is not lost to a reset.
_LINGER_READS = 4


def http_date() -> str:
    """Return the time now, as HTTP has it."""
    return formatdate(time.time(), usegmt=True)


async def read_head(
    stream: trio.abc.Stream, reader: RequestReader, seconds: float
) -> Request | None:
    """Feed *reader* from *stream* until it has a request; None if the client leaves before.

    Raises `HttpError`, also after *seconds*, `NotHttp`, and the errors of the stream.
    """
    with trio.move_on_after(seconds):
        while reader.request is None:
            data = await transport.receive_some(stream, READ_BYTES)
            if not data:
                return None
            reader.feed(data)
        return reader.request
    raise HttpError(408, f"no request in {seconds:g} s")


async def send_response(
    stream: trio.abc.Stream, data: bytes, *, seconds: float, linger: float
) -> None:
    """Send *data* and say that this was all, within *seconds*; waits *linger* for the peer's end.

    Raises the errors of the stream.  After *seconds* a part of it may have been sent.
    """
    with trio.move_on_after(seconds):
        await transport.send_all(stream, data)
        await transport.close_gracefully(stream, linger, _LINGER_READS)
