"""The log lines about clients, connections, bans and reloads: their text, and their JSON fields.

One function for each event.  Events that a client can cause repeatedly go through that client's own
log, which is rate-limited; see `multichat.server.log_rate`.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from multichat.log import Log
from multichat.log_format import Fields
from multichat.server.bans import Ban
from multichat.server.refusals import RefusedFor

if TYPE_CHECKING:
    from multichat.server.client import Client

__all__ = [
    "banned",
    "connected",
    "controlled",
    "disconnected",
    "joined",
    "left",
    "logged_in",
    "logged_out",
    "not_reloaded",
    "operated",
    "refused",
    "reloaded",
    "renamed",
    "resumed",
    "unbanned",
]


def connected(log: Log, client: "Client", *, address: str) -> None:
    """Log a new *client*, with its *address* unless that is empty."""
    origin = f" from {address}" if address else ""
    fields: Fields = {"event": "connected", "client": client.number, "address": address}
    log.line("STATE", f"Client {client.number} connected{origin}", fields=fields)


def disconnected(log: Log, client: int, name: str, code: str, reason: str) -> None:
    """Log that the *client*, whose *name* is empty if it had none, has left.

    *code* is one of `DISCONNECT_CODES`.
    """
    if code in ("kicked", "banned"):  # an operator wrote the reason
        reason = log.shown(reason, code)
    suffixes = "".join(f" ({each})" for each in (name, reason) if each)
    fields: Fields = {
        "event": "disconnected",
        "client": client,
        "name": name,
        "code": code,
        "reason": reason,
    }
    log.line("STATE", f"Client {client} disconnected{suffixes}", fields=fields)


def resumed(log: Log, connected_as: int, client: int, name: str) -> None:
    """Log that the session of *client* continues, on a connection that was another client's."""
    fields: Fields = {
        "event": "resumed",
        "client": client,
        "name": name,
        "connected_as": connected_as,
    }
    log.line("STATE", f"Client {connected_as} is Client {client} again", fields=fields)


def renamed(client: "Client", before: str) -> None:
    """Log the new name of *client*, which has already been set."""
    text = f"Client {client.number} is now called {client.name}"
    fields: Fields = {"event": "renamed", "name": client.name, "before": before}
    client.log.line("STATE", text, fields=fields)


def joined(client: "Client", room: str) -> None:
    """Log that *client* has joined or entered *room*."""
    fields: Fields = {"event": "joined", "name": client.name, "room": room}
    client.log.line("STATE", f"Client {client.number} joined {room}", fields=fields)


def left(client: "Client", room: str) -> None:
    """Log that *client* has left *room* but is still connected."""
    fields: Fields = {"event": "left", "name": client.name, "room": room}
    client.log.line("STATE", f"Client {client.number} left {room}", fields=fields)


def logged_in(client: "Client", account: str) -> None:
    """Log that *client* has logged in to *account*."""
    fields: Fields = {"event": "logged-in", "name": client.name, "account": account}
    client.log.line("STATE", f"Client {client.number} logged in as {account}", fields=fields)


def logged_out(client: "Client") -> None:
    """Log that *client* is about to be logged out of its account."""
    fields: Fields = {"event": "logged-out", "name": client.name, "account": client.account}
    text = f"Client {client.number} logged out of {client.account}"
    client.log.line("STATE", text, fields=fields)


def operated(client: "Client", command: str) -> None:
    """Log a *command* of an operator in the chat."""
    fields: Fields = {"event": "operator", "name": client.name, "account": client.account}
    text = f"Operator {client.account} (Client {client.number}): {command}"
    client.log.line("STATE", text, fields=fields)


def controlled(log: Log, command: str) -> None:
    """Log a *command* that the operator sent over the admin socket."""
    text = f"Operator at the admin socket: {command}"
    log.line("STATE", text, fields={"event": "operator", "name": "", "account": ""})


def refused(log: Log, address: str, why: RefusedFor, reason: str) -> None:
    """Log a connection that was not admitted, with its *address*, which an operator may ban."""
    if why is RefusedFor.BANNED:
        reason = log.shown(reason, why.value)
    fields: Fields = {
        "event": "refused",
        "address": address,
        "code": why.value,
        "reason": reason,
    }
    log.line("STATE", f"Refused {address or 'a client'}: {reason}", fields=fields)


def banned(log: Log, ban: Ban, now: float) -> None:
    """Log a new *ban*."""
    shown = replace(ban, reason=log.shown(ban.reason))
    fields: Fields = {"event": "banned", "target": ban.subject, "reason": shown.reason}
    log.line("STATE", f"Banned {shown.describe(now)}", fields=fields)


def unbanned(log: Log, target: str) -> None:
    """Log that the ban of *target* was lifted."""
    log.line("STATE", f"Unbanned {target}", fields={"event": "unbanned", "target": target})


def reloaded(log: Log, parts: str) -> None:
    """Log which *parts* of the server were reloaded, with commas between them."""
    log.line("reload", f"Reloaded: {parts}", fields={"event": "reloaded", "parts": parts})


def not_reloaded(log: Log, part: str, text: str) -> None:
    """Log a *part* that was not reloaded, and the reason, *text*."""
    log.line("reload", text, logging.ERROR, fields={"event": "not-reloaded", "part": part})
