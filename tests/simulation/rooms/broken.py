"""Deliberately broken servers with several rooms and accounts; see `..broken`."""

from typing import Any

from multichat import Slow
from multichat.server import hello
from multichat.server.account_requests import AccountRequests
from multichat.server.accounts import Accounts
from multichat.server.client import Client
from multichat.server.logins import Logins
from multichat.server.message_pipeline import MessagePipeline
from multichat.server.presence_announcer import PresenceAnnouncer
from multichat.server.registry import Registry
from multichat.server.room import Room
from multichat.server.session import Session
from multichat.server.stored_session import StoredSession
from tests.simulation.broken import (
    Break,
    accept_in_vain,
    count_ids_backwards,
    echo,
    edited,
    forget_nonces,
    miscount_what_was_missed,
    pass_over_unknown_ids,
    show_the_past_backwards,
    swallow,
)
from tests.simulation.journal import Disk

__all__ = ["ROOMS_MUTATIONS"]

# --- Several rooms --------------------------------------------------------------------------------

resume_the_last_room_only = edited(
    "resume_the_last_room_only", Registry, "_reopen", "in reversed(names)", "in names[-1:]"
)
keep_rooms_after_exit_in_the_session = edited(
    "keep_rooms_after_exit_in_the_session",
    Registry,
    "leave_room",
    "self.note_change(client)",
    "pass",
)
start_all_rooms_like_the_first = edited(
    "start_all_rooms_like_the_first",
    hello,
    "greet",
    "start_from(member, start)",
    "start_from(member, rooms[0].start if rooms else start)",
)
stay_after_exit = edited(
    "stay_after_exit", Registry, "exit", "self.leave_room(member)", "client.make_current(member)"
)
call_the_last_room_another = edited(
    "call_the_last_room_another",
    Registry,
    "exit",
    "raise LastRoom(member.room.name)",
    "raise NotInRoom(room_name)",
)
stay_in_the_others_after_join = edited(
    "stay_in_the_others_after_join", Registry, "move", "if member.room is not room:", "if False:"
)
say_in_the_first_room = edited(
    "say_in_the_first_room",
    Client,
    "member_in",
    "return self.current",
    "return next(iter(self.memberships.values()))",
)
say_elsewhere_what_is_for_a_refused_room = edited(
    "say_elsewhere_what_is_for_a_refused_room",
    Client,
    "member_in",
    "if self.refused_room is not None:",
    "if False:",
)
make_the_first_room_current_after_exit = edited(
    "make_the_first_room_current_after_exit",
    Room,
    "leave",
    "next(reversed(client.memberships.values()))",
    "next(iter(client.memberships.values()))",
)
know_nonces_in_any_room = edited(
    "know_nonces_in_any_room", MessagePipeline, "_answer_again", "check, message.room)", "check)"
)
take_another_text_for_the_same = edited(
    "take_another_text_for_the_same", StoredSession, "answer", 'not in (b"", check)', "is None"
)
refuse_what_is_sent_again = edited(
    "refuse_what_is_sent_again",
    MessagePipeline,
    "_answer_again",
    "checks_of(message.text, act=message.act)",
    "b'other'",
)
announce_without_rooms = edited(
    "announce_without_rooms",
    PresenceAnnouncer,
    "_tell",
    "naming if member.client.names_rooms else plain",
    "plain",
)
announce_rooms_to_all = edited(
    "announce_rooms_to_all",
    PresenceAnnouncer,
    "_tell",
    "naming if member.client.names_rooms else plain",
    "naming",
)
sum_up_what_was_missed = edited(
    "sum_up_what_was_missed",
    Session,
    "_encode_missed",
    "if not self.client.names_rooms:",
    "if True:",
)
replay_on_entering_again = edited(
    "replay_on_entering_again", Session, "_enter", " if is_new else Start()", ""
)
show_the_history_of_the_current_room = edited(
    "show_the_history_of_the_current_room",
    Session,
    "_carry_out",
    "member = me.member_in(room)",
    "member = me.current",
)

# --- Accounts -------------------------------------------------------------------------------------

