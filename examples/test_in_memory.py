"""How to test a program that chats: in process, over memory streams, with no port and no waiting.

Run it:    pytest examples/test_in_memory.py
What it leaves out: a test that the program survives a slow room; `join(lockstep=True)` is a
client that takes nothing until it is asked to.
"""

import trio
import trio.testing
from echo_bot import echo

import multichat
from multichat.testing import memory_server


async def test_the_bot_repeats_what_people_say() -> None:
    async with memory_server() as network, trio.open_nursery() as nursery:
        person = await network.join()
        bots_end, servers_end = trio.testing.memory_stream_pair()
        network.accept(servers_end)
        async with multichat.open_chat(bots_end) as chat:
            nursery.start_soon(echo, chat)
            await trio.testing.wait_all_tasks_blocked()
            await person.send("hello", "echo: hello")
            await person.send("bye")
            assert await person.lines(2) == ["[Client 2] echo: hello", "[Client 2] echo: bye"]
            nursery.cancel_scope.cancel()
