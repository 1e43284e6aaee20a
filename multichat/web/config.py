"""The settings of the web port: defaults, with the reason for each.  Pure."""

from dataclasses import dataclass, field

from multichat.web.forwarded import Proxies
from multichat.web.origins import WebAddress

__all__ = ["MIN_TOKEN_CHARACTERS", "WEBHOOK_NAME", "WebConfig"]

# 16 characters of base64 are 96 bits, too many to guess, even at a million guesses a second.
MIN_TOKEN_CHARACTERS = 16

WEBHOOK_NAME = "webhook"
"""The sender of a message that is posted without a name.

No client can have this name while there is a webhook.
"""

# So that it fits in the head of a request.
_MAX_TOKEN_CHARACTERS = 1024


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """The settings of the web port.

    Raises `ValueError` for an invalid value.
    """

    # The address of the page for people, if that is not `http://HOST:PORT/`: behind a proxy, or by
    # a name that is not the machine's own.  Requests may name its host, and its pages may connect.
    url: str | None = None

    # The addresses and networks of proxies, whose `X-Forwarded-For` and `X-Forwarded-Proto` count.
    # By default none: a client could claim any address.
    proxies: tuple[str, ...] = ()

    # A request with one of these may post messages.  Empty: there is no webhook.
    webhook_tokens: tuple[str, ...] = field(default=(), repr=False)

    # The head of a request, in bytes: the limit of nginx and Apache, four times what browsers send.
    max_head_bytes: int = 32 * 1024

    # Seconds for the body of a request, and for a client to receive a response: a slow phone loads
    # the page in a tenth of that.
    transfer_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.url is not None:
            WebAddress.parse(self.url)
        Proxies(self.proxies)
        for token in self.webhook_tokens:
            if not MIN_TOKEN_CHARACTERS <= len(token) <= _MAX_TOKEN_CHARACTERS:
                raise ValueError(
                    f"a webhook's token has {MIN_TOKEN_CHARACTERS} to {_MAX_TOKEN_CHARACTERS} "
                    "characters"
                )
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ValueError("a webhook's token has letters, digits and punctuation only")
        if self.max_head_bytes < 1:
            raise ValueError("max_head_bytes must be at least 1")
        if not self.transfer_seconds > 0:
            raise ValueError("transfer_seconds must be more than 0")
