"""The parameters that several commands or the configuration file share.

Those that can be set in the configuration file are its keys, too: see `Preferences`.
"""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from multichat.protocol.address import DEFAULT_PORT

__all__ = [
    "AnswerTimeout",
    "Bell",
    "ClusterCa",
    "ClusterPasswordFile",
    "ClusterTlsName",
    "Color",
    "ColorWhen",
    "LogStyle",
    "Login",
    "Name",
    "PassphraseFile",
    "PasswordFile",
    "Plain",
    "Port",
    "Room",
    "Rooms",
    "Timeout",
    "Tls",
    "TlsCa",
    "TlsName",
    "Unix",
    "Wait",
    "is_colored",
]


class ColorWhen(Enum):
    """When names are shown in color."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def is_colored(when: ColorWhen) -> bool:
    """Return whether to use colors; NO_COLOR (https://no-color.org) turns off AUTO."""
    return when is ColorWhen.ALWAYS or (when is ColorWhen.AUTO and not os.environ.get("NO_COLOR"))


Unix = Annotated[Path | None, typer.Option(help="Connect to this Unix socket instead of HOST.")]
Port = Annotated[
    int | None,
    typer.Argument(
        min=1, max=65535, help="TCP port of the server.", show_default=str(DEFAULT_PORT)
    ),
]
Tls = Annotated[bool, typer.Option("--tls", help="Use TLS.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        help="Use TLS, and trust only this CA certificate (PEM).",
        show_default="the CAs of the system",
    ),
]
TlsName = Annotated[
    str | None,
    typer.Option(
        help="Use TLS, and verify the certificate against this host name.", show_default="HOST"
    ),
]
Name = Annotated[str | None, typer.Option(help="Your name in the chat.", show_default="Client N")]
Room = Annotated[str | None, typer.Option(help="Room to join.", show_default="lobby")]
Rooms = Annotated[
    list[str] | None,
    typer.Option(
        "--room",
        help="Room to join; give it again for more rooms, of which the last is the current one.",
        show_default="lobby",
    ),
]
Login = Annotated[
    str | None,
    typer.Option(help="Log in to this account, and use its name.", show_default="no account"),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="Read the passphrase of --login from this file or pipe; it can also be set as "
        "MULTICHAT_PASSPHRASE. Without either, the client asks for it."
    ),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Use the text protocol, as with nc. Answers are not checked: if --room cannot be "
        "joined, messages go to the lobby.",
    ),
]
AnswerTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for the connection and for each answer of the server.",
        show_default="30 and 10",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for the connection, for each answer, and for everything to be "
        "accepted: from the end of input on, and before it while the server takes no more.",
        show_default="30, 10, and 300 without progress",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the server can be reached.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="Read the password from this file or pipe; it can also be set as MULTICHAT_PASSWORD."
    ),
]
# How a command reaches the engine of a cluster; see `multichat.cli.cluster.EngineAccess`.
ClusterPasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="Read the engine's password from this file or pipe; it can also be set as "
        "MULTICHAT_CLUSTER_PASSWORD."
    ),
]
ClusterCa = Annotated[
    Path | None,
    typer.Option(
        help="With valkeys://, trust this certificate authority (PEM).",
        show_default="those of the system",
    ),
]
ClusterTlsName = Annotated[
    str | None,
    typer.Option(
        help="With valkeys://, the name in the engine's certificate.", show_default="the host"
    ),
]
LogStyle = Annotated[bool, typer.Option("--log-style", help="Write log lines, as into a pipe.")]
Color = Annotated[
    ColorWhen, typer.Option(help="Show names in color; auto: unless NO_COLOR is set.")
]
Bell = Annotated[
    bool, typer.Option("--bell", help="Ring the terminal's bell when your name is mentioned.")
]
