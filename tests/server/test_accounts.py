"""Accounts: registering, logging in, and what guessing costs."""

from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import ServerConfig
from multichat.backend.local import LocalBackend
from multichat.errors import (
    InvalidRequest,
    NameTaken,
    RegistrationClosed,
    RemoteProtocolError,
    StorageFailed,
    TooManyAttempts,
    TooManyRegistrations,
    WrongPassphrase,
)
from multichat.journal.base import AccountRecord, PendingWrite
from multichat.journal.memory import MemoryJournal
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.server.accounts import Account, Accounts
from multichat.server.config import AccountLimits, Registration
from multichat.server.origin import Origin
from multichat.server.passphrases import hash_passphrase, is_passphrase
from tests.support.journals import running

pytestmark = pytest.mark.unit

QUICK = AccountLimits(hash_kib=8, hash_passes=1)
CONFIG = ServerConfig(accounts=QUICK)
RIGHT, WRONG = "correct horse", "incorrect horse"
HERE, THERE = Origin.of("192.0.2.1:1"), Origin.of("198.51.100.1:1")


def nothing() -> None:
    pass


async def register(
    accounts: Accounts, name: str, passphrase: str = RIGHT, origin: Origin | None = None
) -> Account:
    return await accounts.register(name, passphrase, origin, nothing)


async def test_only_the_right_passphrase_logs_in() -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    alice = await register(accounts, "Alice")
    assert await accounts.log_in("ALICE", RIGHT, None) is alice
    for name, passphrase in (("alice", WRONG), ("alice", ""), ("bob", RIGHT), ("", RIGHT)):
        with pytest.raises(WrongPassphrase):
            await accounts.log_in(name, passphrase, None)
    assert RIGHT not in repr(alice) + alice.hash + alice.login
    assert alice.hash not in repr(alice)


@pytest.mark.parametrize(
    "passphrase", ["a b  c  ", " a b c d", "pässwörter", "a\ud800bcdefgh", "x" * 1024]
)
async def test_a_passphrase_is_taken_as_it_was_given(passphrase: str) -> None:
    hash_ = hash_passphrase(passphrase, QUICK)
    assert is_passphrase(passphrase, hash_, QUICK)
    for other in (passphrase.strip() + "!", passphrase.upper() + "?", passphrase[:-1]):
        assert not is_passphrase(other, hash_, QUICK)
    assert hash_passphrase(passphrase, QUICK) != hash_


@pytest.mark.parametrize("hash_", ["", "nonsense", "$argon2id$v=19$m=8,t=1,p=1$x$y", "\ud800"])
async def test_no_passphrase_matches_a_damaged_hash(hash_: str) -> None:
    assert not is_passphrase("", hash_, QUICK)


@pytest.mark.parametrize("name", ["alice", "ALICE", "aIice", "alіce"])
async def test_a_name_that_is_or_looks_like_an_account_belongs_to_it(name: str) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    await register(accounts, "alice")
    with pytest.raises(NameTaken):
        await register(accounts, name)
    with pytest.raises(NameTaken):
        accounts.check_name(name)
    accounts.check_name(name, "alice")
    accounts.check_name("bob")


async def test_of_two_concurrent_registrations_of_lookalikes_one_succeeds() -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    errors: list[RemoteProtocolError] = []

    async def try_to_register(name: str) -> None:
        try:
            await register(accounts, name)
        except NameTaken as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for name in ("alice", "AIice", "ALICE"):
            nursery.start_soon(try_to_register, name)
    assert (len(accounts), len(errors)) == (1, 2)


async def test_a_registration_that_is_obsolete_after_hashing_creates_no_account() -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))

    def left() -> None:
        raise NameTaken("alice")

    with pytest.raises(NameTaken):
        await accounts.register("alice", RIGHT, None, left)
    assert len(accounts) == 0


async def test_a_letter_of_a_passphrase_may_be_typed_as_one_character_or_two() -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    alice = await register(accounts, "alice", "caf\u00e9 au lait")
    assert await accounts.log_in("alice", "cafe\u0301 au lait", None) is alice
    with pytest.raises(WrongPassphrase):
        await accounts.log_in("alice", "cafe au lait", None)


async def test_changing_the_passphrase_ends_all_logins() -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    alice = await register(accounts, "alice")
    assert accounts.logged_in(alice.login) is alice
    changed = await accounts.change(alice, "battery staple", None)
    assert accounts.logged_in(alice.login) is None
    assert accounts.logged_in(changed.login) is changed
    assert await accounts.log_in("alice", "battery staple", None) is changed
    for attempt in (accounts.log_in("alice", RIGHT, None), accounts.change(alice, RIGHT, None)):
        with pytest.raises(WrongPassphrase):
            await attempt
    await accounts.remove("ALICE")
    assert accounts.logged_in(changed.login) is None
    again = await register(accounts, "alice", "battery staple")
    assert accounts.logged_in(changed.login) is None
    assert accounts.logged_in(again.login) is again


