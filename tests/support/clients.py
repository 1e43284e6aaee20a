"""Clients for tests."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.client.reconnect import Redial
from multichat.client.typed_input import parse_typed
from multichat.protocol.messages import Nonce

__all__ = ["HELLO", "JSON_HELLO", "open_line_chat", "type_lines"]

# The first line of a client that asks for nothing, and of `connect --json`.
HELLO = '/json {"protocol":1,"rooms":{}}'
JSON_HELLO = '/json {"protocol":1}'


def open_line_chat(
    stream: trio.abc.Stream, *, redial: Redial | None = None, **options: Any
) -> AbstractAsyncContextManager[LineChat]:
    """Like `multichat.open_chat`, but yield a `LineChat`."""
    return LineChat(stream, ChatOptions(**options), redial=redial).open()


async def type_lines(chat: LineChat, block: str) -> list[Nonce | None]:
    """Send lines as if they had been typed."""
    return await chat.send_typed(parse_typed(block))
