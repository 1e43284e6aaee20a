"""A bridge between two servers: what is said on the one is said on the other, names and all.

Run it between two servers:    python examples/bridge.py 127.0.0.1 9000 127.0.0.1 9001
What it leaves out: rooms but the lobby, who comes and goes, private messages, and more than two
servers: each has one bridge, as a second finds the name taken.
"""

import sys

import trio

import multichat

# Nobody else can have it: so no server has a second bridge, and what one says never comes back by
# way of another.  Its own words the server does not send it.
NAME = "bridge"

# However a line of so many characters is spelled, a server takes it: 64 KiB is its limit.
MAX_CHARACTERS = 15_000


async def carry(here: multichat.Chat, there: multichat.Chat, bridge: trio.CancelScope) -> None:
    """Say there what is said here; when this side ends, the bridge does."""
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
    except* multichat.MultichatError as group:  # of both sides, if both went at once
        trouble = f"bridge: {group.exceptions[0]}"
    except* KeyboardInterrupt:
        pass
    sys.exit(trouble)