@pytest.mark.parametrize(
    "login", ["", " alice", "x alice", "alice", "\ud800 alice", f"{'0' * 32} alice"]
)
async def test_a_login_cannot_be_forged(login: str) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    await register(accounts, "alice")
    assert accounts.logged_in(login) is None


@pytest.mark.parametrize("passphrase", ["", "1234567", "x" * 1025])
async def test_a_passphrase_that_is_too_short_or_long_is_refused(passphrase: str) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    alice = await register(accounts, "alice")
    for attempt in (
        register(accounts, "bob", passphrase),
        accounts.add("bob", passphrase),
        accounts.change(alice, passphrase, None),
    ):
        with pytest.raises(InvalidRequest):
            await attempt


async def test_where_registration_is_closed_only_the_operator_makes_accounts() -> None:
    config = ServerConfig(accounts=QUICK, registration=Registration.CLOSED)
    accounts = Accounts(config, LocalBackend(MemoryJournal()))
    with pytest.raises(RegistrationClosed):
        await register(accounts, "alice")
    assert await accounts.add("alice", RIGHT) is accounts.find("alice")


@pytest.mark.parametrize("name", ["alice", "ALICE", "aIice"])
async def test_the_name_of_an_operator_cannot_be_registered_in_the_chat(name: str) -> None:
    accounts = Accounts(
        ServerConfig(accounts=QUICK, operators=("alice", "bob")), LocalBackend(MemoryJournal())
    )
    with pytest.raises(RegistrationClosed):
        await register(accounts, name)
    assert accounts.missing_operators() == ["alice", "bob"]
    await accounts.add("Alice", RIGHT)
    assert accounts.missing_operators() == ["bob"]
    assert accounts.is_operator("alice")
    assert not accounts.is_operator("")
    await register(accounts, "carol")
    assert not accounts.is_operator("carol")


# --- Limits ---------------------------------------------------------------------------------------


async def test_an_address_registers_three_accounts_an_hour(thread_clock: MockClock) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    for number in range(3):
        await register(accounts, f"a{number}bc", origin=HERE)
    with pytest.raises(TooManyRegistrations, match="try again in 20 minutes"):
        await register(accounts, "another", origin=HERE)
    await register(accounts, "another", origin=THERE)
    await trio.sleep(3600 / 3)
    await register(accounts, "yetanother", origin=HERE)


async def test_the_number_of_accounts_is_limited() -> None:
    limits = AccountLimits(hash_kib=8, hash_passes=1, max_accounts=2)
    accounts = Accounts(ServerConfig(accounts=limits), LocalBackend(MemoryJournal()))
    await register(accounts, "alice")
    await register(accounts, "bob")
    for attempt in (register(accounts, "carol"), accounts.add("carol", RIGHT)):
        with pytest.raises(TooManyRegistrations):
            await attempt
    await accounts.remove("bob")
    await register(accounts, "carol")


async def guess(accounts: Accounts, name: str, origin: Origin | None, times: int) -> int:
    """Guess at the passphrase of *name*; return how many guesses were compared."""
    compared = 0
    for number in range(times):
        try:
            await accounts.log_in(name, f"guess {number}", origin)
        except WrongPassphrase:
            compared += 1
        except TooManyAttempts:
            pass
    return compared


async def test_each_wrong_passphrase_makes_the_next_attempt_wait_longer(
    thread_clock: MockClock,
) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    await register(accounts, "alice")
    began = trio.current_time()
    assert await guess(accounts, "alice", HERE, 10) == 10
    assert trio.current_time() - began >= 0.5 + 1 + 2 + 4 + 5 * 8
    began = trio.current_time()
    await accounts.log_in("alice", RIGHT, THERE)
    assert trio.current_time() - began < 0.5


async def test_a_login_to_another_account_does_not_reset_the_delay_of_wrong_passphrases(
    thread_clock: MockClock,
) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    for name in ("alice", "mallory"):
        await register(accounts, name)
    began = trio.current_time()
    for _ in range(10):
        await guess(accounts, "alice", HERE, 1)
        await accounts.log_in("mallory", RIGHT, HERE)
    assert trio.current_time() - began > 100


async def test_people_who_log_in_from_one_address_do_not_wait(thread_clock: MockClock) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    await register(accounts, "alice")
    began = trio.current_time()
    for _ in range(25):
        await accounts.log_in("alice", RIGHT, HERE)
    assert trio.current_time() - began < 3


