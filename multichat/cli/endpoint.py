"""What the parameters of a command say: which server to connect to, for how long to wait."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.config import SERVER_KEY, default_to_file, list_servers
from multichat.cli.config_file import Server
from multichat.cli.option_rules import described
from multichat.cli.process import UsageMistake
from multichat.client.timeouts import ClientTimeouts
from multichat.protocol.address import DEFAULT_PORT, parse_port, split_address

if TYPE_CHECKING:
    from multichat.client.connect import Endpoint

__all__ = [
    "Host",
    "make_endpoint",
    "make_timeouts",
    "parse_server",
    "split_port",
]

_HOST_HELP = (
    "The server: an address or host name, also as HOST:PORT or [IPV6]:PORT, or the name of a "
    "server in the configuration file."
)

Host = Annotated[
    str | None,
    typer.Argument(
        help=_HOST_HELP,
        is_eager=True,  # its settings in the file are the defaults of the other parameters
        callback=default_to_file,
        autocompletion=list_servers,
    ),
]


def make_endpoint(
    context: typer.Context,
    host: str | None,
    port: int | None,
    unix: Path | None,
    *,
    tls: bool,
    tls_ca: Path | None,
    tls_name: str | None,
) -> "Endpoint":
    """Return the endpoint that the parameters of a command mean.

    Raises `UsageMistake`, or `BadCertificate`.
    """
    from multichat.client.connect import Endpoint, client_tls

    server: Server | None = context.meta.get(SERVER_KEY)
    if server is not None:
        if server.unix is not None and port is not None:
            raise UsageMistake(f"{host} is a Unix socket, {server.unix}: leave out PORT")
        port, unix = port or server.port, server.unix
    elif host is not None:
        host, port = parse_server(host, port)
    if unix is not None:
        return Endpoint(unix=unix)
    if host is None:
        raise UsageMistake("HOST, or --unix PATH, is missing")
    encrypted = tls or tls_ca is not None or tls_name is not None
    return Endpoint(
        host=host,
        port=port or DEFAULT_PORT,
        tls=client_tls(tls_ca) if encrypted else None,
        tls_name=tls_name,
        tls_ca=tls_ca,
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


def make_timeouts(context: typer.Context, seconds: float | None) -> ClientTimeouts:
    """Return the timeouts of a client with a `--timeout` of *seconds*; raises `UsageMistake`."""
    if seconds is None:
        return ClientTimeouts()
    if not seconds > 0:
        raise UsageMistake(f"{described(context, 'timeout')} must be more than 0 seconds")
    return ClientTimeouts(
        connect=seconds, handshake=seconds, answer=seconds, wait=seconds, delivery=seconds
    )
