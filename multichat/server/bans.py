"""Who may not come in: addresses, networks and names, for a time or for ever.  Pure.

Owns what counts as one address, when two bans are of the same thing, and how a ban is typed by an
operator, shown to people, and spelled in a file.  Whoever has a clock says what time it is, in
seconds since 1970, so that a ban outlives a restart.

1. A network is kept without host bits, and IPv4 inside of IPv6 as IPv4, so that nobody gets past a
   ban by the way of writing an address.
2.  Two bans are of the same name if the server says so (`multichat.protocol.names.fold_name`); a
   ban of a name covers the names that look like it.
3. Every ban is spelled so that it is read as the same ban, and all of it is fit to be shown.
4. A file is read whole or not at all: a line that is not understood would be somebody let in.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from multichat.errors import InvalidBan, InvalidBanFile, InvalidName, TooManyBans
from multichat.protocol.framing import clean
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.names import fold_name, normalize_name

__all__ = [
    "MAX_BANS",
    "Ban",
    "Bans",
    "Network",
    "Target",
    "format_bans",
    "host_of",
    "network_of",
    "network_of_host",
    "parse_duration",
    "parse_target",
    "read_bans",
    "split_target",
]

Network: TypeAlias = IPv4Network | IPv6Network
Target: TypeAlias = Network | str
"""What a ban is of: a network, of one address or more, or the name of a person."""

# More than anybody types or looks through; they take 5 MiB, and their file 1 MiB.
MAX_BANS = 10_000

# What one customer of a provider is given (RFC 6177): a ban of less is one of nobody.
_IPV6_LENGTH = 64

# Two lines of a narrow terminal; the one who is banned is told it, too.
_MAX_REASON_CHARACTERS = 120

# The last second of the year 9999, after which dates are spelled differently.
_LAST_SECOND = 253402300799

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,10})([a-z]*)")
_FOREVER = "forever"
# Whoever types more means for ever.
_MAX_SECONDS = 100 * 365 * 86400

# An address as it is shown, with its port.
_WITH_PORT = re.compile(r"\[([^\[\]]*:[^\[\]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_LENGTH = re.compile("[0-9]{1,3}")
# A name could look so, too, but who types it means an address, and may have mistyped it.
_NEARLY_IPV4 = re.compile("[0-9.]+")
_NAME_WORD = "name"
_SHOWN_CHARACTERS = 45  # of what was typed wrongly: as many as the longest address has

_HEADER = b"""\
# Who may not come in.  The server reads this file when it starts, and changes it with each ban:
# edit it while no server runs.  One ban a line: WHAT [until TIME] [because REASON].
# WHAT is an address, a network like 203.0.113.0/24, or: name NAME.  TIME is UTC.
"""


def host_of(address: str) -> str:
    """Return a peer's *address*, as `multichat.net.transport` spells it, without its port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0]


def network_of(address: str) -> Network | None:
    """Return what counts as one address for limits, and is banned with it; None without an address.

    *address* is spelled `203.0.113.7:51234`, `[2001:db8::1]:51234` or `[fe80::1%eth0]:51234`; that
    of a Unix socket has none.  It is the address itself for IPv4, and for IPv4 inside of IPv6; the
    /64 for IPv6, but for addresses of this machine and this link, which nobody was given a /64 of.
    """
    return network_of_host(host_of(address))


