"""The workloads, and how one measurement is taken."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.servers import Server

__all__ = ["WORKLOADS", "Tools", "Workload", "measure"]

START_SECONDS = 10.0
STOP_SECONDS = 10.0
LOAD_SECONDS = 120.0

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One row of measurements; *mode* and *arguments* are the load generator's."""

    key: str
    title: str
    mode: str
    receivers: int
    senders: int = 1
    arguments: tuple[str, ...] = ()

    @property
    def clients(self) -> int:
        """The number of connections."""
        return self.receivers + self.senders


def _throughput(key: str, title: str, receivers: int, senders: int = 1) -> Workload:
    return Workload(
        key=f"throughput-{key}",
        title=title,
        mode="throughput",
        receivers=receivers,
        senders=senders,
        arguments=("seconds=1.5",),
    )


def _latency(receivers: int, rate: int) -> Workload:
    return Workload(
        key=f"latency-{receivers}-{rate}",
        title=f"{receivers:,} receivers × {rate:,}/s",
        mode="latency",
        receivers=receivers,
        arguments=(f"rate={rate}", "seconds=3"),
    )


def _stalled(stalled: int) -> Workload:
    return Workload(
        key=f"stalled-{stalled}",
        title=f"{stalled} of 20 stopped" if stalled else "all 20 read",
        mode="throughput",
        receivers=20,
        # 30 MB for each receiver: more than all buffers to a stopped receiver can hold.
        arguments=("count=400000", "seconds=6", f"stalled={stalled}"),
    )


WORKLOADS = [
    _throughput("10", "10 receivers", 10),
    _throughput("100", "100 receivers", 100),
    _throughput("1000", "1,000 receivers", 1000),
    _throughput("ten-senders", "ten senders, 100 receivers", 100, 10),
    _latency(100, 100),
    _latency(100, 1000),
    _latency(1000, 20),
    Workload(key="connections", title="5,000 clients", mode="connections", receivers=5000),
    _stalled(0),
    _stalled(2),
]


class Tools:
    """The two C programs, built into *folder*; raises `FileNotFoundError` without a compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError("no C compiler (Debian package: gcc)")
        for name in ("load", "reference"):
            source = _HERE / f"{name}.c"
            subprocess.run([compiler, "-O2", "-o", folder / name, source], check=True)
        self.load, self.reference = folder / "load", folder / "reference"


def measure(server: Server, workload: Workload, tools: Tools) -> dict[str, Any]:
    """Take one measurement; return its figures, or `{"error": …}` with a one-line reason.

    The server is started on a free port and ended by its process id, whatever happens.
    """
    if workload.clients > server.max_clients:
        return {"error": "not measured, see its settings"}
    if server.only_writes:
        workload = replace(workload, senders=0)  # it has nothing to read
    ports = _free_ports(2 if server.two_ports else 1)
    port = ports[0]
    try:
        with _running(server, workload, tools, ports) as pid:
            before = _memory(pid)
            command = [
                *(str(tools.load), workload.mode, f"port={port}", f"pid={pid}"),
                f"receiver_port={ports[-1]}",
                *(f"receivers={workload.receivers}", f"senders={workload.senders}"),
                *(f"outstanding={server.outstanding}", f"core={max(os.sched_getaffinity(0))}"),
                *server.dialect.arguments(),
                *workload.arguments,
            ]
            return _load(command, pid, before, workload)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"error": str(error).strip().splitlines()[-1][:200]}


def _free_ports(count: int) -> list[int]:
    """Return that many free ports, one after the other."""
    while True:
        with ExitStack() as stack:
            ports: list[int] = []
            try:
                for number in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", ports[0] + number if ports else 0))
                    ports.append(probe.getsockname()[1])
            except (OSError, OverflowError):
                continue
            return ports


@contextmanager
def _running(server: Server, workload: Workload, tools: Tools, ports: list[int]) -> Iterator[int]:
    program = str(tools.reference) if server.program == "reference" else server.path
    if program is None:
        raise OSError("not installed")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        arguments = server.command(folder, ports[0], workload.clients)
        with (folder / "output.log").open("wb") as output, _cores_for(workload):
            process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        try:
            for port in ports:
                _wait_listening(process, port)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _cores_for(workload: Workload) -> Iterator[None]:
    """For latency, keep processes started in the block off the load generator's core.

    Otherwise a server wakes up on either of two idle cores by chance: medians of one program were
    0.7 or 1.2 ms.  For throughput, it may use any core.
    """
    cores = os.sched_getaffinity(0)
    if workload.mode == "latency" and len(cores) > 1:
        os.sched_setaffinity(0, sorted(cores)[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    # Checked without connecting, because that would be the first client.
    listening = re.compile(rf":{port:04X} \S+ 0A ")
    deadline = time.monotonic() + START_SECONDS
    while not listening.search(Path("/proc/net/tcp").read_text("ascii")):
        if process.poll() is not None:
            raise OSError(f"ended with status {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise OSError("does not listen")
        time.sleep(0.02)


def _memory(pid: int) -> dict[str, int]:
    """Return the current (VmRSS) and the peak (VmHWM) memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    sizes = {name: int(size) for name, size in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", status)}
    if not sizes:
        raise OSError("the server ended during the run")
    return sizes


def _load(
    command: list[str], pid: int, before: dict[str, int], workload: Workload
) -> dict[str, Any]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as load:
        assert load.stdin and load.stdout  # noqa: PT018, S101 - for the type checker
        try:
            if workload.mode == "connections":
                line = load.stdout.readline()
                time.sleep(0.5)  # until written data is freed
                after = _memory(pid)
                load.stdin.write("\n")
                _, errors = load.communicate(timeout=LOAD_SECONDS)
            else:
                line, errors = load.communicate(timeout=LOAD_SECONDS)
                after = _memory(pid)
        except BaseException:
            load.kill()
            raise
    if load.returncode or not line:
        raise OSError(errors or f"the load generator ended with status {load.returncode}")
    figures: dict[str, Any] = json.loads(line)
    figures["idle_kib"] = before["VmRSS"]
    figures["peak_kib"] = after["VmHWM"] - before["VmRSS"]
    if workload.mode == "connections":
        figures["kib_per_client"] = (after["VmRSS"] - before["VmRSS"]) / workload.clients
    return figures
