"""The fuzz targets on their corpus, the mutation engine, and the command."""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from multichat.client.negotiation import Negotiation
from multichat.protocol.framing import LineDecoder
from multichat.protocol.messages import Welcome
from tests.fuzz import reference
from tests.fuzz.__main__ import main
from tests.fuzz.campaign import CORPUS, failure_of, fuzz_plainly, read_corpus
from tests.fuzz.mutation import MAX_INPUT_BYTES, mutants, shrunk
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.unit

SEED = 20250115


def failures(name: str) -> dict[str, Exception]:
    """Return the failures of a target on its corpus, by file name."""
    tried = {
        file: failure_of(TARGETS[name], data) for file, data in read_corpus(CORPUS / name).items()
    }
    return {file: error for file, error in tried.items() if error is not None}


# --- The corpus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_in_the_corpus_fails(name: str) -> None:
    assert failures(name) == {}


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        assert len(read_corpus(CORPUS / name)) >= 15, name


def test_the_corpus_is_small() -> None:
    sizes = {path: path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= MAX_INPUT_BYTES
    assert sum(sizes.values()) < 200_000


def as_it_came(text: str) -> str:
    return text


SWALLOWS_LF = re.compile(
    rb"\xff(?:[\xf0-\xf9\xff]|[\xfb-\xfe][\x00-\xff]?|\xfa[^\xff]*(?:\xff\xf0)?)"
)
NO_TELNET = re.compile(rb"(?!)")
NEVER = re.compile("(?!)")


@pytest.mark.parametrize(
    ("name", "broken", "replacement", "found_by"),
    [
        ("framing", "multichat.protocol.framing.clean_lines", as_it_came, "csi-c1"),
        ("framing", "multichat.protocol.telnet._COMMAND", SWALLOWS_LF, "telnet-option-cut-by-lf"),
        ("framing", "multichat.protocol.telnet._COMMAND", NO_TELNET, "telnet-ctrl-c"),
        ("framing", "multichat.protocol.framing._EMPTY_LINE", NEVER, "empty-lines-between"),
        ("conversation", "multichat.protocol.framing.clean_lines", as_it_came, "ansi"),
        ("conversation", "multichat.protocol.json_lines.clean", as_it_came, "json-escaped-lf"),
        ("json-requests", "multichat.protocol.json_lines.clean", as_it_came, "json-escaped-lf"),
        ("json-requests", "multichat.protocol.json_lines._ESCAPED", NEVER, "json-escaped-controls"),
        ("json-events", "multichat.protocol.json_lines.clean", as_it_came, "json-escaped-names"),
        (
            "text-requests",
            "multichat.protocol.commands.shortened",
            as_it_came,
            "command-unknown-long",
        ),
        (
            "text-events",
            "multichat.protocol.text_codec._ACTED",
            re.compile(r"\* (\S+) ?(.*)"),
            "said-by-nobody",
        ),
        ("names", "multichat.protocol.names._mistaken_for", lambda name: "", "server-long-s"),
        ("names", "multichat.protocol.names._ADDRESS", NEVER, "address-hexadecimal"),
        ("names", "multichat.protocol.names.readings", lambda name: (name,), "client-capital-i"),
        ("names", "multichat.protocol.names.may_mix", lambda text: True, "mixed-greek"),
    ],
)
def test_the_corpus_finds_broken_code(
    name: str, broken: str, replacement: Any, found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, replacement)
    assert found_by in failures(name)


def test_a_decoder_that_buffers_an_endless_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineDecoder, "_too_long", lambda self, length, ends_with_cr: False)
    assert "over-long-unended" in failures("framing")


def test_a_handshake_that_mistakes_chat_for_an_answer_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forget(self: Negotiation, welcome: Welcome) -> None:  # instead of dropping the chat
        self.welcome, self.settled = welcome, True

    monkeypatch.setattr(Negotiation, "_be_welcomed", forget)
    assert "welcome-behind-chat" in failures("handshake")


# --- The reference --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\r\n\r\ntwo\r\r\n", ["one", "two␍"]),
        (b"\xff\xfa\x18\xff\xff\xf0\xff\xf0a\xff\xf4\xff\xfb\nb\xff", ["a", "b�"]),
        (b"\xff\xfa never ended\nnext", ["next"]),
        ("\x1b\x7f\x85\u2028\u202e\tx".encode(), ["␛␡� \tx"]),
        (b"x" * 17 + b"\n" + b"y" * 16 + b"\r", [reference.TOO_LONG, "y" * 16]),
    ],
)
def test_the_reference_decoder_follows_the_rules(data: bytes, lines: list[str | None]) -> None:
    assert reference.lines_of(data, 16) == lines


