"""A chat server like in a good tutorial on asyncio streams: `python asyncio_chat.py PORT`."""

import asyncio
import itertools
import logging
import sys

clients: dict[int, asyncio.StreamWriter] = {}
numbers = itertools.count(1)
log = logging.getLogger("chat")


async def broadcast(sender: int, text: bytes) -> None:
    line = b"[Client %d] %b" % (sender, text)
    others = [writer for number, writer in clients.items() if number != sender]
    log.info("[BROADCAST] Broadcasting to %d clients", len(clients))
    for writer in others:
        writer.write(line)
    await asyncio.gather(*(writer.drain() for writer in others), return_exceptions=True)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = next(numbers)
    clients[number] = writer
    log.info("[STATE] Client %d connected", number)
    writer.write(b"You are Client %d\n" % number)
    try:
        while line := await reader.readline():
            log.info("[RX] [Client %d] %s", number, line.decode("utf-8", "replace").rstrip())
            await broadcast(number, line)
    except (ConnectionError, ValueError):  # the connection broke, or the line was too long
        pass
    finally:
        del clients[number]
        writer.close()
        log.info("[STATE] Client %d disconnected", number)


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s [%(levelname)s] %(message)s", level=logging.INFO)
    asyncio.run(main())
