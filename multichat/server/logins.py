"""Which client is logged in to which account, and how logins change names.

Changes only in functions without `await`, after what has to be hashed or stored first.

Invariants:

1. At most one client is logged in to an account.
2. A name that is an account's, or looks like it, is given only to the client that is logged in to
   it; see `multichat.server.name_registry`.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from multichat.errors import InvalidRequest, NameAssigned, NameTaken, WrongPassphrase
from multichat.protocol.messages import Event, LoggedOut, Notice, Renamed
from multichat.protocol.names import default_name, fold_name
from multichat.server import log_lines
from multichat.server.accounts import Account, Accounts
from multichat.server.claims import Claims
from multichat.server.client import Client
from multichat.server.name_registry import NameRegistry
from multichat.server.origin import Origin

__all__ = ["Logins"]

_ELSEWHERE = "somebody has logged in to your account elsewhere"
_REMOVED = "the account was removed"


class Logins:
    """The logins of one server's clients.

    *claims* are made before a login is applied.  *note_change* is called with each client whose
    name or login has changed, and its former name.
    *start_soon* starts a task that outlives the call.
    """

    def __init__(
        self,
        accounts: Accounts,
        names: NameRegistry,
        claims: Claims,
        note_change: Callable[[Client, str], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._accounts, self._names, self._claims = accounts, names, claims
        self._note_change, self._start_soon = note_change, start_soon
        self._clients: dict[str, Client] = {}  # by account

    def account_of(self, client: Client) -> Account | None:
        """Return the account to which *client* is logged in, if any."""
        return self._accounts.find(client.account) if client.account else None

    def proof_of(self, client: Client) -> str:
        """Return what a session keeps of the login of *client*; see `Account.login`."""
        account = self.account_of(client)
        return "" if account is None else account.login

    async def claim(self, client: Client, account: Account) -> None:
        """Claim a login to *account* for *client*, before `log_in`; raises `StorageFailed`."""
        with suppress(NameTaken):  # somebody has logged in since: `log_in` says so
            await self._claims.make(
                client,
                client.number,
                client.generation,
                account.name,
                account=account.key,
                login=True,
            )

    def log_in(self, client: Client, account: Account) -> None:
        """Log *client* in, and give it the account's name, also from another client.

        Raises `WrongPassphrase` if the account was changed or removed since its passphrase was
        compared, `NameAssigned` or `Banned`.
        """
        if self._accounts.find(account.name) is not account:
            raise WrongPassphrase
        assigned = client.assigned_name
        if assigned and fold_name(assigned) != account.key:
            raise NameAssigned(assigned)
        self._names.check_banned(account.name)
        if (refusal := client.claims.get(account.key)) is not None:
            raise refusal
        other = self._clients.get(account.key)
        if other is not None and other is not client:
            self.log_out(other, _ELSEWHERE)
        for holder in self._names.holders(account.name):
            if holder is not client:
                old = self._unname(holder)
                self._tell_renamed(holder, old, account.name)
        self._put(client, account)
        old = client.name
        self._names.take(client, account.name)
        self._note_change(client, old)

    def _put(self, client: Client, account: Account) -> None:
        self.forget(client)
        client.account = account.key
        self._clients[account.key] = client
        log_lines.logged_in(client, account.name)

    def lose(self, client: Client, name: str, *, login: bool) -> None:
        """Take the *name* from *client*, and its login if it had one: another node gave it away."""
        if login and client.account:
            self.log_out(client, _ELSEWHERE)
        elif fold_name(self._names.name_of(client)) == fold_name(name):
            self._tell_renamed(client, self._unname(client), name)

    def _tell_renamed(self, client: Client, old: str, name: str) -> None:
        why = f"the name {name} is registered, and its owner has logged in"
        if self._accounts.find(name) is None:  # nodes of a cluster disagreed for a while
            why = f"somebody else has the name {name} now"
        self._tell(client, Renamed(client.number, old, client.name), Notice(why))

    def log_out(self, client: Client, reason: str = "") -> None:
        """Log *client* out, and send it the *reason* if there is one.

        Raises `InvalidRequest` if it is not logged in.
        """
        if not client.account:
            raise InvalidRequest("you are not logged in")
        log_lines.logged_out(client)
        self.forget(client)
        try:
            self._accounts.check_name(client.name)
        except NameTaken:
            self._unname(client)
        else:
            self._note_change(client, client.name)
        if reason:
            self._tell(client, LoggedOut(client.name, reason))

    def forget(self, client: Client) -> None:
        """Note that *client* is not logged in any more, as when it has left."""
        if self._clients.get(client.account) is client:
            del self._clients[client.account]
        client.account = ""

    def resume(self, client: Client, login: str) -> None:
        """Log *client* in as its session was, unless that login is no longer valid."""
        account = self._accounts.logged_in(login) if login else None
        if (
            account is not None
            and account.key not in self._clients
            and client.claims.get(account.key) is None
        ):
            self._put(client, account)

    async def register(self, client: Client, passphrase: str, origin: Origin | None) -> Account:
        """Register the name of *client* as an account, and log it in; see `Accounts.register`."""
        name = self._names.name_of(client)
        if client.account:
            raise InvalidRequest("you are logged in to an account: /logout first")
        if not name:
            raise InvalidRequest("you have no name yet: /name NAME, then /register PASSPHRASE")

        def check() -> None:
            if self._names.name_of(client) != name:  # it was taken, or the client has left
                raise NameTaken(name)

        account = await self._accounts.register(name, passphrase, origin, check)
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.claim(client, account)
        self.log_in(client, account)
        return account

    async def change_passphrase(
        self, client: Client, passphrase: str, origin: Origin | None
    ) -> None:
        """Change the passphrase of *client*'s account; see `Accounts.change`."""
        account = self.account_of(client)
        if account is None:
            raise InvalidRequest("you are not logged in")

        def check() -> None:
            if self._clients.get(account.key) is not client:  # it was logged out meanwhile
                raise InvalidRequest("you are not logged in")

        await self._accounts.change(account, passphrase, origin, check)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._note_change(client, client.name)

    async def remove(self, name: str) -> Account | None:
        """Remove the account *name*; see `Accounts.remove`."""
        account = await self._accounts.remove(name)
        if account is not None and (client := self._clients.get(account.key)) is not None:
            self.log_out(client, _REMOVED)
        return account

    def put_account(self, key: str, name: str, hash_: str) -> None:
        """Note an account that another node has stored, or has removed if *name* is empty."""
        self._accounts.put(key, name, hash_)
        if not name and (client := self._clients.get(key)) is not None:
            self.log_out(client, _REMOVED)

    def _unname(self, client: Client) -> str:
        """Take the name of *client* away, and return it."""
        old = client.name
        self._names.release(client, keep=False)
        client.name = default_name(client.number)
        self._note_change(client, old)
        return old

    def _tell(self, client: Client, *events: Event) -> None:
        async def tell() -> None:  # waits while its send queue is full
            await client.send(*events)

        self._start_soon(tell)
