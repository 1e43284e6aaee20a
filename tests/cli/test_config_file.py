"""The configuration file: valid and invalid contents, and which settings apply."""

import inspect
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.cli.commands import connect as connect_command
from multichat.cli.config_file import (
    Preferences,
    Settings,
    history_path,
    load_settings,
    settings_path,
)
from multichat.cli.parameters import ColorWhen
from multichat.errors import InvalidSettings
from tests.support.processes import LOOPBACK, MULTICHAT, Command, connect, serve

pytestmark = pytest.mark.unit

FILE = """\
name = "alice"
color = "never"
timeout = 5

[servers.work]
host = "chat.example"
port = 9000
tls = true
room = "kitchen"

[servers.home]
unix = "chat.sock"
name = "al"
"""


def written(folder: Path, text: str = FILE) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def values(settings: Settings, server: str | None) -> dict[str, object]:
    return {name: value for name, (value, _) in settings.values(server).items()}


def test_settings_of_one_server_override_those_of_all(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path))
    for_all = {"name": "alice", "color": ColorWhen.NEVER, "timeout": 5.0}
    assert values(settings, None) == values(settings, "elsewhere") == for_all
    work = {"host": "chat.example", "port": 9000, "tls": True, "room": "kitchen"}
    assert values(settings, "work") == for_all | work
    home = {"name": "al", "unix": tmp_path / "chat.sock"}
    assert values(settings, "home") == for_all | home
    assert settings.values("home")["name"] == ("al", "servers.home")
    assert settings.values("work")["name"] == ("alice", "")


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    text = 'password-file = "~/secret.txt"\ntls-ca = "/etc/ca.pem"\n'
    settings = load_settings(written(tmp_path, text))
    assert values(settings, None) == {
        "password_file": Path("/home/alice/secret.txt"),
        "tls_ca": Path("/etc/ca.pem"),
    }


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "none.toml") == Settings(path=tmp_path / "none.toml")
    assert load_settings(written(tmp_path, "")).found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = alice", "Invalid value (at line 1, column 8)"),
        ("nam = 'alice'", "nam: there is no such setting; did you mean name?"),
        ("name = 7", "name: expected str, got int"),
        ("timeout = 0", "timeout: expected float > 0.0"),
        ("timeout = 'long'", "timeout: expected float, got str"),
        (
            "color = 'green'",
            "color: invalid enum value 'green': expected one of auto, always, never",
        ),
        (
            "[server.work]\nhost = 'a'",
            "server: there is no such setting; did you mean [servers.work]?",
        ),
        (
            "[server]\nhost = 'a'",
            "server: there is no such setting; did you mean [servers.NAME]?",
        ),
        (
            "[servers.work]\nhost = 'a'\nserver = { x = 1 }",
            "servers.work.server: there is no such setting",
        ),
        ("'a`b' = 1", "a`b: there is no such setting"),
        ("'name - at `$x' = 1", "name - at `$x: there is no such setting"),
        (
            "color = 'unknown field'",
            "color: invalid enum value 'unknown field': expected one of auto, always, never",
        ),
        (
            "color = 'x - at `$.name'",
            "color: invalid enum value 'x - at `$.name': expected one of auto, always, never",
        ),
        ("bell = 1", "bell: expected bool, got int"),
        ("host = 'chat.example'", "host: there is no such setting"),
        ("servers = 7", "servers: expected tables [servers.NAME]"),
        ("[servers]\nwork = 7", "servers.work: expected object, got int"),
        ("[servers.work]", "servers.work: needs either host or unix"),
        ("[servers.work]\nhost = 'a:b'", "servers.work.host: 'b' is not a port: 1 to 65535"),
        ("[servers.work]\nhost = 'a:1'\nport = 1", "servers.work.port: host contains a port, too"),
        ("[servers.work]\nunix = 'a'\nport = 1", "servers.work.port: a Unix socket has none"),
        ("[servers.work]\nhost = 'a'\nport = 0", "servers.work.port: expected int >= 1"),
        ("[servers.work]\nhost = 'a'\nport = '9000'", "servers.work.port: expected int, got str"),
        (
            "[servers.work]\nhost = 'a'\nport = 1\nunix = 'b'",
            "servers.work: needs either host or unix",
        ),
        ("[servers.work]\nunix = 7", "servers.work.unix: expected a path"),
        (
            "[servers.'a b']\nhost = 'a'\nport = 1\ncolour = 'x'",
            "servers.a b.colour: there is no such setting; did you mean color?",
        ),
    ],
)
def test_an_error_names_the_file_and_the_key(text: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(path)
    assert str(caught.value) == f"{path}: {expected}"


def test_an_unreadable_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r": is a directory$"):
        load_settings(tmp_path)
    path = tmp_path / "config.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InvalidSettings, match=r"config\.toml: not UTF-8$"):
        load_settings(path)


