"""A terminal that is closed while SIGHUP is ignored, as with `nohup`, and a server that floods."""

import os
import signal
import subprocess
from contextlib import suppress

import pytest
import trio

from .support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, listening

pytestmark = pytest.mark.process

FLOOD = b"[Client 2] " + b"x" * 200 + b"\n"


async def test_a_client_ends_when_its_terminal_is_gone_and_its_server_floods() -> None:
    controller, terminal = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "MULTICHAT_HISTORY": os.devnull}
    environment["MULTICHAT_CONFIG"] = os.devnull
    async with listening() as (listener, port), trio.open_nursery() as nursery:
        connect = [MULTICHAT, "connect", "--plain", LOOPBACK, str(port)]
        client = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *connect],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            stream = await listener.accept()
            nursery.start_soon(_flood, stream)
            shown = b""
            while b"Client 2" not in shown:
                shown += await trio.to_thread.run_sync(os.read, controller, 65536)
            os.close(controller)
            with trio.fail_after(WAIT_SECONDS):
                while client.poll() is None:
                    await trio.sleep(0.05)
        finally:
            if client.poll() is None:
                client.send_signal(signal.SIGKILL)
                client.wait()
            nursery.cancel_scope.cancel(reason="the client has ended")


async def _flood(stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(FLOOD * 200)
