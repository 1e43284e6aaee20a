"""Bans of addresses, networks and names, temporary or permanent.  Pure.

Defines what counts as one address, when two bans have the same target, and how a ban is typed by an
operator, shown to people, and written to a file.  The caller passes the time as `now`, in seconds
since 1970, so that a ban outlives a restart.

1. A network is stored without host bits, and IPv4-mapped IPv6 as IPv4: no other notation of an
   address gets past a ban.
2. Two names are the same if `multichat.protocol.names.fold_name` says so; a ban of a name covers
   the names that look like it.
3. Every ban is written so that it is parsed as the same ban, and is safe to show.
4. A file is loaded completely or not at all: an invalid line would admit a banned client.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from multichat.backend.events import MAX_BANS
from multichat.errors import InvalidBan, InvalidBanFile, InvalidName, TooManyBans
from multichat.protocol.commands import FOREVER, NAME_WORD, split_target
from multichat.protocol.framing import clean
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.names import fold_name, normalize_name

__all__ = [
    "MAX_BANS",
    "Ban",
    "Bans",
    "Network",
    "Target",
    "changes_of",
    "format_bans",
    "host_of",
    "merge_bans",
    "network_of",
    "network_of_host",
    "parse_duration",
    "parse_target",
    "read_bans",
]

Network: TypeAlias = IPv4Network | IPv6Network
Target: TypeAlias = Network | str
"""The target of a ban: a network, of one address or more, or the name of a client."""

Key: TypeAlias = str | tuple[int, int, int]
"""What two targets share that are the same: a folded name; or bits, length and prefix."""

# What a provider gives to one customer (RFC 6177), who could evade a ban of less.
_IPV6_LENGTH = 64

# Two lines of a narrow terminal; the banned client gets the reason, too.
_MAX_REASON_CHARACTERS = 120

# The last second of the year 9999, after which dates have another format.
_LAST_SECOND = 253402300799

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,10})([a-z]*)")
# A longer ban must be permanent.
_MAX_SECONDS = 100 * 365 * 86400

# An address as the log shows it, with its port.
_WITH_PORT = re.compile(r"\[([^\[\]]*:[^\[\]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_LENGTH = re.compile("[0-9]{1,3}")
# A name could look like this, too, but it is more likely a mistyped address.
_NEARLY_IPV4 = re.compile("[0-9.]+")
_SHOWN_CHARACTERS = 45  # of wrong input in an error; the longest address has as many

_HEADER = b"""\
# Bans.  The server changes this file with each ban, and reads it when it starts and at SIGHUP: edit
# it, then reload the server.  One ban a line: TARGET [until TIME] [because REASON].  TARGET is an
# address, a network such as 203.0.113.0/24, or: name NAME.  TIME is UTC.
"""


def host_of(address: str) -> str:
    """Return a peer's *address*, as `multichat.net.transport` formats it, without its port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0]


def network_of(address: str) -> Network | None:
    """Return what counts as one address for limits and bans; None if *address* is none.

    *address* is like `203.0.113.7:51234`, `[2001:db8::1]:51234` or `[fe80::1%eth0]:51234`; a Unix
    socket has none.  The result is the address itself for IPv4 and IPv4-mapped IPv6, and for
    loopback and link-local IPv6; otherwise the /64.
    """
    return network_of_host(host_of(address))


def network_of_host(host: str) -> Network | None:
    """Like `network_of`, for an address without its port."""
    ip = _parse_ip(host)
    return None if ip is None else _alone(ip)


def _parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        if ":" not in host:
            return IPv4Address(host)
        ip = IPv6Address(host)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip


def _alone(ip: IPv4Address | IPv6Address) -> Network:
    if isinstance(ip, IPv4Address):
        return IPv4Network((int(ip), 32))
    if ip.is_link_local or ip.is_loopback:
        return IPv6Network((int(ip), 128))
    return IPv6Network((int(ip) >> 64 << 64, _IPV6_LENGTH))


