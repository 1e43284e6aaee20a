"""Parses URLs of a cluster's engine, as `serve --cluster` takes them.  Pure.

The forms::

    valkey://[USER@]HOST[:PORT][/DATABASE]
    valkey+sentinel://[USER@]HOST[:PORT],HOST[:PORT],…/NAME[/DATABASE]

`valkeys` is with TLS, and `redis` and `rediss` are the same.  A URL never contains a password,
which would be in the process list and in logs.
"""

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from multichat.protocol.address import split_address

__all__ = ["DEFAULT_PORT", "SENTINEL_PORT", "ClusterAddress", "format_host"]

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379

# Whether the scheme means TLS.
_TLS = {"valkey": False, "valkeys": True, "redis": False, "rediss": True}

# More Sentinels than this are a mistake; each is asked before each connection.
_MAX_HOSTS = 16

# An engine numbers its databases from 0, and has few of them.
_MAX_DATABASE_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterAddress:
    """The address of the engine, or of the Sentinels that know its address.

    With *sentinel_name*, *hosts* are Sentinels, and that is their name for the primary; without it,
    *hosts* has one entry, the engine.  An empty *user* is the engine's default user.
    """

    hosts: tuple[tuple[str, int], ...]
    sentinel_name: str = ""
    tls: bool = False
    user: str = ""
    database: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the URL *text*; raises `ValueError`, whose message never contains a password."""
        scheme, colon, rest = text.partition("://")
        name, plus, kind = scheme.partition("+")
        if not colon or name not in _TLS or (plus and kind != "sentinel"):
            raise ValueError(
                "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS, "
                "valkey+sentinel://HOST:PORT/NAME with Sentinels"
            )
        login, at, rest = rest.rpartition("@")
        if ":" in login:
            raise ValueError(
                "the address of a cluster must not contain a password, which others could read: "
                "write it to a file for --cluster-password-file"
            )
        if at and not login:
            raise ValueError(f"{text!r} has no user before the @")
        places, *path = rest.split("/")
        sentinel_name = ""
        if plus:
            if not path or not path[0]:
                raise ValueError(
                    f"{text!r} lacks the name of the primary: valkey+sentinel://HOST:PORT/NAME"
                )
            sentinel_name = unquote(path.pop(0))
        hosts = places.split(",")
        if len(hosts) > (_MAX_HOSTS if plus else 1):
            raise ValueError(
                f"{text!r} has more than {_MAX_HOSTS} Sentinels"
                if plus
                else f"{text!r} has several hosts: only valkey+sentinel:// has"
            )
        return cls(
            hosts=tuple(_host(host, SENTINEL_PORT if plus else DEFAULT_PORT) for host in hosts),
            sentinel_name=sentinel_name,
            tls=_TLS[name],
            user=unquote(login),
            database=_database(text, path),
        )

    def __str__(self) -> str:
        """Return the URL."""
        scheme = "valkeys" if self.tls else "valkey"
        hosts = ",".join(format_host(*host) for host in self.hosts)
        name = f"/{quote(self.sentinel_name, safe='')}" if self.sentinel_name else ""
        return "".join(
            (
                scheme,
                "+sentinel" if self.sentinel_name else "",
                "://",
                f"{quote(self.user, safe='')}@" if self.user else "",
                hosts,
                name,
                f"/{self.database}" if self.database else "",
            )
        )


def format_host(host: str, port: int) -> str:
    """Return *host* and *port* as one string: `127.0.0.1:6379`, `[::1]:6379`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str, default_port: int) -> tuple[str, int]:
    if not text:
        raise ValueError("the address of a cluster has no host: write valkey://HOST:PORT")
    host, port = split_address(text)
    return host, port or default_port


def _database(url: str, path: list[str]) -> int:
    """Return the number of the database in the rest of the path."""
    match path:
        case [] | [""]:
            return 0
        case [digits] if digits.isascii() and digits.isdigit():
            if len(digits) <= _MAX_DATABASE_DIGITS:
                return int(digits)
    raise ValueError(f"{url!r} does not end with the number of a database")
