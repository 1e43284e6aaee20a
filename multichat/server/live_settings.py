"""What of a server's configuration can change while it runs: secrets, operators, the certificate.

Checks new values, and passes them to the parts of the server that use them; all other settings stay
as the server was started.  Each change is one step, without waiting, and applies from then on:
connected clients stay.
"""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from multichat.net.certificates import ServerTls
from multichat.server.accounts import Accounts
from multichat.server.authentication import Authentication
from multichat.server.config import ServerConfig

if TYPE_CHECKING:  # imports h11, which servers without a page do not need
    from multichat.server.webhook import Webhook

__all__ = ["LiveSettings"]


class LiveSettings:
    """The settings of one server that may change; see `Server.settings`.

    *webhook* returns the server's webhook.  *clock* returns the Unix time in seconds.

    *tls* is the TLS context for the next connections of `Server.run`; None without TLS.
    """

    def __init__(
        self,
        config: ServerConfig,
        authentication: Authentication,
        accounts: Accounts,
        webhook: "Callable[[], Webhook]",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._authentication, self._accounts = authentication, accounts
        self._webhook = webhook
        self._clock = clock
        self.tls: ssl.SSLContext | None = None

    @property
    def config(self) -> ServerConfig:
        """The configuration with the values of now; changing it changes nothing."""
        return self._config

    def change_password(self, password: str | None) -> None:
        """Ask clients that connect from now on for *password*; with None, for none.

        Connected clients stay, and may resume their sessions.  Raises `ValueError` if it is not a
        possible password.
        """
        self._config = replace(self._config, password=password)
        self._authentication.change_password(password)

    def change_operators(self, names: Sequence[str]) -> str:
        """Make exactly the accounts with these *names* operators.

        Returns a line of advice if one has no account yet; otherwise nothing.  Raises
        `ValueError` if one is not a possible name.
        """
        self._config = replace(self._config, operators=tuple(names))
        self._accounts.change_operators(names)
        return "; ".join(self.operators_advice())

    def operators_advice(self) -> list[str]:
        """Return a line for each operator without an account: until it has one, it is none."""
        advice = "add it with `multichat account add`, or with /account at the console"
        missing = self._accounts.missing_operators()
        return [f"The operator {name} has no account: {advice}" for name in missing]

    def change_webhook_tokens(self, tokens: Sequence[str]) -> None:
        """Accept exactly these *tokens* of the webhook from now on.

        A post that was accepted before is completed.  Raises `ValueError` if one is not a possible
        token, or if the server was started without a webhook, or there would be no token left.
        """
        if not self._config.web.webhook_tokens:
            raise ValueError("the server was started without a webhook")
        if not tokens:
            raise ValueError("there is no token")
        web = replace(self._config.web, webhook_tokens=tuple(tokens))
        self._config = replace(self._config, web=web)
        self._webhook().change_tokens(tokens)

    def change_certificate(self, tls: ssl.SSLContext) -> str:
        """Use *tls* for the connections from now on; return a line of advice, or nothing.

        Established connections stay as they are.  Raises `ValueError` if the server runs without
        TLS, or if clients would refuse the certificate and accept the present one.
        """
        if self.tls is None:
            raise ValueError("the server was started without TLS")
        now = self._clock()
        if isinstance(tls, ServerTls) and isinstance(self.tls, ServerTls):
            fault = tls.fault(now)
            if fault and not self.tls.fault(now):
                raise ValueError(f"{tls.certificate}: {fault}")
        self.tls = tls
        return self.certificate_advice()

    def certificate_advice(self) -> str:
        """Return one line if the certificate is not valid, or expires soon; otherwise nothing."""
        return self.tls.advice(self._clock()) if isinstance(self.tls, ServerTls) else ""
