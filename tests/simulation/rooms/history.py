"""What happened in a run with several rooms, without any judgement; see `..history`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.simulation.history import History, Section, Visit

from .chronicle import RoomsChronicle
from .wire import Talk

__all__ = ["RoomsHistory"]


@dataclass
class RoomsHistory(History):
    """One completed run; see `History`."""

    @cached_property
    def chronicle(self) -> RoomsChronicle:
        """The parsed log."""
        credentials = {
            visit.server_number: self.talk(visit).credentials
            for visit in self.visits
            if visit.server_number is not None
        }
        return RoomsChronicle(
            self.log,
            self.taken,
            self.kills,
            self.accounts,
            self.lags,
            credentials,
            {each.name.casefold(): each.passphrase for each in self.plan.given},
        )

    @cached_property
    def _talks(self) -> dict[int, Talk]:
        return {}

    @cached_property
    def _cache(self) -> dict[bytes, dict[str, Any]]:
        return {}

    def talk(self, visit: Visit) -> Talk:
        """Return what *visit* requested and received."""
        if id(visit) not in self._talks:
            self._talks[id(visit)] = self._parse(visit)
        return self._talks[id(visit)]

    def _parse(self, visit: Visit) -> Talk:
        if visit.connection is None:
            return Talk()
        to_server, to_client = visit.connection.to_server, visit.connection.to_client
        sent, told, _ = visit.cut or (len(to_server.written), len(to_client.written), 0)
        lines = bytes(to_server.written[:sent]).split(b"\n")
        if visit.cut or not to_server.ended:  # text after the last LF is not a line
            lines.pop()
        return Talk.of(lines, bytes(to_client.written[:told]), self._cache)

    def sections(self, visit: Visit) -> list[Section]:
        """Return nothing: `walk` follows each room of *visit*."""
        return []

    @cached_property
    def own(self) -> dict[tuple[str, int], set[int]]:
        """The numbers of the messages of each client in each room."""
        own: dict[tuple[str, int], set[int]] = {}
        for room, publishes in self.chronicle.by_room.items():
            for each in publishes:
                if each.speaker is not None:
                    numbers = range(each.first, each.first + len(each.keys))
                    own.setdefault((room, each.speaker), set()).update(numbers)
        return own
