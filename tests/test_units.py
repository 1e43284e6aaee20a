"""The unit files in deploy/: what they say fits the server, and systemd understands it."""

import re
import subprocess
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

from multichat import ServerConfig

from .support.processes import MULTICHAT, program

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVICE = DEPLOY / "multichat.service"
SOCKETS = sorted(DEPLOY.glob("*.socket"))
CONFIG: dict[str, Any] = tomllib.loads((DEPLOY / "config.toml").read_text("utf-8"))["serve"]
MIB = 1024 * 1024


def unit(path: Path) -> list[tuple[str, str]]:
    """Return the directives of a unit file, which may be repeated."""
    lines = path.read_text("utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#[")
    return [(name, value) for name, _, value in pairs]


def setting(name: str) -> str:
    [found] = [value for key, value in unit(SERVICE) if key == name]
    return found


def size(text: str) -> int:
    units = {"G": 1024 * MIB, "M": MIB}
    return int(text[:-1]) * units[text[-1]]


@pytest.mark.unit
def test_the_service_may_stop_for_as_long_as_the_server_takes() -> None:
    config = ServerConfig()
    longest = CONFIG.get("drain", 0.0) + config.grace_seconds + config.timeouts.linger
    assert int(setting("TimeoutStopSec")) >= 1.5 * longest


@pytest.mark.unit
def test_the_service_may_have_the_memory_and_files_that_the_server_takes() -> None:
    config = ServerConfig()
    # docs/abuse.md: 1.5 times `--memory` above the idle server, which takes 50 MiB.
    assert size(setting("MemoryMax")) >= 1.5 * config.memory_bytes + 100 * MIB
    assert int(setting("LimitNOFILE")) >= config.max_clients + 512


@pytest.mark.unit
def test_each_part_of_a_unit_is_in_its_section() -> None:
    for path in (SERVICE, *SOCKETS):
        parser = RawConfigParser(strict=False, interpolation=None)
        parser.read(path, "utf-8")
        kind = "Service" if path is SERVICE else "Socket"
        assert parser.sections() == ["Unit", kind, "Install"]


@pytest.mark.unit
def test_the_service_writes_only_to_its_own_folder() -> None:
    for name in ("journal", "ban-file"):
        assert CONFIG[name].startswith(f"/var/lib/{setting('StateDirectory')}/")
    for path in SOCKETS:
        for name, value in unit(path):
            if name == "ListenStream" and value.startswith("/"):
                assert value.startswith(f"/run/{setting('RuntimeDirectory')}/")
                # systemd would remove its sockets with the folder when the service stops.
                assert setting("RuntimeDirectoryPreserve") == "yes"


@pytest.mark.process
def test_systemd_understands_every_line() -> None:
    analyze = program("systemd-analyze")
    for path in (SERVICE, *SOCKETS):
        done = subprocess.run([analyze, "verify", path], capture_output=True, text=True)
        complaints = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            # The command is not installed here; and units of the machine may have faults.
            if path.stem in line and "is not executable" not in line
        ]
        assert complaints == []


@pytest.mark.process
def test_systemd_finds_a_misspelled_line(tmp_path: Path) -> None:
    wrong = tmp_path / "multichat.service"
    wrong.write_text(SERVICE.read_text("utf-8").replace("ProtectHome", "ProtectHomes"), "utf-8")
    done = subprocess.run(
        [program("systemd-analyze"), "verify", wrong], capture_output=True, text=True
    )
    assert "ProtectHomes" in done.stdout + done.stderr


@pytest.mark.process
def test_systemd_finds_little_that_the_service_could_do_to_the_machine() -> None:
    argv = [program("systemd-analyze"), "security", "--offline=true", "--no-pager", SERVICE]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) < 2  # of 10; most services have 9


@pytest.mark.process
def test_the_commands_and_options_of_the_service_exist() -> None:
    for name in ("ExecStart", "ExecReload"):
        for command in (value for key, value in unit(SERVICE) if key == name):
            path, *words = command.split()
            assert path == "/opt/multichat/bin/multichat"
            shown = subprocess.run(
                [MULTICHAT, words[0], "--help"], capture_output=True, text=True
            ).stdout
            options = [word for word in words if word.startswith("--")]
            assert shown
            assert [each for each in options if each not in shown] == []
    shown = subprocess.run([MULTICHAT, "serve", "--help"], capture_output=True, text=True).stdout
    text = (DEPLOY / "config.toml").read_text("utf-8")
    keys = set(re.findall(r"^(?:# )?([a-z-]+) = ", text, re.MULTILINE)) - {"port"}
    assert {key for key in keys if f"--{key} " not in shown} == set()
