"""A chat server on the broadcast of `websockets`: `python websockets_chat.py PORT`."""

import asyncio
import itertools
import logging
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

clients: dict[int, ServerConnection] = {}
numbers = itertools.count(1)
log = logging.getLogger("chat")


async def chat(connection: ServerConnection) -> None:
    number = next(numbers)
    clients[number] = connection
    log.info("[STATE] Client %d connected", number)
    await connection.send(f"You are Client {number}")
    try:
        async for text in connection:
            log.info("[RX] [Client %d] %s", number, text)
            others = [other for client, other in clients.items() if client != number]
            log.info("[BROADCAST] Broadcasting to %d clients", len(clients))
            broadcast(others, f"[Client {number}] {text!s}")
    except ConnectionClosed:
        pass
    finally:
        del clients[number]
        log.info("[STATE] Client %d disconnected", number)


async def main() -> None:
    port = int(sys.argv[1])
    # Without compression: it is what multichat leaves out, too.
    async with serve(chat, "127.0.0.1", port, compression=None, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s [%(levelname)s] %(message)s", level=logging.INFO)
    asyncio.run(main())