# --- The mutation engine --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_mutations_of_the_corpus_find_nothing(name: str) -> None:
    report = fuzz_plainly(name, CORPUS / name, seconds=60, random=Random(SEED), max_executions=300)
    assert report.failure is None
    assert report.executions == 300


def test_the_same_seed_makes_the_same_inputs_within_the_bound() -> None:
    def some() -> list[bytes]:
        return list(islice(mutants([b"x" * MAX_INPUT_BYTES, b"ab"], [b"word"], Random(SEED)), 200))

    inputs = some()
    assert inputs == some()
    assert len(set(inputs)) > 100
    assert max(map(len, inputs)) == MAX_INPUT_BYTES
    assert any(b"word" in data for data in inputs)


def test_without_a_corpus_words_are_enough_to_begin_with() -> None:
    inputs = islice(mutants([], [b"word"], Random(SEED)), 20)
    assert any(b"word" in data for data in inputs)


def test_failing_inputs_are_minimized() -> None:
    assert shrunk(b"aaaaXbbbbbbbYcc", lambda data: b"X" in data and b"Y" in data) == b"XY"


def fails_on_x(data: bytes) -> None:
    if b"X" in data:
        raise AssertionError("there is an X")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make a target fail on an X; yields a function that ends this."""
    target = Target(fails_on_x, (b"X",))
    monkeypatch.setitem(TARGETS, "names", target)
    return monkeypatch.undo


def test_an_input_that_never_ends_is_a_failure_and_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[bytes] = []
    monkeypatch.setitem(TARGETS, "names", Target(tried.append, (b"X",)))
    report = fuzz_plainly(
        "names", CORPUS / "names", seconds=60, random=Random(SEED), slow_seconds=0
    )
    assert report.failure is not None
    assert re.fullmatch(r"TookTooLong: \d+ bytes took 0\.0 s", report.failure.why)
    assert tried == [report.failure.data]


# --- The command ----------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plain", "--seconds", "0", "--seed", "1"]) == 0
    engine, *summaries = capsys.readouterr().out.splitlines()
    assert engine == "plain mutations (no atheris), seed 1"
    for name, summary in zip(TARGETS, summaries, strict=True):
        assert re.fullmatch(rf"{name}: \d+ executions in \d+\.\d s, \d+ in the corpus", summary)


def test_a_failure_is_shown_stored_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: Callable[[], None]
) -> None:
    crashes = tmp_path / "crashes"
    arguments = ["--plain", "--target", "names", "--crashes", str(crashes)]
    arguments += ["--seconds", "60", "--corpus", str(tmp_path)]
    assert main(arguments, repeats=lambda name, path: True) == 1
    _, summary, why, shown, again = capsys.readouterr().out.splitlines()
    assert summary.endswith(", FAILED")
    assert why == "AssertionError: there is an X"
    assert shown == "input: b'X'"
    [path] = crashes.glob("names-*")
    assert path.read_bytes() == b"X"
    assert again == f"replay it: python -m tests.fuzz --target names --replay {path}"
    assert (crashes / ".gitignore").read_text() == "*\n"

    replay = again.removeprefix("replay it: python -m tests.fuzz ").split(" ")
    assert main(replay) == 1
    assert "AssertionError: there is an X" in capsys.readouterr().err
    failing()
    assert main(replay) == 0
    assert capsys.readouterr().out == f"names: {path} is fine\n"


@pytest.mark.process
def test_a_failure_that_does_not_repeat_in_a_new_process_is_reported_and_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: Callable[[], None]
) -> None:
    """The process that replays the input has the unmodified target."""
    arguments = ["--plain", "--target", "names", "--crashes", str(tmp_path / "crashes")]
    assert main([*arguments, "--seconds", "60", "--corpus", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "AssertionError: there is an X" in out
    assert "replay it: python -m tests.fuzz --target names --replay " in out
    assert "did not fail again" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "nothing"], "invalid choice"),
        (["--replay", "x"], "--replay needs --target"),
        (["--keep", "--plain"], "--keep needs atheris"),
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err
