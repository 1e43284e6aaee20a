"""A bot that rolls dice, for the room or in private.

Run it against a server:    python examples/dice.py 127.0.0.1 9000
then roll for all:          !roll 2d6
or in private:              /msg dice 2d6
What it leaves out: sums such as 2d6+1, verifiable randomness, and concurrency: while a private
answer waits for a slow client, for at most the server's slow timeout, other requests wait.
"""

import random
import re
import sys
from contextlib import suppress

import trio

import multichat

COMMAND = "!roll"
DICE = re.compile(r"([0-9]{0,3})d([0-9]{1,4})", re.IGNORECASE)

# A hundred results of three digits still fit on a screen.
MAX_DICE, MAX_SIDES = 100, 1000
USAGE = f"2d6 is two dice of six sides: up to {MAX_DICE} of up to {MAX_SIDES}"


def roll(wish: str) -> str | None:
    """Roll the requested dice and return the text of the result; None for an invalid request."""
    wished = DICE.fullmatch(wish.strip())
    if not wished:
        return None
    dice, sides = int(wished[1] or 1), int(wished[2])
    if not (1 <= dice <= MAX_DICE and 1 <= sides <= MAX_SIDES):
        return None
    shown = [random.randint(1, sides) for _ in range(dice)]  # noqa: S311 - a game, not a secret
    total = f" = {sum(shown)}" if dice > 1 else ""
    return f"{dice}d{sides}: {' + '.join(map(str, shown))}{total}"


async def dice(chat: multichat.Chat) -> None:
    """Answer requests; invalid ones are answered in private."""
    async for event in chat:
        match event:
            case multichat.Said(name=name, client=client, text=text) if text.startswith(COMMAND):
                if rolled := roll(text.removeprefix(COMMAND)):
                    await chat.say(f"{name} rolls {rolled}")
                else:
                    await answer(chat, client, USAGE)
            case multichat.Directed(client=client, text=text):
                await answer(chat, client, roll(text.removeprefix(COMMAND)) or USAGE)


async def answer(chat: multichat.Chat, client: int, text: str) -> None:
    with suppress(multichat.Refused):  # the client has left, or is too slow
        await chat.direct(client, text)


async def main(host: str, port: int) -> None:
    async with multichat.connect(host, port, name="dice") as chat:
        await dice(chat)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        trio.run(main, sys.argv[1], int(sys.argv[2]))
    except multichat.MultichatError as error:
        sys.exit(f"dice: {error}")
    except KeyboardInterrupt:
        pass
