"""A real systemd for tests: the first process of namespaces of its own.

It has its own `/etc`, `/run`, `/opt`, `/var/lib` and `/var/log`, shares the network with the test,
and knows only the units that the test installs.  When the test ends, the kernel kills all of it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import pytest
import trio

from .processes import WAIT_SECONDS, Command, missing, program

__all__ = ["BACK_PATHS", "Systemd", "running_systemd"]

ROOT = Path(__file__).parents[2]

# Nothing of the machine's own services is started: units that others want exist, and are empty.
_EMPTY_UNITS = (
    "basic.target",
    "default.target",
    "multi-user.target",
    "network-online.target",
    "shutdown.target",
    "sockets.target",
    "sysinit.target",
)

BACK_PATHS = ("/etc", "/opt", "/var/lib", "/var/log")
"""The folders that the system inside has for itself; they are in the folder of the test."""

_numbers = count()

_INIT = """
set -e
mount --make-rprivate /
mount --bind "{python}" "{root}/opt/python"
mount --bind "{packages}" "{root}/opt/multichat/packages"
mount --bind "{source}" "{root}/opt/multichat/source"
for path in {paths}; do mount --rbind "{root}$path" "$path"; done
mount -t tmpfs -o mode=755 tmpfs /run  # as systemd mounts it
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=test SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nothing
exec {systemd} --system --log-target=console --show-status=no
"""


_COMMAND = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=/opt/multichat/source:/opt/multichat/packages
exec /opt/python/bin/{python} -m multichat "$@"
"""