async def test_of_many_attempts_at_once_from_one_address_most_are_refused(
    thread_clock: MockClock,
) -> None:
    accounts = Accounts(CONFIG, LocalBackend(MemoryJournal()))
    compared: list[int] = []

    async def attack() -> None:
        compared.append(await guess(accounts, "alice", HERE, 1))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(attack)
    assert len(compared) == 100
    assert sum(compared) < 30


# --- The journal ----------------------------------------------------------------------------------


async def test_accounts_survive_a_restart_if_the_journal_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        accounts = Accounts(CONFIG, LocalBackend(journal))
        alice = await register(accounts, "Alice")
        await register(accounts, "bob")
        await accounts.remove("BOB")
        alice = await accounts.change(alice, "battery staple", None)
    async with running(SqliteJournal(path)) as journal:
        accounts = Accounts(CONFIG, LocalBackend(journal))
        accounts.load()
        assert [each.name for each in accounts] == ["Alice"]
        assert accounts.logged_in(alice.login) == alice
        assert await accounts.log_in("alice", "battery staple", None) == alice


class FullJournal(MemoryJournal):
    """Stores no account while *is_full*."""

    is_full = True

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        if not self.is_full:
            return None
        pending = PendingWrite()
        pending.resolve("the disk is full")
        return pending


async def test_a_change_that_cannot_be_stored_is_undone() -> None:
    journal = FullJournal()
    accounts = Accounts(CONFIG, LocalBackend(journal))
    with pytest.raises(StorageFailed):
        await register(accounts, "alice")
    assert len(accounts) == 0
    journal.is_full = False
    alice = await register(accounts, "alice")
    journal.is_full = True
    for attempt in (accounts.change(alice, "battery staple", None), accounts.remove("alice")):
        with pytest.raises(StorageFailed):
            await attempt
    assert await accounts.log_in("alice", RIGHT, None) is alice


class HeldJournal(MemoryJournal):
    """Stores accounts, and reports that once `release` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, AccountRecord] = {}
        self.held: list[PendingWrite] = []

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        self.stored.pop(name, None)
        if record is not None:
            self.stored[name] = record
        self.held.append(PendingWrite())
        return self.held[-1]

    async def release(self, *, count: int, failure: str = "") -> None:
        """Wait until *count* writes are held in all, and report the oldest as stored.

        With *failure* it is reported as failed.
        """
        while len(self.held) < count:
            await trio.sleep(0.001)
        self.held.pop(0).resolve(failure)


@pytest.mark.parametrize("failure", ["", "the disk is full"])
@pytest.mark.parametrize("change", ["register", "passphrase"])
async def test_a_login_fails_if_the_account_could_not_be_stored(change: str, failure: str) -> None:
    journal = HeldJournal()
    accounts = Accounts(CONFIG, LocalBackend(journal))
    refused: list[RemoteProtocolError] = []
    logged_in: list[Account] = []

    async def log_in() -> None:
        try:
            logged_in.append(await accounts.log_in("alice", RIGHT, None))
        except WrongPassphrase as error:
            refused.append(error)

    async def make() -> None:
        try:
            if change == "register":
                await register(accounts, "alice")
            else:
                await accounts.change(former, RIGHT, None)
        except StorageFailed as error:
            refused.append(error)

    with trio.fail_after(10):
        if change == "passphrase":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register, accounts, "alice", "battery staple")
                await journal.release(count=1)
            former = next(iter(accounts))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            while not journal.held:
                await trio.sleep(0.001)
            nursery.start_soon(log_in)
            await trio.sleep(0.1)  # its passphrase has been compared
            assert not logged_in + refused
            await journal.release(count=1, failure=failure)
    if failure:
        assert sorted(type(error).__name__ for error in refused) == [
            "StorageFailed",
            "WrongPassphrase",
        ]
    else:
        assert (logged_in, refused) == ([accounts.find("alice")], [])


async def test_an_account_whose_passphrase_changes_while_it_is_removed_is_removed() -> None:
    journal = HeldJournal()
    accounts = Accounts(CONFIG, LocalBackend(journal))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(register, accounts, "alice")
            await journal.release(count=1)
        alice = accounts.find("alice")
        assert alice is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accounts.remove, "alice")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(accounts.change, alice, "battery staple", None)
            await journal.release(count=2)  # the removal
            await journal.release(count=2)  # the change, after which it is removed again
            await journal.release(count=1)
    assert (len(accounts), journal.stored) == (0, {})
    with pytest.raises(WrongPassphrase):
        await accounts.log_in("alice", "battery staple", None)
