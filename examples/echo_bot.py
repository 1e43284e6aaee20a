"""A bot that repeats what people say.

Run it against a server:    python examples/echo_bot.py 127.0.0.1 9000
What it leaves out: manners.
"""

import sys

import trio

import multichat

MARK = "echo: "


async def echo(chat: multichat.Chat) -> None:
    """Repeat every message, except those of other echo bots, which would loop endlessly."""
    async for event in chat:
        match event:
            case multichat.Said(text=text) if not text.startswith(MARK):
                await chat.say(MARK + text)


async def main(host: str, port: int) -> None:
    async with multichat.connect(host, port, name="echo") as chat:
        await echo(chat)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        trio.run(main, sys.argv[1], int(sys.argv[2]))
    except multichat.MultichatError as error:
        sys.exit(f"echo_bot: {error}")
    except KeyboardInterrupt:
        pass
