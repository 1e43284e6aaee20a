"""Claims of what only one client of a cluster can have: its name and its login.

A claim is made before the step in which it is applied, and waits for the backend; without other
nodes there is nothing to claim, and nothing waits.

1. A claim is in `Client.claims` from before it is sent until it is applied or given up: before the
   answer to the request that needed it, which may wait for the client without limit.  In that time
   the client is not reported to other nodes: a report gives back all names that it does not have.
2. After the wait the client may have disconnected: then this raises `Cancelled`, and the claim is
   given back with the client's leaving, by its number and generation.
"""

import trio

from multichat.backend.base import Backend, Claim
from multichat.errors import NameTaken, StorageFailed
from multichat.protocol.auth import UNAVAILABLE
from multichat.protocol.names import fold_name
from multichat.server.client import Client

__all__ = ["Claims"]


class Claims:
    """The claims of one server's clients, at *backend*."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def check_available(self) -> None:
        """Raise `StorageFailed` if nothing can be decided now."""
        if not self._backend.available:
            raise StorageFailed(self._backend.refusal)

    def why_unavailable(self) -> str:
        """Return the reason of a goodbye, for as long as nothing can be decided."""
        backend = self._backend
        cause = "it cannot reach its storage" if backend.is_away else backend.refusal
        return f"{UNAVAILABLE}: {cause}"

    async def make(
        self,
        client: Client,
        number: int,
        generation: int,
        name: str,
        *,
        account: str,
        login: bool = False,
    ) -> None:
        """Claim *name* for *client*, which is or will be that *number* with that *generation*.

        For *account* and *login* see `multichat.backend.base.Claim`.  Does nothing without other
        nodes.  Raises `NameTaken` or `StorageFailed`.
        """
        if not self._backend.is_shared:
            return
        self.check_available()
        claim = Claim(
            client=number,
            generation=generation,
            name=name,
            account=account,
            login=login,
            origin=client.origin or "",
        )
        client.claims[fold_name(name)] = None
        try:
            await self._backend.claim(claim)
        except NameTaken as error:
            client.claims[fold_name(name)] = error
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
