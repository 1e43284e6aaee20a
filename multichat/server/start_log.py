"""What a server logs when it starts: where it listens, and what its operator should know."""

import socket
from ipaddress import ip_address
from logging import WARNING

import msgspec
import trio

from multichat.log import Log
from multichat.net.activation import describe, is_unix
from multichat.net.listeners import is_reachable_remotely
from multichat.protocol.counts import counted
from multichat.server.config import CONNECTIONS_PER_MIB, ServerConfig
from multichat.server.listening import Listeners

__all__ = ["Starting", "log_start"]


class Starting(msgspec.Struct, frozen=True):
    """A server that starts, with these *listeners*."""

    listeners: Listeners
    is_encrypted: bool = False

    @property
    def port(self) -> int:
        """The first TCP port; 0 without one."""
        tcp = self.listeners.tcp
        return int(tcp[0].socket.getsockname()[1]) if tcp else 0

    @property
    def addresses(self) -> list[str]:
        """Where clients can connect."""
        return [_where(each) for each in (*self.listeners.tcp, *self.listeners.unix)]

    def web_url(self, configured: str | None) -> str:
        """Return where people find the page; *configured* is what the operator says."""
        tcp = [each for each in self.listeners.web if not is_unix(each.socket)]
        if configured is not None and self.listeners.web:
            return configured
        if not tcp:  # a Unix socket is behind a proxy, which knows
            return ""
        host, port, *_ = tcp[0].socket.getsockname()
        if ip_address(host.partition("%")[0]).is_unspecified:  # every interface
            host = socket.gethostname()
        scheme, default = ("https", 443) if self.is_encrypted else ("http", 80)
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}/" if port == default else f"{scheme}://{shown}:{port}/"


def log_start(
    log: Log, starting: Starting, config: ServerConfig, journal: str | None, web_url: str
) -> None:
    """Log how a server starts; *journal* is where messages are stored, *web_url* its page."""
    listeners = starting.listeners
    where = f"port {starting.port}" if listeners.tcp else web_url
    if not listeners.tcp and listeners.unix:
        where = _where(listeners.unix[0])
    fields = {"event": "starting", "port": starting.port or None}
    log.line("start", f"Starting multi-chat server on {where}", fields=fields)
    for address in starting.addresses:
        fields = {"event": "listening", "address": address}
        log.line("start", f"Listening on {address}", fields=fields)
    for each in listeners.web:
        # The URL that was not configured says where.
        if web_url in ("", config.web.url) or is_unix(each.socket):
            log.line("start", f"Listening on {_where(each)} for the web page")
    if web_url:
        log.line("start", f"Web page at {web_url}")
    for each in listeners.admin:
        log.line("start", f"Listening on {_where(each)} for the operator's commands")
    if journal:
        log.line("start", f"Storing messages in {journal}")
    if (connections := config.max_connections) < config.max_clients:
        needed = f"--memory {-(-config.max_clients // CONNECTIONS_PER_MIB)}"
        memory = f"Memory for {counted(connections, 'connection')}"
        text = f"{memory}: {config.max_clients} need {needed}"
        log.line("start", text)
    reachable = [*listeners.tcp, *listeners.web]
    if starting.is_encrypted or not any(map(is_reachable_remotely, reachable)):
        return
    if config.web.webhook_tokens and any(map(is_reachable_remotely, listeners.web)):
        warning = "Webhook tokens are sent in plain text beyond this machine: add --tls-cert"
        log.line("start", warning, WARNING)
    if config.password is None:
        # Not at level WARNING: the specification's log has one level up to here.
        warning = "Reachable from other machines without TLS or a password: "
        log.line("start", f"{warning}anybody can read and join")
    else:
        warning = "The password is sent in plain text beyond this machine: add --tls-cert"
        log.line("start", warning, WARNING)


def _where(listener: trio.SocketListener) -> str:
    return describe(listener.socket)
