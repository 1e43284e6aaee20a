"""Sends each new line of a growing file, like `tail -F`, even when the file is rotated.

Run it against a server:    python examples/follow_log.py 127.0.0.1 9000 /var/log/syslog
What it leaves out: waiting for a file that does not exist yet, and detecting that a file was
overwritten by a longer one.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

import trio

import multichat
from multichat.protocol.framing import LineDecoder

# Short enough for watching, long enough to cost little.
LOOK_SECONDS = 0.25

# The most that is sent between two polls.
READ_BYTES = 256 * 1024

# The server's limit is 64 KiB, and each control character becomes three bytes.
MAX_LINE_BYTES = 16 * 1024


class Tail:
    """The end of the file that currently has that name; `read` is for one thread at a time.

    Constructing it raises `OSError` if there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        self._file.seek(0, os.SEEK_END)

    def _open(self) -> None:
        self._file = self._path.open("rb", buffering=0)
        self._decoder = LineDecoder(MAX_LINE_BYTES)

    def read(self) -> list[str]:
        """Return the added lines without empty ones; an incomplete line is kept for later."""
        replaced = self._replaced()  # checked first, so that the rest of the old file is read
        data = self._file.read(READ_BYTES)
        parts = self._decoder.feed(data)
        if replaced and not data:
            parts = self._decoder.finish()
            self._file.close()
            self._open()
        elif os.fstat(self._file.fileno()).st_size < self._file.tell():  # truncated
            self._file.seek(0)
            self._decoder = LineDecoder(MAX_LINE_BYTES)
        return "\n".join(map(str, parts)).split("\n") if parts else []

    def _replaced(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:  # temporarily, or for good
            return False


async def follow(tail: Tail, chat: multichat.Chat) -> None:
    with suppress(multichat.ConnectionLost):  # raised by the other task
        while True:
            if lines := await trio.to_thread.run_sync(tail.read):
                await chat.send(*lines)
            await trio.sleep(LOOK_SECONDS)


async def main(host: str, port: int, path: Path) -> None:
    tail = Tail(path)
    async with (
        multichat.connect(host, port, name="log") as chat,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(follow, tail, chat)
        async for _ in chat:  # receive, or the server would consider us slow
            pass
        nursery.cancel_scope.cancel(reason="the server said goodbye")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        trio.run(main, sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    except (multichat.MultichatError, OSError) as error:
        sys.exit(f"follow_log: {error}")
    except KeyboardInterrupt:
        pass
