"""A chat server inside another program, which here counts seconds.

Run it:         python examples/server_in_a_nursery.py 9000 60
then join it:   nc 127.0.0.1 9000
What it leaves out: signals (Ctrl+C cancels it), and a log (add a handler to "multichat").
"""

import sys

import trio

import multichat


async def count_seconds(server: multichat.Server, seconds: int) -> None:
    """Do the program's work, and report it in the chat."""
    for second in range(1, seconds + 1):
        await trio.sleep(1)
        receipt = await server.broadcast(f"{second} seconds")
        print(f"told {receipt.delivered + receipt.queued} clients: {second} seconds", flush=True)


async def main(port: int, seconds: int) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, port)
        print("listening on", ", ".join(server.addresses), flush=True)
        await count_seconds(server, seconds)
        server.shutdown()  # says goodbye to everyone; the nursery waits for that


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    trouble = None
    try:
        trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
    except* multichat.MultichatError as group:  # what leaves a nursery is a group
        trouble = f"server_in_a_nursery: {group.exceptions[0]}"
    except* KeyboardInterrupt:
        pass
    sys.exit(trouble)
