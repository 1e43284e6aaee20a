"""Each promise in docs/journal.md has a test."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "journal.md"

# For each row of the table, the start of its first column, and its tests.
PROMISES: dict[str, tuple[str, ...]] = {
    "the server ends": (
        "journal/test_sqlite::test_a_clean_shutdown_leaves_one_complete_file_and_the_empty_lock_file",
        "journal/test_sqlite::test_closing_waits_for_readers",
    ),
    "the server crashes, or `kill -9`": (
        "journal/test_sqlite::test_messages_reported_as_stored_survive_kill_9",
        "server/test_kill::test_each_message_arrives_once_in_its_room_and_in_one_order",
    ),
    "the same, to a session": (
        "server/test_durable_sessions::test_after_a_kill_a_client_is_in_the_room_in_which_its_message_was_accepted",
        "server/test_durable_sessions::test_sessions_evicted_from_memory_resume_from_the_journal",
        "server/test_durable_sessions::test_a_private_message_that_is_sent_again_is_delivered_once",
    ),
    "the same, to an account or a topic": (
        "journal/test_accounts::test_accounts_and_topics_are_in_the_file_once_they_are_reported_as_stored",
        "journal/test_accounts::test_accounts_and_topics_survive_a_restart",
    ),
    "the machine loses power": (
        "journal/test_sqlite::test_a_truncated_wal_is_valid_up_to_the_cut",
        "journal/test_sqlite::test_the_durability_setting_reaches_sqlite",
    ),
    "a backup is restored into the file while": (
        "journal/test_restore::test_a_restore_into_the_file_of_a_running_server_is_detected",
    ),
    "a backup is restored": (
        "journal/test_restore::test_after_a_restore_lost_ids_are_unknown_and_older_ones_still_resume",
        "journal/test_restore::test_two_servers_started_from_one_backup_use_different_ids",
        "journal/test_restore::test_a_piped_client_reports_possible_loss_after_a_restore",
        "journal/test_restore::test_a_terminal_client_reports_possible_loss_after_a_restore",
    ),
    "a backup is copied over the file": (
        "journal/test_files::test_a_backup_copied_over_the_journal_of_a_killed_server_is_noticed",
        "journal/test_files::test_a_backup_is_refused_or_changes_nothing_whenever_it_was_made",
        "journal/test_files::test_no_checkpoint_is_made_without_a_seal",
        "journal/test_wal::test_a_backup_is_detected_even_if_another_program_made_a_checkpoint_since",
        "journal/test_wal::test_the_stamp_in_the_file_is_a_seal_after_any_checkpoint",
    ),
    "the file is renamed, deleted or replaced by another one": (
        "journal/test_files::test_a_journal_that_is_renamed_and_put_back_while_the_server_runs",
        "journal/test_files::test_messages_are_refused_when_the_files_of_the_journal_are_gone",
    ),
    "the `-wal` is deleted": (
        "journal/test_files::test_messages_are_refused_when_the_files_of_the_journal_are_gone",
    ),
    "a server starts where the file is missing": (
        "journal/test_files::test_a_start_without_the_file_of_a_wal_is_refused_and_loses_nothing",
    ),
    "the file, its `-wal` or its `-shm` is truncated": (
        "journal/test_wal::test_messages_are_refused_after_a_file_was_changed_in_place",
        "journal/test_wal::test_a_truncated_wal_is_detected_before_the_next_message_makes_it_longer",
    ),
    "the `-wal` of a killed server is damaged": (
        "journal/test_wal::test_a_start_reports_the_transactions_lost_in_a_damaged_wal",
    ),
    "the `-wal` of a killed server is deleted": (
        "journal/test_files::test_a_start_without_the_wal_of_a_killed_server_says_that_messages_may_be_missing",
    ),
    "another program makes a checkpoint": (
        "journal/test_files::test_a_checkpoint_or_vacuum_of_another_program_beside_a_server_loses_nothing",
        "journal/test_files::test_a_checkpoint_or_vacuum_of_the_file_of_a_killed_server_loses_nothing",
        "journal/test_wal::test_messages_are_stored_although_a_checkpoint_of_another_program_waits_for_the_server",
    ),
    "the file of a killed server is started under another name": (
        "journal/test_files::test_a_file_is_refused_while_its_wal_is_beside_another_name",
        "journal/test_files::test_a_linked_file_that_may_have_a_wal_is_refused_without_it",
    ),
    "two servers are given one file": (
        "journal/test_files::test_one_file_has_one_server_whatever_its_names",
    ),
    "`kill -9` while a new file is made": (
        "journal/test_files::test_a_server_killed_at_any_system_call_can_start_again_and_has_lost_nothing",
    ),
    "another program has locked the file": (
        "journal/test_files::test_a_start_waits_for_a_program_that_has_locked_the_file",
    ),
    "the clock of the machine": (
        "journal/test_retention::test_a_clock_that_is_ahead_for_six_seconds_deletes_nothing",
        "journal/test_retention::test_messages_dated_ahead_do_not_protect_later_ones",
    ),
    "the disk is full": (
        "journal/test_sqlite::test_a_full_disk_is_reported_and_writing_resumes_when_there_is_space",
        "journal/test_full_journal_disk::test_a_server_starts_on_a_full_disk_without_retention",
        "journal/test_full_journal_disk::test_a_burst_on_a_small_disk_is_stored_within_the_retention_limits",
    ),
    "a client opens 100,000 rooms": (
        "journal/test_retention::test_new_rooms_are_refused_before_others_lose_messages",
    ),
    "a client resumes from before messages that were deleted": (
        "server/test_resume::test_messages_deleted_from_the_journal_are_counted_as_missed",
        "server/test_resume::test_own_messages_before_a_restart_are_not_counted_as_missed",
        "journal/test_retention::test_clients_that_resume_during_deletion_get_each_message_or_the_count_of_missed_ones",
    ),
    "hundreds of clients resume": (
        "server/test_resume::test_a_room_is_not_delayed_by_a_replay_of_100_000_messages",
        "server/test_replay_turns::test_a_replay_is_charged_to_its_own_client",
    ),
    "a message is damaged": (
        "journal/test_damage::test_a_damaged_message_is_replaced_by_missed",
        "journal/test_damage::test_a_damaged_message_costs_only_itself",
        "journal/test_damage::test_damaged_text_is_cleaned_before_it_is_shown",
        "journal/test_damage::test_history_shows_the_messages_that_can_be_read",
        "journal/test_damage::test_damage_in_one_room_does_not_affect_others",
        "journal/test_damage::test_a_server_serves_with_any_value_in_any_column",
    ),
    "an index does not find a message": (
        "journal/test_damage::test_messages_that_an_index_does_not_find_are_reported_as_missing",
        "journal/test_damage::test_a_wrong_index_entry_shows_and_deletes_no_message_of_another_room",
    ),
    "the record of a room, or the heads, are damaged": (
        "journal/test_damage::test_a_damaged_room_is_rebuilt_from_its_messages",
        "journal/test_damage::test_client_ids_continue_after_the_heads_are_damaged",
    ),
    "an account is damaged": (
        "journal/test_accounts::test_a_damaged_passphrase_leaves_its_name_reserved",
        "journal/test_accounts::test_invalid_rows_of_accounts_are_skipped",
    ),
    "a session, or its nonces, are damaged": (
        "journal/test_damage::test_sessions_that_claim_one_client_are_unknown",
        "journal/test_damage::test_a_session_whose_nonces_are_damaged_is_unknown",
        "journal/test_damage::test_private_messages_are_delivered_even_if_their_nonces_cannot_be_stored",
    ),
    "whole pages of the file are damaged": (
        "journal/test_damaged_pages::test_other_rooms_work_whichever_page_is_damaged",
        "journal/test_damaged_pages::test_messages_after_damage_are_deleted",
        "journal/test_sqlite::test_messages_around_a_damaged_page_can_be_read",
        "journal/test_damaged_pages::test_messages_beside_a_damaged_page_are_read",
        "journal/test_damaged_pages::test_a_start_is_refused_only_if_no_room_can_store_messages",
        "server/test_damaged_sessions::test_connect_in_a_pipe_sends_and_ends",
        "journal/test_damaged_pages::test_the_command_shows_messages_beside_a_damaged_page",
        "journal/test_damage::test_every_client_is_answered_whichever_session_pages_are_damaged",
        "cli/test_hostile_files::test_a_server_with_a_journal_with_flipped_bytes",
        "cli/test_hostile_files::test_history_of_a_journal_with_flipped_bytes",
    ),
}

# A row of the same table that is not a guarantee.
NO_PROMISE = "what it costs"


def promises() -> list[str]:
    """Return the first column of the table of promises."""
    section = (
        DOCUMENT.read_text("utf-8").partition("\n## Guarantees by fault")[2].partition("\n## ")[0]
    )
    cells = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return [cell for cell in cells if cell.strip("-") and cell != NO_PROMISE]


def test_each_promise_has_a_test_and_each_test_a_promise() -> None:
    rows = promises()
    assert len(rows) >= 20
    for row in rows:
        assert any(row.startswith(key) for key in PROMISES), f"no test is named for: {row}"
    for key in PROMISES:
        assert any(row.startswith(key) for row in rows), f"no promise begins with: {key}"


@pytest.mark.parametrize("test", sorted({test for tests in PROMISES.values() for test in tests}))
def test_the_test_of_a_promise_exists(test: str) -> None:
    module, _, name = test.partition("::")
    tree = ast.parse((TESTS / f"{module}.py").read_text("utf-8"))
    functions = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in functions
