"""Clients that talk in rooms while their connections break, and the checks of what they get.

Each sends numbered lines.  At the end, every client must have received every line once, in the same
order for all, and in the order of each sender.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import trio

import multichat

__all__ = ["Crowd", "Talker"]

LOOPBACK = "127.0.0.1"

# Longer than any stall of the first connection.
_TIMEOUTS = multichat.ClientTimeouts(answer=60.0)


@dataclass
class Talker:
    """One client, with its sent and received lines."""

    name: str
    room: str
    said: int = 0
    heard: list[tuple[str, str]] = field(default_factory=list)  # ids and texts
    others: list[multichat.Event] = field(default_factory=list)  # unexpected events
    told: Counter[str] = field(default_factory=Counter)


class Crowd:
    """*rooms* rooms of *members* clients each, on a server on *port*, from one *seed*.

    Each sends up to *burst* lines, pauses, and repeats that until `hush`; `run` returns when all
    have received everything and left.
    """

    def __init__(
        self, port: int, seed: int, *, rooms: int, members: int, burst: int, pause_seconds: float
    ) -> None:
        self.talkers = [
            Talker(f"r{room}m{member}", f"room{room}")
            for room in range(rooms)
            for member in range(members)
        ]
        self._port, self._seed = port, seed
        self._burst, self._pause_seconds = burst, pause_seconds
        self._hushed = trio.Event()
        self._ready = 0

    @property
    def ready(self) -> bool:
        """Whether all clients are connected."""
        return self._ready == len(self.talkers)

    def hush(self) -> None:
        """Stop all senders."""
        self._hushed.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for talker in self.talkers:
                nursery.start_soon(self._talk, talker)

    async def _talk(self, talker: Talker) -> None:
        dice = random.Random(f"{self._seed} {talker.name}")
        async with (
            multichat.connect(
                LOOPBACK,
                self._port,
                name=talker.name,
                room=talker.room,
                timeouts=_TIMEOUTS,
                wait=True,
            ) as chat,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._listen, talker, chat)
            self._ready += 1
            while not self.ready:  # later joiners would miss earlier messages
                await trio.sleep(0.05)
            while not self._hushed.is_set():
                count = dice.randint(1, self._burst)
                texts = [f"{talker.name} {talker.said + i}" for i in range(count)]
                talker.said += count
                await chat.send(*texts)
                with trio.move_on_after(dice.uniform(0, 2 * self._pause_seconds)):
                    await self._hushed.wait()
            while not self._has_heard_all(talker) or chat.unaccepted:
                await trio.sleep(0.1)
            await trio.sleep(1)  # duplicates would arrive now
            await chat.finish()
            nursery.cancel_scope.cancel(reason="all was heard")

    async def _listen(self, talker: Talker, chat: multichat.Chat) -> None:
        while events := await chat.receive():
            for event in events:
                talker.told[type(event).__name__] += 1
                if isinstance(event, multichat.Said):
                    talker.heard.append((event.id, event.text))
                elif isinstance(event, multichat.Error | multichat.Missed | multichat.Goodbye):
                    talker.others.append(event)

    def _has_heard_all(self, talker: Talker) -> bool:
        return len(talker.heard) >= self.expected(talker)

    def expected(self, talker: Talker) -> int:
        """Return how many lines that client must receive."""
        others = (other for other in self.talkers if other.room == talker.room)
        return sum(other.said for other in others if other is not talker)

    def waiting(self) -> str:
        """Describe which clients have not received everything, for a failed wait."""
        return ", ".join(
            f"{talker.name} {len(talker.heard)}/{self.expected(talker)} {talker.others}"
            for talker in self.talkers
            if not self._has_heard_all(talker)
        )

    def check(self) -> None:
        """Raise `AssertionError` unless every client has received what it should."""
        by_id: dict[tuple[str, str], str] = {}
        for talker in self.talkers:
            assert not talker.others, (talker.name, talker.others)
            ids = [id_ for id_, _ in talker.heard]
            assert ids == sorted(set(ids)), f"{talker.name} heard twice, or out of order"
            for id_, text in talker.heard:
                assert by_id.setdefault((talker.room, id_), text) == text, "not one order"
            texts = [text for _, text in talker.heard]
            for other in self.talkers:
                if other.room == talker.room and other is not talker:
                    theirs = [text for text in texts if text.startswith(f"{other.name} ")]
                    assert theirs == [f"{other.name} {i}" for i in range(other.said)]
            assert len(texts) == self.expected(talker)

    def statistics(self) -> str:
        """Return one line of statistics."""
        told: Counter[str] = sum((talker.told for talker in self.talkers), Counter())
        said = sum(talker.said for talker in self.talkers)
        return f"{said} said, {told['Said']} heard, {told['Reconnected']} times back"
