"""Sessions as the engine keeps them for the nodes: what a node stores of one, and reads."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from multichat.cluster.errors import reading_answer
from multichat.journal.base import SavedNonce, SavedSession, SessionRecord
from multichat.protocol.fields import Name, Nonce

__all__ = ["pack_session", "read_session"]


class _Session(msgspec.Struct, frozen=True):
    """What the engine keeps of a session for the nodes."""

    name: Name
    rooms: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    login: Name


_decode_session = msgspec.json.Decoder(_Session).decode
_decode_nonce: msgspec.json.Decoder[Nonce] = msgspec.json.Decoder(Nonce)


def pack_session(record: SessionRecord) -> str:
    """Return what the engine keeps of *record* for the nodes."""
    session = _Session(record.name, record.rooms, record.login)
    return msgspec.json.encode(session).decode()


@reading_answer()
def read_session(digest: bytes, found: Sequence[Any]) -> SavedSession:
    """Return the session of that *digest* from the answer that *found* it; raises `NotOurs`."""
    client, generation, text, nonces, *age = found
    session = _decode_session(text)
    pairs = zip(nonces[::2], nonces[1::2], strict=True)
    return SavedSession(
        record=SessionRecord(
            digest=digest,
            client=client,
            name=session.name,
            rooms=session.rooms,
            login=session.login,
            generation=generation,
        ),
        age_seconds=age[0] / 1000 if age else 0.0,
        nonces=[saved for pair in pairs if (saved := _nonce(*pair)) is not None],
    )


def _nonce(nonce: str, value: str) -> SavedNonce | None:
    check, epoch, number, room = value.split(" ", 3)
    if epoch == "-" and number != "0":
        return None  # a private message of unknown fate: the engine is asked if it is sent again
    return SavedNonce(
        _decode_nonce.decode(nonce),
        "" if epoch == "-" else epoch,
        int(number),
        room,
        b"" if check == "-" else bytes.fromhex(check),
    )
