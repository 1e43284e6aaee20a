"""Clients in several rooms and with accounts, end to end."""

import random
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

import multichat
from multichat import Chat, ClientTimeouts, Said
from multichat.client.negotiation import PROBE
from tests.support.processes import LOOPBACK, MULTICHAT, Command, connect, serve

pytestmark = pytest.mark.process

ROOMS = "lobby", "den", "ops"
KILLS = 3
MESSAGES = 60
PASSPHRASE = "correct horse battery"

# The attempts of many tests at once should not wait for long.
TIMEOUTS = ClientTimeouts(longest_retry=0.5)


async def test_a_client_gets_each_message_of_each_room_once_however_often_the_server_is_killed(
    port: int, tmp_path: Path
) -> None:
    dice = random.Random(1)
    journal = "--journal", str(tmp_path / "chat.db")
    received: dict[str, list[int]] = {room: [] for room in ROOMS}
    said: dict[str, list[int]] = {room: [] for room in ROOMS}
    spoken = trio.Event()

    async def speak(alice: Chat) -> None:
        for number in range(MESSAGES):
            room = dice.choice(ROOMS)
            await alice.say(str(number), room=room)
            said[room].append(number)
            await trio.sleep(0.02)
        spoken.set()

    async def hear(bob: Chat) -> None:
        async for event in bob:
            if isinstance(event, Said):
                received[event.room].append(int(event.text))

    async def discard(alice: Chat) -> None:
        while await alice.receive():
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(_serve, tmp_path, port, journal)
        come = partial(multichat.connect, LOOPBACK, port, timeouts=TIMEOUTS, rooms=ROOMS)
        async with (
            come(name="alice") as alice,
            come(name="bob") as bob,
        ):
            nursery.start_soon(speak, alice)
            nursery.start_soon(discard, alice)
            nursery.start_soon(hear, bob)
            for _ in range(KILLS):
                await trio.sleep(0.4)
                server.process.kill()
                await server.wait()
                server = await nursery.start(_serve, tmp_path, port, journal)
            with trio.fail_after(60):
                await spoken.wait()
                while sum(map(len, received.values())) < MESSAGES:
                    await trio.sleep(0.05)
            await trio.sleep(0.2)  # by then, duplicates would have come
            nursery.cancel_scope.cancel(reason="everything was received")
    assert received == said


async def _serve(
    folder: Path, port: int, journal: tuple[str, str], task_status: trio.TaskStatus[Command]
) -> None:
    async with serve(folder, *journal, port=port) as server:
        task_status.started(server)
        await trio.sleep_forever()


async def test_a_log_names_the_room_of_each_message_if_there_are_several(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        connect(tmp_path, server, "--room", "den", "--room", "ops", "--name", "alice") as alice,
        connect(tmp_path, server, "--room", "den") as bob,
    ):
        await alice.wait_for("in ops")
        await bob.wait_for("in den")
        await bob.type("hello\n")
        await alice.wait_for(r"[RX] den: [Client")
        await alice.type("/join den\nhi\n/leave\nto the others\n/leave den\n")
        await bob.wait_for("[RX] [alice] hi")
        await alice.wait_for("you have left den")
        await server.wait_for("[alice] to the others")
        assert "to the others" not in bob.out
        alice.signal(signal.SIGINT)
        assert await alice.wait() == 0


async def test_a_log_names_the_room_in_which_messages_may_be_missing(
    port: int, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path, port=port) as server,
        connect(tmp_path, server, "--room", "den", "--room", "ops") as alice,
    ):
        await alice.wait_for("in ops")
        async with multichat.connect(LOOPBACK, port, room="den") as bob:
            await bob.say("hello")
        await alice.wait_for("[RX] den: [Client")
        server.process.kill()
        async with serve(tmp_path, port=port):
            await alice.wait_for("[RX] den: [Server] messages that were said here meanwhile")


async def test_a_passphrase_goes_nowhere_but_to_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text(f"{PASSPHRASE}\n")
    async with serve(tmp_path) as server:
        argv = MULTICHAT, "connect", "--login", "alice", "192.0.2.1"
        async with Command(tmp_path, *argv, "--passphrase-file", str(secret)) as beyond:
            assert await beyond.wait() == 1
            assert beyond.err == (
                "multichat: passphrases are not sent to 192.0.2.1:9000 in plain text, where "
                "others can read them: use TLS (--tls)\n"
            )
        async with connect(tmp_path, server, "--name", "alice") as client:
            await client.type(f"/register {PASSPHRASE}\n")
            await client.wait_for("you are logged in as alice")
            assert PASSPHRASE not in client.out
            client.signal(signal.SIGINT)
            assert await client.wait() == 0
        async with connect(tmp_path, server, "--login", "alice") as client:
            assert await client.wait() == 2
            assert client.err == (
                "multichat: the passphrase of alice is missing: --passphrase-file or "
                "MULTICHAT_PASSPHRASE\n"
            )
        send = "send", "--name", "alice", LOOPBACK, str(server.port), "hello"
        async with Command(tmp_path, MULTICHAT, *send) as sender:
            assert await sender.wait() == 0
            assert "is registered; if it is yours, log in: --login alice; speaking as" in sender.err
        async with connect(tmp_path, server, "--name", "alice") as client:
            await client.wait_for("you are Client")
            assert "is registered; if it is yours, log in: /login alice PASSPHRASE" in client.out
            assert "when it is free" not in client.out  # it never is
            client.signal(signal.SIGINT)
            await client.wait()
        monkeypatch.setenv("MULTICHAT_PASSPHRASE", "something else")
        async with connect(tmp_path, server, "--login", "alice") as client:
            assert await client.wait() == 1
            assert "wrong" in client.err
            assert client.err.count("\n") == 1
        option = "--passphrase-file", str(secret)
        async with connect(tmp_path, server, "--login", "alice", *option) as client:
            await client.wait_for("you are alice in lobby")
            client.signal(signal.SIGINT)
            assert await client.wait() == 0
        words = "--listen", "--login", "alice", *option, LOOPBACK
        ours = MULTICHAT, "connect", "--json", *words, str(server.port)
        async with Command(tmp_path, *ours) as client:
            await client.wait_for('"account":"alice"')
            assert client.out.startswith('{"type":"welcome"')
        assert PASSPHRASE not in server.out + server.err
    # Another program at that port might show the line to everybody.
    listener = (await trio.open_tcp_listeners(0, host=LOOPBACK))[0]
    to_it = *words, str(listener.socket.getsockname()[1])
    for how in ("--json",), ():
        command = Command(tmp_path, MULTICHAT, "connect", *how, *to_it)
        async with command as client, await listener.accept() as foreign:
            heard = bytearray()
            while b"\n" not in heard:
                heard += await foreign.receive_some()
            await foreign.send_all(b"hello from elsewhere\n")
            client.signal(signal.SIGTERM)
            with suppress(trio.BrokenResourceError):
                async for data in foreign:
                    heard += data
            assert heard.startswith(f"{PROBE}\n".encode())
            assert PASSPHRASE.encode() not in heard
    await listener.aclose()
