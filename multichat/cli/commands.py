"""The commands `connect`, `send`, `who` and `history`: parse, build the configuration, run.

No logic: that is in the module of each, such as `multichat.cli.send`.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multichat.cli.cluster import (
    ClusterUrl,
    EngineAccess,
    JournalPlace,
    cluster_connection,
    refuse_engine_options,
)
from multichat.cli.config_file import history_path
from multichat.cli.endpoint import Host, make_endpoint, make_timeouts, parse_server, split_port
from multichat.cli.login import run_with_login
from multichat.cli.option_rules import described
from multichat.cli.parameters import (
    AnswerTimeout,
    Bell,
    ClusterCa,
    ClusterPasswordFile,
    ClusterTlsName,
    Color,
    ColorWhen,
    Login,
    LogStyle,
    Name,
    PassphraseFile,
    PasswordFile,
    Plain,
    Port,
    Room,
    Rooms,
    Timeout,
    Tls,
    TlsCa,
    TlsName,
    Unix,
    Wait,
    is_colored,
)
from multichat.cli.process import (
    UsageMistake,
    fileno,
    is_terminal,
    one_line_errors,
    read_password_file,
    run_with_password,
)
from multichat.client.options import ChatOptions

if TYPE_CHECKING:
    from multichat.client.connect import Endpoint

__all__ = ["connect", "connect_plain", "history", "send", "who"]

# As /history: enough to follow the conversation, on one screen.
_TERMINAL_REPLAY = 20


def connect(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    unix: Unix = None,
    name: Name = None,
    room: Rooms = None,
    login: Login = None,
    passphrase_file: PassphraseFile = None,
    password_file: PasswordFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_name: TlsName = None,
    listen: Annotated[
        bool, typer.Option("--listen", help="Only listen; ignore standard input.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Pass the JSON protocol between the server and standard input and output.",
        ),
    ] = False,
    plain: Plain = False,
    replay: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Show the last messages of the room first, at most this many.",
            show_default=f"{_TERMINAL_REPLAY} on a terminal, else 0",
        ),
    ] = None,
    wait: Wait = False,
    no_reconnect: Annotated[
        bool,
        typer.Option(
            "--no-reconnect",
            help="Exit when the connection is lost, as --plain and --json always do.",
        ),
    ] = False,
    timeout: Timeout = None,
    log_style: LogStyle = False,
    color: Color = ColorWhen.AUTO,
    bell: Bell = False,
) -> None:
    """Join the chat on a server.

    Each line that you type is sent to everybody in the room. The end of input (Ctrl+D) sends what
    is left and exits, Ctrl+C exits at once. /help lists the commands, the client's own first.

    When the connection is lost, the client reconnects, shows the messages that it missed and sends
    those that you typed meanwhile.

    If standard input or output is a pipe, the client has no prompt and writes log lines.
    """
    on_terminal = not (json or listen or log_style) and is_terminal()
    if replay is None:
        replay = _TERMINAL_REPLAY if on_terminal else 0
    with one_line_errors():
        import trio

        endpoint = make_endpoint(
            context, host, port, unix, tls=tls, tls_ca=tls_ca, tls_name=tls_name
        )
        rooms = list(room or [])
        current = rooms.pop() if rooms else None
        if rooms and plain:
            raise UsageMistake("--plain is for one room")
        options = ChatOptions(
            name=name,
            room=current,
            rooms=tuple(rooms),
            password=read_password_file(password_file),
            plain=plain,
            replay=replay,
            reconnect=not no_reconnect,
            wait=wait,
            timeouts=make_timeouts(context, timeout),
        )
        input_fd = None if listen else fileno(sys.stdin)

        def join(options: ChatOptions) -> None:
            if json:
                from multichat.cli.json_pipe import JsonPipe

                output_fd = fileno(sys.stdout)
                trio.run(JsonPipe(endpoint, options, input_fd=input_fd, output_fd=output_fd).run)
            elif on_terminal:
                from multichat.terminal.app import TerminalChat
                from multichat.terminal.input_history import History

                history = History(history_path())
                colored = is_colored(color)
                TerminalChat(endpoint, options, history=history, color=colored, bell=bell).run()
            else:
                _run_console(endpoint, options, input_fd)

        run_with_login(join, endpoint, options, login=login, file=passphrase_file)


def _run_console(endpoint: "Endpoint", options: ChatOptions, input_fd: int | None) -> None:
    import trio

    from multichat.cli.log_client import LogClient
    from multichat.log import open_log

    with open_log(fileno(sys.stdout)) as writer:
        trio.run(LogClient(endpoint, options, writer=writer, input_fd=input_fd).run)


def connect_plain(
    host: Annotated[
        str, typer.Argument(help="Address or name of the server; also as HOST:PORT or [IPV6]:PORT.")
    ],
    port: Port = None,
) -> None:
    """Join the chat on a server; the same as `multichat connect --plain HOST PORT`."""
    name_or_address, tcp_port = parse_server(host, port)
    with one_line_errors():
        from multichat.client.connect import Endpoint

        endpoint = Endpoint(host=name_or_address, port=tcp_port)
        options = ChatOptions(plain=True, password=read_password_file(None))
        join = partial(_run_console, endpoint, input_fd=fileno(sys.stdin))
        run_with_password(join, endpoint, options)


def send(
    context: typer.Context,
    host: Host = None,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PORT] TEXT...",
            help="The message; - sends each line of standard input. A first word of digits is the "
            "port, unless HOST contains it: send HOST:9000 42.",
            show_default=False,
        ),
    ] = None,
    unix: Annotated[
        Path | None,
        typer.Option(
            help="Connect to this Unix socket; all arguments are TEXT then. MULTICHAT_UNIX has no "
            "effect here: with it, HOST would look like the first word of TEXT.",
            show_envvar=False,
            is_eager=True,  # so that the first argument is not looked up as a server
        ),
    ] = None,
    name: Name = None,
    room: Room = None,
    login: Login = None,
    passphrase_file: PassphraseFile = None,
    password_file: PasswordFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_name: TlsName = None,
    plain: Plain = False,
    wait: Wait = False,
    timeout: Timeout = None,
) -> None:
    """Send a message and exit when the server has accepted it.

    If the server refuses the name, the message is sent as Client N and a line on standard error
    says so; if the room cannot be joined, the message is not sent. If the connection is lost, the
    client reconnects; the message is delivered exactly once.
    If the server is gone for good, the error says how many lines were not accepted and which is
    the first.
    """
    words, port = text or [], None
    if unix is not None:
        words, host = [host, *words] if host is not None else [], None
    elif host is not None and words:
        port, words = split_port(context, host, words)
    import trio  # Ctrl+C during the imports interrupts nothing

    from multichat.cli.send import send
    from multichat.stdio import until_signal

    with one_line_errors("interrupted before the server had accepted everything"):
        endpoint = make_endpoint(
            context, host, port, unix, tls=tls, tls_ca=tls_ca, tls_name=tls_name
        )
        if not words:
            raise UsageMistake("TEXT is missing")
        options = ChatOptions(
            name=name,
            room=room,
            password=read_password_file(password_file),
            plain=plain,
            wait=wait,
            timeouts=make_timeouts(context, timeout),
        )
        message, input_fd = None if words == ["-"] else " ".join(words), fileno(sys.stdin)

        def say(options: ChatOptions) -> bool:
            errand = partial(send, endpoint, options, message, input_fd=input_fd)
            return trio.run(until_signal, errand)

        if not run_with_login(say, endpoint, options, login=login, file=passphrase_file):
            raise KeyboardInterrupt


def who(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    unix: Unix = None,
    room: Annotated[str | None, typer.Option(help="Room to list.", show_default="lobby")] = None,
    password_file: PasswordFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_name: TlsName = None,
    timeout: AnswerTimeout = None,
) -> None:
    """List the members of a room by number and name, one per line."""
    with one_line_errors():
        import trio

        from multichat.cli.who import who
        from multichat.stdio import until_signal

        endpoint = make_endpoint(
            context, host, port, unix, tls=tls, tls_ca=tls_ca, tls_name=tls_name
        )
        password, timeouts = read_password_file(password_file), make_timeouts(context, timeout)
        options = ChatOptions(password=password, timeouts=timeouts)
        lines: list[str] = []

        def ask(options: ChatOptions) -> bool:
            async def hear() -> None:
                lines.extend(await who(endpoint, options, room))

            return trio.run(until_signal, hear)

        if not run_with_password(ask, endpoint, options):
            raise typer.Exit(1)
    for line in lines:
        typer.echo(line)


def history(
    context: typer.Context,
    file: JournalPlace,
    room: Annotated[
        str | None, typer.Option(help="Only messages of this room.", show_default="all")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only messages since this time, such as 2025-01-15T10:30, local unless it "
            "contains a time zone, or after the message with this id."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Show at most this many messages: the last, or with --since the first.",
            show_default="all",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Write one JSON object per line, as in the JSON protocol, with times in UTC.",
        ),
    ] = False,
    cluster_password_file: ClusterPasswordFile = None,
    cluster_ca: ClusterCa = None,
    cluster_tls_name: ClusterTlsName = None,
) -> None:
    """Show the messages in a journal or a cluster, with local times.

    The servers may be running; nothing is written.
    """
    from multichat.cli.history import parse_since, show_cluster_history, show_history

    try:
        from_ = None if since is None else parse_since(since)
    except ValueError as error:
        raise UsageMistake(f"{described(context, 'since')}: {error}") from None
    show: Callable[..., None]
    with one_line_errors():
        if isinstance(file, ClusterUrl):
            access = EngineAccess(cluster_password_file, cluster_ca, cluster_tls_name)
            engine = cluster_connection(file.text, access, given="JOURNAL")
            show = partial(show_cluster_history, engine)
        else:
            refuse_engine_options(context)
            show = partial(show_history, file)
        with suppress(KeyboardInterrupt):  # it has been read as far as was wanted
            show(fileno(sys.stdout), room=room, since=from_, limit=limit, json=json)
