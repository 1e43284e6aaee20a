"""`multichat ctl` on a running server: each command, and what can go wrong."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest
import trio

import multichat
from multichat.cli.socket_owner import is_trusted
from tests.support.processes import LOOPBACK, MULTICHAT, Command, ServerCommand, program, serve
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

PASSPHRASE = "correct horse  battery"


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "admin"


def ctl(
    *words: str | Path, given: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; *given* is its standard input."""
    return subprocess.run(
        [MULTICHAT, "ctl", *map(str, words)],
        stdin=subprocess.DEVNULL if given is None else None,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )


def refused(status: int, *words: str | Path, given: str | None = None, **variables: str) -> str:
    """Run a command that fails with *status*; return its error, which is one line."""
    done = ctl(*words, given=given, **variables)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("multichat: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("multichat: ").removesuffix("\n")


class Operator:
    """A server with an admin socket."""

    def __init__(self, server: ServerCommand, path: Path) -> None:
        self.server, self.path = server, path

    async def run(self, *words: str, given: str | None = None) -> str:
        """Run a command that succeeds; return its output."""
        done = await trio.to_thread.run_sync(
            lambda: ctl("--socket", self.path, *words, given=given)
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    async def refused(self, status: int, *words: str, given: str | None = None) -> str:
        """Run a command that fails; return its error."""
        return await trio.to_thread.run_sync(
            lambda: refused(status, "--socket", self.path, *words, given=given)
        )


@asynccontextmanager
async def running(folder: Path, path: Path, *options: str) -> AsyncIterator[Operator]:
    async with serve(folder, "--admin", str(path), *options) as server:
        await server.wait_for(f"Listening on {path} for the operator's commands")
        yield Operator(server, path)


async def test_each_command_on_a_running_server(path: Path, tmp_path: Path) -> None:
    async with (
        running(tmp_path, path) as operator,
        multichat.connect(LOOPBACK, operator.server.port, name="alice", room="den") as alice,
        multichat.connect(LOOPBACK, operator.server.port, name="bob") as bob,
    ):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        run = operator.run
        assert await run("who") == (
            "#  name   rooms  address    waiting\n"
            "1  alice  den    127.0.0.1      0 B\n"
            "2  bob    lobby  127.0.0.1      0 B\n"
        )
        assert (await run("who", "den")).count("\n") == 2
        assert await run("rooms") == "room   clients\nden          1\nlobby        1\n"
        assert await run("announce", "closing", " at  noon") == "sent to 2 clients\n"
        assert await run("send", "bob", "only you") == ""
        for chat, texts in (
            (alice, ["closing  at  noon"]),
            (bob, ["closing  at  noon", "only you"]),
        ):
            got: list[str] = []
            async for event in chat:
                if isinstance(event, multichat.Notice):
                    got.append(event.text)
                if len(got) == len(texts):
                    break
            assert got == texts
        assert await run("topic", "den") == "it has no topic\n"
        assert await run("topic", "den", "be", "nice") == "the topic of den is set\n"
        assert await run("topic", "den") == "the topic of den: be nice\n"
        assert await run("ban", "carol", "10m", "too loud") == (
            "banned name carol for 10 min: too loud (no client was disconnected)\n"
        )
        assert await run("bans") == "name carol for 10 min: too loud\n"
        [ban] = json.loads(await run("bans", "--json"))
        assert (ban["what"], ban["reason"], 590 < ban["seconds"] <= 601) == (
            "name carol",
            "too loud",
            True,
        )
        assert await run("unban", "carol") == "name carol is no longer banned\n"
        assert (
            await run("account", "add", "dave", given=f"{PASSPHRASE}\n") == "dave has an account\n"
        )
        assert await run("account", "list") == "dave\n"
        assert await run("account", "list", "--json") == '["dave"]\n'
        assert await run("account", "remove", "dave") == "dave has no account any more\n"
        assert await run("account", "list") == "there are no accounts\n"
        assert await run("account", "list", "--json") == "[]\n"
        statistics = json.loads(await run("stats", "--json"))
        assert (statistics["clients"], statistics["rooms"]) == (2, 2)
        clients = json.loads(await run("--json", "who"))
        assert [(each["name"], each["rooms"]) for each in clients] == [
            ("alice", ["den"]),
            ("bob", ["lobby"]),
        ]
        assert await run("kick", "alice", "too", "loud") == "client 1 was disconnected\n"
        assert "alice" not in await run("who")
        await operator.server.wait_for("(kicked: too loud)")
        assert "list the clients" in await run("help")
        assert await run("quit") == "the server is shutting down\n"
        assert await operator.server.wait() == 0
    assert not path.exists()
    assert PASSPHRASE not in operator.server.out


@pytest.mark.parametrize("words", [["help"], ["--help"], ["help", "--json"]])
async def test_help_needs_no_server_and_fits_into_60_columns(
    words: list[str], tmp_path: Path
) -> None:
    done = await trio.run_process(
        [MULTICHAT, "ctl", *words],
        env={**os.environ, "COLUMNS": "60"},
        cwd=tmp_path,
        capture_stdout=True,
        capture_stderr=True,
    )
    text = done.stdout.decode()
    lines = json.loads(text) if "--json" in words else text.splitlines()
    assert max(map(len, lines)) <= 60
    assert any("account ACTION" in line and "add NAME, remove NAME" in line for line in lines)
    assert "PASSPHRASE" not in text


async def test_a_refused_command_is_one_line_and_says_what_to_do(
    path: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, path) as operator:
        for status, words, error in (
            (1, ["kick", "bob"], "nobody called bob is connected"),
            (1, ["kick", "7"], "no client 7 is connected"),
            (
                1,
                ["ban", "bob", "10x"],
                "10x is not a duration; examples: 90s, 10m, 2h, 1d, forever",
            ),
            (1, ["topic", "den", "x"], "nobody is in den"),
            (1, ["account", "remove", "bob"], "there is no account bob"),
            (1, ["unban", "203.0.113.7"], "there is no ban of 203.0.113.7"),
            (2, ["announce", "\u2066"], "usage: announce TEXT"),
            (2, ["kick"], "usage: kick WHO [REASON]"),
            (2, ["ban"], "usage: ban WHAT [TIME] [REASON]"),
            (2, ["stats", "x"], "usage: stats"),
            (2, ["watch", "x"], "usage: watch"),
            (2, ["account", "make", "bob"], "usage: account"),
            (2, ["whi"], "unknown command whi; did you mean who?"),
            (2, ["\x1b[2J"], "unknown command ␛[2j; ctl --help lists them"),
            (2, ["account", "add", "bob", PASSPHRASE], "usage: account add NAME; the passphrase"),
            (2, ["account", "add", "bob"], "standard input: it contains no passphrase"),
            (2, ["who", "--passphrase-file", "x"], "--passphrase-file is for account add"),
            (2, ["who", "--timeout", "0"], "--timeout must be more than 0 seconds"),
            (2, ["who", "--timeout", "nan"], "--timeout must be more than 0 seconds"),
        ):
            shown = await operator.refused(status, *words)
            assert shown.startswith(error), words
            assert PASSPHRASE not in shown
        assert await operator.run("bans") == "nobody is banned\n"


async def test_a_passphrase_comes_from_a_file_and_is_in_no_list_of_processes(
    path: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSPHRASE}\n")
    async with running(tmp_path, path) as operator:
        added = await operator.run("account", "add", "bob", "--passphrase-file", str(secret))
        assert added == "bob has an account\n"
        async with multichat.connect(LOOPBACK, operator.server.port, name="x") as chat:
            await chat.login("bob", PASSPHRASE)
        missing = await operator.refused(1, "account", "add", "c", "--passphrase-file", "nowhere")
        assert missing == "nowhere: no such file or directory"


async def test_ctl_prompts_for_a_passphrase_on_a_terminal(
    path: Path, tmp_path: Path, terminal: Terminal
) -> None:
    async with running(tmp_path, path) as operator:
        await terminal.open("t", MULTICHAT, "ctl", "--socket", str(path), "account", "add", "bob")
        for prompt in ("Passphrase for bob:", "Again:"):
            await terminal.wait_for("t", prompt)
            await terminal.type("t", PASSPHRASE)
        await terminal.wait_for("t", "bob has an account")
        assert "horse" not in await terminal.screen("t")
        assert await operator.run("account", "list") == "bob\n"


async def test_reload_says_what_it_has_read_and_fails_if_a_file_is_wrong(
    path: Path, tmp_path: Path
) -> None:
    password, bans = tmp_path / "password", tmp_path / "bans"
    password.write_text("swordfish\n")
    bans.write_text("203.0.113.7\n")
    options = ("--password-file", str(password), "--ban-file", str(bans))
    async with running(tmp_path, path, *options) as operator:
        said = await operator.run("reload")
        assert said.startswith("Reloaded: ")
        assert "password" in said
        bans.write_text("nonsense here\n")
        password.write_text("kingfisher\n")
        done = await trio.to_thread.run_sync(lambda: ctl("--socket", path, "reload"))
        assert (done.returncode, done.stdout) == (1, "")
        wrong, right, *advice = done.stderr.splitlines()
        assert wrong.startswith(f"multichat: Could not reload the bans (unchanged): {bans} line 1")
        assert right == "multichat: Reloaded: password"
        assert all("can be read by other users" in line for line in advice)
        assert "fisher" not in done.stderr
        assert "203.0.113.7 for ever" in await operator.run("bans")
        async with multichat.connect(
            LOOPBACK, operator.server.port, name="bob", password="kingfisher"
        ):
            assert "bob" in await operator.run("who")


async def test_drain_answers_at_once_and_the_server_can_be_watched_until_its_end(
    path: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, path) as operator:
        argv = ("nc", LOOPBACK, str(operator.server.port))
        async with Command(tmp_path, program(argv[0]), *argv[1:]) as nc:
            await operator.server.wait_for("Client 1 connected")
            answer = "draining: 1 client is told to reconnect within 3 s\n"
            assert await operator.run("drain", "3") == answer
            assert await operator.server.wait() == 0
            await nc.wait_for("goodbye")
    assert not path.exists()


def test_the_shell_completes_commands() -> None:
    asked = {"_MULTICHAT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    for typed, commands in (("k", ["kick"]), ("w", ["watch", "who"]), ("x", [])):
        done = subprocess.run(
            [MULTICHAT],
            capture_output=True,
            text=True,
            env={**os.environ, **asked, "COMP_WORDS": f"multichat ctl {typed}"},
        )
        assert sorted(done.stdout.split()) == commands


# --- Where the socket is --------------------------------------------------------------------------


async def test_the_socket_may_be_in_the_environment_or_the_configuration_file(
    path: Path, tmp_path: Path
) -> None:
    config = path.with_name("config.toml")
    config.write_text(f'[serve]\nadmin = "{path.name}"\nhost = "{LOOPBACK}"\nport = 0\n')
    variables = {"MULTICHAT_CONFIG": str(config)}
    argv = ["env", f"MULTICHAT_CONFIG={config}", MULTICHAT, "serve"]
    async with ServerCommand(tmp_path, *argv) as server:
        await server.wait_for(f"Listening on {path} for")
        for each in (variables, {"MULTICHAT_ADMIN": str(path)}):
            assert ctl("who", **each).stdout == "nobody is connected\n"
        elsewhere = {**variables, "MULTICHAT_ADMIN": str(tmp_path / "none")}
        assert refused(1, "who", **elsewhere).startswith(f"cannot connect to {tmp_path}/none: ")
        assert ctl("--socket", path, "who", **elsewhere).returncode == 0
    argv = ["env", f"MULTICHAT_ADMIN={path}", MULTICHAT, "serve", "0", "--host", LOOPBACK]
    async with ServerCommand(tmp_path, *argv) as server:
        await server.wait_for(f"Listening on {path} for")
    for text, error in (
        (
            "",
            f"give --socket, the path of serve --admin, or set admin in [serve] of {config}",
        ),
        ("[serve]\nadmin = 7", f"{config}: serve.admin: expected a path"),
        ("[serve", f"{config}: "),
    ):
        config.write_text(text)
        status = 2 if not text else 1
        assert refused(status, "who", **variables).startswith(error)


async def test_an_admin_socket_that_cannot_be_made_ends_the_server_in_one_line(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    async with running(tmp_path, path) as operator:
        for place, reason in (
            (path, "address already in use"),
            (tmp_path / "file", "file exists"),
            (tmp_path, "file exists"),
            (tmp_path / "no" / "folder", f"there is no directory {tmp_path / 'no'}"),
            (tmp_path / ("x" * 200), "path too long"),
        ):
            argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK, "--admin", str(place)]
            done = await trio.run_process(
                argv, capture_stdout=True, capture_stderr=True, check=False
            )
            error = done.stderr.decode()
            assert (done.returncode, error.count("\n")) == (1, 1)
            assert error.startswith(f"multichat: cannot listen on {place}: ")
            assert error.endswith(f"{reason}\n")
        assert await operator.run("bans") == "nobody is banned\n"
    assert (tmp_path / "file").read_text() == "precious"


async def test_the_socket_of_a_killed_server_is_refused_and_then_replaced(
    path: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, path) as operator:
        operator.server.signal(signal.SIGKILL)
        await operator.server.wait()
        assert path.exists()
        assert refused(1, "--socket", path, "who") == (
            f"cannot connect to {path}: connection refused; no server uses it any more"
        )
    async with running(tmp_path, path) as operator:
        assert await operator.run("who") == "nobody is connected\n"


def test_a_socket_that_is_not_there_or_not_ours_is_one_line(path: Path) -> None:
    assert refused(1, "--socket", path, "who") == (
        f"cannot connect to {path}: no such file or directory; start the server with --admin"
    )
    path.write_text("")
    assert refused(1, "--socket", path, "who").startswith(f"cannot connect to {path}: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_can_neither_connect_nor_disturb(path: Path, tmp_path: Path) -> None:
    async with running(tmp_path, path) as operator:
        path.parent.chmod(0o755)
        source = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
            "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        )
        done = await trio.run_process(
            [sys.executable, "-c", source, str(path)], capture_stderr=True, check=False
        )
        assert b"PermissionError" in done.stderr
        assert await operator.run("bans") == "nobody is banned\n"


# Listens as the user 65534, for all users, and prints its input.
STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534); os.umask(0)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
print(listener.accept()[0].recv(100), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_ctl_sends_nothing_to_a_socket_that_another_user_may_have_made(
    path: Path, tmp_path: Path
) -> None:
    os.chown(path.parent, 65534, 65534)
    path.parent.chmod(0o1777)
    argv = (sys.executable, "-c", STRANGER, str(path))
    async with Command(tmp_path, *argv) as stranger:
        await stranger.wait_for("ready")
        error = refused(1, "--socket", path, "announce", "secret")
        assert error == (
            f"cannot connect to {path}: the user nobody listens there, and is neither you nor root;"
            " put the socket of --admin into a folder where others cannot make files"
        )
        assert await stranger.wait() == 0
        assert stranger.out.splitlines()[1:] == ["b''"]
    path.unlink()


@pytest.mark.parametrize(
    ("user", "mode", "trusted"),
    [(0, 0o777, True), (7, 0o777, True), (8, 0o755, True), (8, 0o1777, False), (8, 0o757, False)],
)
def test_who_may_listen_for_ctl(user: int, mode: int, trusted: bool, tmp_path: Path) -> None:
    top = tmp_path.resolve()
    folder = top / "open" / "his"
    folder.mkdir(parents=True)
    folder.parent.chmod(mode)
    link = top / "link"
    link.symlink_to(folder)
    for path in (folder / "admin", link / "admin"):
        assert is_trusted(user, path, us=7, top=top) == trusted


# --- Servers that answer badly --------------------------------------------------------------------


@contextmanager
def answering(path: Path, answer: bytes | None, forever: bytes = b"") -> Iterator[None]:
    """A server that gives this *answer* to the first request and ends; None: it does not answer.

    With *forever* it repeats that after the answer until the client leaves.
    """

    def work() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if answer is None:
                connection.recv(1)  # until the client gives up
            else:
                connection.sendall(answer)
            with suppress(OSError):
                while forever:
                    connection.sendall(forever)

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield
        path.unlink()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection lost: the server has ended"),
        (b'{"ok":true', "connection lost: the server has ended"),
        (None, "connection lost: the server did not answer in 0.5 s"),
        (b"[Server] hello\n", "that is not an answer of multichat's admin socket"),
        (b"\xff\n", "that is not an answer of multichat's admin socket"),
        (b'{"ok":false,"error":"a\\u001b[2J\xc2\x9b"}\n', "a␛[2J�"),
        (b'{"ok":true,"result":[7]}\n', "the server's answer cannot be shown; try --json"),
    ],
)
def test_a_bad_answer_is_one_clean_line(path: Path, answer: bytes | None, error: str) -> None:
    with answering(path, answer):
        assert refused(1, "--socket", path, "--timeout", "0.5", "who").endswith(error)


def test_an_answer_that_never_ends_is_given_up_in_time(path: Path) -> None:
    """However quickly more of it arrives, so that no single wait is long."""
    with answering(path, b"", forever=b"x"):
        error = refused(1, "--socket", path, "--timeout", "0.5", "who")
    assert error.endswith("connection lost: the server did not answer in 0.5 s")


@pytest.mark.parametrize("seconds", ["inf", "1e300", "1e12"])
def test_any_time_to_wait_is_possible(path: Path, seconds: str) -> None:
    with answering(path, b'{"ok":true,"lines":["done"]}\n'):
        done = ctl("--socket", path, "--timeout", seconds, "bans")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_full_queue_of_connections_is_waited_for(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                other = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
                other.setblocking(False)
                other.connect(str(path))
        error = refused(1, "--socket", path, "--timeout", "0.5", "who")
        assert error.endswith("timed out")

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(65536):
                        connection.sendall(b'{"ok":true,"lines":["done"]}\n')
                        return

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ctl, "--socket", path, "bans")
            time.sleep(0.3)  # it may be waiting by now
            stack.close()
            answering_one = threading.Thread(target=serve, daemon=True)
            answering_one.start()
            assert asking.result(60).stdout == "done\n"
            answering_one.join(60)


def test_nothing_in_an_answer_reaches_the_terminal_uncleaned(path: Path) -> None:
    client = {"client": 1, "name": "a\x1b[2J\u202e", "rooms": ["\x9b"], "address": "\x07"}
    answer = json.dumps({"ok": True, "result": [client]}).encode() + b"\n"
    for options in ([], ["--json"]):
        with answering(path, answer):
            done = ctl("--socket", path, "who", *options)
        assert done.returncode == 0
        assert done.stdout.replace("\n", "").isprintable()
        shown = json.loads(done.stdout)[0]["name"] if options else done.stdout
        assert "a␛[2J" in shown


async def test_a_server_that_ends_meanwhile_is_one_line(path: Path, tmp_path: Path) -> None:
    async with running(tmp_path, path) as operator:
        watching = Command(tmp_path, MULTICHAT, "ctl", "--socket", str(path), "stats", "watch")
        async with watching:
            await watching.wait_for("clients")
            operator.server.signal(signal.SIGKILL)
            assert await watching.wait() == 1
            assert watching.err == "multichat: connection lost: the server has ended\n"


# --- Live -----------------------------------------------------------------------------------------


async def test_watch_shows_the_statistics_until_it_is_interrupted(
    path: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, path):
        argv = (MULTICHAT, "ctl", "--socket", str(path))
        async with (
            Command(tmp_path, *argv, "watch", "--json") as for_programs,
            Command(tmp_path, *argv, "stats", "watch") as lines,
        ):
            for command, text in ((for_programs, '"clients":0'), (lines, "clients ")):
                await command.wait_for(text, 3)
                command.signal(signal.SIGINT)
                assert (await command.wait(), command.err) == (0, "")
            for line in for_programs.out.splitlines():
                assert json.loads(line)["clients"] == 0


async def test_watch_stays_in_place_on_a_terminal(
    path: Path, tmp_path: Path, terminal: Terminal
) -> None:
    async with running(tmp_path, path) as operator:
        await terminal.open("t", MULTICHAT, "ctl", "--socket", str(path), "watch")
        await terminal.wait_for_match("t", r"clients +0")
        async with multichat.connect(LOOPBACK, operator.server.port, name="bob"):
            await terminal.wait_for_match("t", r"clients +1")
            screen = await terminal.screen("t")
            assert screen.count("deliveries") == 1
            await terminal.resize("t", 30, 8)
            await terminal.wait_for_match("t", r"^refused +0")
        await terminal.press("t", "C-c")
        await terminal.wait_for("t", "status=0")
