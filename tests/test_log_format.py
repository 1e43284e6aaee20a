"""The log as JSON, and a log without what people have written."""

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.log import Log, open_log
from multichat.log_format import JsonFormatter, LineFormatter, Lines, Messages, OneEvent
from multichat.protocol.framing import clean

pytestmark = pytest.mark.unit

MOMENT = 1736937045.1235
START = {"time": "2025-01-15T10:30:45.123Z", "level": "INFO", "component": "server"}
SECRET = "MARKER"


def record(message: object, name: str = "multichat.server") -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "", 0, message, (), None)
    made.created = MOMENT
    return made


def objects(message: object, name: str = "multichat.server") -> list[dict[str, object]]:
    formatter, made = JsonFormatter(), record(message, name)
    data = formatter.format_bytes(made)
    assert data == f"{formatter.format(made)}\n".encode()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data[:-1].split(b"\n")]


def written(tmp_path: Path, log: Log, level: int = logging.DEBUG) -> str:
    """What *log* writes as text and as JSON, of each kind of line, all about the marker."""
    found = ""
    for form in ("text", "json"):
        file = tmp_path / form
        with (
            Path(os.devnull).open("wb") as null,
            open_log(null.fileno(), level=level, json=form == "json", file=file),
        ):
            log.said("[Client 1]", f"{SECRET}\n{SECRET}", 2, fields={"client": 1})
            log.crash("a task crashed", crash())
            log.fault("a filter raised", crash())
            log.fault("authenticate raised", crash(), is_secret=True)
        found += file.read_text("utf-8")
        file.unlink()
    return found


def fail(error: Exception, cause: Exception | None = None) -> Exception:
    """Raise *error* and return it."""
    try:
        raise error from cause  # noqa: TRY301 - and so it has a place
    except Exception as caught:  # noqa: BLE001 - the same
        return caught


def crash() -> Exception:
    """Return an exception of several, chained and nested, which all have the marker."""
    inner = fail(ValueError(f"not {SECRET}"), fail(LookupError(SECRET)))
    nested = ExceptionGroup("x", [TypeError(SECRET)])
    return fail(ExceptionGroup(f"two of {SECRET}", [inner, nested]))


def test_each_message_is_an_object_with_its_known_fields() -> None:
    fields = {"event": "said", "client": 0, "name": "bob", "room": "", "act": False, "of": None}
    said = Messages("RX", "[bob]", 'a\n"b"\\\t', 2, fields)
    common = {**START, "tag": "RX", "event": "said", "client": 0, "name": "bob", "clients": 2}
    assert objects(said) == [{**common, "text": "a"}, {**common, "text": '"b"\\\t'}]


def test_a_message_that_is_not_logged_is_an_object_without_text() -> None:
    said = Messages("RX", "[bob]", "\n", 2, {"client": 1}, is_blank=True)
    assert objects(said) == [{**START, "tag": "RX", "client": 1, "clients": 2}] * 2
    lines = LineFormatter().format(record(said)).split("\n")
    sent = "[INFO] [server] [BROADCAST] Broadcasting to 2 clients"
    assert [line[24:] for line in lines] == ["[INFO] [server] [RX] [bob]", sent] * 2


def test_a_traceback_is_one_object() -> None:
    [trace] = objects(OneEvent("STATE", "a\nb"))
    assert trace == {**START, "tag": "STATE", "text": "a\nb"}


def test_other_records_are_objects_too() -> None:
    assert objects("[LOG] 3 lines\nskipped") == [{**START, "tag": "LOG", "text": "3 lines␊skipped"}]
    assert objects("plain") == [{**START, "tag": "STATE", "text": "plain"}]
    [trio] = objects("accept failed", "trio.serve_listeners")
    assert trio == {**START, "tag": "STATE", "text": "accept failed"}


texts = st.text().map(clean)


@given(st.lists(texts, min_size=1), st.dictionaries(st.sampled_from("abc"), st.text()))
def test_any_batch_is_one_object_for_each_line(lines: list[str], fields: dict[str, str]) -> None:
    known = {name: clean(value) for name, value in fields.items() if value}
    shown = objects(Lines("RX", "\n".join(lines), fields))
    assert shown == [{**START, "tag": "RX", **known, "text": line} for line in lines]


def test_the_writers_own_notices_have_the_format_of_the_log(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    file = tmp_path / "log"
    with full.open("wb") as out, open_log(out.fileno(), json=True, file=file) as writer:
        Log("server").line("STATE", "lost")
        writer.wait_below(0)
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [each["tag"] for each in lines] == ["STATE", "LOG"]
    assert lines[1]["text"].startswith("standard output cannot be written to: no space")
    assert (lines[1]["level"], lines[1]["component"]) == ("WARNING", "server")


def test_without_messages_a_fault_shows_where_it_was_and_not_what(tmp_path: Path) -> None:
    assert written(tmp_path, Log("server")).count(SECRET) > 10
    found = written(tmp_path, Log("server", hides_messages=True))
    assert SECRET not in found
    kinds = "ExceptionGroup of ValueError, ExceptionGroup of TypeError"
    assert f"[ERROR] [server] [STATE] a task crashed: {kinds}\n" in found
    assert f'"text":"a task crashed: {kinds}"' in found
    assert "[DEBUG] [server] [STATE] ExceptionGroup, in\n" in found
    assert "[STATE] while handling: LookupError, in\n" in found
    assert "[STATE] one of them: ValueError, in\n" in found
    assert "authenticate raised ExceptionGroup, in" in found
    assert ", in fail" in found
