"""Usage of the commands: hosts and ports, invalid options, and help."""

import inspect
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import typer.main
from typer.testing import CliRunner

from multichat.cli.main import COMMANDS, load_command, make_app
from multichat.cli.option_rules import RULES, Excludes, Needs, Useless
from multichat.cli.process import UsageMistake
from multichat.cli.serve import SETTINGS, make_config
from multichat.cli.serve import serve as serve_command
from multichat.server.config import ServerConfig
from tests.support.processes import BIN, LOOPBACK, MULTICHAT, Command, ServerCommand, program, serve
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

COMMAND_NAMES = [
    "serve",
    "connect",
    "send",
    "who",
    "ctl",
    "history",
    "journal",
    "account",
    "config",
]

# A value that each option takes; flags take none.
VALUES = {
    "burst": "3",
    "color": "never",
    "durability": "normal",
    "host": LOOPBACK,
    "cluster": "valkeys://127.0.0.1:1",
    "cluster_ca": "ca.pem",
    "cluster_tls_name": "engine.example",
    "ban_file": "bans.txt",
    "cluster_password_file": "password.txt",
    "journal": "chat.db",
    "keep_days": "3",
    "keep_messages": "3",
    "keep_mib": "3",
    "max_clients_per_address": "3",
    "login": "alice",
    "metrics_host": LOOPBACK,
    "name": "alice",
    "operators": "alice,bob",
    "operators_file": "operators.txt",
    "passphrase_file": "passphrase.txt",
    "port": "9000",
    "proxy": "10.0.0.7",
    "replay": "3",
    "slow": "drop",
    "slow_timeout": "3",
    "tls_ca": "ca.pem",
    "tls_cert": "cert.pem",
    "tls_key": "key.pem",
    "tls_name": "chat.example",
    "unix": "chat.sock",
    "unix_mode": "0660",
    "web": "8080",
    "web_host": LOOPBACK,
    "web_proxy": "10.0.0.7",
    "web_url": "https://chat.example/",
    "webhook_token_file": "tokens.txt",
}


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.touch()
    monkeypatch.setenv("MULTICHAT_CONFIG", str(path))


def mistake(*arguments: str) -> str:
    """Return the error of a command that is called with *arguments*."""
    command = typer.main.get_command(make_app())
    with pytest.raises(UsageMistake) as refused:
        command(list(arguments), prog_name="multichat", standalone_mode=False)
    assert refused.value.exit_code == 2
    return refused.value.message


def arguments_for(command: str, *names: str) -> list[str]:
    """Arguments for these parameters of a command, all of which are options but HOST and PORT."""
    arguments = [name for name in ("host", "port") if name in names]
    if command == "serve":
        arguments.remove("host") if "host" in arguments else None
    argv = [command]
    for name in names:
        if name not in arguments:
            argv.append(f"--{name.replace('_', '-')}")
            argv += [VALUES[name]] if name in VALUES else []
    return argv + [VALUES[name] for name in arguments]


