"""Each promise in docs/journal.md has a test."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "journal.md"

# For each row of the table the beginning of its first column, and what tests it.
PROMISES: dict[str, tuple[str, ...]] = {
    "the server ends": (
        "test_journal_sqlite::test_a_clean_end_leaves_one_whole_file_and_the_empty_one_to_lock",
        "test_journal_sqlite::test_who_reads_while_it_ends_is_waited_for",
    ),
    "the server crashes, or `kill -9`": (
        "test_journal_sqlite::test_what_was_reported_kept_survives_kill_9",
        "test_kill::test_each_message_is_heard_once_in_its_room_and_in_one_order",
    ),
    "the same, to a session": (
        "test_durable_sessions::test_after_a_kill_a_client_is_in_the_room_in_which_its_message_was_accepted",
        "test_durable_sessions::test_no_client_is_forgotten_though_memory_has_room_for_one",
        "test_durable_sessions::test_a_private_message_that_is_sent_again_is_delivered_once",
    ),
    "the machine loses power": (
        "test_journal_sqlite::test_a_wal_cut_anywhere_is_whole_up_to_there",
        "test_journal_sqlite::test_how_long_a_commit_waits_is_what_was_asked_for",
    ),
    "a backup is restored": (
        "test_restore::test_after_a_restore_lost_ids_are_unknown_and_older_ones_still_resume",
        "test_restore::test_two_servers_that_began_with_one_backup_give_different_ids",
        "test_restore::test_our_client_in_a_pipe_says_after_a_restore_that_messages_may_be_missing",
        "test_restore::test_our_client_on_a_terminal_says_after_a_restore_that_messages_may_be_missing",
    ),
    "a backup is copied over the file": (
        "test_journal_files::test_a_backup_copied_over_the_journal_of_a_killed_server_is_noticed",
        "test_journal_files::test_a_backup_is_refused_or_changes_nothing_whenever_it_was_made",
        "test_journal_files::test_no_checkpoint_is_made_without_a_seal",
        "test_wal::test_a_backup_is_noticed_though_another_program_has_made_a_checkpoint_since",
        "test_wal::test_the_stamp_in_the_file_is_a_seal_whoever_makes_a_checkpoint",
    ),
    "the file is renamed, deleted or replaced by another one": (
        "test_journal_files::test_a_journal_that_is_renamed_and_put_back_while_the_server_runs",
        "test_journal_files::test_messages_are_refused_when_the_files_of_the_journal_are_gone",
    ),
    "the `-wal` is deleted": (
        "test_journal_files::test_messages_are_refused_when_the_files_of_the_journal_are_gone",
    ),
    "a server starts where the file is missing": (
        "test_journal_files::test_a_start_without_the_file_of_a_wal_is_refused_and_loses_nothing",
    ),
    "the file, its `-wal` or its `-shm` is truncated": (
        "test_wal::test_messages_are_refused_when_a_file_was_changed_in_place",
        "test_wal::test_a_truncated_wal_is_noticed_before_the_next_message_makes_it_longer",
    ),
    "the `-wal` of a killed server is damaged": (
        "test_wal::test_a_start_says_that_a_part_of_the_wal_could_not_be_read",
    ),
    "the `-wal` of a killed server is deleted": (
        "test_journal_files::test_a_start_without_the_wal_of_a_killed_server_says_that_messages_may_be_missing",
    ),
    "another program makes a checkpoint": (
        "test_journal_files::test_a_checkpoint_or_vacuum_of_another_program_beside_a_server_loses_nothing",
        "test_journal_files::test_a_checkpoint_or_vacuum_of_the_file_of_a_killed_server_loses_nothing",
    ),
    "the file of a killed server is started under another name": (
        "test_journal_files::test_a_file_is_refused_while_its_wal_is_beside_another_name",
        "test_journal_files::test_a_linked_file_that_may_have_a_wal_is_refused_without_it",
    ),
    "two servers are given one file": (
        "test_journal_files::test_one_file_has_one_server_whatever_its_names",
    ),
    "`kill -9` while a new file is made": (
        "test_journal_files::test_a_server_killed_at_any_system_call_can_start_again_and_has_lost_nothing",
    ),
    "another program has locked the file": (
        "test_journal_files::test_a_start_waits_for_a_program_that_has_locked_the_file",
    ),
    "the clock of the machine": (
        "test_retention::test_a_clock_that_is_ahead_for_six_seconds_deletes_nothing",
        "test_retention::test_messages_dated_ahead_do_not_keep_those_behind_them",
    ),
    "the disk is full": (
        "test_journal_sqlite::test_a_full_disk_is_said_and_it_goes_on_when_there_is_room",
        "test_full_journal_disk::test_a_server_starts_on_a_full_disk_from_which_nothing_may_be_deleted",
        "test_full_journal_disk::test_a_burst_on_a_small_disk_is_kept_as_far_as_retention_keeps_it",
    ),
    "somebody opens 100,000 rooms": (
        "test_retention::test_new_rooms_are_refused_before_they_cost_another_one_its_messages",
    ),
    "a client comes back for messages that were deleted": (
        "test_resume::test_what_the_journal_has_no_more_is_counted",
        "test_resume::test_what_a_client_said_before_a_restart_is_not_counted_as_missed",
        "test_retention::test_clients_that_resume_during_deletion_hear_each_message_or_how_many_they_missed",
    ),
    "hundreds of clients come back": (
        "test_resume::test_a_room_talks_on_while_somebody_catches_up_with_a_hundred_thousand",
        "test_replay_turns::test_a_client_is_replayed_to_in_its_own_turns_whoever_it_lags_behind",
    ),
    "a message is damaged": (
        "test_damage::test_a_damaged_message_is_missed_in_its_place",
        "test_damage::test_a_damaged_message_costs_only_itself",
        "test_damage::test_damaged_text_reaches_nobody_raw",
        "test_damage::test_history_shows_the_messages_that_can_be_read",
        "test_damage::test_damage_in_one_room_does_not_keep_others_from_talking",
        "test_damage::test_a_server_serves_with_any_value_in_any_column",
    ),
    "an index does not find a message": (
        "test_damage::test_messages_that_an_index_does_not_find_are_missed",
        "test_damage::test_an_index_that_leads_to_another_room_shows_and_deletes_nothing_of_it",
    ),
    "the record of a room, or the heads, are damaged": (
        "test_damage::test_a_damaged_room_is_rebuilt_from_its_messages",
        "test_damage::test_client_numbers_go_on_after_the_heads_are_damaged",
    ),
    "a session, or its nonces, are damaged": (
        "test_damage::test_sessions_that_claim_one_client_are_unknown",
        "test_damage::test_a_session_whose_nonces_are_damaged_is_unknown",
        "test_damage::test_private_messages_are_delivered_though_their_nonces_cannot_be_kept",
    ),
    "whole pages of the file are damaged": (
        "test_damaged_pages::test_messages_are_said_in_other_rooms_whatever_page_is_damaged",
        "test_damaged_pages::test_messages_are_deleted_behind_damage",
        "test_journal_sqlite::test_messages_around_a_damaged_page_can_be_read",
        "test_damaged_pages::test_messages_beside_a_damaged_page_are_read",
        "test_damaged_pages::test_a_start_is_refused_only_where_no_room_can_be_talked_in",
        "test_damaged_sessions::test_connect_in_a_pipe_chats_on_and_ends",
        "test_damaged_pages::test_the_command_shows_what_is_beside_a_damaged_page",
        "test_damage::test_everybody_is_answered_whatever_pages_of_sessions_are_damaged",
        "test_hostile_files::test_a_server_with_a_journal_with_flipped_bytes",
        "test_hostile_files::test_history_of_a_journal_with_flipped_bytes",
    ),
}

# Of the same table, and no promise.
NO_PROMISE = "what it costs"


def promises() -> list[str]:
    """Return the first column of the table of promises."""
    section = (
        DOCUMENT.read_text("utf-8").partition("\n## What is promised")[2].partition("\n## ")[0]
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
