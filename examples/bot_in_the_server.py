"""A chat server with a bot in one of its tasks: a greeter, which welcomes clients that join.

Run it:         python examples/bot_in_the_server.py 9000
then join it:   nc 127.0.0.1 9000
What it leaves out: signals (Ctrl+C cancels it), and a log (add a handler to "multichat"), in which
the crash of a bot is reported.
"""

import sys

import trio

import multichat


async def greet(chat: multichat.Chat) -> None:
    """Welcome clients that join; many joins at once are reported as a number."""
    async for event in chat:
        match event:
            case multichat.Joined(name=name):
                await chat.say(f"welcome, {name}!")
            case multichat.Presence(joined=joined) if joined:
                await chat.say(f"welcome, all {joined} of you!")


async def main(port: int) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, port)
        await server.start_bot(greet, name="greeter")
        print("listening on", ", ".join(server.addresses), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    trouble = None
    try:
        trio.run(main, int(sys.argv[1]))
    except* multichat.MultichatError as group:  # what leaves a nursery is a group
        trouble = f"bot_in_the_server: {group.exceptions[0]}"
    except* KeyboardInterrupt:
        pass
    sys.exit(trouble)
