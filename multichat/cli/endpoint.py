"""The parameters that say which server a command connects to and as whom, and the connection."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from multichat.cli.config import SERVER_KEY, default_to_file, list_servers
from multichat.cli.process import UsageMistake, with_password
from multichat.client.options import ChatOptions
from multichat.client.timeouts import ClientTimeouts
from multichat.protocol.address import DEFAULT_PORT, is_loopback, parse_port, split_address

if TYPE_CHECKING:
    from multichat.cli.config_file import Server
    from multichat.client.connect import Endpoint

__all__ = [
    "AnswerTimeout",
    "Host",
    "Name",
    "Plain",
    "Port",
    "Room",
    "Timeout",
    "Tls",
    "TlsCa",
    "TlsName",
    "Unix",
    "Wait",
    "find_place",
    "make_endpoint",
    "make_timeouts",
    "parse_server",
    "run_with_password",
    "split_port",
]

_T = TypeVar("_T")

_HOST_HELP = (
    "The server: an address or host name, also as HOST:PORT or [IPV6]:PORT, or the name of a "
    "server in the configuration file."
)
_PORT_HELP = "TCP port of the server."

Host = Annotated[
    str | None,
    typer.Argument(
        help=_HOST_HELP,
        is_eager=True,  # its settings in the file are the defaults of the other parameters
        callback=default_to_file,
        autocompletion=list_servers,
    ),
]
Unix = Annotated[
    Path | None,
    typer.Option(help="Connect to this Unix socket instead of HOST.", envvar="MULTICHAT_UNIX"),
]
Port = Annotated[
    int | None,
    typer.Argument(min=1, max=65535, help=_PORT_HELP, show_default=str(DEFAULT_PORT)),
]
Tls = Annotated[bool, typer.Option("--tls", help="Use TLS.", envvar="MULTICHAT_TLS")]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        help="Use TLS, and trust only this CA certificate (PEM).",
        envvar="MULTICHAT_TLS_CA",
        show_default="the CAs of the system",
    ),
]
TlsName = Annotated[
    str | None,
    typer.Option(
        help="Use TLS, and verify the certificate against this host name.",
        envvar="MULTICHAT_TLS_NAME",
        show_default="HOST",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="Your name in the chat.", envvar="MULTICHAT_NAME", show_default="Client N"),
]
Room = Annotated[
    str | None,
    typer.Option(help="Room to join.", envvar="MULTICHAT_ROOM", show_default="lobby"),
]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Use the text protocol, as with nc.", envvar="MULTICHAT_PLAIN"),
]
AnswerTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for the connection and for each answer of the server.",
        envvar="MULTICHAT_TIMEOUT",
        show_default="30 and 10",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for the connection, for each answer, and for everything to be "
        "accepted: from the end of input on, and before it while the server takes no more.",
        envvar="MULTICHAT_TIMEOUT",
        show_default="30, 10, and 300 without progress",
    ),
]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Wait until the server can be reached.", envvar="MULTICHAT_WAIT"),
]


def find_place(
    context: typer.Context, host: str | None, port: int | None, unix: Path | None
) -> tuple[str, int, Path | None]:
    """Return the host and port, or the Unix socket, that the parameters of a command mean.

    Raises `UsageMistake`.
    """
    if host is None:
        if unix is None:
            raise UsageMistake("HOST, or --unix PATH, is missing")
        return "", 0, unix
    server: Server | None = context.meta.get(SERVER_KEY)
    if server is None:
        return (*parse_server(host, port), None)
    if server.unix is not None and port is not None:
        raise UsageMistake(f"{host} is a Unix socket, {server.unix}: leave out PORT")
    return host, port or server.port or 0, server.unix


def make_endpoint(
    place: tuple[str, int, Path | None],
    *,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_name: str | None = None,
) -> "Endpoint":
    """Return the endpoint at *place*; raises `UsageMistake` or `BadCertificate`."""
    from multichat.client.connect import Endpoint, client_tls

    host, port, unix = place
    if unix is not None:
        return Endpoint(unix=unix)
    encrypted = tls or tls_ca is not None or tls_name is not None
    context = client_tls(tls_ca) if encrypted else None
    return Endpoint(host=host, port=port, tls=context, tls_name=tls_name)


def run_with_password(
    run: Callable[[ChatOptions], _T], endpoint: "Endpoint", options: ChatOptions
) -> _T:
    """Call *run* with *options*, or with a typed password in them if one is required."""
    in_plain_text = (
        endpoint.unix is None and endpoint.tls is None and not is_loopback(endpoint.host)
    )
    return with_password(
        lambda password: run(replace(options, password=password)),
        options.password,
        str(endpoint),
        in_plain_text=in_plain_text,
    )


def parse_server(host: str, port: int | None) -> tuple[str, int]:
    """Return the host and port in HOST, or HOST:PORT, and PORT; raises `UsageMistake`."""
    try:
        name, ours = split_address(host)
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    if ours is not None and port is not None:
        raise UsageMistake(f"{host} contains a port: leave out {port}")
    return name, ours or port or DEFAULT_PORT


def split_port(context: typer.Context, host: str, words: list[str]) -> tuple[int | None, list[str]]:
    """Return the port and the text after HOST in `send`; raises `UsageMistake`.

    A first word of digits is the port, never text, unless HOST contains the port or is a server of
    the configuration file.
    """
    first, *others = words
    try:
        if SERVER_KEY in context.meta or split_address(host)[1] is not None:
            return None, words
        if not (first.isascii() and first.isdigit()):
            return None, words
        port = parse_port(first)
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    if not others:
        said = f"{host}:{DEFAULT_PORT}" if host.count(":") == 0 else f"[{host}]:{DEFAULT_PORT}"
        raise UsageMistake(
            f"TEXT is missing after port {port}; to send a number: send {said} {port}"
        )
    return port, others


def make_timeouts(seconds: float | None) -> ClientTimeouts:
    """Return the timeouts of a client with a `--timeout` of *seconds*; raises `UsageMistake`."""
    if seconds is None:
        return ClientTimeouts()
    if not seconds > 0:
        raise UsageMistake("--timeout must be more than 0 seconds")
    return ClientTimeouts(
        connect=seconds, handshake=seconds, answer=seconds, wait=seconds, delivery=seconds
    )
