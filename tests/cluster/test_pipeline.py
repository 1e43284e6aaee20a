"""Replies belong to requests in their order; subscriptions are answered by pushes."""

import pytest

from multichat.cluster.errors import BadReply, EngineRefused
from multichat.cluster.pipeline import Answer, Message, Pipeline

pytestmark = pytest.mark.unit

SUBSCRIBED = b">3\r\n$9\r\nsubscribe\r\n$1\r\n%s\r\n:1\r\n"
MESSAGE = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"


def test_replies_are_for_the_oldest_request_and_messages_for_none() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("first")
    pipeline.add("second")
    assert list(pipeline.receive(b":1\r\n" + MESSAGE + b"-ERR no\r\n"))[:2] == [
        Answer("first", 1),
        Message(b"a", b"hi"),
    ]
    assert len(pipeline) == 0
    assert pipeline.oldest is None


def test_a_subscription_is_answered_by_its_last_confirmation() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("two channels", 2)
    pipeline.add("after")
    assert list(pipeline.receive(SUBSCRIBED % b"a" + MESSAGE)) == [Message(b"a", b"hi")]
    assert pipeline.oldest == "two channels"
    assert list(pipeline.receive(SUBSCRIBED % b"b" + b"+OK\r\n")) == [
        Answer("two channels", None),
        Answer("after", b"OK"),
    ]


def test_a_refused_subscription_is_answered_by_the_error() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("subscription", 2)
    pipeline.add("after")
    refused, after = pipeline.receive(b"-NOPERM no access\r\n+OK\r\n")
    assert isinstance(refused, Answer)
    assert isinstance(refused.reply, EngineRefused)
    assert refused.reply.code == "NOPERM"
    assert after == Answer("after", b"OK")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b":1\r\n", "a reply to no request"),
        (b"-ERR max number of clients reached\r\n", "max number of clients reached"),
        (SUBSCRIBED % b"a", "changed a subscription by itself"),
        (b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n", "changed a subscription"),
        (b">2\r\n$7\r\nmessage\r\n$1\r\na\r\n", "invalid message"),
        (b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n", "invalid message"),
    ],
)
def test_an_answer_without_a_request_is_an_error(data: bytes, reason: str) -> None:
    with pytest.raises(BadReply, match=reason):
        list(Pipeline[str]().receive(data))


def test_a_reply_to_a_subscription_is_an_error() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("subscription", 1)
    with pytest.raises(BadReply, match="replies to a subscription"):
        list(pipeline.receive(b"+OK\r\n"))
    assert pipeline.end() == ["subscription"]  # its caller does not wait forever


def test_other_pushes_are_ignored() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("first")
    assert list(pipeline.receive(b">2\r\n$10\r\ninvalidate\r\n_\r\n:1\r\n")) == [Answer("first", 1)]


def test_at_the_end_the_requests_in_flight_are_left() -> None:
    pipeline = Pipeline[str]()
    pipeline.add("first")
    pipeline.add("second", 1)
    assert pipeline.end() == ["first", "second"]
    assert len(pipeline) == 0