def _network(ip: IPv4Address | IPv6Address, length: int) -> Network:
    """Return the network of that *length* around *ip*, in its one stored form."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None and length >= 96:
        ip, length = ip.ipv4_mapped, length - 96
    if isinstance(ip, IPv4Address):
        return IPv4Network((int(ip), length), strict=False)
    return IPv6Network((int(ip), length), strict=False)


def parse_target(text: str) -> Target:
    """Parse *text*, an address, a network or a name; raises `InvalidBan`.

    An address stands for what counts as one (`network_of`), and may have its port.  A name that
    could be something else is written `name NAME`; a number is not a name.
    """
    text = text.strip()
    word, _, name = text.partition(" ")
    if word == NAME_WORD and name:
        return _parse_name(name.strip())
    if with_port := _WITH_PORT.fullmatch(text):
        text = with_port[1] or with_port[2]
    host, slash, length = text.partition("/")
    ip = _parse_ip(host)
    if slash:
        if ip is None:
            raise InvalidBan(f"{_shown(text)} is not a network")
        bits = 32 if ":" not in host else 128
        if not _LENGTH.fullmatch(length) or int(length) > bits:
            raise InvalidBan(f"{_shown(text)}: the length of a network is 0 to {bits}")
        return _network(IPv6Address(host) if bits == 128 else ip, int(length))
    if ip is not None:
        return _alone(ip)
    if text.isdecimal() or not _NEARLY_IPV4.fullmatch(text):
        return _parse_name(text)
    raise InvalidBan(f"{_shown(text)} is not an address")


def _parse_name(text: str) -> str:
    try:
        name = normalize_name(text)
    except InvalidName:
        what = _shown(text) or "nothing"
        raise InvalidBan(f"{what} is not an address, network or name") from None
    if name.isdecimal():
        raise InvalidBan(f"{name} is the number of a client, not a name")
    return name


def _shown(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def parse_duration(text: str) -> int | None:
    """Parse a duration and return it in seconds, or None if it is permanent; raises `InvalidBan`.

    `90s`, `10m`, `2h`, `1d`, `3w`, `forever`; a number alone is minutes.
    """
    word = text.strip().lower()
    if word == FOREVER:
        return None
    found = _DURATION.fullmatch(word)
    if found is None or (found[2] and found[2] not in _UNITS):
        raise InvalidBan(f"{_shown(text)} is not a duration; examples: 90s, 10m, 2h, 1d, forever")
    seconds = int(found[1]) * _UNITS[found[2] or "m"]
    if not 0 < seconds <= _MAX_SECONDS:
        raise InvalidBan("a ban is for 1 second to 100 years, or forever")
    return seconds


def _format_duration(seconds: float) -> str:
    """Format it approximately, in the largest unit of which it has at least two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if (count := round(seconds / size)) >= 2:
            return f"{count} {unit}"
    return f"{math.floor(seconds) or math.ceil(seconds)} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ban:
    """A ban of *target*, until a time, for a reason.

    *until* is in seconds since 1970, rounded up; None is permanent.  *reason* is cleaned and cut to
    one line of at most 120 characters.  *key* is equal for two bans of the same target, and *looks*
    are the lookalike keys of a name: they take the most time, and are made with the ban, so that
    the event loop can put in force thousands that a thread has read.  Raises `InvalidBan` if the
    target is not a possible name, or *until* is after the year 9999.
    """

    target: Target
    until: float | None = None
    reason: str = ""
    key: Key = field(init=False, repr=False, compare=False)
    looks: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            object.__setattr__(self, "target", _parse_name(self.target))
            object.__setattr__(self, "looks", lookalike_keys(self.target))
        else:
            kept = _network(self.target.network_address, self.target.prefixlen)
            object.__setattr__(self, "target", kept)
        object.__setattr__(self, "key", _key(self.target))
        if self.until is not None:
            if not 0 <= self.until <= _LAST_SECOND:  # also refuses NaN
                raise InvalidBan("a ban ends between the years 1970 and 9999, or never")
            object.__setattr__(self, "until", math.ceil(self.until))
        reason = " ".join(clean(self.reason).split())
        if len(reason) > _MAX_REASON_CHARACTERS:
            reason = f"{reason[: _MAX_REASON_CHARACTERS - 1].rstrip()}…"
        object.__setattr__(self, "reason", reason)

    @property
    def subject(self) -> str:
        """The target in the form that `parse_target` accepts: `203.0.113.7`, `name bob`."""
        if isinstance(self.target, str):
            return f"{NAME_WORD} {self.target}"
        address = self.target.network_address
        is_one = self.target.prefixlen == self.target.max_prefixlen
        return str(address if is_one and _alone(address) == self.target else self.target)

    def is_expired(self, now: float) -> bool:
        """Return whether it has expired."""
        return self.until is not None and self.until <= now

    def covers(self, address: str, name: str) -> bool:
        """Return whether it covers a client called *name* from *address*; see `network_of`."""
        if isinstance(self.target, str):
            return not set(lookalike_keys(name)).isdisjoint(self.looks)
        ip = _parse_ip(host_of(address))
        return ip is not None and ip in self.target

    def describe(self, now: float) -> str:
        """Describe it to an operator: `203.0.113.7 for 9 min: flooding`."""
        return f"{self.subject} {self._terms(now)}"

    def refusal(self, now: float) -> str:
        """Describe it to the banned client, without the target: `banned for 9 min: flooding`."""
        return f"banned {self._terms(now)}"

    def _terms(self, now: float) -> str:
        left = "ever" if self.until is None else _format_duration(max(0, self.until - now))
        return f"for {left}: {self.reason}" if self.reason else f"for {left}"