def network_of_host(host: str) -> Network | None:
    """Do as `network_of` for an address without its port."""
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
    """Return the network in which *ip* is, in the one form in which it is kept."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None and length >= 96:
        ip, length = ip.ipv4_mapped, length - 96
    if isinstance(ip, IPv4Address):
        return IPv4Network((int(ip), length), strict=False)
    return IPv6Network((int(ip), length), strict=False)


def split_target(text: str) -> tuple[str, str]:
    """Split what is to be banned, or no longer, off the front of *text*; either may be empty."""
    word, _, rest = text.strip().partition(" ")
    rest = rest.lstrip()
    if word == _NAME_WORD and rest:
        name, _, rest = rest.partition(" ")
        return f"{_NAME_WORD} {name}", rest.lstrip()
    return word, rest


def parse_target(text: str) -> Target:
    """Return what somebody means by *text*: an address, a network, a name; raises `InvalidBan`.

    An address alone is what counts as one (`network_of`), and may have its port.  A name that
    could be mistaken for something else has `name` and a space before it; nobody's is a number.
    """
    text = text.strip()
    word, _, name = text.partition(" ")
    if word == _NAME_WORD and name:
        return _parse_name(name.strip())
    if with_port := _WITH_PORT.fullmatch(text):
        text = with_port[1] or with_port[2]
    host, slash, length = text.partition("/")
    ip = _parse_ip(host)
    if slash:
        if ip is None:
            raise InvalidBan(f"{_shown(text)} is no network")
        bits = 32 if ":" not in host else 128
        if not _LENGTH.fullmatch(length) or int(length) > bits:
            raise InvalidBan(f"{_shown(text)}: the length of a network is 0 to {bits}")
        return _network(IPv6Address(host) if bits == 128 else ip, int(length))
    if ip is not None:
        return _alone(ip)
    if text.isdecimal() or not _NEARLY_IPV4.fullmatch(text):
        return _parse_name(text)
    raise InvalidBan(f"{_shown(text)} is no address")


def _parse_name(text: str) -> str:
    try:
        name = normalize_name(text)
    except InvalidName:
        raise InvalidBan(f"{_shown(text) or 'nothing'} is no address, network or name") from None
    if name.isdecimal():
        raise InvalidBan(f"{name} is a client's number, and nobody's name")
    return name


def _shown(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def parse_duration(text: str) -> int | None:
    """Return the seconds that *text* stands for, None for ever; raises `InvalidBan`.

    `90s`, `10m`, `2h`, `1d`, `3w`, `forever`; a number alone is minutes.
    """
    word = text.strip().lower()
    if word == _FOREVER:
        return None
    found = _DURATION.fullmatch(word)
    if found is None or (found[2] and found[2] not in _UNITS):
        raise InvalidBan(f"{_shown(text)} is no time: say 90s, 10m, 2h, 1d or forever")
    seconds = int(found[1]) * _UNITS[found[2] or "m"]
    if not 0 < seconds <= _MAX_SECONDS:
        raise InvalidBan("a ban is for a second at least, and for 100 years at most, or forever")
    return seconds


def _format_duration(seconds: float) -> str:
    """Spell about how long that is, in a unit of which it has two at least."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if (count := round(seconds / size)) >= 2:
            return f"{count} {unit}"
    return f"{math.floor(seconds) or math.ceil(seconds)} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ban:
    """What may not come in, until when, and why.

    *until* is in seconds since 1970, kept whole and rounded up; None is for ever.  *reason* is
    kept clean and in one line of at most 120 characters.  Raises `InvalidBan` if the target is no
    possible name, or the time is none before the year 10000.
    """

    target: Target
    until: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            object.__setattr__(self, "target", _parse_name(self.target))
        else:
            kept = _network(self.target.network_address, self.target.prefixlen)
            object.__setattr__(self, "target", kept)
        if self.until is not None:
            if not 0 <= self.until <= _LAST_SECOND:  # NaN is not either
                raise InvalidBan("a ban ends between the years 1970 and 9999, or never")
            object.__setattr__(self, "until", math.ceil(self.until))
        reason = " ".join(clean(self.reason).split())
        if len(reason) > _MAX_REASON_CHARACTERS:
            reason = f"{reason[: _MAX_REASON_CHARACTERS - 1].rstrip()}…"
        object.__setattr__(self, "reason", reason)

    @property
    def subject(self) -> str:
        """What is banned, as `parse_target` reads it: `203.0.113.7`, `name bob`."""
        if isinstance(self.target, str):
            return f"{_NAME_WORD} {self.target}"
        address = self.target.network_address
        is_one = self.target.prefixlen == self.target.max_prefixlen
        return str(address if is_one and _alone(address) == self.target else self.target)

    def is_over(self, now: float) -> bool:
        """Say whether it no longer holds."""
        return self.until is not None and self.until <= now

    def covers(self, address: str, name: str) -> bool:
        """Say whether it is of a client at *address* (see `network_of`) that is called *name*."""
        if isinstance(self.target, str):
            return not set(lookalike_keys(name)).isdisjoint(lookalike_keys(self.target))
        ip = _parse_ip(host_of(address))
        return ip is not None and ip in self.target

    def describe(self, now: float) -> str:
        """Say it to an operator: `203.0.113.7 for 9 min: flooding`."""
        return f"{self.subject} {self._terms(now)}"

    def refusal(self, now: float) -> str:
        """Say it to who is banned, and does not learn how: `banned for 9 min: flooding`."""
        return f"banned {self._terms(now)}"

    def _terms(self, now: float) -> str:
        left = "ever" if self.until is None else _format_duration(max(0, self.until - now))
        return f"for {left}: {self.reason}" if self.reason else f"for {left}"


_Key: TypeAlias = str | tuple[int, int, int]


def _key(target: Target) -> _Key:
    """Return what is equal for two targets that are the same."""
    if isinstance(target, str):
        return fold_name(target)
    bits, length = target.max_prefixlen, target.prefixlen
    return bits, length, int(target.network_address) >> (bits - length)


