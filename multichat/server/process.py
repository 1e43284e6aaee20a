"""A server as a process of its own: signals, open files and the garbage collector.

Owns the settings of the whole process, which a server embedded in a program leaves alone.
"""

import errno
import gc
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from logging import WARNING

import trio

from multichat.errors import ReloadFailed, lone_exception
from multichat.log import Log
from multichat.server.server import Server
from multichat.server.systemd import ServiceManager
from multichat.signals import EndingSignals, HangUps, receive_ending_signals

__all__ = ["serve_until_signal"]

# With Python's default threshold of 700 new objects, the collector took a quarter of the time in
# which 4,500 clients connected; with 10,000 it takes a tenth.  A plain connection is freed without
# it.  A TLS connection is not: trio's `SSLStream` refers to itself.  Long connections end up in the
# oldest generation, which by default is collected in every hundredth run: until then a server grew
# by 12 KiB for each TLS connection that had ended.  In every 33rd run, that is 160 MiB at most.
_COLLECTOR = (10_000, 10, 2)

# Listeners, the log, standard input and output, the event loop; connections that begin or end.
_FILES_OF_OUR_OWN = 512


# When a terminal closes, its shell may send SIGHUP just before.
_CLOSING_SECONDS = 1.0


async def serve_until_signal(
    server: Server,
    serve: Callable[..., Awaitable[None]],
    hang_ups: HangUps | None = None,
    *tasks: Callable[[], Awaitable[None]],
    manager: ServiceManager,
) -> None:
    """Run `serve` for *server*, as a process of its own, until one of `ending_signals` comes.

    SIGTERM drains the server, SIGINT and SIGQUIT shut it down; a second one of them ends it at
    once, and so does the first before it listens.  SIGHUP reloads the server, or shuts it down if
    standard input was a terminal that has closed.  An ignored SIGHUP, as under `nohup`, stays
    ignored.  *hang_ups* has the earlier ones.  *serve* reports to its `task_status` once it accepts
    connections; from then on, *manager* is notified of the server's state.  *tasks* run beside the
    server and are cancelled at the end.  Raises like `Server.run`.
    """
    advice = _allow_files(server.config.max_clients)
    gc.freeze()  # imported modules stay
    gc.set_threshold(*_COLLECTOR)
    hang_ups = hang_ups or HangUps()
    with receive_ending_signals(hang_up=False) as signals, lone_exception():
        async with trio.open_nursery() as nursery:
            starting = trio.CancelScope()
            nursery.start_soon(_obey_signals, signals, server, starting)
            nursery.start_soon(_obey_hang_ups, hang_ups, server)
            for task in tasks:
                nursery.start_soon(task)
            async with trio.open_nursery() as serving:
                with starting:  # it may wait for long, as for the engine of a cluster
                    await serving.start(serve)
                if not starting.cancelled_caught:
                    if advice:
                        Log("server").line("start", advice, WARNING)
                    nursery.start_soon(manager.run, server)
            nursery.cancel_scope.cancel(reason="the server has ended")


async def _obey_signals(signals: EndingSignals, server: Server, starting: trio.CancelScope) -> None:
    """Obey *signals*; *starting* is the scope in which *server* starts."""
    has_come = False
    async for number in signals:
        if not server.addresses:  # it does not listen yet
            starting.cancel(reason="a signal")
        if has_come or server.shutting_down:
            server.abort()
        elif number == signal.SIGTERM:
            server.drain()
        else:
            server.shutdown()
        has_come = True


async def _obey_hang_ups(hang_ups: HangUps, server: Server) -> None:
    had_terminal = _has_terminal() or _has_closed_terminal()
    async with trio.open_nursery() as nursery, aclosing(hang_ups.receive()) as received:
        async for _ in received:
            if had_terminal:
                nursery.start_soon(_end_without_terminal, server)
            if not had_terminal or _has_terminal():
                with suppress(ReloadFailed):  # it is in the log
                    await server.reload()


async def _end_without_terminal(server: Server) -> None:
    """Shut *server* down if its terminal has closed, or closes within a moment."""
    for seconds in (0, _CLOSING_SECONDS):
        await trio.sleep(seconds)
        if not _has_terminal():
            server.shutdown()
            return


def _has_terminal() -> bool:
    """Return whether standard input is an open terminal."""
    try:
        return sys.stdin.isatty()  # also False once it has closed
    except (AttributeError, ValueError):  # there is none
        return False


def _has_closed_terminal() -> bool:
    """Return whether standard input is a terminal that has closed, for example during the start."""
    try:
        import termios

        termios.tcgetattr(sys.stdin)
    except (ImportError, TypeError, ValueError):  # Windows; or there is none
        return False
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)  # ENOTTY: it never was one
    return False


def _allow_files(clients: int) -> str:
    """Raise the limit on open files for *clients* clients; return a line if that is not possible.

    Above it, connections wait until another one is closed.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _FILES_OF_OUR_OWN
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return ""
    return (
        f"The system allows {allowed} open files, and {clients} clients need {wanted}: raise "
        "`ulimit -n`, or LimitNOFILE of the service"
    )