def _key(target: Target) -> Key:
    """Return a key that is equal for two targets that are the same."""
    if isinstance(target, str):
        return fold_name(target)
    bits, length = target.max_prefixlen, target.prefixlen
    return bits, length, int(target.network_address) >> (bits - length)


class Bans:
    """At most *max_bans* bans, one for each target, in the order in which they were added.

    Looking up an address takes one dictionary access for each length of network that is in use.
    Expired bans are not found, and are removed when there are too many.

    Raises `TooManyBans`.
    """

    def __init__(
        self, bans: Iterable[Ban] = (), *, now: float = 0, max_bans: int = MAX_BANS
    ) -> None:
        self._max_bans = max_bans
        self._bans: dict[Key, Ban] = {}
        # The number of networks of each length, by the number of bits of an address.
        self._lengths: dict[int, Counter[int]] = {32: Counter(), 128: Counter()}
        # Bans of names, by their lookalike keys.
        self._lookalikes: defaultdict[str, dict[Key, Ban]] = defaultdict(dict)
        for ban in bans:
            self.add(ban, now)

    def __len__(self) -> int:
        """How many bans there are, with expired ones that are not removed yet."""
        return len(self._bans)

    def add(self, ban: Ban, now: float) -> None:
        """Add *ban*, or replace the one of the same target; raises `TooManyBans`."""
        key = ban.key
        if (old := self._bans.get(key)) is not None:
            self._unlink(key, old)
        else:
            most = self._max_bans
            if len(self._bans) >= most:
                self._remove_expired(now)
            if len(self._bans) >= most:
                raise TooManyBans(most)
            if not isinstance(key, str):
                self._lengths[key[0]][key[1]] += 1
        self._bans[key] = ban
        for look in ban.looks:
            self._lookalikes[look][key] = ban

    def change(self, added: Sequence[Ban], lifted: Sequence[Ban], now: float) -> None:
        """Remove the bans *lifted*, then add or replace those *added*.

        Raises `TooManyBans`, and changes nothing but removing expired bans then.
        """
        new, old = {ban.key for ban in added}, {ban.key for ban in lifted}
        if len(self._bans.keys() - old | new) > self._max_bans:
            self._remove_expired(now)
        if len(self._bans.keys() - old | new) > self._max_bans:
            raise TooManyBans(self._max_bans)
        for key in old:
            self._pop(key)
        for ban in added:
            self.add(ban, now)

    def _unlink(self, key: Key, ban: Ban) -> None:
        for look in ban.looks:
            del self._lookalikes[look][key]
            if not self._lookalikes[look]:
                del self._lookalikes[look]

    def remove(self, text: str) -> Ban | None:
        """Remove the ban of exactly that target (see `parse_target`); return it, if there was one.

        Raises `InvalidBan` if *text* is not a target.
        """
        return self._pop(_key(parse_target(text)))

    def _pop(self, key: Key) -> Ban | None:
        ban = self._bans.pop(key, None)
        if ban is None:
            return None
        self._unlink(key, ban)
        if not isinstance(key, str):
            bits, length, _ = key
            self._lengths[bits][length] -= 1
            if not self._lengths[bits][length]:
                del self._lengths[bits][length]
        return ban

    def has(self, ban: Ban, now: float) -> bool:
        """Return whether exactly *ban* is among them, and has not expired."""
        return self._bans.get(ban.key) == ban and not ban.is_expired(now)

    def current(self, now: float) -> list[Ban]:
        """Return the bans that have not expired."""
        return [ban for ban in self._bans.values() if not ban.is_expired(now)]

    def known(self) -> list[Ban]:
        """Return all bans, also expired ones: the clock may be wrong just now."""
        return list(self._bans.values())

    def _remove_expired(self, now: float) -> None:
        for key in [key for key, ban in self._bans.items() if ban.is_expired(now)]:
            self._pop(key)

    def find_address(self, address: str, now: float) -> Ban | None:
        """Return the narrowest ban of a peer's *address*; for its form see `network_of`."""
        if not (self._lengths[32] or self._lengths[128]):
            return None
        ip = _parse_ip(host_of(address))
        if ip is None:
            return None
        bits, number = ip.max_prefixlen, int(ip)
        for length in sorted(self._lengths[bits], reverse=True):
            ban = self._bans.get((bits, length, number >> (bits - length)))
            if ban is not None and not ban.is_expired(now):
                return ban
        return None

    def find_name(self, name: str, now: float) -> Ban | None:
        """Return a ban of *name*, or of a name that looks like it."""
        if not self._lookalikes:
            return None
        for look in lookalike_keys(name):
            for ban in self._lookalikes.get(look, {}).values():
                if not ban.is_expired(now):
                    return ban
        return None


