"""What the errors of an engine mean: for its operator, and for clients."""

import pytest

from multichat.cluster.errors import EngineRefused, NotOurs
from multichat.cluster.handshake import judge_error

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("line", "said", "told"),
    [
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            "the engine's memory is full: raise its maxmemory, or keep less with --keep-mib",
            "the engine of the cluster is full",
        ),
        (
            "MISCONF Errors writing to the AOF file: No space left on device",
            "the engine cannot write to its disk: see its log",
            "the engine of the cluster cannot store anything",
        ),
        (
            "NOREPLICAS Not enough good replicas to write.",
            "the engine's connected replicas are too few: see its min-replicas-to-write",
            "the engine of the cluster cannot store anything",
        ),
        (
            "BUSY Redis is busy running a script.",
            "the engine is busy with a script or a function: see FUNCTION STATS there",
            "the engine of the cluster does not keep up",
        ),
        (
            "NOPERM User me may not run the 'fcall' command",
            "the engine's user lacks a right: User me may not run the 'fcall' command",
            "the engine of the cluster refuses it",
        ),
        (
            "ERR The user executing the script can't access a key",
            "the engine's user lacks a right: The user executing the script can't access a key",
            "the engine of the cluster refuses it",
        ),
        (
            "WRONGTYPE Operation against a key",
            "the engine says: WRONGTYPE Operation against a key",
            "the engine of the cluster refuses it",
        ),
    ],
)
def test_an_operator_gets_advice_and_a_client_no_words_of_the_engine(
    line: str, said: str, told: str
) -> None:
    error = EngineRefused.parse(line)
    assert str(error) == said
    assert error.meaning.told == told
    # In a line that begins with the engine's address.
    assert judge_error(error).reason.startswith(("it ", "its "))


def test_an_answer_that_is_not_ours_is_not_an_error_of_the_engine() -> None:
    error = NotOurs("no list\x1b[31m")
    assert str(error) == "the engine's answer is not ours: no list␛[31m"
    assert not error.is_known