class Systemd:
    """A running systemd whose files are below *root*."""

    def __init__(self, root: Path, process: int, shell: Command) -> None:
        self.root, self._process, self._shell = root, process, shell

    def path(self, inside: str) -> Path:
        """Return where the path *inside* is for the test."""
        assert inside.startswith(BACK_PATHS), inside
        return self.root / inside.removeprefix("/")

    def run_path(self, inside: str) -> Path:
        """Return where a path below /run is for the test."""
        assert inside.startswith("/run/"), inside
        return Path(f"/proc/{self._process}/root{inside}")

    @property
    def log(self) -> str:
        """The output of systemd."""
        return self._shell.err + self._shell.out

    async def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside, and return its output; fail if it does, unless not *check*."""
        argv = ("nsenter", "--target", str(self._process), "--mount", "--pid", "--cgroup", *argv)
        with trio.fail_after(WAIT_SECONDS):
            done = await trio.run_process(
                argv, check=False, capture_stdout=True, stderr=subprocess.STDOUT
            )
        text = done.stdout.decode("utf-8", "replace")
        if check and done.returncode:
            pytest.fail(f"{argv} ended with {done.returncode}: {text}\n{self.log[-4000:]}")
        return text

    async def shell(self, script: str, folder: Path) -> str:
        """Run a shell script inside, in *folder*."""
        return await self.run("sh", "-euc", f"cd {folder}\n{script}")

    async def show(self, unit: str, name: str) -> str:
        """Return a property of a *unit*."""
        return (await self.run("systemctl", "show", "--value", "-p", name, unit)).strip()

    async def wait(self, unit: str, name: str, value: str) -> None:
        """Wait until a property of a *unit* has that value."""
        with trio.move_on_after(WAIT_SECONDS):
            while (found := await self.show(unit, name)) != value:
                await trio.sleep(0.05)
            return
        pytest.fail(f"{name} of {unit} is {found!r}, not {value!r}: {self.log[-4000:]}")


def _prepare(root: Path) -> None:
    for path in BACK_PATHS:
        (root / path.removeprefix("/")).mkdir(parents=True)
    etc = root / "etc"
    for name in (
        "passwd",
        "group",
        "nsswitch.conf",
        "ld.so.cache",
        "localtime",
        "hosts",
        "login.defs",
    ):
        if (source := Path("/etc", name)).exists():
            shutil.copy(source, etc / name)
    (etc / "shadow").write_text("")
    (etc / "gshadow").write_text("")
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for name in ("alternatives", "ld.so.conf.d", "pam.d", "security", "ssl"):
        if (source := Path("/etc", name)).exists():
            shutil.copytree(source, etc / name, symlinks=True, ignore_dangling_symlinks=True)
    units = etc / "systemd" / "system"
    units.mkdir(parents=True)
    for name in _EMPTY_UNITS:
        (units / name).write_text("[Unit]\nDefaultDependencies=no\n")
    (etc / "sysusers.d").mkdir()
    # The command of this environment in the place of an installed one: a service's user may not
    # be able to reach this Python under its own path.
    for name in ("python", "multichat/packages", "multichat/source", "multichat/bin"):
        (root / "opt" / name).mkdir(parents=True)
    command = root / "opt" / "multichat" / "bin" / "multichat"
    command.write_text(_COMMAND.format(python=Path(sys.executable).resolve().name))
    command.chmod(0o755)


def _check_possible() -> str:
    """Return the path of systemd; skip the test where it cannot run."""
    program("systemctl")
    for name in ("unshare", "nsenter"):
        program(name)
    systemd = Path("/usr/lib/systemd/systemd")
    if not systemd.exists():
        missing("systemd is not installed")
    trial = "mount --make-rprivate / && mount -t cgroup2 cgroup2 /mnt"
    argv = ["unshare", "-p", "-f", "-m", "-u", "-i", "-C", "--mount-proc", "sh", "-c", trial]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("systemd cannot run here: it needs namespaces and control groups of its own")
    try:
        with _control_group():
            pass
    except (OSError, ValueError):  # without cgroup2, or none that can be changed
        pytest.skip("systemd cannot run here: it needs a control group of its own")
    return str(systemd)


@asynccontextmanager
async def running_systemd(folder: Path) -> AsyncIterator[Systemd]:
    """Run systemd with its files in *folder*; skip the test where that is not possible."""
    systemd = _check_possible()
    root = folder / "root"
    _prepare(root)
    init = _INIT.format(
        paths=" ".join(BACK_PATHS),
        root=root,
        systemd=systemd,
        python=sys.base_prefix,
        packages=sysconfig.get_path("purelib"),
        source=ROOT,
    )
    unshare = ("unshare", "-p", "-f", "-m", "-u", "-i", "-C", "--mount-proc", "--kill-child")
    with _control_group() as group:
        # In the group of its own before it is the root of a namespace: other systemds have theirs.
        argv = shlex.join((*unshare, "sh", "-c", init))
        enter = f"echo $$ > {group}/cgroup.procs && exec {argv}"
        async with Command(folder, "sh", "-c", enter) as shell:
            yield await _started(root, shell)


async def _started(root: Path, shell: Command) -> Systemd:
    """Return the systemd of *shell* once it runs."""
    with trio.fail_after(WAIT_SECONDS):
        while not (found := _child(shell.process.pid)):
            assert shell.process.poll() is None, shell.err
            await trio.sleep(0.02)
        running = Systemd(root, found, shell)
        while "running" not in await running.run("systemctl", "is-system-running", check=False):
            assert shell.process.poll() is None, shell.err + shell.out
            await trio.sleep(0.05)
    return running


@contextmanager
def _control_group() -> Iterator[Path]:
    """Make a control group below our own, and remove it, with all that systemd has made in it."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    [mount, *_] = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    [own] = re.findall("^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = Path(mount, own, f"multichat-test-{os.getpid()}-{next(_numbers)}")
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + WAIT_SECONDS
        while "populated 0" not in (group / "cgroup.events").read_text():
            assert time.monotonic() < deadline, "processes of systemd are left"
            time.sleep(0.01)  # the kernel ends what was in the namespaces
        for path, _, _ in os.walk(group, topdown=False):
            Path(path).rmdir()


def _child(parent: int) -> int:
    """Return the process id of systemd, once *parent*'s child has become that."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if re.fullmatch("systemd", name):
                return int(child)
            if name in ("unshare", "setpriv") and (found := _child(int(child))):
                return found
    except OSError:
        pass
    return 0
