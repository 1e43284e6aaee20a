"""`connect --json`: passes JSON lines between a server and standard input and output."""

from dataclasses import replace

import msgspec
import trio

from multichat.cli.piped import Piped, for_pipe, send_input
from multichat.client.connect import Endpoint
from multichat.client.front_end import FrontEnd
from multichat.client.line_chat import LineChat
from multichat.client.negotiation import (
    PROBE,
    PROBE_ANSWER,
    check_welcome,
    make_hello,
    settles_text,
)
from multichat.client.options import ChatOptions
from multichat.client.reconnect import Link
from multichat.errors import ConnectionLost, MultichatError, NoJson
from multichat.protocol.json_codec import JSON, encode_hello
from multichat.protocol.json_lines import clean_json
from multichat.protocol.messages import Goodbye, Hello, Quit, Welcome
from multichat.protocol.text_codec import TEXT
from multichat.stdio import until_signal, watch_output, write_output

__all__ = ["JsonPipe"]


class JsonPipe(FrontEnd):
    """One run of `connect --json`, which passes lines from *input_fd* and to *output_fd*.

    The program at the other end of the pipe speaks JSON, and the chat in between the text protocol,
    in which lines stay as they are.  It cannot reconnect, because only the program knows which of
    its lines were answered.
    """

    def __init__(
        self, endpoint: Endpoint, options: ChatOptions, *, input_fd: int | None, output_fd: int
    ) -> None:
        timeouts = for_pipe(options).timeouts
        if input_fd is not None:  # the server closes after our `quit`, when it has received all
            timeouts = replace(timeouts, finish=timeouts.progress)
        self._hello = encode_hello(_hello(options))
        self._asks_first = options.login is not None
        options = replace(options, name=None, room=None, rooms=(), login=None, plain=True)
        options = replace(options, reconnect=False)
        super().__init__(endpoint, replace(options, timeouts=timeouts))
        self._input_fd, self._output_fd = input_fd, output_fd
        self._welcomed = trio.Event()
        self._piped: Piped

    async def run(self) -> None:
        """Pass lines until the input ends, the server closes, or a signal comes.

        The first line of the output is the `welcome`.  Strings are filtered, as the server may be
        hostile.  Raises `ConnectFailed`, `ConnectionLost`, `Refused`, `OutputLost`, or `NoJson`.
        """
        await until_signal(self._run)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_output, self._output_fd)
            await self.run_chat(await self.dial())
            nursery.cancel_scope.cancel(reason="the chat is over")

    def tell(self, text: str, *, warning: bool = False) -> None:
        """Say nothing: the output is for a program."""

    def begin(self, chat: LineChat, _: Welcome | None) -> None:
        """Prepare to count the lines of the input."""
        self._piped = Piped(chat)

    async def show_events(self, chat: LineChat) -> None:
        """Pass on what the server sends, from its welcome on."""
        last = ""
        with trio.move_on_after(self.options.timeouts.answer) as timeout:
            try:
                await chat.link.send_lines(PROBE if self._asks_first else self._hello)
                while events := await chat.receive():
                    # Unchanged: in the text protocol every line is an event.
                    lines = list(map(TEXT.format, events))
                    if not self._welcomed.is_set():
                        chat.link.check_admitted()
                        if self._asks_first and PROBE_ANSWER in lines:
                            self._asks_first = False
                            await chat.link.send_lines(self._hello)
                        lines = _from_welcome(lines, chat.link)
                        if not lines:
                            chat.check_ready()
                            continue
                        timeout.deadline = float("inf")
                        self._welcomed.set()
                    last = lines[-1]
                    data = "".join(f"{clean_json(line)}\n" for line in lines).encode()
                    await trio.to_thread.run_sync(
                        write_output, self._output_fd, data, abandon_on_cancel=True
                    )
                if not chat.link.connection.ended:
                    raise ConnectionLost("the server does not close the connection")  # noqa: TRY301
            except ConnectionLost as error:
                if not isinstance(_event(last), Goodbye):
                    raise self._piped.explain(error) from None
            chat.check_ready()
        if timeout.cancelled_caught:
            raise NoJson(self.options.timeouts.answer)

    async def send_input(self, chat: LineChat, scope: trio.CancelScope) -> None:
        """Pass the input on once the server has welcomed us."""
        if self._input_fd is None:
            return
        await self._welcomed.wait()
        try:
            with self._piped.explaining():
                await send_input(self._input_fd, self._piped, self._piped.pass_lines)
                await chat.link.finish(JSON.encode_request(Quit()))
        except MultichatError as error:
            self.failure = self.failure or error
            scope.cancel(reason=str(error))


def _hello(options: ChatOptions) -> Hello:
    """Return the first line; it names several rooms only if there are.

    So a program that knows one room gets only events that it knows.
    """
    hello = make_hello(
        options.name, options.room, options.replay, rooms=options.rooms, login=options.login
    )
    return hello if options.rooms else msgspec.structs.replace(hello, rooms=None)


def _from_welcome(lines: list[str], link: Link) -> list[str]:
    """Return *lines* from the welcome on; none if it has not come yet.

    Messages in the lobby may come before the server has read our hello.  Raises `Refused` for a
    goodbye in its place, `NoJson` for what only a server that speaks text sends, and
    `RemoteProtocolError` for a welcome that is not valid.
    """
    for number, line in enumerate(lines):
        match _event(line):
            case Welcome():
                return lines[number:]
            case Goodbye() as goodbye:  # a server that is not available says it as the hello asks
                raise link.refused(goodbye)
        check_welcome(line)
        if settles_text(next(iter(TEXT.parse_events(line)))):
            raise NoJson
    return []


def _event(line: str) -> object:
    return next(iter(JSON.parse_events(line)), None) if line else None
