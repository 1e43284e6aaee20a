"""A bridge between two servers: relays messages with their senders' names in both directions.

Run it between two servers:    python examples/bridge.py 127.0.0.1 9000 127.0.0.1 9001
What it leaves out: other rooms than the lobby, joins and leaves, private messages, and more than
two servers: each can have only one bridge, because the name is taken.
"""

import sys

import trio

import multichat

# The name is unique, so no server has a second bridge that could send messages back in a loop.  The
# server does not send a client its own messages.
NAME = "bridge"

# A line of this many characters is below the server's limit of 64 KiB in any encoding.
MAX_CHARACTERS = 15_000


async def carry(here: multichat.Chat, there: multichat.Chat, bridge: trio.CancelScope) -> None:
    """Relay messages from one side to the other until the source ends."""
    async for event in here:
        match event:
            case multichat.Said(name=name, text=text, act=act):
                who = f"* {name}" if act else f"<{name}>"
                await there.say(f"{who} {text[:MAX_CHARACTERS]}")
    bridge.cancel(reason="one side has ended")


async def main(here: str, port: int, there: str, other_port: int) -> None:
    async with (
        multichat.connect(here, port, name=NAME) as one,
        multichat.connect(there, other_port, name=NAME) as other,
        trio.open_nursery() as nursery,
    ):
        if not (one.name == other.name == NAME):
            sys.exit("bridge: a server that grants no names could have two bridges")
        nursery.start_soon(carry, one, other, nursery.cancel_scope)
        nursery.start_soon(carry, other, one, nursery.cancel_scope)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    here, port, there, other_port = sys.argv[1:]
    trouble = None
    try:
        trio.run(main, here, int(port), there, int(other_port))
    except* multichat.MultichatError as group:  # both sides may fail at once
        trouble = f"bridge: {group.exceptions[0]}"
    except* KeyboardInterrupt:
        pass
    sys.exit(trouble)
