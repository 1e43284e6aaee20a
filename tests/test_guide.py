"""Each section of the operator's guide has tests, or says that the tests do not run it."""

import re
from pathlib import Path

import pytest

from multichat.journal.sqlite.journal import SqliteJournal

from .support.journals import encode, running, wait_stored

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"

# What a section says that is not run has this word in its sentence.
NOT_RUN = re.compile(r"[^\n]*\btests\b[^\n]*\b(?:do not|no|but)\b[^\n]*")

SERVICE = "test_service"

# For each section its tests; a section that only leads to others has none.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "service.md": {
        "Install it": (
            f"{SERVICE}::test_the_service_runs_with_nothing_that_it_does_not_need",
            f"{SERVICE}::test_the_owner_of_a_secret_is_the_service_alone",
            f"{SERVICE}::test_sockets_outlive_the_server",
            f"{SERVICE}::test_the_port_is_changed_without_touching_the_units",
        ),
        "Look at it, and give it commands": (
            f"{SERVICE}::test_an_operator_sees_what_the_service_does",
        ),
        "What the service may do": (
            f"{SERVICE}::test_the_service_runs_with_nothing_that_it_does_not_need",
            f"{SERVICE}::test_a_server_that_was_killed_is_started_again_with_what_it_had",
            f"{SERVICE}::test_a_server_that_hangs_is_started_again",
            f"{SERVICE}::test_systemctl_returns_when_clients_can_connect",
            f"{SERVICE}::test_a_mistake_in_the_settings_is_one_line_and_no_loop",
            "test_units::test_systemd_finds_little_that_the_service_could_do_to_the_machine",
            "test_units::test_the_service_may_have_the_memory_and_files_that_the_server_takes",
        ),
        "TLS, and its renewal": (
            f"{SERVICE}::test_a_renewed_certificate_is_served_without_disconnecting_anybody",
        ),
        "Change something while it runs": (
            f"{SERVICE}::test_a_renewed_certificate_is_served_without_disconnecting_anybody",
            f"{SERVICE}::test_logrotate_takes_no_line_from_the_log",
        ),
        "The log": (f"{SERVICE}::test_logrotate_takes_no_line_from_the_log",),
        "Restart it": (
            f"{SERVICE}::test_a_restart_ends_and_begins_in_order",
            "test_operation::test_nobody_notices_what_an_operator_does",
            "test_operation::test_nobody_notices_what_an_operator_does_under_systemd",
            "server/test_authentication::test_a_new_password_locks_nobody_out_who_has_a_session",
            f"{SERVICE}::test_a_drain_may_take_longer_than_systemd_would_wait",
            "test_units::test_the_service_may_stop_for_as_long_as_the_server_takes",
        ),
        "Back up and restore": (
            f"{SERVICE}::test_a_backup_is_restored_as_the_guide_says",
            "journal/test_restore::test_after_a_restore_lost_ids_are_unknown_and_older_ones_still_resume",
            "journal/test_restore::test_a_terminal_client_reports_possible_loss_after_a_restore",
            "journal/test_restore::test_what_a_backup_lacks_is_as_if_it_had_never_been",
        ),
        "Upgrade, and go back": (
            "journal/test_sqlite::test_an_older_file_is_migrated_step_by_step",
            "journal/test_sqlite::test_a_newer_journal_is_refused",
        ),
        "In a container": (
            "cluster/test_deploy::test_every_service_is_known_here",
            "cluster/test_deploy::test_the_check_of_health_of_the_image_fails_when_the_event_loop_stands_still",
        ),
    },
    "troubleshooting.md": dict.fromkeys(
        (
            "The server does not start",
            "Nobody can connect, or some cannot",
            "In the chat",
            "The log says",
            "Systemd says",
        ),
        ("test_troubleshooting::test_each_quoted_text_is_one_of_the_programs",),
    ),
}


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text_of(page), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("page", SECTIONS)
def test_every_section_has_its_tests(page: str) -> None:
    assert list(sections(page)) == list(SECTIONS[page])


@pytest.mark.parametrize("page", SECTIONS)
def test_the_tests_of_each_section_exist(page: str) -> None:
    for named in {each for tests in SECTIONS[page].values() for each in tests}:
        module, _, name = named.partition("::")
        source = (TESTS / f"{module}.py").read_text("utf-8")
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), named


def test_commands_are_run_or_said_to_be_not() -> None:
    """Each block of commands of the guide is one that a test runs, or its section says so."""
    used = (TESTS / "test_service.py").read_text("utf-8")
    used += (TESTS / "support" / "services.py").read_text("utf-8")
    used += (TESTS / "operation" / "under_systemd.py").read_text("utf-8")
    for section, text in sections("service.md").items():
        for name, block in re.findall(
            r"(?:^<!-- (?:run|edit) in systemd: ([a-z]+) -->\n)?^```(?:sh|ini|toml)\n(.*?)^```$",
            text,
            re.MULTILINE | re.DOTALL,
        ):
            is_install = "pip install" in block  # the tests of the package do that
            is_setting = block.startswith("tls-cert = ")
            if name:
                assert f'"{name}"' in used, name
            elif not is_install and not is_setting:
                assert NOT_RUN.search(text), (section, block)


def test_figures_of_the_guide_are_measured_ones() -> None:
    [guide] = re.findall(
        r"^## How large\n(.*?)^## ", text_of("operating.md"), re.MULTILINE | re.DOTALL
    )
    measured = text_of("performance.md")
    for ours, theirs in {
        "9.2 KiB for each idle client": "9.15 (9.15 … 9.17)",
        "2.7 KiB more over WebSocket": "2.7 KiB more than one over TCP",
        "0.36 KiB for each further room": "0.36 KiB of resident memory for each further room",
        "17 million a second to rooms of 10": "17.0 M (",
        "54 million to rooms of 100": "54.5 M (",
        "1 ms in the middle, and 1.8 ms": "1.01 / 1.83 /",
        "4,000 clients a second": "4.19 k",
        "costs 40 µs": "| 40; 97 |",
        "3 µs for each member": "| 366; 974 |",
    }.items():
        assert ours in guide
        assert theirs in measured


async def test_a_message_takes_as_much_of_the_disk_as_the_guide_says(tmp_path: Path) -> None:
    for block, most in ((1, 75), (100, 20)):
        path = tmp_path / f"{block}.db"
        async with running(SqliteJournal(path)) as journal:
            room = journal.room("lobby")
            for _ in range(5000 // block):
                pending = room.append(encode(room, *["x" * 63] * block), (None,) * block)
            await wait_stored(pending)
        assert path.stat().st_size / 5000 - 63 < most + 25  # the tables themselves are 80 KiB
