"""Accounts: names that are protected by a passphrase, and the verification of passphrases.

Owns the accounts, and the limits of registering and logging in.  Does not know who is connected or
has which name; see `multichat.server.registry`.

Invariants:

1. No two accounts have names that are the same or look alike.
2. Passphrases are hashed in worker threads, few at once, after the waits that
   `multichat.server.password_attempts` demands; a login to no account takes as long as others.
3. A right passphrase does not reset the delays for wrong ones: otherwise the owner of one account
   could guess the passphrases of others without ever waiting.
4. A login is valid as long as the passphrase with which it was made: changing that ends all others.
5. A login needs an account and a passphrase that are stored already.
"""

import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

import trio

from multichat.backend.base import Backend
from multichat.errors import (
    NameTaken,
    RegistrationClosed,
    StorageFailed,
    TooManyAttempts,
    TooManyRegistrations,
    WrongPassphrase,
)
from multichat.journal.base import AccountRecord
from multichat.protocol.framing import clean
from multichat.protocol.lookalikes import NameIndex
from multichat.protocol.names import fold_name, parse_person_name
from multichat.server.config import Registration, ServerConfig
from multichat.server.origin import Origin
from multichat.server.passphrases import Hasher, check_passphrase
from multichat.server.password_attempts import PasswordAttempts
from multichat.server.rate_limit import HourlyLimit

__all__ = ["Account", "Accounts"]

# Of the digest of a hash, in a login: long enough that no other hash with it can be found.
_PROOF_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Account:
    """An account: its *name*, as its owner writes it, and the *hash* of its passphrase."""

    name: str
    hash: str = field(repr=False)

    @property
    def key(self) -> str:
        """Its name, folded."""
        return fold_name(self.name)

    @property
    def record(self) -> AccountRecord:
        """What is stored of it."""
        return AccountRecord(name=self.name, hash=self.hash)

    @property
    def login(self) -> str:
        """A proof, for the session store, that its passphrase was given."""
        return f"{sha256(self.hash.encode()).hexdigest()[:_PROOF_DIGITS]} {self.key}"


