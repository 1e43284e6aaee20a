"""The bans in force: disconnects the clients that they cover, saves them, and shares them.

They are saved in the operator's file, if there is one, and shared with the other nodes of a cluster
by the backend.
"""

import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from logging import ERROR
from pathlib import Path

import trio

from multichat.backend.base import Backend
from multichat.backend.events import BanRecord
from multichat.errors import LocalProtocolError, MultichatError
from multichat.log import Log
from multichat.net import transport
from multichat.protocol.messages import Goodbye
from multichat.server import log_lines
from multichat.server.ban_file import load_bans, save_bans
from multichat.server.bans import Ban, Bans, changes_of, merge_bans, parse_target
from multichat.server.registry import Registry

__all__ = ["BanKeeper"]

# Of bans that are reloaded: what somebody types.
_MAX_LOGGED = 100


class BanKeeper:
    """Keeps *bans*, and enforces them on the clients of *registry*.

    *start_soon* starts tasks that outlive the call, if the server runs.  *clock* returns the Unix
    time in seconds.
    """

    def __init__(
        self,
        bans: Bans,
        registry: Registry,
        backend: Backend,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        clock: Callable[[], float],
    ) -> None:
        self._bans, self._registry, self._backend = bans, registry, backend
        self._log, self._start_soon, self._clock = log, start_soon, clock
        self._file: Path | None = None
        self._in_file: list[Ban] = []  # without later edits of the file
        self._disk = threading.Lock()  # for worker threads: the file with what is known of it
        self._known = threading.Lock()  # `_in_file` alone, held for a moment
        self._changed = self._saving = False
        self._refused: set[str] = set()  # bans of nodes that are not in force, as was logged

    def current(self) -> list[Ban]:
        """Return the bans in force now."""
        return self._bans.current(self._clock())

    def add(self, ban: Ban) -> list[int]:
        """Add *ban*, and disconnect the clients that it covers; return their numbers.

        Raises `TooManyBans`.
        """
        gone = self._add(ban)
        if self._backend.is_shared:
            self._share(ban)
            elsewhere = self._registry.elsewhere
            gone += [each.number for each in elsewhere if ban.covers(each.address, each.name)]
        return gone

    def _share(self, ban: Ban) -> None:
        self._backend.add_ban(BanRecord(target=ban.subject, until=ban.until, reason=ban.reason))

    def _add(self, ban: Ban) -> list[int]:
        now = self._clock()
        self._bans.add(ban, now)
        log_lines.banned(self._log, ban, now)
        self._save_soon()
        gone = [
            client for client in self._registry.clients if ban.covers(client.address, client.name)
        ]
        for client in gone:
            self._registry.disconnect(client, Goodbye.of("banned", ban.refusal(now)))
        return [client.number for client in gone]

    def remove(self, target: str) -> bool:
        """Remove the ban of exactly that *target*; return whether it existed.

        Raises `InvalidBan` if *target* is not valid.
        """
        lifted = self._remove(target)
        if lifted is not None and self._backend.is_shared:
            self._backend.remove_ban(lifted.subject)
        return lifted is not None

    def _remove(self, target: str) -> Ban | None:
        lifted = self._bans.remove(target)
        if lifted is not None:
            log_lines.unbanned(self._log, lifted.subject)
            self._save_soon()
        return lifted

    def load(self, records: Iterable[BanRecord]) -> None:
        """Put in force what the backend has at the start.

        The nodes that added those bans have logged them.  One that cannot be added is logged.
        """
        for record in records:
            self._put(record, lambda ban: self._bans.add(ban, self._clock()))

    def put(self, record: BanRecord) -> None:
        """Add a ban of a node, unless it is in force; one that cannot be added is logged."""
        self._put(record, self._add_new)

    def _add_new(self, ban: Ban) -> None:
        now = self._clock()
        if ban.is_expired(now):  # as one of those that a node gets again after its start
            self._bans.add(ban, now)
        elif not self._bans.has(ban, now):
            self._add(ban)

    def _put(self, record: BanRecord, add: Callable[[Ban], object]) -> None:
        try:
            target = parse_target(record.target)
            add(Ban(target=target, until=record.until, reason=record.reason))
        except LocalProtocolError as error:
            if record.target not in self._refused:  # at a start it comes twice
                self._refused.add(record.target)
                self._log.line("STATE", f"A ban of another node is not in force: {error}", ERROR)

    def take(self, target: str) -> None:
        """Remove a ban that a node has lifted."""
        self._refused.discard(target)
        try:
            self._remove(target)
        except LocalProtocolError as error:
            self._log.line("STATE", f"A ban was not lifted: {error}", ERROR)

    def take_back(self, target: str, limit: int) -> str:
        """Remove our ban of *target*, which the backend does not store, and return what to say.

        It has *limit* bans already.
        """
        self.take(target)
        text = f"the ban of {target} was taken back: the cluster has {limit}; lift one with /unban"
        self._log.line("STATE", f"{text[0].upper()}{text[1:]}", ERROR)
        return text

    def keep_in(self, path: Path) -> None:
        """Load the bans from the file at *path*, and save all changes to it from now on.

        Raises `OSError` if it cannot be read, `InvalidBanFile` if a line is not valid.
        """
        found = load_bans(path)
        for ban in found:
            self._bans.add(ban, self._clock())
        self._file, self._in_file = path, found

    def read_again(self) -> tuple[list[Ban], list[Ban]]:
        """Return the bans that were in the file when it was read or saved last, and those now.

        Blocks.  Raises as `keep_in` does.  A file that is missing now is an error, unless it had no
        bans before.
        """
        with self._disk:
            before = self._in_file
            if self._file is None:
                return before, []
            return before, load_bans(self._file, must_exist=bool(before))

    def merge(self, read: tuple[list[Ban], list[Ban]]) -> None:
        """Put the edits of the file in force, as `read_again` has *read* it.

        Bans that were added there disconnect the clients that they cover, and those that were
        removed there are lifted.  Those that are in force and not saved yet stay, and those that
        were saved since.  Raises `TooManyBans`, and changes nothing then.
        """
        before, found = read
        added, lifted = changes_of(before, found)
        self._change(added, lifted)
        if self._backend.is_shared:
            for ban in lifted:
                self._backend.remove_ban(ban.subject)
            for ban in added:
                self._share(ban)
        with self._known:
            self._in_file = merge_bans(found, before, self._in_file)  # it may have been saved since
        if set(self._bans.known()) != set(self._in_file):  # others were not saved yet
            self._save_soon()

    def _change(self, added: Sequence[Ban], lifted: Sequence[Ban]) -> None:
        """Lift and add bans; looks at each client once, however many bans there are."""
        now = self._clock()
        self._bans.change(added, lifted, now)
        if len(added) + len(lifted) <= _MAX_LOGGED:
            for ban in lifted:
                log_lines.unbanned(self._log, ban.subject)
            for ban in added:
                log_lines.banned(self._log, ban, now)
        else:
            text = f"Changed bans: {len(added)} added or changed, {len(lifted)} lifted"
            self._log.line("STATE", text)
        for client in self._registry.clients if added else ():
            covers = self._bans.find_address(client.address, now) or (
                self._bans.find_name(client.name, now)
            )
            if covers is not None:
                self._registry.disconnect(client, Goodbye.of("banned", covers.refusal(now)))

    def _save_soon(self) -> None:
        self._changed = True
        if self._file is not None and not self._saving:
            self._start_soon(partial(self._save, self._file))

    async def _save(self, file: Path) -> None:
        if self._saving:
            return
        self._saving = True
        try:
            with trio.CancelScope(shield=True):  # bounded by the disk
                while self._changed:
                    self._changed = False
                    await trio.to_thread.run_sync(self._write, file, self._bans.known())
        except (OSError, MultichatError) as error:
            reason = (
                str(error) if isinstance(error, MultichatError) else transport.describe_error(error)
            )
            self._log.line("STATE", f"The bans are in force, but were not saved: {reason}", ERROR)
        finally:
            self._saving = False

    def _write(self, file: Path, bans: list[Ban]) -> None:
        """Save *bans*; blocks."""
        with self._disk:
            before = self._in_file
            save_bans(file, bans, before)
            with self._known:  # it may have been reloaded meanwhile, as it was before
                self._in_file = merge_bans(self._in_file, before, bans)
