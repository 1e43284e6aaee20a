"""Options of `serve` beside listeners that systemd has passed: they must say the same.

A passed listener takes the place of that which the option would open.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from multichat.cli.option_rules import described
from multichat.cli.process import UsageMistake
from multichat.net.activation import PassedSockets, describe, is_unix

if TYPE_CHECKING:
    import socket

    import typer

__all__ = ["OwnListeners", "own_listeners"]


class OwnListeners(NamedTuple):
    """Where the server has to listen itself; None: nowhere."""

    port: int | None
    unix: Path | None
    web: int | None
    admin: Path | None
    metrics: int | None


def own_listeners(
    context: "typer.Context",
    passed: PassedSockets,
    *,
    port: int,
    unix: Path | None,
    web: int | None,
    admin: Path | None,
    metrics: int | None,
) -> OwnListeners:
    """Return what `serve` is to open itself, besides what was *passed*; raises `UsageMistake`."""
    is_port_given = _is_given(context, "port")
    if passed.chat_tcp:
        if is_port_given:
            _check_port(context, "port", port, passed.chat_tcp)
        _refuse(context, "host", "ListenStream=")
    if passed.chat_unix:
        _check_path(context, "unix", unix, passed.chat_unix)
        _refuse(context, "unix_mode", "SocketMode=")
    for name, value, listeners in (("web", web, passed.web), ("metrics", metrics, passed.metrics)):
        if listeners:
            if value is not None and not any(map(is_unix, listeners)):
                _check_port(context, name, value, listeners)
            _refuse(context, f"{name}_host", "ListenStream=")
    if passed.admin:
        _check_path(context, "admin", admin, passed.admin)
    opens_port = is_port_given or (unix is None and not passed.chat)
    return OwnListeners(
        port if opens_port and not passed.chat_tcp else None,
        None if passed.chat_unix else unix,
        None if passed.web else web,
        None if passed.admin else admin,
        None if passed.metrics else metrics,
    )


def _is_given(context: "typer.Context", name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _check_port(
    context: "typer.Context", name: str, port: int, passed: "tuple[socket.socket, ...]"
) -> None:
    if port not in [each.getsockname()[1] for each in passed]:
        _mismatch(context, name, port, passed)


def _check_path(
    context: "typer.Context", name: str, path: Path | None, passed: "tuple[socket.socket, ...]"
) -> None:
    if path is not None and not any(_is_same(path, describe(each)) for each in passed):
        _mismatch(context, name, path, passed)


def _is_same(path: Path, name: str) -> bool:
    return not name.startswith("@") and path.resolve() == Path(name).resolve()


def _mismatch(
    context: "typer.Context", name: str, value: object, passed: "tuple[socket.socket, ...]"
) -> None:
    where = ", ".join(map(describe, passed))
    given = described(context, name)
    raise UsageMistake(
        f"{given} is {value}, but systemd listens on {where}: make them the same, or leave out "
        f"{given}"
    )


def _refuse(context: "typer.Context", name: str, setting: str) -> None:
    if _is_given(context, name):
        given = described(context, name)
        raise UsageMistake(f"{given} has no effect, because systemd listens: see {setting} there")
