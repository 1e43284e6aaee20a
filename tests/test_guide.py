"""Each section of the operator's guide has tests, or says that the tests do not run it."""

import re
from pathlib import Path

import pytest

from multichat import ServerConfig
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.server.config import CONNECTIONS_PER_MIB, MAX_CLIENTS_PER_ADDRESS

from .support.journals import encode, running, wait_stored

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"

# A sentence about commands that no test runs has this word.
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
            f"{SERVICE}::test_a_killed_server_is_started_again_with_its_data",
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
            "test_operation::test_operations_lose_no_message_and_no_client",
            "test_operation::test_operations_under_systemd_lose_no_message_and_no_client",
            "server/test_authentication::test_a_new_password_does_not_lock_out_clients_with_a_session",
            f"{SERVICE}::test_a_drain_may_take_longer_than_systemd_would_wait",
            "test_units::test_the_service_may_stop_for_as_long_as_the_server_takes",
        ),
        "Back up and restore": (
            f"{SERVICE}::test_a_backup_is_restored_as_the_guide_says",
            "journal/test_restore::test_after_a_restore_lost_ids_are_unknown_and_older_ones_still_resume",
            "journal/test_restore::test_a_terminal_client_reports_possible_loss_after_a_restore",
            "journal/test_restore::test_a_session_a_room_and_an_account_newer_than_a_restored_backup_are_unknown",
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
    "operating.md": {
        "On one machine or a private network": (
            "net/test_unix_sockets::test_the_socket_has_the_requested_mode_whatever_the_umask",
            "net/test_unix_sockets::test_people_talk_through_a_socket",
        ),
        "On the internet": (
            "cli/test_config_file::test_serve_takes_the_port_and_the_page_from_the_file",
            "cli/test_config_file::test_config_shows_each_setting_and_its_source",
            "cli/test_commands::test_options_have_environment_variables",
        ),
        "Behind a load balancer": (
            "server/test_proxied::test_behind_haproxy",
            "server/test_proxied::test_limits_count_for_the_clients_address_and_not_for_the_balancers",
            "server/test_proxied::test_bans_are_about_the_clients_address",
            "server/test_proxied::test_only_a_header_that_says_tls_makes_a_connection_private",
            "server/test_proxied::test_tls_to_the_server_begins_after_the_header",
            "server/test_proxied::test_a_health_check_does_not_count_as_a_client",
            "server/test_proxied::test_the_time_for_the_header_is_limited",
            "server/test_proxied::test_a_proxy_of_the_page_at_the_same_address_sends_no_header",
        ),
        "Keep messages": (
            "cli/test_history::test_the_messages_of_one_room_are_shown_without_its_name",
        ),
        "Several machines": (),
        "Slow clients": (
            "server/test_slow_clients::test_after_the_wait_budget_a_slow_client_lags_and_gets_the_rest_when_it_reads",
            "server/test_slow_clients::test_the_wait_budget_refills_at_a_fifteenth_of_real_time",
            "server/test_slow_clients::test_a_room_is_as_fast_as_its_fastest_reader_and_no_slower",
            "server/test_slow_clients::test_a_lagging_client_that_takes_nothing_is_disconnected_after_the_stall_timeout",
            "server/test_slow_clients::test_drop_skips_messages_and_reports_the_count_in_their_place",
            "server/test_slow_clients::test_disconnect_does_not_wait",
        ),
        "Limits": ("test_guide::test_limits_of_the_guide_are_the_defaults",),
        "Accounts": (
            "cli/test_account::test_accounts_are_added_listed_and_removed",
            "cli/test_account::test_the_journal_of_a_running_server_is_left_alone",
            "cli/test_account::test_the_prompt_requires_the_passphrase_twice_and_does_not_show_it",
            "server/test_accounts::test_accounts_survive_a_restart_if_the_journal_is_a_file",
            "server/test_accounts::test_the_name_of_an_operator_cannot_be_registered_in_the_chat",
            "server/test_logins::test_where_a_login_is_required_others_can_only_read",
            "server/test_logins::test_operators_do_what_the_console_does",
            "server/test_logins::test_the_start_warns_of_operators_without_an_account",
        ),
        "At the console": ("terminal/test_admin_console::test_the_operator_of_a_real_server",),
        "Control a running server": (
            "cli/test_ctl::test_each_command_on_a_running_server",
            "cli/test_ctl::test_a_refused_command_is_one_line_and_says_what_to_do",
            "cli/test_ctl::test_the_socket_may_be_in_the_environment_or_the_configuration_file",
            "cli/test_ctl::test_another_user_can_neither_connect_nor_disturb",
            "cli/test_ctl::test_the_socket_of_a_killed_server_is_refused_and_then_replaced",
            "cli/test_ctl::test_a_passphrase_comes_from_a_file_and_is_in_no_list_of_processes",
            "cli/test_ctl::test_watch_shows_the_statistics_until_it_is_interrupted",
            "server/test_control::test_each_request_is_answered_in_order_on_one_connection",
            "server/test_control::test_a_connection_without_a_whole_request_is_closed_after_the_idle_time",
        ),
        "Reload": (
            "cli/test_reload::test_everything_is_reloaded_and_the_clients_stay",
            "cli/test_reload::test_an_invalid_file_is_one_line_and_its_old_contents_stay_in_force",
            "cli/test_reload::test_a_key_of_another_certificate_and_an_expired_one_are_refused",
            "cli/test_reload::test_a_pipe_that_gave_the_password_is_not_read_again",
            "cli/test_reload::test_a_log_that_is_rotated_under_a_flood_has_every_line",
            "cli/test_commands::test_a_server_under_nohup_ignores_sighup",
            "terminal/test_admin_prompt::test_a_terminal_that_closes_ends_the_server_in_order",
        ),
        "Filters": ("server/test_filters::test_a_room_gets_the_filtered_messages",),
        "As a service": (
            "cli/test_drain::test_clients_of_all_kinds_come_back_after_a_drain_and_miss_and_hear_nothing_twice",
            "cli/test_drain::test_a_second_signal_in_a_drain_ends_it_at_once_and_in_order",
            "cli/test_drain::test_sigint_shuts_down_without_a_drain",
            "cli/test_drain::test_without_a_drain_sigterm_shuts_down_as_sigint_does",
            "server/test_systemd::test_a_service_says_when_it_is_ready_what_it_does_and_when_it_stops",
            "server/test_systemd::test_a_drain_is_a_stop_that_says_how_long_it_takes",
            "server/test_systemd::test_the_watchdog_is_fed_by_the_loop_and_not_while_that_is_blocked",
        ),
        "How large": ("test_guide::test_figures_of_the_guide_are_measured_ones",),
        "Watch it": (
            "server/test_metrics::test_there_is_every_metric_with_its_kind_and_bounded_labels",
            "server/test_metrics::test_the_port_has_metrics_and_health_and_nothing_else",
            "server/test_metrics::test_the_web_port_has_health_and_no_metrics",
            "server/test_metrics::test_a_page_that_makes_its_name_resolve_to_this_machine_gets_no_metrics",
            "server/test_metrics::test_metrics_on_other_addresses_are_warned_about",
        ),
        "The log": (
            "test_log::test_log_lines_match_the_specification_to_the_letter",
            "server/test_log_lines::test_addresses_of_clients_are_logged_only_if_asked_for",
            "server/test_log_lines::test_without_messages_the_log_has_all_events_and_nothing_that_was_written",
            "server/test_log_lines::test_the_guide_lists_every_event_of_the_log",
        ),
        "Check it": (
            "cli/test_send_and_who::test_send_sends_one_message_and_exits",
            "cli/test_send_and_who::test_who_lists_the_members",
        ),
    },
    "troubleshooting.md": dict.fromkeys(
        (
            "The server does not start",
            "Some or all clients cannot connect",
            "In the chat",
            "The log says",
            "Systemd says",
        ),
        ("test_troubleshooting::test_each_quoted_text_occurs_in_the_program",),
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


def test_each_command_is_run_or_marked_as_not_run() -> None:
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


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("line", f"{ServerConfig.max_line_bytes:,} bytes"),
        ("clients", f"{ServerConfig.max_clients:,}, at most {CONNECTIONS_PER_MIB} for each MiB"),
        ("clients from one address", f"{MAX_CLIENTS_PER_ADDRESS}, no limit for loopback"),
        ("messages, bytes per second", "no limit"),
        ("rooms", f"{ServerConfig.max_rooms:,}"),
        ("rooms that one client may be in", f"{ServerConfig.max_rooms_per_client}"),
        ("new rooms from one address", f"{ServerConfig.max_new_rooms}"),
        ("send queue of a client", f"{ServerConfig.send_queue_batches} batches"),
        ("memory for messages", f"{ServerConfig.memory_bytes >> 20} MiB"),
        ("idle time", "no limit"),
        ("delivery to clients that leave", f"{ServerConfig.grace_seconds:g} s"),
        ("messages of a client logged", f"{ServerConfig.log_rate:g}, and"),
    ],
)
def test_limits_of_the_guide_are_the_defaults(named: str, expected: str) -> None:
    assert ServerConfig.rate is ServerConfig.byte_rate is ServerConfig.idle_seconds is None
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", sections("operating.md")["Limits"], re.MULTILINE)
    [shown] = [value for name, value in rows if name == named] or [
        value for name, value in rows if name.startswith(named)
    ]
    assert shown.startswith(expected)


def test_figures_of_the_guide_are_measured_ones() -> None:
    [guide] = re.findall(
        r"^## How large\n(.*?)^## ", text_of("operating.md"), re.MULTILINE | re.DOTALL
    )
    measured = text_of("performance.md")
    for ours, theirs in {
        "9.2 KiB for each idle client": "9.15 (9.15 … 9.17)",
        "2.7 KiB more over WebSocket": "2.7 KiB more than one over TCP",
        "0.44 KiB for each additional room": "0.44 KiB of resident memory for each further room",
        "17 million a second to rooms of 10": "17.0 M (",
        "54 million to rooms of 100": "54.5 M (",
        "median 1 ms, 99th percentile 1.8 ms": "1.01 / 1.83 /",
        "4,000 clients a second": "4.19 k",
        "costs 40 µs, plus": "| 40; 97 |",
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
