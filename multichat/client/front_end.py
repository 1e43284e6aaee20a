"""The run of `connect`, whatever renders it: connect, send, show, end.

Each renderer is a `FrontEnd`: the console with its log lines, the terminal, and the JSON pipe.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import trio

from multichat.client.connect import Endpoint, dial_first
from multichat.client.descriptions import SPEAKING_TEXT, describe_retry
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.errors import ConnectFailed, MultichatError, Refused
from multichat.protocol.messages import Welcome

__all__ = ["FrontEnd"]


class FrontEnd(ABC):
    """One run of `connect`; a subclass renders it and reads the input.

    *failure* is the first error of the run.
    """

    def __init__(self, endpoint: Endpoint, options: ChatOptions) -> None:
        self.endpoint, self.options = endpoint, options
        self.failure: MultichatError | None = None
        self.connected_at = 0.0
        self.sent = self.received = 0

    # --- What a subclass renders ------------------------------------------------------------------

    @abstractmethod
    def tell(self, text: str, *, warning: bool = False) -> None:
        """Show a line about the connection."""

    @abstractmethod
    def begin(self, chat: LineChat, welcome: Welcome | None) -> None:
        """Show our name and rooms, which are unknown in the text protocol."""

    @abstractmethod
    async def show_events(self, chat: LineChat) -> None:
        """Receive and show events until the chat is over."""

    @abstractmethod
    async def send_input(self, chat: LineChat, scope: trio.CancelScope) -> None:
        """Send what is typed until it ends, then finish; *scope* ends the run at once."""

    def end(self, _: LineChat) -> None:
        """Raise the error of the run, if there is one that was not shown."""
        if self.failure is not None:
            raise self.failure

    # --- The run ----------------------------------------------------------------------------------

    async def dial(self) -> trio.abc.Stream:
        """Connect; with `ChatOptions.wait`, wait until the server can be reached."""
        stream = await dial_first(self._redial, self.options, self._tell_waiting)
        self.connected_at = trio.current_time()
        return stream

    def _tell_waiting(self, error: ConnectFailed) -> None:
        self.tell(f"Cannot connect: {error.reason}; waiting for the server")

    def _tell_full(self, refused: Refused) -> None:
        reason = str(refused)
        self.tell(f"{reason[:1].upper()}{reason[1:]}; waiting")

    async def _redial(self) -> trio.abc.Stream:
        return await self.endpoint.dial(self.options.timeouts)

    async def run_chat(self, stream: trio.abc.Stream) -> None:
        """Run the chat over *stream* until the input ends or the server closes.

        Raises `Refused`, `NoJson`, `ConnectionLost`, and what `end` raises.
        """
        options = replace(self.options, name_required=False)
        waiting = LineChat(stream, options, redial=self._redial)
        waiting.link.tell_waiting = self._tell_full
        async with waiting.open() as chat:
            if chat.fell_back:
                self.tell(SPEAKING_TEXT)
            if (refusal := chat.link.name_refusal) is not None:
                may_be_free = refusal.code == "name-taken" and not refusal.registered
                again = "; asking again when it is free" if may_be_free else ""
                self.tell(f"{refusal.text}{again}", warning=True)
            welcome = chat.welcome
            self.begin(chat, welcome)
            async with trio.open_nursery() as nursery:
                if welcome is not None and self.options.name is not None:
                    nursery.start_soon(chat.keep_name, self.options.name)
                nursery.start_soon(self.send_input, chat, nursery.cancel_scope)
                try:
                    await self.show_events(chat)
                except MultichatError as error:
                    self.failure = self.failure or error
                nursery.cancel_scope.cancel(reason="the chat has ended")
            self.end(chat)

    # --- Local commands ---------------------------------------------------------------------------

    def describe(self, chat: LineChat, unaccepted: int = 0) -> str:
        """Return the answer to `/status`, with how many messages are *unaccepted*."""
        now = trio.current_time()
        if not chat.connected:
            retry, waiting = chat.link.retry, max(unaccepted, chat.unaccepted)
            retrying = "" if retry is None else f"; {describe_retry(retry.number, retry.at - now)}"
            return f"Not connected; {waiting} waiting to be sent{retrying}"
        return (
            f"Connected to {self.endpoint} for {now - self.connected_at:.0f} s; "
            f"{self.sent} sent, {self.received} received"
            + (f", {unaccepted} not accepted" if unaccepted else "")
        )

    def tell_leaving(self, chat: LineChat, unaccepted: int = 0) -> None:
        """Before leaving, tell the user if messages are still waiting for a connection."""
        if not chat.connected and chat.unaccepted:
            self.tell(self.describe(chat, unaccepted))
            self.tell("Leaving when they are sent; Ctrl+C leaves at once")
