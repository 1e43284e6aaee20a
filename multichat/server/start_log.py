"""What a server logs when it starts: where it listens, and what its operator should know."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from logging import WARNING
from pathlib import Path

import trio

from multichat.log import Log
from multichat.net import transport
from multichat.net.listeners import is_reachable_remotely
from multichat.server.config import CONNECTIONS_PER_MIB, ServerConfig

__all__ = ["Starting", "log_start"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Starting:
    """A server that starts: its listeners on *tcp* ports and for the *web*, and its Unix sockets.

    *unix* is for clients, *admin* for the operator's commands.
    """

    tcp: Sequence[trio.SocketListener]
    web: Sequence[trio.SocketListener] = ()
    unix: Path | None = None
    admin: Path | None = None
    is_encrypted: bool = False

    @property
    def port(self) -> int:
        """The first TCP port; 0 without one."""
        return int(self.tcp[0].socket.getsockname()[1]) if self.tcp else 0

    @property
    def addresses(self) -> list[str]:
        """Where clients can connect."""
        found = [transport.format_address(each.socket.getsockname()) for each in self.tcp]
        return found if self.unix is None else [*found, str(self.unix)]

    def web_url(self, configured: str | None) -> str:
        """Return where people find the page; *configured* is what the operator says."""
        if not self.web:
            return ""
        if configured is not None:
            return configured
        host, port, *_ = self.web[0].socket.getsockname()
        if ip_address(host.partition("%")[0]).is_unspecified:  # every interface
            host = socket.gethostname()
        scheme, default = ("https", 443) if self.is_encrypted else ("http", 80)
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}/" if port == default else f"{scheme}://{shown}:{port}/"


def log_start(
    log: Log, starting: Starting, config: ServerConfig, journal: str | None, web_url: str
) -> None:
    """Log how a server starts; *journal* is where messages are stored, *web_url* its page."""
    where = f"port {starting.port}" if starting.tcp else str(starting.unix or web_url)
    fields = {"event": "starting", "port": starting.port or None}
    log.line("start", f"Starting multi-chat server on {where}", fields=fields)
    for address in starting.addresses:
        fields = {"event": "listening", "address": address}
        log.line("start", f"Listening on {address}", fields=fields)
    if web_url:
        if web_url == config.web.url:  # which does not tell where it listens
            for each in starting.web:
                address = transport.format_address(each.socket.getsockname())
                log.line("start", f"Listening on {address} for the web page")
        log.line("start", f"Web page at {web_url}")
    if starting.admin is not None:
        log.line("start", f"Listening on {starting.admin} for the operator's commands")
    if journal:
        log.line("start", f"Storing messages in {journal}")
    if (connections := config.max_connections) < config.max_clients:
        needed = f"--memory {-(-config.max_clients // CONNECTIONS_PER_MIB)}"
        text = f"Memory for {connections} connections: {config.max_clients} need {needed}"
        log.line("start", text)
    if starting.is_encrypted or not any(map(is_reachable_remotely, (*starting.tcp, *starting.web))):
        return
    if config.web.webhook_tokens and any(map(is_reachable_remotely, starting.web)):
        warning = "Webhook tokens are sent in plain text beyond this machine: add --tls-cert"
        log.line("start", warning, WARNING)
    if config.password is None:
        # Not at level WARNING: the specification's log has one level up to here.
        warning = "Reachable from other machines without TLS or a password: "
        log.line("start", f"{warning}anybody can read and join")
    else:
        warning = "The password is sent in plain text beyond this machine: add --tls-cert"
        log.line("start", warning, WARNING)
