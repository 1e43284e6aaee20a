"""Deliberately broken nodes and engines; see `..broken`."""

import pytest

from multichat.server.claims import Claims
from multichat.server.other_nodes import OtherNodes
from multichat.server.registry import Registry
from tests.simulation.broken import Break, edited
from tests.simulation.link import Link
from tests.simulation.slow_backend import SlowBackend

from .engine import SharedEngine

__all__ = ["NODES_MUTATIONS"]

# --- The engine -----------------------------------------------------------------------------------

_store_again_what_has_its_nonce = edited(
    "store_again_what_has_its_nonce",
    SharedEngine,
    "_append",
    "None if nonce is None else known.get(nonce)",
    "None",
)
_resume_without_nonces = edited(
    "resume_without_nonces", SharedEngine, "_session", "nonces=nonces", "nonces=[]"
)


def know_no_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either would be enough."""
    _store_again_what_has_its_nonce(monkeypatch)
    _resume_without_nonces(monkeypatch)


carry_out_what_a_dead_node_asks = edited(
    "carry_out_what_a_dead_node_asks",
    SharedEngine,
    "_execute",
    "if node.is_dead and call.run == node.run:",
    "if False:",
)
give_a_name_to_anybody = edited(
    "give_a_name_to_anybody", SharedEngine, "_check_name", "if not (is_away and may):", "if False:"
)
believe_an_old_connection = edited(
    "believe_an_old_connection",
    SharedEngine,
    "_put_client",
    "if record.generation < client.generation:",
    "if False:",
)
deliver_a_private_message_again = edited(
    "deliver_a_private_message_again",
    SharedEngine,
    "_send_direct",
    "if is_it and direct.fate is not DirectFate.NOT_DELIVERED:",
    "if False:",
)
tell_what_was_delivered_as_refused = edited(
    "tell_what_was_delivered_as_refused",
    SharedEngine,
    "_answer_direct",
    "DirectFate.DELIVERED if delivered else DirectFate.NOT_DELIVERED",
    "DirectFate.NOT_DELIVERED",
)
keep_the_name_from_its_owner = edited(
    "keep_the_name_from_its_owner",
    SharedEngine,
    "_log_in",
    "self._lose_name(name.client, name.name, login=False)",
    "pass",
)
forget_calls_without_an_answer = edited(
    "forget_calls_without_an_answer",
    Link,
    "_come_back",
    "for call in self._unanswered.values():",
    "for call in ():",
)
never_renew_the_lease = edited(
    "never_renew_the_lease", SlowBackend, "_renew", 'self._ask("renew")', "pass"
)

# --- Nodes ----------------------------------------------------------------------------------------

keep_whom_another_node_has = edited(
    "keep_whom_another_node_has",
    OtherNodes,
    "_replace",
    'self._registry.leave(client, TAKEN_OVER, last_words=words, code="replaced", taken_over=True)',
    "pass",
)
continue_after_the_fence = edited(
    "continue_after_the_fence",
    OtherNodes,
    "apply",
    "registry.disconnect(each, Goodbye.of('draining', FENCED))".replace("'", '"'),
    "pass",
)
keep_in_the_list_who_comes_here = edited(
    "keep_in_the_list_who_comes_here",
    Registry,
    "_resume",
    "self.elsewhere.take_over(stored_session.client)",
    "pass",
)
lose_the_bans_of_a_fenced_node = edited(
    "lose_the_bans_of_a_fenced_node",
    SlowBackend,
    "_answered",
    "call.request.method in _ALWAYS_REPORTED",
    "False",
)
ignore_the_bans_of_others = edited(
    "ignore_the_bans_of_others", OtherNodes, "apply", "self._bans.put(ban)", "pass"
)
ignore_lost_names = edited(
    "ignore_lost_names",
    OtherNodes,
    "apply",
    "registry.logins.lose(own, name, login=login)",
    "pass",
)
deliver_no_private_message = edited(
    "deliver_no_private_message",
    OtherNodes,
    "_deliver",
    "await deliver(recipient, message, self._config)",
    "pass",
)
tell_nobody_who_leaves = edited(
    "tell_nobody_who_leaves",
    Registry,
    "_take_out",
    "if self._backend.is_shared:",
    "if False:",
)
claim_nothing = edited("claim_nothing", Claims, "make", "not self._backend.is_shared", "True")

# Each with the invariant that detects it (the engine's own findings are among the crashes), and
# whether a node is frozen for so long that it is taken for dead.
NODES_MUTATIONS: list[tuple[Break, str, bool]] = [
    (know_no_nonces, "stored_once", False),
    (carry_out_what_a_dead_node_asks, "presence_is_true", False),
    (give_a_name_to_anybody, "names_are_unique", False),
    (forget_calls_without_an_answer, "everything_arrives", False),
    (never_renew_the_lease, "presence_is_true", False),
    (keep_whom_another_node_has, "one_connection_each", False),
    (continue_after_the_fence, "presence_is_true", True),
    (believe_an_old_connection, "nothing_crashes", False),
    (keep_in_the_list_who_comes_here, "presence_is_true", False),
    (tell_nobody_who_leaves, "presence_is_true", False),
    (claim_nothing, "nothing_crashes", False),
    (deliver_a_private_message_again, "private_messages_come_once", False),
    (tell_what_was_delivered_as_refused, "private_messages_come_once", False),
    (deliver_no_private_message, "private_messages_come_once", False),
    (keep_the_name_from_its_owner, "registered_names_have_one_holder", False),
    (ignore_lost_names, "registered_names_have_one_holder", False),
    (ignore_the_bans_of_others, "bans_and_topics_are_the_same_everywhere", False),
    (lose_the_bans_of_a_fenced_node, "bans_and_topics_are_the_same_everywhere", True),
]
