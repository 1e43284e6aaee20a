"""The first requests on a connection to the engine, and what their replies mean.  Pure.

These are `HELLO 3` with the password, `SELECT` and `INFO`.  The replies are checked once, here:
every fault becomes one line that says what to do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from multichat.cluster.errors import NO_RESP3, EngineRefused, shorten
from multichat.cluster.resp import Value, Word

__all__ = ["EngineInfo", "NotUsable", "hello", "judge", "judge_error"]

# Of INFO, which has some 6 KB, and of a field of it, which may be part of a line in the log.
_MAX_INFO = 1024 * 1024
_MAX_FIELD = 100

# The first version with `FUNCTION`.
_LEAST_VERSION = 7

CLIENT_NAME = "multichat"


class NotUsable(Exception):
    """The engine cannot be used; *lasting* as in `EngineUnavailable`.

    *code* is the code of the engine's error, if it sent one.
    """

    def __init__(self, reason: str, *, lasting: bool = False, code: str = "") -> None:
        super().__init__(reason)
        self.reason, self.lasting, self.code = reason, lasting, code


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """The state of an engine at the time of the connection.

    *run_id* changes with each start of its process.  *replication_id* identifies its data.  A
    promoted replica gets a new one, and keeps the earlier one as *previous_replication_id*, valid
    up to *previous_offset*.  *where* is the engine's address.
    """

    where: str
    program: str
    version: str
    run_id: str
    replication_id: str
    previous_replication_id: str = ""
    previous_offset: int = -1
    offset: int = 0
    replicas: int = 0
    aof: bool = False
    maxmemory: int = 0
    maxmemory_policy: str = "noeviction"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that the operator should change, because they can lose messages; a line each."""
        found = []
        if not self.aof:
            found.append(
                "the engine keeps nothing on disk, and its restart loses every message: "
                "set appendonly yes"
            )
        if self.maxmemory_policy not in ("noeviction", ""):
            found.append(
                f"the engine deletes messages when its memory is full ({self.maxmemory_policy}): "
                "set maxmemory-policy noeviction"
            )
        return tuple(found)

    def __str__(self) -> str:
        """Return the program, its version and its address."""
        return f"{self.program.capitalize()} {self.version} at {self.where}"


def hello(user: str, password: str, database: int) -> list[tuple[Word, ...]]:
    """Return the requests to send first."""
    # Also a user without a password: otherwise the engine takes us for its default user.
    login: tuple[Word, ...] = ("AUTH", user or "default", password) if user or password else ()
    requests: list[tuple[Word, ...]] = [("HELLO", 3, *login, "SETNAME", CLIENT_NAME)]
    if database:
        requests.append(("SELECT", database))
    requests.append(("INFO",))
    return requests


def judge(where: str, replies: Sequence[Value]) -> EngineInfo:
    """Return the primary whose *replies* to the requests of `hello` these are.

    Raises `NotUsable` if it cannot be used.
    """
    for reply in replies:
        if isinstance(reply, EngineRefused):
            raise judge_error(reply)
    greeting, info = replies[0], replies[-1]
    if not isinstance(greeting, dict) or not isinstance(info, bytes):
        raise NotUsable(NO_RESP3.reason, lasting=True)
    if greeting.get(b"mode") == b"sentinel":
        raise NotUsable("it is a Sentinel: write valkey+sentinel://HOST:PORT/NAME", lasting=True)
    fields = _fields(info)
    if greeting.get(b"mode") == b"cluster" or fields.get("cluster_enabled") == "1":
        raise NotUsable(
            "it is a part of a Redis Cluster: a single primary is needed (cluster-enabled no)",
            lasting=True,
        )
    program = "valkey" if "valkey_version" in fields else "redis"
    version = fields.get(f"{program}_version", "")
    leading = re.match(r"\d{1,4}", version)
    if leading is None or int(leading[0]) < _LEAST_VERSION:
        raise NotUsable(
            f"it is {program.capitalize()} {version or 'without a version'}: "
            f"Valkey, or Redis {_LEAST_VERSION} or later, is needed",
            lasting=True,
        )
    if fields.get("loading", "0") != "0":
        raise NotUsable("it is loading its data", code="LOADING")
    if fields.get("role") != "master":
        primary = ":".join(filter(None, map(fields.get, ("master_host", "master_port"))))
        raise NotUsable(
            f"it is a replica of {primary or 'another engine'}: "
            "give the address of the primary, or those of the Sentinels"
        )
    return EngineInfo(
        where=where,
        program=program,
        version=version,
        run_id=fields.get("run_id", ""),
        replication_id=fields.get("master_replid", ""),
        previous_replication_id=fields.get("master_replid2", ""),
        previous_offset=_number(fields.get("second_repl_offset", "")),
        offset=_number(fields.get("master_repl_offset", "")),
        replicas=_number(fields.get("connected_slaves", "")),
        aof=fields.get("aof_enabled") == "1",
        maxmemory=_number(fields.get("maxmemory", "")),
        maxmemory_policy=fields.get("maxmemory_policy", ""),
    )


def judge_error(error: EngineRefused) -> NotUsable:
    """Return the consequence of *error* for the whole connection."""
    meaning = error.meaning
    return NotUsable(meaning.reason, lasting=meaning.lasting, code=error.code)


def _fields(info: bytes) -> dict[str, str]:
    """Return the fields of INFO, each a short text that can be printed."""
    lines = info[:_MAX_INFO].decode("utf-8", "replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name: shorten(value[:_MAX_FIELD]) for name, value in pairs}


def _number(text: str) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 20:
        return int(text)
    return -1