@pytest.mark.parametrize(
    ("command", "rule"), [(command, rule) for command, rules in RULES.items() for rule in rules]
)
def test_options_that_exclude_each_other_or_have_no_effect_are_refused(
    command: str, rule: Excludes | Useless | Needs
) -> None:
    names = [rule.name]
    match rule:
        case Excludes() | Useless():
            names.append(rule.other)
            # `connect` takes a port only after a host, whose own rule is checked first.
            names += ["host"] if rule.other == "port" else []
        case Needs(where=where) if where:
            names.append(where)
    said = mistake(*arguments_for(command, *names))
    assert f"--{rule.name.replace('_', '-')} " in said
    assert any(words in said for words in ("exclude each other", "has no effect with", "needs"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["connect"], "HOST, or --unix PATH, is missing"),
        (["connect", "--unix", "a", "b"], "--unix and HOST exclude each other"),
        (["connect", "--tls", "--unix", "a"], "--tls has no effect with --unix"),
        (["connect", "--bell", "--listen", "h"], "--bell has no effect with --listen"),
        (["connect", "--json", "--plain", "h"], "--json and --plain exclude each other"),
        (["connect", "--log-style", "--json", "h"], "--log-style and --json exclude each other"),
        (["connect", "--replay", "5", "--plain", "h"], "--replay and --plain exclude each other"),
        (["connect", "--no-reconnect", "--json", "h"], "--no-reconnect has no effect with --json"),
        (
            ["connect", "--no-reconnect", "--plain", "h"],
            "--no-reconnect has no effect with --plain",
        ),
        (["who", "--unix", "a", "h"], "--unix and HOST exclude each other"),
        *(
            ([command, "--room", "a", "--room=b", "h"], f"{command} takes one --room")
            for command in ("send", "who", "history")
        ),
        (["serve", "--burst", "5"], "--burst needs --rate"),
        (["serve", "--filter-joins"], "--filter-joins needs --filter"),
        (["serve", "--keep-days", "3"], "--keep-days needs --journal"),
        (["serve", "--durability", "full"], "--durability needs --journal"),
        (["serve", "--unix-mode", "0600"], "--unix-mode needs --unix"),
        (["serve", "--unix", "b", "--host", "h"], "--host needs PORT with --unix"),
        (
            ["serve", "--unix", "b", "--max-clients-per-address", "3"],
            "--max-clients-per-address needs PORT with --unix",
        ),
        (["serve", "--proxy", "haproxy"], "'haproxy' is not an address such as 10.0.0.7"),
        (["serve", "--unix", "b", "--proxy", "10.0.0.7"], "--proxy needs PORT with --unix"),
        (["serve", "--web-host", "h"], "--web-host needs --web"),
        (["serve", "--web", "0", "--web-url", "chat"], "'chat' is not an address such as"),
        (["serve", "--web", "0", "--web-proxy", "nginx"], "'nginx' is not an address such as"),
        (["connect", "h:1", "2"], "h:1 contains a port: leave out 2"),
        (["connect", "h:x"], "'x' is not a port: 1 to 65535"),
        (["connect", "--name", "", "h"], "--name is empty"),
        (["connect", "--timeout", "nan", "h"], "--timeout must be more than 0 seconds"),
        (["who", "[::1"], "[::1 is not an address such as [::1]:9000"),
        (["send", "h", "42"], "TEXT is missing after port 42; to send a number: send h:9000 42"),
        (["send", "h", "0", "people"], "'0' is not a port: 1 to 65535"),
        (["send", "h", "70000", "people"], "'70000' is not a port: 1 to 65535"),
        (["send", "h", "caf\udce9"], "TEXT is not UTF-8"),
        (["serve", "--host", ""], "--host is empty"),
        (["serve", "--keep-days", "0", "--journal", "a"], "--keep-days must be more than 0"),
        (["serve", "--tls-cert", "a", "--unix", "b"], "--tls-cert needs PORT with --unix"),
        (
            ["serve", "--unix-mode", "9", "--unix", "b"],
            "--unix-mode must be a mode such as 0600, not '9'",
        ),
        (
            ["serve", "--slow", "disconnect", "--slow-timeout", "5"],
            "--slow-timeout has no effect with --slow disconnect",
        ),
        (["serve", "--rate", "0"], "--rate must be more than 0"),
        (["serve", "--filter", "os:sep"], "os:sep: os has no function sep"),
        (["serve", "--filter", ".rules:f"], ".rules:f: a filter is named as package.module:funct"),
        (["serve", "--filter", "a..b:f"], "a..b:f: a filter is named as package.module:function"),
        (["serve", "--filter", "os:a..b"], "os:a..b: a filter is named as package.module:function"),
        (["serve", "--filter", "no_such.rules:f"], "no_such.rules:f: no module no_such"),
        (["history", "a", "--since", "b"], "--since: b is neither a message's id nor a time"),
    ],
)
def test_a_usage_error_names_the_option_as_given(arguments: list[str], said: str) -> None:
    assert mistake(*arguments).startswith(said)


def test_an_option_of_serve_sets_the_field_of_its_name_and_unit() -> None:
    options = inspect.signature(serve_command).parameters
    settings = {name: options[name].default.default for name in SETTINGS}
    context = typer.Context(typer.main.get_command(make_app(serve_command)))
    assert make_config(context, None, [], settings) == ServerConfig()
    changed = {"memory": 8, "log_rate": 0.0, "idle": 2.5, "max_line": 100, "announce": True}
    assert make_config(context, None, [], settings | changed) == ServerConfig(
        memory_bytes=8 << 20, log_rate=None, idle_seconds=2.5, max_line_bytes=100, announce=True
    )


