"""The account that a client logs in to: its name, and where its passphrase comes from."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from multichat.cli.notices import tell
from multichat.cli.process import (
    PASSPHRASE_VARIABLE,
    UsageMistake,
    are_terminals,
    ask_secret,
    read_secret_file,
    run_with_password,
    utf8_text,
)
from multichat.client.options import ChatOptions
from multichat.errors import NotPrivate, Refused
from multichat.protocol.address import is_loopback
from multichat.protocol.framing import clean
from multichat.protocol.messages import MAX_PASSPHRASE_CHARACTERS, Credentials
from multichat.protocol.names import fold_name

if TYPE_CHECKING:
    from multichat.client.connect import Endpoint

__all__ = ["run_with_login", "with_option"]

_MAX_TRIES = 3

_TYPED = re.compile(r"/login (\S+) PASSPHRASE$")

_T = TypeVar("_T")


def with_option(refusal: str) -> str:
    """Return the *refusal* of a registered name for a command to which no login can be typed."""
    return _TYPED.sub(r"--login \1", refusal)


def run_with_login(
    run: Callable[[ChatOptions], _T],
    endpoint: "Endpoint",
    options: ChatOptions,
    *,
    login: str | None,
    file: Path | None,
) -> _T:
    """Call *run* with *options* and, if there is a *login*, with its passphrase.

    That is in *file*, or in the environment, or is asked for on a terminal, where the user may try
    again after a wrong one.  For the server's password see `run_with_password`.

    Raises `NotPrivate` if others could read the passphrase on its way, `UsageMistake` without one,
    and as *run* does.
    """
    if login is None:
        try:
            return run_with_password(run, endpoint, options)
        except Refused as refused:
            raise Refused(refused.code, with_option(str(refused))) from None
    if endpoint.unix is None and endpoint.tls is None and not is_loopback(endpoint.host):
        raise NotPrivate(str(endpoint))
    if options.name is not None and fold_name(options.name) == fold_name(login):
        options = replace(options, name=None)

    def run_as(passphrase: str) -> _T:
        if len(passphrase) > MAX_PASSPHRASE_CHARACTERS:
            raise UsageMistake(f"a passphrase has at most {MAX_PASSPHRASE_CHARACTERS} characters")
        credentials = Credentials(login, passphrase)
        return run_with_password(run, endpoint, replace(options, login=credentials))

    if file is not None:
        return run_as(read_secret_file(file, "passphrase"))
    if given := utf8_text(os.environ.get(PASSPHRASE_VARIABLE, ""), PASSPHRASE_VARIABLE):
        return run_as(given)
    missing = f"the passphrase of {login} is missing: --passphrase-file or {PASSPHRASE_VARIABLE}"
    if not are_terminals(sys.stdin, sys.stderr):
        raise UsageMistake(missing)
    for left in reversed(range(_MAX_TRIES)):
        typed = ask_secret(f"Passphrase of {clean(login)}: ")
        if not typed:
            raise UsageMistake(missing)
        try:
            return run_as(typed)
        except Refused as refused:
            if refused.code != "wrong-passphrase" or not left:
                raise
            tell(str(refused))
    raise AssertionError  # the last try returns or raises
