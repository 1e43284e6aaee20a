"""Files and sockets that this user may not open: one line with the reason, and no usage."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import LOOPBACK, MULTICHAT, program, serve

pytestmark = pytest.mark.process

NOBODY = "65534"


@pytest.fixture
def as_other(short_path: Path) -> list[str]:
    """Return the beginning of a command that may not open files of mode 0."""
    short_path.chmod(0o755)
    if os.geteuid() != 0:
        return [MULTICHAT]
    ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    argv = [program("setpriv"), *ids, MULTICHAT]
    shown = subprocess.run([*argv, "--version"], capture_output=True, text=True)
    if shown.returncode:
        pytest.skip(f"another user cannot run the command: {shown.stderr}")
    return argv


@pytest.mark.parametrize(
    "words",
    [
        "serve 0 --password-file FILE",
        "serve 0 --tls-cert FILE",
        "serve 0 --tls-cert FILE --tls-key FILE",
        "serve 0 --ban-file FILE",
        "serve 0 --log-file FILE",
        "serve 0 --journal FILE",
        "serve 0 --journal FILE --operators-file FILE",
        "serve 0 --web 0 --webhook-token-file FILE",
        "serve 0 --cluster valkey://127.0.0.1:1 --cluster-password-file FILE",
        "connect 127.0.0.1:1 --password-file FILE",
        "connect 127.0.0.1:1 --tls-ca FILE",
        "connect 127.0.0.1:1 --login alice --passphrase-file FILE",
        "who 127.0.0.1:1 --password-file FILE",
        "send 127.0.0.1:1 hello --password-file FILE",
        "ctl --socket FILE account add bob --passphrase-file FILE",
        "history FILE",
        "account list FILE",
    ],
)
def test_a_file_that_may_not_be_opened_is_one_line(
    words: str, as_other: list[str], short_path: Path
) -> None:
    file = short_path / "file"
    file.write_text("secret\n")
    file.chmod(0)
    argv = [*as_other, *words.replace("FILE", str(file)).split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    error = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2)
    assert error.startswith(f"multichat: {file}: ")
    assert "Usage" not in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_socket_that_may_not_be_opened_is_one_line(
    as_other: list[str], short_path: Path, tmp_path: Path
) -> None:
    chat, admin = short_path / "chat", short_path / "admin"
    async with serve(tmp_path, "--unix", str(chat), "--admin", str(admin)) as server:
        await server.wait_for(f"Listening on {admin}")
        for path in chat, admin:
            if os.geteuid() != 0:
                path.chmod(0)
        for words, error in (
            (["ctl", "--socket", str(admin), "who"], "; only the user of the server may"),
            (["who", "--unix", str(chat)], ""),
            (["send", "--unix", str(chat), "hello"], ""),
            (["connect", "--unix", str(chat)], ""),
        ):
            path = admin if words[0] == "ctl" else chat
            done = subprocess.run([*as_other, *words], capture_output=True, text=True, timeout=60)
            reason = f"multichat: cannot connect to {path}: permission denied{error}\n"
            assert (done.returncode, done.stderr) == (1, reason)
        options = ("serve", "0", "--host", LOOPBACK, "--admin", str(admin))
        done = subprocess.run([*as_other, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith(f"multichat: cannot listen on {admin}: ")