# How the library that checks the values quotes a value or a key.
QUOTED = ("`", "'", "$", " - at `$.name`", " - at `$", "unknown field", "Invalid enum value", "\n")
STRINGS = st.text() | st.lists(st.sampled_from(QUOTED) | st.text(max_size=2)).map("".join)
NAMES = ("host", "port", "unix", "servers", *Preferences.__struct_encode_fields__)
KEYS = st.sampled_from(NAMES) | STRINGS
VALUES = st.recursive(
    STRINGS
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["auto", "never", "chat.example:1", "~", "~nobody/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def to_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return str(value).lower()


@given(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=2),
)
def test_any_file_is_valid_or_raises_invalid_settings(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, object],
    servers: dict[str, dict[str, object]],
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    tables: dict[str, object] = {"servers": servers, **values}
    lines = [f"{to_toml(key)} = {to_toml(value)}\n" for key, value in tables.items()]
    path.write_text("".join(lines), "utf-8")
    with suppress(InvalidSettings):
        load_settings(path)


def test_paths_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTICHAT_CONFIG", raising=False)
    monkeypatch.delenv("MULTICHAT_HISTORY", raising=False)
    assert settings_path().name == "config.toml"
    assert settings_path().parent.name == history_path().parent.name == "multichat"
    monkeypatch.setenv("MULTICHAT_CONFIG", str(tmp_path / "a"))
    monkeypatch.setenv("MULTICHAT_HISTORY", str(tmp_path / "b"))
    assert (settings_path(), history_path()) == (tmp_path / "a", tmp_path / "b")


# --- The commands -----------------------------------------------------------------------------


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin", "MULTICHAT_CONFIG": str(folder / "config.toml")}
    return subprocess.run(
        [MULTICHAT, *arguments],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def rows(shown: str) -> dict[str, tuple[str, str]]:
    """The output of `multichat config`: setting to value and source."""
    found = [re.split(r"\s{2,}", line) for line in shown.splitlines()]
    return {row[0]: (row[1], row[2]) for row in found}


@pytest.mark.process
def test_config_shows_each_setting_and_its_source(tmp_path: Path) -> None:
    path = written(tmp_path)
    secret = {"MULTICHAT_PASSWORD": "swordfish"}
    shown = run(tmp_path, "config", "work", MULTICHAT_NAME="carol", **secret)
    assert (shown.returncode, shown.stderr) == (0, "")
    settings = rows(shown.stdout)
    assert settings["file"] == (str(path), "MULTICHAT_CONFIG")
    assert settings["server work"] == ("chat.example 9000", "file")
    assert settings["server home"] == (str(tmp_path / "chat.sock"), "file")
    assert settings["name"] == ("carol", "MULTICHAT_NAME")  # the environment before the file
    assert settings["room"] == ("kitchen", "file, [servers.work]")
    assert settings["color"] == ("never", "file")
    assert settings["timeout"] == ("5.0", "file")
    assert settings["bell"] == ("no", "default")
    assert settings["password"] == ("(secret)", "MULTICHAT_PASSWORD")
    assert "swordfish" not in shown.stdout
    note = "default; only --no-reconnect or MULTICHAT_NO_RECONNECT sets it"
    assert settings["no-reconnect"] == ("no", note)
    # The others can be set in the file.
    noted = {name for name, (_, source) in settings.items() if "only" in source}
    assert noted == {"unix", "listen", "json", "replay", "wait", "no-reconnect"}
    assert rows(run(tmp_path, "config").stdout)["name"] == ("alice", "file")
    with pytest.raises(InvalidSettings, match="there is no such setting"):
        load_settings(written(tmp_path, "wait = true"))


@pytest.mark.process
@pytest.mark.parametrize("key", ["tls-ca", "tls-name"])
def test_config_shows_that_tls_is_used(key: str, tmp_path: Path) -> None:
    written(tmp_path, f"{key} = 'x'")
    assert rows(run(tmp_path, "config").stdout)["tls"] == ("yes", f"because of {key}")


@pytest.mark.process
def test_config_shows_the_path_of_a_missing_file(tmp_path: Path) -> None:
    shown = run(tmp_path, "config")
    assert rows(shown.stdout)["file"][0] == f"{tmp_path / 'config.toml'} (does not exist)"
    missing = run(tmp_path, "config", "work")
    assert missing.returncode == 1
    assert missing.stderr == (
        f"multichat: there is no server 'work' in {tmp_path / 'config.toml'} (does not exist)\n"
    )


@pytest.mark.process
@pytest.mark.parametrize("command", ["config", "connect"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[servers.work]\nhost = 'a'\nport = 'b'",
            "servers.work.port: expected int, got str",
        ),
        ('"a\\n` - at `$" = 1', "a\u240a` - at `$: there is no such setting"),
    ],
)
def test_an_invalid_file_is_one_line_and_status_1(
    command: str, text: str, expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    shown = run(tmp_path, command)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == f"multichat: {path}: {expected}\n"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("chat.example", ("chat.example", 9000)),
        ("chat.example:1", ("chat.example", 1)),
        ("::1", ("::1", 9000)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_the_host_of_a_server_may_contain_a_port(
    host: str, expected: tuple[str, int], tmp_path: Path
) -> None:
    server = load_settings(written(tmp_path, f"[servers.work]\nhost = '{host}'\n")).servers["work"]
    assert (server.host, server.port) == expected


@pytest.mark.process
async def test_connect_to_a_server_of_the_file_by_its_name(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        written(
            tmp_path,
            f'name = "alice"\n[servers.work]\nhost = "127.0.0.1"\nport = {server.port}\n'
            'room = "kitchen"\nname = "al"\n',
        )
        for options, expected in (
            ((), "al in kitchen"),
            (("--name", "bob"), "bob in kitchen"),  # an option before the file
            (("--room", "hall"), "al in hall"),
        ):
            shown = run(tmp_path, "connect", "work", *options)
            assert (shown.returncode, shown.stderr) == (0, "")
            assert f"you are {expected};" in shown.stdout
        shown = run(tmp_path, "connect", "127.0.0.1", str(server.port))
        assert "you are alice in lobby;" in shown.stdout
        async with connect(tmp_path, server) as other:  # whose environment has no such file
            await other.wait_for("you are Client ")


@pytest.mark.process
def test_the_shell_completes_servers(tmp_path: Path) -> None:
    written(tmp_path)
    asked = {"_MULTICHAT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    shown = run(tmp_path, "", COMP_WORDS="multichat connect wo", **asked)
    assert shown.stdout.split() == ["work"]
    shown = run(tmp_path, "", COMP_WORDS="multichat connect --ti", **asked)
    assert shown.stdout.split() == ["--timeout"]
    written(tmp_path, "nonsense")
    shown = run(tmp_path, "", COMP_WORDS="multichat connect wo", **asked)
    assert (shown.stdout.split(), shown.stderr) == ([], "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#" * 4096 + "\n" + "#" * 4097, "line 2 is longer than 4096 characters"),
        ("[" + "a." * 50_000 + "a]", "line 1 is longer than 4096 characters"),
        ("#\n" * 600_000, "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_would_take_long_to_read_is_refused(
    text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match=f": {reason}$"):
        load_settings(written(tmp_path, text))


def test_every_key_is_an_option_of_connect() -> None:
    options = inspect.signature(connect_command).parameters
    assert set(Preferences.__struct_fields__) <= set(options)


# --- Options of `serve` ---------------------------------------------------------------------------


def serve_with(folder: Path, text: str, *words: str) -> str:
    """Return the error of `serve` with *text* as the table `[serve]`, as one line."""
    path = written(folder, f"[serve]\n{text}\n")
    argv = [MULTICHAT, "serve", "0", *words]
    environment = {**os.environ, "MULTICHAT_CONFIG": str(path)}
    result = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert result.returncode in (1, 2)
    return result.stderr.removeprefix(f"multichat: {path}: ")


@pytest.mark.process
def test_a_server_whose_file_is_missing_does_not_start_without_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    environment = {**os.environ, "MULTICHAT_CONFIG": str(path)}
    argv = [MULTICHAT, "serve", "0"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 1
    assert result.stderr == (f"multichat: {path}: no such file, and MULTICHAT_CONFIG names it\n")


@pytest.mark.process
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('web = "x"', "serve.web: 'x' is not a whole number"),
        ("web = 70000", "serve.web: 70000 is not in the range 0<=x<=65535"),
        ("wbe = 1", "serve.wbe: serve has no such option"),
        ("help = true", "serve.help: serve has no such option"),
        ("journal = []", "serve.journal: expected a text, a number or a list"),
        ('journal = ["a", "b"]', "serve.journal: expected one value"),
        ('announce = "maybe"', "serve.announce: 'maybe' is neither yes nor no"),
        ("port = -1", "serve.port: -1 is not in the range 0<=x<=65535"),
    ],
)
def test_a_mistake_in_the_table_of_serve_is_named(tmp_path: Path, text: str, reason: str) -> None:
    assert serve_with(tmp_path, text) == f"{reason}\n"


@pytest.mark.process
def test_rules_of_options_hold_in_the_table_of_serve(tmp_path: Path) -> None:
    assert serve_with(tmp_path, 'web-host = "x"') == "multichat: --web-host needs --web\n"


@pytest.mark.process
async def test_serve_takes_the_port_and_the_page_from_the_file(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f'[serve]\nport = {port}\nhost = "{LOOPBACK}"\nweb = 0\njournal = "chat.db"\n'
    path = written(tmp_path, table + 'web-proxy = ["127.0.0.1", "10.0.0.0/8"]\n')
    monkeypatch.setenv("MULTICHAT_CONFIG", str(path))
    async with Command(tmp_path, MULTICHAT, "serve") as server:
        await server.wait_for(f"Starting multi-chat server on port {port}")
        await server.wait_for("Web page at")
        assert (tmp_path / "chat.db").exists()
    async with Command(tmp_path, MULTICHAT, "serve", "0") as server:  # the command line wins
        await server.wait_for("Starting multi-chat server on port")
        assert f"on port {port}" not in server.out
