"""Input, requests and events, taken apart."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, get_args

import msgspec

from multichat.protocol.messages import Request, Say, SayBlock

__all__ = ["cut", "one_by_one", "strings_in"]


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return *data* in pieces, cut at those places, which may be anywhere."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def one_by_one(requests: Iterable[Request]) -> list[Request]:
    """Return the same requests with each `SayBlock` split into messages."""
    apart: list[Request] = []
    for request in requests:
        assert isinstance(request, get_args(Request)), f"{request} is no request"
        assert not isinstance(request, Say), "a message is part of a block"
        if isinstance(request, SayBlock):
            texts = request.text.split("\n")
            nonces = request.nonces or (None,) * len(texts)
            apart += [
                Say(text, request.room, nonce=n) for text, n in zip(texts, nonces, strict=True)
            ]
        else:
            apart.append(request)
    return apart


def strings_in(value: Any) -> Iterator[str]:
    """Yield all strings in requests, events or JSON values, whatever their fields are called."""
    if isinstance(value, SayBlock):
        yield from value.text.split("\n")
        yield from strings_in(value.nonces)
    elif isinstance(value, msgspec.Struct):
        yield from strings_in(msgspec.structs.astuple(value))
    elif isinstance(value, dict):
        yield from strings_in([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, str):
        yield value
