"""The admin socket: any lines are requests or refused, and any answer is shown or refused."""

from contextlib import suppress

import msgspec

from multichat.errors import InvalidRequest
from multichat.protocol.commands import ADMIN_COMMANDS
from multichat.protocol.control import (
    ControlAnswer,
    ControlRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from multichat.protocol.framing import clean
from multichat.terminal.admin_answers import format_answer
from tests.fuzz.targets.checks import assert_harmless, assert_same, block_of, from_deeper
from tests.support.messages import strings_in

__all__ = ["check_control"]


def check_control(data: bytes) -> None:
    """Check each line as a request that a server gets, and as an answer that `ctl` gets."""
    for line in block_of(data).split("\n"):
        _check_request(line)
        _check_answer(line)
    # As `ctl` reads it: without the filter of a connection.
    _check_answer(data.decode("utf-8", "replace"))


def _check_request(line: str) -> None:
    request = _request(line)
    assert_same(from_deeper(lambda: _request(line)), request, "at any depth of the stack")
    if request is not None:
        for text in (request.command, request.arguments):
            assert_harmless(text)
        encoded = encode_request(request)
        assert encoded.count(b"\n") == 1
        assert_same(decode_request(encoded.decode()[:-1]), request, "encoded and decoded again")


def _request(line: str) -> ControlRequest | None:
    try:
        return decode_request(line)
    except InvalidRequest as error:
        assert_harmless(str(error))
        return None


def _check_answer(line: str) -> None:
    try:
        answer = decode_answer(line)
    except InvalidRequest as error:
        assert_harmless(str(error))
        return
    for text in strings_in(msgspec.to_builtins(answer)):
        assert_harmless(text)
    _check_encoded_again(answer)
    for command in ADMIN_COMMANDS:
        for columns in (None, 40):
            with suppress(msgspec.ValidationError):
                for shown in format_answer(
                    command.name, answer.lines, answer.result, columns=columns
                ):
                    assert_harmless(clean(shown))


def _check_encoded_again(answer: ControlAnswer) -> None:
    encoded = encode_answer(answer)
    assert encoded.count(b"\n") == 1
    # A number that is too large for a double is null.
    assert_same(encode_answer(decode_answer(encoded.decode()[:-1])), encoded, "encoded again")