def test_a_usage_error_is_one_line_and_status_2() -> None:
    shown = subprocess.run(
        [MULTICHAT, "serve", "--durability", "full"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == "multichat: --durability needs --journal\n"


@pytest.mark.parametrize(
    ("variables", "arguments", "said"),
    [
        ({"MULTICHAT_JSON": "1", "MULTICHAT_PLAIN": "1"}, ["h"], "MULTICHAT_JSON and MULTICHAT_PL"),
        ({"MULTICHAT_UNIX": "a"}, ["--tls"], "--tls has no effect with MULTICHAT_UNIX"),
        ({"MULTICHAT_LISTEN": "1"}, ["--bell", "h"], "--bell has no effect with MULTICHAT_LISTEN"),
    ],
)
def test_a_usage_error_names_the_variable(
    variables: dict[str, str], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert mistake("connect", *arguments).startswith(said)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_invalid_variable_is_named_without_the_usage_of_another_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [name, *{"serve": "0", "config": "", "history": "file"}.get(name, "h").split()]
    # `config` shows the settings of `connect`.
    command = load_command("connect" if name == "config" else name)
    app = typer.main.get_command(make_app(command))
    parsed = [each for each in app.params if each.type.name not in ("str", "path")]
    for variable in (str(each.envvar) for each in parsed if each.envvar):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "?")
            assert mistake(*argv).startswith(f"{variable}: "), variable


@pytest.mark.parametrize(
    ("argv", "variable", "value", "said"),
    [
        (["who", "h"], "MULTICHAT_TIMEOUT", "-1", "must be more than 0 seconds"),
        (["serve", "0"], "MULTICHAT_RATE", "0", "must be more than 0"),
        (["serve", "0", "--journal", "a"], "MULTICHAT_KEEP_DAYS", "0", "must be more than 0 and"),
        (["serve", "--unix", "b"], "MULTICHAT_UNIX_MODE", "9", "must be a mode such as 0600"),
    ],
)
def test_a_value_out_of_range_names_the_variable(
    argv: list[str], variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert mistake(*argv).startswith(f"{variable} {said}")


def test_an_unknown_host_may_be_a_server_that_the_file_does_not_have(tmp_path: Path) -> None:
    shown = run(MULTICHAT, "who", "no_such_server")
    assert shown.returncode == 1
    assert shown.stderr.startswith("multichat: cannot connect to no_such_server port 9000: ")
    assert shown.stderr.endswith(
        f"; there is no server 'no_such_server' in {tmp_path / 'config.toml'}\n"
    )


def test_the_help_does_not_cut_the_description_of_a_command() -> None:
    assert "..." not in run(MULTICHAT, "--help").stdout.partition("Commands:")[2]


def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with *variables* in its environment."""
    return subprocess.run(
        [program("env"), *(f"{key}={value}" for key, value in variables.items()), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_an_option_overrides_a_variable_or_a_file_that_excludes_it(tmp_path: Path) -> None:
    refused = f"multichat: cannot connect to {LOOPBACK} port 1: connection refused\n"
    (tmp_path / "config.toml").write_text("plain = true\nbell = true\ntls = true\n", "utf-8")
    file = {"MULTICHAT_CONFIG": str(tmp_path / "config.toml")}
    cases = [
        ([f"{LOOPBACK}:1", "--json"], {"MULTICHAT_PLAIN": "1"}, refused),
        ([f"{LOOPBACK}:1"], {"MULTICHAT_UNIX": "/nowhere"}, refused),
        ([f"{LOOPBACK}:1", "--json", "--replay", "3"], file, refused),
        (["--unix", "/nowhere"], file, "multichat: cannot connect to /nowhere: no such file"),
    ]
    for arguments, variables, said in cases:
        shown = run(MULTICHAT, "connect", *arguments, **variables)
        assert shown.returncode == 1
        assert shown.stderr.startswith(said)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TLS", "maybe", "'maybe' is neither yes nor no"),
        ("TIMEOUT", "abc", "'abc' is not a number"),
        ("TIMEOUT", "a is not a valid b", "'a is not a valid b' is not a number"),
        ("REPLAY", "1.5", "'1.5' is not a whole number"),
        ("REPLAY", "-1", "-1 is not in the range x>=0"),
        ("COLOR", "x", "'x' is not one of 'auto', 'always', 'never'"),
    ],
)
def test_an_invalid_variable_is_one_line(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MULTICHAT_{variable}", value)
    assert mistake("connect", LOOPBACK) == f"MULTICHAT_{variable}: {said}"


@pytest.mark.parametrize(
    "variable",
    ["MULTICHAT_PASSWORD", "MULTICHAT_PASSWORD_FILE", "MULTICHAT_HOST", "MULTICHAT_TLS_CERT"],
)
def test_a_server_does_not_start_with_an_empty_variable(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "")
    said = f"{variable} is set but empty: unset it, or give it a value"
    assert mistake("serve", "0") == said


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf\r\n", b"  \n"])
@pytest.mark.parametrize(
    "command", [["serve", "0"], ["connect", "h"], ["send", "h", "x"], ["who", "h"]]
)
def test_an_empty_password_file_is_refused(command: list[str], data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(data)
    shown = run(MULTICHAT, *command, "--password-file", str(file))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == f"multichat: {file}: it contains no password\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "0", "--password-file"],
        ["serve", "0", "--tls-cert"],
        ["who", "h", "--password-file"],
        ["who", "h", "--tls-ca"],
        ["history"],
    ],
)
def test_a_missing_file_is_one_line_and_status_1(argv: list[str], tmp_path: Path) -> None:
    file = str(tmp_path / "missing")
    shown = run(MULTICHAT, *argv, file)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith(f"multichat: {file}: no such file")
    assert shown.stderr.count("\n") == 1


def test_a_command_that_is_not_there_gets_a_suggestion() -> None:
    shown = run(MULTICHAT, "conect")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "No such command 'conect'. Did you mean 'connect'" in shown.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize(
    "command",
    [
        [MULTICHAT],
        *([MULTICHAT, name] for name in COMMAND_NAMES),
        [str(BIN / "multi_chat_tcp_server")],
        [str(BIN / "multi_chat_tcp_client")],
    ],
)
def test_every_command_has_help(command: list[str], option: str) -> None:
    shown = subprocess.run([*command, option], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage: ")
    assert "-h, --help" in shown.stdout


# --- Hosts and ports --------------------------------------------------------------------------


async def end(client: Command) -> None:
    client.end_input()
    assert await client.wait() == 0, client.err


async def test_every_command_accepts_host_and_port_in_one_argument(tmp_path: Path) -> None:
    async with (
        ServerCommand(tmp_path, MULTICHAT, "serve", "0") as server,
        AsyncExitStack() as stack,
    ):
        for place in (
            f"{LOOPBACK}:{server.port}",
            f"localhost:{server.port}",
            f"[::1]:{server.port}",
        ):
            for argv in (
                [MULTICHAT, "send", place, "42", "people", "from", place],
                [MULTICHAT, "who", place],
                [MULTICHAT, "connect", place],
                [str(BIN / "multi_chat_tcp_client"), place],
            ):
                client = Command(tmp_path, *argv, stdin=subprocess.DEVNULL)
                await stack.enter_async_context(client)
                assert await client.wait() == 0, client.err
            await server.wait_for(f"] 42 people from {place}\n")


async def test_send_uses_a_first_word_of_digits_as_the_port(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        port = str(server.port)
        for words, said in (
            ((port, "42", "people"), "] 42 people\n"),
            ((port, "hello"), "] hello\n"),
        ):
            async with Command(tmp_path, MULTICHAT, "send", LOOPBACK, *words) as send:
                assert await send.wait() == 0, send.err
            await server.wait_for(said)


@pytest.mark.parametrize(
    "argv",
    [
        [MULTICHAT, "send", LOOPBACK, "hello"],
        [MULTICHAT, "who", LOOPBACK],
        [MULTICHAT, "connect", LOOPBACK],
        [str(BIN / "multi_chat_tcp_client"), LOOPBACK],
    ],
)
async def test_the_default_port_is_9000(argv: list[str], tmp_path: Path) -> None:
    async with Command(tmp_path, *argv, stdin=subprocess.DEVNULL) as client:
        await client.wait()
        # A server of the developer may use that port.
        where = f"{LOOPBACK}:9000" if "connect" in argv or len(argv) == 2 else "port 9000"
        assert where in client.out + client.err or client.process.returncode == 0


async def test_send_and_who_accept_a_server_of_the_configuration_file(
    short_path: Path,
) -> None:
    socket = short_path / "chat"
    async with serve(short_path, "--unix", str(socket)) as server:
        (short_path / "config.toml").write_text(
            f'[servers.work]\nhost = "{LOOPBACK}:{server.port}"\nname = "al"\nroom = "kitchen"\n'
            '[servers.home]\nunix = "chat"\nname = "bo"\n',
            "utf-8",
        )
        file = {"MULTICHAT_CONFIG": str(short_path / "config.toml")}

        async def asked(*argv: str) -> str:
            shown = await trio.to_thread.run_sync(lambda: run(MULTICHAT, *argv, **file))
            assert (shown.returncode, shown.stderr) == (0, "")
            return shown.stdout

        await asked("send", "work", "42", "people")
        await server.wait_for("[RX] [al] 42 people\n")
        await asked("send", "home", "42", "people")
        await server.wait_for("[RX] [bo] 42 people\n")
        async with Command(
            short_path, MULTICHAT, "connect", f"{LOOPBACK}:{server.port}", "--room", "kitchen"
        ) as client:
            await client.wait_for("you are")
            assert (await asked("who", "work")).count("Client") == 1
            assert await asked("who", "home") == ""
            await end(client)
        refused = await trio.to_thread.run_sync(
            lambda: run(MULTICHAT, "connect", "home", "9000", **file)
        )
        assert refused.stderr == f"multichat: home is a Unix socket, {socket}: leave out PORT\n"


# --- Passwords --------------------------------------------------------------------------------

SECRET = "pässwörd of theirs"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(f"{SECRET}\n", "utf-8")
    return file


@pytest.mark.parametrize(
    ("command", "done"),
    [
        (["connect"], "you are Client "),
        (["connect", "--log-style"], "you are Client "),
        (["send"], "status=0"),
        (["who"], "status=0"),
    ],
)
async def test_a_terminal_prompts_for_a_missing_password_without_echo(
    command: list[str], done: str, password_file: Path, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--password-file", str(password_file)) as server:
        place = f"{LOOPBACK}:{server.port}"
        words = ["hello"] if command == ["send"] else []
        await terminal.open("t", MULTICHAT, *command, place, *words, columns=80)
        await terminal.wait_for("t", f"Password for {place}: ")
        await terminal.type("t", "mellon")
        await terminal.wait_for("t", "multichat: wrong password")
        await terminal.wait_for_match("t", f"wrong password\nPassword for {place}:")
        await terminal.type("t", SECRET)
        await terminal.wait_for("t", done)
        screen = await terminal.screen("t")
        assert "mellon" not in screen
        assert SECRET not in screen
        assert "Traceback" not in screen


@pytest.mark.parametrize(
    ("key", "status"), [("C-c", "status=130"), ("C-d", "status=1"), ("Enter", "status=1")]
)
@pytest.mark.parametrize("command", [["connect"], ["who"]])
async def test_the_password_prompt_can_be_left_empty(
    command: list[str],
    key: str,
    status: str,
    password_file: Path,
    terminal: Terminal,
    tmp_path: Path,
) -> None:
    async with serve(tmp_path, "--password-file", str(password_file)) as server:
        place = f"{LOOPBACK}:{server.port}"
        line = f"multichat {' '.join(command)} {place}; echo status=$?; stty -a"
        await terminal.open_shell("t", columns=100, rows=24)
        await terminal.type("t", line)
        await terminal.wait_for("t", f"Password for {place}: ")
        await terminal.press("t", key)
        screen = (await terminal.wait_for_match("t", rf"(?s)^{status}$.*echoke.*\n\$ ")).string
        assert "Traceback" not in screen
        assert " echo " in screen, "what is typed is not shown any more"


async def test_the_password_prompt_allows_three_attempts(
    password_file: Path, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--password-file", str(password_file)) as server:
        place = f"{LOOPBACK}:{server.port}"
        await terminal.open("t", MULTICHAT, "who", place, columns=80)
        for times in (1, 2, 3):
            await terminal.wait_for_match("t", rf"(?s)(Password for {place}: .*){{{times}}}")
            await terminal.type("t", "mellon")
        await terminal.wait_for("t", "status=1")
        assert (await terminal.screen("t")).count("multichat: wrong password") == 3


@pytest.mark.parametrize("command", [["connect"], ["send"], ["who"]])
async def test_there_is_no_password_prompt_in_a_pipe(
    command: list[str], password_file: Path, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--password-file", str(password_file)) as server:
        words = ["hello"] if command == ["send"] else []
        argv = [MULTICHAT, *command, f"{LOOPBACK}:{server.port}", *words]
        async with Command(tmp_path, *argv) as client:
            assert await client.wait() == 1
            assert client.err.count("\n") == 1
            assert "requires a password" in client.err


def test_the_client_warns_before_it_sends_a_password_in_plain_text() -> None:
    # An address to which the system itself refuses to connect.
    shown = run(MULTICHAT, "who", "255.255.255.255", MULTICHAT_PASSWORD=SECRET)
    warning, error = shown.stderr.splitlines()
    assert warning == (
        "multichat: warning: the password is sent to 255.255.255.255:9000 in plain text, "
        "where others can read it: add --tls"
    )
    assert error.startswith("multichat: cannot connect to 255.255.255.255")
    for arguments in (["who", "--tls", "255.255.255.255"], ["who", f"{LOOPBACK}:1"]):
        shown = run(MULTICHAT, *arguments, MULTICHAT_PASSWORD=SECRET)
        assert "warning" not in shown.stderr
    assert "warning" not in run(MULTICHAT, "who", "255.255.255.255").stderr


async def test_the_server_warns_about_a_password_file_that_others_can_read(
    password_file: Path, tmp_path: Path
) -> None:
    in_plain_text = (
        "[WARNING] [server] [start] The password is sent in plain text beyond this machine: "
        "add --tls-cert"
    )
    readable = (
        f"[WARNING] [server] [start] {password_file} can be read by other users: "
        f"chmod 600 {password_file}"
    )
    option = ("--password-file", str(password_file))
    async with (
        ServerCommand(tmp_path, MULTICHAT, "serve", "0", *option) as everywhere,
        serve(tmp_path, *option) as here,
    ):
        await everywhere.wait_for(f"{in_plain_text}\n")
        assert readable not in everywhere.lines
        assert not [line for line in here.lines if "[WARNING]" in line]
    password_file.chmod(0o644)
    async with serve(tmp_path, *option) as server:
        await server.wait_for(f"{readable}\n")
        assert in_plain_text not in server.lines


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--version", 0, ""),
        ("config", 0, ""),
        (
            f"who {LOOPBACK} 1",
            1,
            f"multichat: cannot connect to {LOOPBACK} port 1: connection refused",
        ),
        (
            "serve 0 --filter rules:check",
            2,
            "multichat: rules:check: no module rules",
        ),
    ],
)
def test_a_deleted_working_directory_is_not_reported_as_an_output_error(
    arguments: str, status: int, said: str, tmp_path: Path
) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "multichat", *arguments.split()]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr.rstrip() == said
    assert result.returncode == status


@pytest.mark.parametrize("columns", [60, 70, 80])
@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_breaks_no_name_of_an_option_or_variable(name: str, columns: int) -> None:
    wide, narrow = (
        CliRunner().invoke(
            make_app(), [name, "--help"], prog_name="multichat", terminal_width=width
        )
        for width in (400, columns - 2)
    )
    names = re.compile(r"--[a-z-]+\b|\bMULTICHAT_[A-Z_]+\b")
    assert set(names.findall(wide.output)) <= set(names.findall(narrow.output))
    assert "MULTICHAT_" in wide.output or name in ("history", "journal", "account", "config")
    assert max(map(len, narrow.output.splitlines())) <= columns