give_a_registered_name_to_a_resume = edited(
    "give_a_registered_name_to_a_resume",
    Registry,
    "_resume",
    "self._names.check(client, parse_person_name(name))",
    "parse_person_name(name)",
)
keep_the_name_after_logout = edited(
    "keep_the_name_after_logout",
    Logins,
    "log_out",
    "self._accounts.check_name(client.name)",
    "pass",
)
leave_the_holder_its_name = edited(
    "leave_the_holder_its_name",
    Logins,
    "log_in",
    "in self._names.holders(account.name):",
    "in []:",
)
log_in_twice = edited(
    "log_in_twice",
    Logins,
    "log_in",
    "other is not None and other is not client",
    "False",
)
keep_logins_after_a_new_passphrase = edited(
    "keep_logins_after_a_new_passphrase",
    Accounts,
    "logged_in",
    'login.encode("utf-8", "replace")',
    "account.login.encode()",
)
accept_any_passphrase = edited(
    "accept_any_passphrase", Accounts, "log_in", "not is_right", "not account"
)
accept_no_passphrase = edited("accept_no_passphrase", Accounts, "log_in", "not is_right", "True")
log_no_session_in = edited(
    "log_no_session_in", Logins, "resume", "self._put(client, account)", "pass"
)
tell_nobody_of_a_lost_name = edited(
    "tell_nobody_of_a_lost_name", Logins, "_tell", "self._start_soon(tell)", "pass"
)
tell_the_passphrase = edited(
    "tell_the_passphrase",
    AccountRequests,
    "carry_out",
    'text = "your passphrase',
    'text = passphrase + " your passphrase',
)
keep_accounts_that_a_backup_does_not_have = edited(
    "keep_accounts_that_a_backup_does_not_have",
    Disk,
    "copy",
    "accounts={**self.accounts}",
    "accounts=self.accounts",
)

_DROPS = {"slow": Slow.DROP, "send_queue_batches": 1}
_FEW = {"max_rooms_per_client": 2}
_MANY = {"max_rooms_per_client": 32, "max_rooms": 1024}

# As `..broken.MUTATIONS`; `restores` chooses plans in which a backup is restored, with `accounts`
# they are about accounts, and with `owners` operators add accounts whose names clients have.
ROOMS_MUTATIONS: list[tuple[Break, str, dict[str, Any]]] = [
    (swallow, "all_is_said", {}),
    (accept_in_vain, "accepted_messages_are_published", {}),
    (count_ids_backwards, "ids_are_in_order", {}),
    (echo, "no_echo", {}),
    (forget_nonces, "nonces_are_once", {}),
    (pass_over_unknown_ids, "unknown_ids_are_told", {}),
    (show_the_past_backwards, "history_is_what_was_said", {}),
    (resume_the_last_room_only, "sessions_keep_rooms", _MANY),
    (keep_rooms_after_exit_in_the_session, "sessions_keep_rooms", _MANY),
    (start_all_rooms_like_the_first, "nothing_missed_nor_twice", _MANY),
    (stay_after_exit, "only_members_hear", _MANY),
    (call_the_last_room_another, "requests_are_answered", _MANY),
    (stay_in_the_others_after_join, "only_members_hear", _MANY),
    (say_in_the_first_room, "said_where_it_is_meant", _MANY),
    (say_elsewhere_what_is_for_a_refused_room, "said_where_it_is_meant", _FEW),
    (make_the_first_room_current_after_exit, "said_where_it_is_meant", _MANY),
    (know_nonces_in_any_room, "said_where_it_is_meant", _MANY),
    (take_another_text_for_the_same, "accepted_messages_are_published", _MANY),
    (refuse_what_is_sent_again, "nonces_are_once", {}),
    (announce_without_rooms, "rooms_are_named", {}),
    (announce_rooms_to_all, "rooms_are_named", {}),
    (sum_up_what_was_missed, "rooms_are_named", _DROPS),
    (miscount_what_was_missed, "nothing_missed_nor_twice", _DROPS),
    (replay_on_entering_again, "nothing_missed_nor_twice", _MANY),
    (show_the_history_of_the_current_room, "rooms_are_named", _MANY),
    (give_a_registered_name_to_a_resume, "registered_names_are_owned", {"accounts": True}),
    (keep_the_name_after_logout, "registered_names_are_owned", {"accounts": True}),
    (leave_the_holder_its_name, "registered_names_are_owned", {"owners": True}),
    (log_in_twice, "logins_have_a_proof", {"accounts": True}),
    (keep_logins_after_a_new_passphrase, "logins_have_a_proof", {"accounts": True}),
    (accept_any_passphrase, "logins_have_a_proof", {"accounts": True}),
    (accept_no_passphrase, "right_passphrases_open", {"accounts": True}),
    (log_no_session_in, "sessions_stay_logged_in", {"accounts": True}),
    (tell_nobody_of_a_lost_name, "the_unnamed_are_told", {"accounts": True}),
    (tell_the_passphrase, "no_passphrase_is_told", {"accounts": True}),
    (keep_accounts_that_a_backup_does_not_have, "logins_have_a_proof", {"restores": True}),
]