class Bans:
    """At most *max_bans* bans, one of each target, in the order of their coming.

    A look-up of an address costs one look into a dictionary for each length that networks have,
    however many they are.  Bans that are over are not found, and are forgotten in time.

    Raises `TooManyBans`.
    """

    def __init__(
        self, bans: Iterable[Ban] = (), *, now: float = 0, max_bans: int = MAX_BANS
    ) -> None:
        self._max_bans = max_bans
        self._bans: dict[_Key, Ban] = {}
        # For addresses of so many bits: how many networks there are of each length.
        self._lengths: dict[int, Counter[int]] = {32: Counter(), 128: Counter()}
        # Bans of names, by how the names look.
        self._lookalikes: defaultdict[str, dict[_Key, Ban]] = defaultdict(dict)
        for ban in bans:
            self.add(ban, now)

    def __len__(self) -> int:
        """How many there are, with those that are over and not forgotten yet."""
        return len(self._bans)

    def add(self, ban: Ban, now: float) -> None:
        """Take in *ban*, in place of one of the same target; raises `TooManyBans`."""
        key = _key(ban.target)
        if (old := self._bans.get(key)) is not None:
            self._unlink(key, old)
        else:
            most = self._max_bans
            if len(self._bans) >= most:
                self._forget_over(now)
            if len(self._bans) >= most:
                raise TooManyBans(most)
            if not isinstance(key, str):
                self._lengths[key[0]][key[1]] += 1
        self._bans[key] = ban
        if isinstance(ban.target, str):
            for look in lookalike_keys(ban.target):
                self._lookalikes[look][key] = ban

    def _unlink(self, key: _Key, ban: Ban) -> None:
        if isinstance(ban.target, str):
            for look in lookalike_keys(ban.target):
                del self._lookalikes[look][key]
                if not self._lookalikes[look]:
                    del self._lookalikes[look]

    def remove(self, text: str) -> Ban | None:
        """Take out the ban of just that target (see `parse_target`), and return it, if there is.

        Raises `InvalidBan` if *text* is no target.
        """
        return self._pop(_key(parse_target(text)))

    def _pop(self, key: _Key) -> Ban | None:
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

    def current(self, now: float) -> list[Ban]:
        """Return the bans that are not over."""
        return [ban for ban in self._bans.values() if not ban.is_over(now)]

    def known(self) -> list[Ban]:
        """Return all bans, also those that are over by a clock that may be wrong just now."""
        return list(self._bans.values())

    def _forget_over(self, now: float) -> None:
        for key in [key for key, ban in self._bans.items() if ban.is_over(now)]:
            self._pop(key)

    def find_address(self, address: str, now: float) -> Ban | None:
        """Return the narrowest ban of a peer's *address*; for its spelling see `network_of`."""
        if not (self._lengths[32] or self._lengths[128]):
            return None
        ip = _parse_ip(host_of(address))
        if ip is None:
            return None
        bits, number = ip.max_prefixlen, int(ip)
        for length in sorted(self._lengths[bits], reverse=True):
            ban = self._bans.get((bits, length, number >> (bits - length)))
            if ban is not None and not ban.is_over(now):
                return ban
        return None

    def find_name(self, name: str, now: float) -> Ban | None:
        """Return a ban of *name*, or of one that looks like it."""
        if not self._lookalikes:
            return None
        for look in lookalike_keys(name):
            for ban in self._lookalikes.get(look, {}).values():
                if not ban.is_over(now):
                    return ban
        return None


def read_bans(data: bytes, file: str) -> list[Ban]:
    """Read all bans in the *data* of a file; raises `InvalidBanFile`, which names *file*."""
    bans: list[Ban] = []
    lines: dict[_Key, int] = {}
    for number, (_, ban) in enumerate(_read_lines(data, file), 1):
        if ban is not None:
            before = lines.setdefault(_key(ban.target), number)
            if before != number:
                reason = f"{ban.subject} is banned in line {before} already"
                raise InvalidBanFile(file, number, reason)
            bans.append(ban)
    return bans


def format_bans(bans: Iterable[Ban], data: bytes = _HEADER) -> bytes:
    """Return the *data* of a file, which has been read, with just these *bans* in it.

    Comments, empty lines, and the lines of bans that have not changed stay as they are; new bans
    come last.
    """
    left = {_key(ban.target): ban for ban in bans}
    lines: list[bytes] = []
    for line, old in _read_lines(data, "the file"):
        if old is None:
            lines.append(line)
        elif (ban := left.pop(_key(old.target), None)) is not None:
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
    # What some editors put first is no part of the first line.
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
        raise InvalidBan(f"after {subject} comes [until TIME] [because REASON]")
    return Ban(target=target, until=until, reason=reason)


def _parse_moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise InvalidBan(f"{_shown(text)} is no time like 2025-01-15T10:30:45Z") from None
