"""The lines of admission, before a session starts: the password and why it is refused.  Pure."""

__all__ = [
    "PASSWORD_ACCEPTED",
    "PASSWORD_REQUIRED",
    "SERVER_IS_FULL",
    "TOO_MANY_ATTEMPTS",
    "TOO_MANY_FROM_ADDRESS",
    "TOO_MANY_WRONG",
    "UNAVAILABLE",
    "WRONG_PASSWORD",
    "encode_password",
    "parse_password",
]

# What a server with a password sends until the password is accepted.
PASSWORD_REQUIRED = "a password is required: /auth PASSWORD"  # noqa: S105 - words, not one
WRONG_PASSWORD = "wrong password"  # noqa: S105
PASSWORD_ACCEPTED = "password accepted"  # noqa: S105
TOO_MANY_WRONG = "too many wrong passwords from your address; try again later"

# The reason is other addresses than the client's own.
TOO_MANY_ATTEMPTS = "too many password attempts from other addresses; try again later"

# How these reasons begin; the limit follows.
SERVER_IS_FULL = "the server is full"
TOO_MANY_FROM_ADDRESS = "too many clients from your address"

# How the reason of a node of a cluster begins while its engine cannot be used; the cause follows.
UNAVAILABLE = "the server is not available now"


def parse_password(line: str) -> str | None:
    """Return the password in *line*, or None if it is not `/auth PASSWORD`."""
    command, space, password = line.partition(" ")
    return password if command.lower() == "/auth" and space else None


def encode_password(password: str) -> str:
    """Return the line that answers the request for a password."""
    return f"/auth {password}"