class Accounts:
    """The accounts of one server; *backend* stores them, *hasher* hashes their passphrases."""

    def __init__(
        self, config: ServerConfig, backend: Backend, hasher: Hasher | None = None
    ) -> None:
        self._config, self._backend = config, backend
        self._accounts: dict[str, Account] = {}
        self._names: NameIndex[str] = NameIndex()
        self._unstored: dict[Account, trio.Event] = {}  # set once that has been decided
        self.change_operators(config.operators)
        self._attempts = PasswordAttempts(config.timeouts)
        self._new = HourlyLimit(config.accounts.hourly)
        self._hasher = hasher or Hasher(config.accounts)

    def change_operators(self, names: Iterable[str]) -> None:
        """Make exactly the accounts with these *names*, which are valid, those of operators."""
        self._operator_names = dict.fromkeys(names)
        self._operators: NameIndex[str] = NameIndex()
        for operator in self._operator_names:
            if self._operators.find(operator) is None:
                self._operators.add(fold_name(operator), operator)

    def load(self) -> None:
        """Load the accounts from the backend, which is open."""
        for record in self._backend.accounts:
            self._put(Account(clean(record.name), record.hash))

    @property
    def are_lasting(self) -> bool:
        """Whether accounts survive a restart."""
        return bool(self._backend.location)

    def __len__(self) -> int:
        """How many accounts there are."""
        return len(self._accounts)

    def __iter__(self) -> Iterator[Account]:
        return iter(sorted(self._accounts.values(), key=lambda account: account.key))

    def find(self, name: str) -> Account | None:
        """Return the account *name*, in any case or form, if there is one."""
        return self._accounts.get(fold_name(name))

    def is_operator(self, key: str) -> bool:
        """Return whether the account with the folded name *key* is an operator's."""
        return bool(key) and self._operators.find(key) is not None

    def missing_operators(self) -> list[str]:
        """Return the names of the operators who have no account."""
        return [name for name in self._operator_names if self.find(name) is None]

    def check_name(self, name: str, key: str = "") -> None:
        """Raise `NameTaken` if *name* is, or looks like, that of another account than *key*."""
        for other in self._names.lookalikes(name):
            if other != key:
                is_same = other == fold_name(name)
                holder = "" if is_same else self._accounts[other].name
                raise NameTaken(name, holder, registered=True)

    def logged_in(self, login: str) -> Account | None:
        """Return the account of *login*, see `Account.login`; None if it is no longer valid."""
        account = self._accounts.get(login.partition(" ")[2])
        is_valid = account is not None and hmac.compare_digest(
            account.login.encode(), login.encode("utf-8", "replace")
        )
        return account if is_valid else None

    async def register(
        self, name: str, passphrase: str, origin: Origin | None, check: Callable[[], None]
    ) -> Account:
        """Create an account for a client in the chat, and return it once it is stored.

        *check* is called in the step in which the account is created, just before, and may raise.

        Raises `InvalidRequest`, `NameTaken`, `RegistrationClosed`, `TooManyRegistrations` or
        `StorageFailed`.
        """
        if self._config.registration is Registration.CLOSED:
            raise RegistrationClosed
        if self._operators.lookalikes(name):
            raise RegistrationClosed(name)
        check_passphrase(passphrase)
        self._check_new(name)
        limits = self._config.accounts
        if origin and (wait := self._new.take(origin.address, trio.current_time())):
            raise TooManyRegistrations(limits.hourly, wait)
        return await self._add(name, passphrase, check)

    async def add(self, name: str, passphrase: str) -> Account:
        """Create an account as the operator asks, and return it once it is stored.

        Raises `InvalidName`, `InvalidRequest`, `NameTaken`, `TooManyRegistrations` or
        `StorageFailed`.
        """
        name = parse_person_name(name)
        check_passphrase(passphrase)
        self._check_new(name)
        return await self._add(name, passphrase, lambda: None)

    def _check_new(self, name: str) -> None:
        self.check_name(name)
        if len(self._accounts) >= (most := self._config.accounts.max_accounts):
            raise TooManyRegistrations(most)

    async def _add(self, name: str, passphrase: str, check: Callable[[], None]) -> Account:
        account = Account(name, await self._hasher.hash(passphrase))
        self._check_new(name)
        check()
        self._put(account)  # so that no other client registers it meanwhile
        try:
            await self._save(account, None)
        except Exception:
            self._discard(account)
            raise
        return account

    async def change(
        self,
        account: Account,
        passphrase: str,
        origin: Origin | None,
        check: Callable[[], None] = lambda: None,
    ) -> Account:
        """Change the passphrase of *account*, and return the account once that is stored.

        *check* is called in the step in which it is changed, just before, and may raise.

        Raises `InvalidRequest`, `TooManyAttempts`, `WrongPassphrase` if the account is gone or was
        changed meanwhile, or `StorageFailed`.
        """
        check_passphrase(passphrase)
        await self._wait_turn(origin)
        changed = Account(account.name, await self._hasher.hash(passphrase))
        if self._accounts.get(account.key) is not account:
            raise WrongPassphrase
        check()
        self._accounts[account.key] = changed
        try:
            await self._save(changed, account)
        except Exception:
            if self._accounts.get(account.key) is changed:
                self._accounts[account.key] = account
            raise
        return changed

    async def remove(self, name: str) -> Account | None:
        """Remove the account *name*, and return it; None if there is none.

        Raises `StorageFailed`.
        """
        while (account := self.find(name)) is not None:
            await self._store(account.key, None, account.record)
            if self.find(name) is account:  # else it was stored again, with another passphrase
                self._discard(account)
                break
        return account

    async def log_in(self, name: str, passphrase: str, origin: Origin | None) -> Account:
        """Return the account *name* if *passphrase* is its own.

        Waits as long as the limits demand.  Raises `WrongPassphrase` or `TooManyAttempts`.
        """
        queue = await self._wait_turn(origin)
        account = self.find(name)
        hash_ = "" if account is None else account.hash
        is_right = await self._hasher.is_passphrase(passphrase, hash_)
        if account is not None and is_right and account in self._unstored:
            await self._unstored[account].wait()
        # It may have been changed or removed meanwhile.
        if account is None or not is_right or self._accounts.get(account.key) is not account:
            if origin is not None:
                self._attempts.failed(origin, trio.current_time())
            raise WrongPassphrase
        if origin is not None:
            self._attempts.succeeded(origin, queue, trio.current_time(), forgets=False)
        return account

    async def _wait_turn(self, origin: Origin | None) -> int:
        """Wait as long as the limits of attempts demand; return the queue in which it waited."""
        if origin is None:  # a stream of the program itself
            return 0
        longest = self._config.auth_seconds
        delay = self._attempts.address_delay(origin, trio.current_time(), longest)
        if delay is None:
            await trio.sleep(longest)  # it may try again at once
            raise TooManyAttempts
        await trio.sleep(delay)
        turn = self._attempts.server_delay(origin, trio.current_time(), longest)
        if turn is None:
            await trio.sleep(longest)
            raise TooManyAttempts
        queue, delay = turn
        await trio.sleep(delay)
        return queue

    async def _save(self, account: Account, former: Account | None) -> None:
        replaced = None if former is None else former.record
        decided = self._unstored[account] = trio.Event()
        try:
            await self._store(account.key, account.record, replaced)
        finally:
            del self._unstored[account]
            decided.set()

    async def _store(
        self, key: str, record: AccountRecord | None, former: AccountRecord | None
    ) -> None:
        try:
            await self._backend.save_account(key, record, former=former)
        except StorageFailed as error:
            raise error.about("the account" if record else "the removal of the account") from None

    def put(self, key: str, name: str, hash_: str) -> None:
        """Note the account *key* as another node has stored it; removed if *name* is empty."""
        if (former := self._accounts.get(key)) is not None:
            self._discard(former)
        if name:
            self._put(Account(name, hash_))

    def _put(self, account: Account) -> None:
        self._accounts[account.key] = account
        self._names.add(account.key, account.name)

    def _discard(self, account: Account) -> None:
        if self._accounts.get(account.key) is account:
            del self._accounts[account.key]
            self._names.discard(account.key)
