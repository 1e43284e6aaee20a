"""The handshake: a connection until its protocol is settled, as a script."""

from multichat.client.negotiation import Negotiation, make_hello
from multichat.protocol.json_codec import JSON
from tests.fuzz.targets.checks import assert_harmless, assert_same, block_of
from tests.support.messages import strings_in

__all__ = ["check_handshake"]

# More lines and characters than a script has.
_MOST_CHAT = 25_000


def _state(shake: Negotiation) -> dict[str, object]:
    """Return the state of a handshake, with errors as text, so that states can be compared."""
    return {**vars(shake), "failure": repr(shake.failure)}


def check_handshake(data: bytes) -> None:
    """Check that a handshake treats a block of lines like each line alone.

    The first line of a script is the mode: `=name room` requests these, `~` is plain text, `!` is a
    server that is known to speak JSON.  The other lines are from the server; `|` ends a read.
    """
    first, _, rest = block_of(data).partition("\n")
    name, _, room = first[1:].partition(" ") if first.startswith("=") else ("", "", "")
    hello = make_hello(name or None, room or None)
    shake, twin = (
        Negotiation(hello, plain=first == "~", knows_json=first == "!") for _ in range(2)
    )
    was_settled = shake.settled
    for read in rest.split("\n|\n"):
        block = "\n".join(line for line in read.split("\n") if line)
        if not block:
            continue
        told = shake.receive(block)
        alone = [event for line in block.split("\n") for event in twin.receive(line)]
        assert_same(told, alone, "a run tells what its lines tell")
        assert_same(_state(shake), _state(twin), "a run leaves behind what its lines do")
        for event in told:
            for text in strings_in(event):
                assert_harmless(text)
        assert (shake.codec is JSON) == (shake.welcome is not None), "a welcome, and JSON"
        assert shake.settled or not was_settled, "what is settled stays settled"
        assert not (shake.chatting and shake.settled), "chat is told or dropped once it is settled"
        assert len(shake._chat) <= _MOST_CHAT, "what is kept is bounded"
        was_settled = shake.settled
