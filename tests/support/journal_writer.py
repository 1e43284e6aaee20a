"""Writes to a journal until it is killed, and prints which messages are stored.

    python -m tests.support.journal_writer FILE full|normal SPEAKERS

Each line has a room's number, the number of a stored message there, and its text.
"""

import os
import sys
from pathlib import Path

import trio

from multichat.journal.sqlite.journal import Durability, SqliteJournal
from multichat.protocol.messages import SaidBlock


async def main(path: str, durability: str, speakers: str) -> None:
    async with trio.open_nursery() as nursery:
        journal = SqliteJournal(Path(path), durability=Durability(durability))
        await nursery.start(journal.run)
        rooms = [journal.room(f"room-{n}") for n in range(3)]
        os.write(1, b"ready\n")

        async def speak(who: int) -> None:
            which = who % len(rooms)
            room = rooms[which]
            while True:
                first = room.next
                texts = [f"{who}:{first + n}" for n in range(1 + who % 4)]
                block = "\n".join(texts)
                said = SaidBlock(room.epoch, first, "now", room.epoch, who, "", block)
                pending = room.append(said, (f"nonce {first}",))
                assert pending is not None
                await pending.wait()
                lines = [f"{which} {first + n} {text}\n" for n, text in enumerate(texts)]
                os.write(1, "".join(lines).encode())

        for who in range(int(speakers)):
            nursery.start_soon(speak, who)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
