"""The attacks: hostile clients, server options, and the share of its rate that a pair must keep."""

from dataclasses import dataclass

__all__ = ["ATTACKS", "LOGIN_ATTACKS", "SLOW_ATTACKS", "Attack", "Said"]

_LARGE = 63 * 1024

_ATTACKERS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """Messages that are sent to a room before the attack."""

    room: str
    messages: int
    message_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """One attack on a server with *options*.

    *kinds* names the attackers in `hostile.KINDS`, each with its room; *crowd* are clients that
    are connected before and do nothing.  In *options*, `{folder}` is a folder for the server.  If
    it *lingers*, its requests wait in a server after the attackers have gone.
    """

    name: str
    kinds: tuple[tuple[str, str], ...]
    options: tuple[str, ...] = ()
    said: tuple[Said, ...] = ()
    crowd: tuple[tuple[str, str], ...] = ()
    kept: float = 0.5
    lingers: bool = False


def _attack(
    name: str,
    *kinds: tuple[str, str],
    options: str = "",
    said: tuple[Said, ...] = (),
    crowd: str = "",
    kept: float = 0.5,
    lingers: bool = False,
) -> Attack:
    return Attack(
        name=name,
        kinds=kinds or ((name, "lobby"),),
        options=tuple(options.split()),
        said=said,
        crowd=((crowd, "attic"),) if crowd else (),
        kept=kept,
        lingers=lingers,
    )


_PASSWORD = "--password-file {folder}/password"
_WEB = "--web 0"
_LARGE_MESSAGES = (Said(room="attic", messages=100, message_bytes=_LARGE),)

ATTACKS = (
    _attack("noise"),
    _attack("long-lines"),
    _attack("churn"),
    _attack("noise-pieces"),
    _attack("short-lines"),
    # Three floods at once: the share is about the product of the shares beside each of them.
    _attack("all", ("noise", "lobby"), ("long-lines", "lobby"), ("churn", "lobby"), kept=0.35),
    # Turns as short as the pair's own, so the time is shared equally.
    _attack("ping", kept=2 / (_ATTACKERS + 2)),
    _attack("come-and-go"),
    _attack("come-and-go-password", ("come-and-go", ""), options=_PASSWORD),
    _attack("line-feeds", options=_PASSWORD),
    _attack("endless-line", options=_PASSWORD),
    _attack("guesses", options=_PASSWORD),
    _attack("tls-hellos", options="--tls-cert {folder}/server.pem"),
    _attack("tls-hellos-without-tls", ("tls-hellos", "")),
    _attack("http"),
    _attack("web-requests", options=_WEB),
    _attack("web-slow-heads", options=_WEB),
    _attack("web-endless-heads", options=_WEB),
    _attack("web-handshakes", options=_WEB),
    _attack("web-pings", options=_WEB),
    _attack("web-fragments", options=_WEB),
    _attack("web-messages", options=_WEB),
    _attack("web-huge-frames", options=_WEB),
    _attack("web-guesses", options=f"{_WEB} --webhook-token-file {{folder}}/tokens"),
    _attack("rejected", ("endless-line", ""), options="--max-clients 2"),
    _attack("one-history", ("one-history", "attic"), said=_LARGE_MESSAGES),
    _attack("history", ("history", "attic"), said=_LARGE_MESSAGES),
    _attack(
        "history-and-resume",
        ("resume", "lobby"),
        ("200-history", "attic"),
        options="--journal {folder}/journal",
        said=(
            Said(room="attic", messages=100, message_bytes=10_000),
            Said(room="lobby", messages=2000, message_bytes=100),
        ),
    ),
    _attack(
        "resume-storm",
        options="--journal {folder}/journal --durability normal",
        said=(Said(room="lobby", messages=50_000, message_bytes=20),),
    ),
    _attack(
        "resume-storm-in-memory",
        ("resume-storm", "lobby"),
        said=(Said(room="lobby", messages=50_000, message_bytes=20),),
    ),
    _attack("who-of-800", ("who", "attic"), crowd="800-members"),
    _attack("rooms-of-800", ("rooms", "attic"), crowd="800-rooms"),
)

# They wait for the limits of attempts, for up to half a minute.
LOGIN_ATTACKS = (
    _attack("logins", ("logins", "attic"), lingers=True),
    _attack("200-logins-a-second", ("200-logins-a-second", "attic"), lingers=True),
    _attack("right-logins", ("right-logins", "attic"), lingers=True),
    _attack("hello-logins", ("hello-logins", ""), lingers=True),
    _attack("registrations", ("registrations", "attic"), lingers=True),
)

# They cost a room idle time, in which it waits for them.
SLOW_ATTACKS = (
    _attack("slow"),
    _attack("slow-addresses"),
    _attack("slow-trickle"),
    _attack("slow-rate", ("slow", "lobby"), options="--rate 20000 --byte-rate 1000000"),
    _attack(
        "slow-resume",
        said=(Said(room="lobby", messages=1000, message_bytes=10_000),),
    ),
    _attack("slow-talk"),
    _attack("slow-direct"),
)
