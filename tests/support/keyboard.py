"""An input line without a terminal, and keys that are pressed on it."""

import asyncio
from collections.abc import Iterable

import trio
from prompt_toolkit.application import Application
from prompt_toolkit.application.current import set_app
from prompt_toolkit.input import DummyInput
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import KEY_ALIASES, Keys
from prompt_toolkit.layout import BufferControl, Layout, SearchBufferControl, Window
from prompt_toolkit.layout.containers import HSplit
from prompt_toolkit.output import DummyOutput

from multichat.protocol.messages import Directed, Reconnected
from multichat.terminal.input_line import InputLine
from multichat.terminal.syntax import ChatSyntax
from tests.support.conversations import begun


def _key(name: str) -> Keys | str:
    return name if len(name) == 1 else Keys(KEY_ALIASES.get(name, name))


class Keyboard:
    """An `InputLine` and the keys that are pressed on it."""

    def __init__(self, history: list[str], max_waiting_lines: int) -> None:
        self.warnings: list[str] = []
        self.conversation = begun("den")
        self.conversation.rooms.shown.names = {"bob"}
        self.set_last_sender(7)
        syntax = ChatSyntax(self.conversation, lambda _: None)
        self.line = InputLine(
            syntax, self.warnings.append, history, max_waiting_lines=max_waiting_lines
        )
        keys = KeyBindings()
        self.line.bind(keys)
        search = SearchBufferControl(self.line.search_buffer)
        typing = Window(BufferControl(self.line.buffer, search_buffer_control=search))
        self.app: Application[None] = Application(
            layout=Layout(HSplit([typing, Window(search)]), focused_element=typing),
            key_bindings=keys,
            input=DummyInput(),
            output=DummyOutput(),
        )
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._press([], None))

    def set_last_sender(self, client: int | None) -> None:
        """Make *client* the sender of the last private message."""
        if client is None:
            self.conversation.take(Reconnected(resumed=False))
        else:
            self.conversation.take(Directed(client=client, name="eve", text="psst"))

    def press(self, *keys: str, data: str | None = None) -> None:
        self.loop.run_until_complete(self._press(keys, data))

    async def _press(self, keys: Iterable[str], data: str | None) -> None:
        with set_app(self.app):
            for key in keys:
                self.app.key_processor.feed(KeyPress(_key(key), data))
            self.app.key_processor.process_keys()
            self.line.buffer.load_history_if_not_yet_loaded()  # as before each drawing
            for _ in range(3):
                await asyncio.sleep(0)

    def close(self) -> None:
        self.loop.run_until_complete(self.app.cancel_and_wait_for_background_tasks())
        self.loop.close()

    def type(self, text: str) -> None:
        self.press(*text)

    def paste(self, text: str) -> None:
        self.press(Keys.BracketedPaste, data=text)

    @property
    def text(self) -> str:
        return self.line.buffer.text

    @property
    def question(self) -> str:
        return "".join(text for _, text in self.line.question)

    def sent(self) -> list[str]:
        lines: list[str] = []
        try:
            while True:
                lines.append(self.line.typed.receive_nowait().text)
        except (trio.WouldBlock, trio.EndOfChannel):
            return lines