def changes_of(before: Sequence[Ban], now: Sequence[Ban]) -> tuple[list[Ban], list[Ban]]:
    """Return which bans were added or changed between two states of a file, and which removed."""
    unchanged, kept = set(before), {ban.key for ban in now}
    added = [ban for ban in now if ban not in unchanged]
    return added, [ban for ban in before if ban.key not in kept]


def merge_bans(ours: Sequence[Ban], before: Sequence[Ban], theirs: Sequence[Ban]) -> list[Ban]:
    """Return *ours* with what was changed from *before* to *theirs*.

    Of a target that both have changed, the ban is that of *ours*.
    """
    added, lifted = changes_of(before, ours)
    gone = {ban.key for ban in (*added, *lifted)}
    return [*(ban for ban in theirs if ban.key not in gone), *added]


def read_bans(data: bytes, file: str) -> list[Ban]:
    """Parse the *data* of a file; raises `InvalidBanFile`, which names *file*."""
    bans: list[Ban] = []
    lines: dict[Key, int] = {}
    for number, (_, ban) in enumerate(_read_lines(data, file), 1):
        if ban is not None:
            before = lines.setdefault(ban.key, number)
            if before != number:
                reason = f"{ban.subject} is already banned in line {before}"
                raise InvalidBanFile(file, number, reason)
            bans.append(ban)
    return bans


def format_bans(bans: Iterable[Ban], data: bytes = _HEADER) -> bytes:
    """Return the *data* of a file, which is valid, changed to contain exactly *bans*.

    Comments, empty lines, and the lines of bans that have not changed stay as they are; new bans
    are appended.
    """
    left = {ban.key: ban for ban in bans}
    lines: list[bytes] = []
    for line, old in _read_lines(data, "the file"):
        if old is None:
            lines.append(line)
        elif (ban := left.pop(old.key, None)) is not None:
            lines.append(line if ban == old else _format_line(ban))
    while lines and not lines[-1].strip():
        lines.pop()
    lines += map(_format_line, left.values())
    return b"".join(b"%b\n" % line for line in lines)


def _format_line(ban: Ban) -> bytes:
    words = [ban.subject]
    if ban.until is not None:
        words.append(f"until {datetime.fromtimestamp(ban.until, UTC):%Y-%m-%dT%H:%M:%SZ}")
    if ban.reason:
        words.append(f"because {ban.reason}")
    return " ".join(words).encode()


def _read_lines(data: bytes, file: str) -> Iterator[tuple[bytes, Ban | None]]:
    """Yield each line, without its LF, and the ban in it; raises `InvalidBanFile`."""
    # Some editors write a byte order mark.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield line, _read_line(line.decode())
        except UnicodeDecodeError:
            is_utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
            reason = "UTF-16; save it as UTF-8" if is_utf_16 else "this is not UTF-8"
            raise InvalidBanFile(file, number, reason) from None
        except InvalidBan as error:
            raise InvalidBanFile(file, number, str(error)) from None


def _read_line(line: str) -> Ban | None:
    words = " ".join(line.split())
    if not words or words.startswith("#"):
        return None
    subject, rest = split_target(words)
    target = parse_target(subject)
    until, reason = None, ""
    if rest.startswith("until "):
        moment, _, rest = rest.removeprefix("until ").partition(" ")
        until = _parse_moment(moment)
    if rest.startswith("because "):
        reason, rest = rest.removeprefix("because "), ""
    if rest:
        raise InvalidBan(f"expected [until TIME] [because REASON] after {subject}")
    return Ban(target=target, until=until, reason=reason)


def _parse_moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise InvalidBan(f"{_shown(text)} is not a time like 2025-01-15T10:30:45Z") from None
