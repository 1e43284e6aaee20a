"""The server's certificate: its TLS context, its validity, and warnings before it expires.

Owns the files of certificate and key: they are read completely, up to a limit, and take effect only
together.  The dates are parsed here, because `ssl` provides only those of a peer's certificate.
"""

import os
import re
import ssl
import sys
from binascii import a2b_base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Self

import msgspec

from multichat.errors import BadCertificate
from multichat.files import read_file
from multichat.net import transport
from multichat.protocol.counts import counted

__all__ = [
    "EXPIRES_SOON",
    "ServerTls",
    "Validity",
    "explain_handshake",
    "read_validity",
    "server_tls",
]

# Automatic renewal happens 30 days before the end: if it is two weeks late, it has failed.
EXPIRES_SOON = timedelta(days=14)

# OpenSSL opens the files twice, for the certificates and for the key; if the pair is replaced in
# between, the key does not match.  While the files change, they are read again, at most this often.
_READINGS = 3

# A chain has four certificates of 2 KiB.
_MAX_BYTES = 1024 * 1024

_PEM = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL
)

# Possible causes for a certificate that is valid now, by the client's alert.
_ALERTS = {
    "certificate expired": "it has not: the client's clock is perhaps wrong",
    "unknown ca": "perhaps the chain in the certificate's file is not complete",
}

# DER's tags.
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


class Validity(msgspec.Struct, frozen=True):
    """The validity of a chain of certificates: from its latest beginning to its earliest end."""

    begins: datetime
    ends: datetime

    def fault(self, now: datetime) -> str:
        """Return why clients do not accept it *now*; empty if they do."""
        if now >= self.ends:
            return f"the certificate expired on {_shown(self.ends)}"
        if now < self.begins:
            return f"the certificate is not valid before {_shown(self.begins)}"
        return ""

    def advice(self, certificate: Path, now: datetime) -> str:
        """Return one line for the operator if *certificate* expires soon or is invalid."""
        if now >= self.ends:
            return (
                f"The certificate {certificate} expired on {_shown(self.ends)}, and clients refuse "
                "it: renew it, then reload it with SIGHUP"
            )
        if now < self.begins:
            return (
                f"The certificate {certificate} is not valid before {_shown(self.begins)}, and "
                "clients refuse it until then: check this machine's clock"
            )
        left = self.ends - now
        if left > EXPIRES_SOON:
            return ""
        return (
            f"The certificate {certificate} expires on {_shown(self.ends)}, in {_duration(left)}: "
            "renew it, then reload it with SIGHUP"
        )


def _duration(left: timedelta) -> str:
    count, unit = (left.days, "day") if left.days else (left.seconds // 3600, "hour")
    return counted(count, unit) if count else "less than an hour"


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d at %H:%M} UTC"


class ServerTls(ssl.SSLContext):
    """A TLS context made by `server_tls`, with the file *certificate* and its *validity*.

    The validity is None if the dates cannot be read.
    """

    certificate: Path
    validity: Validity | None

    def __new__(cls) -> Self:
        """Create a context without a certificate."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def fault(self, now: float) -> str:
        """Return why clients reject the certificate at the Unix time *now*; empty if they do not.

        Also empty if the dates cannot be read.
        """
        return "" if self.validity is None else self.validity.fault(_utc(now))

    def advice(self, now: float) -> str:
        """Return one line if the certificate is not valid, or expires soon; otherwise nothing."""
        return "" if self.validity is None else self.validity.advice(self.certificate, _utc(now))


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def server_tls(certificate: Path, key: Path | None = None) -> ServerTls:
    """Return a TLS context for a server with *certificate*, a PEM file with the whole chain.

    The private *key* may be in the same file.  Requires TLS 1.2 or later.  Reads at most 1 MiB of
    each file, and never waits for a FIFO; files that are replaced meanwhile are read again.  Raises
    `BadCertificate`.
    """
    files = (certificate,) if key is None else (certificate, key)
    contents = list(map(_read, files))
    for _ in range(_READINGS):
        loaded: ServerTls | BadCertificate
        try:
            loaded = _load(certificate, key)
        except BadCertificate as error:
            loaded = error
        before, contents = contents, list(map(_read, files))
        if contents == before:
            break
    if isinstance(loaded, BadCertificate):
        raise loaded
    loaded.certificate, loaded.validity = certificate, read_validity(contents[0])
    return loaded


def _load(certificate: Path, key: Path | None) -> ServerTls:
    context = ServerTls()
    # As in `ssl.create_default_context`, so that a developer can decrypt a recording.
    if (secrets := os.environ.get("SSLKEYLOGFILE")) and not sys.flags.ignore_environment:
        context.keylog_filename = secrets
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def refuse_to_ask() -> str:
        raise BadCertificate(key or certificate, "it asks for a passphrase")

    try:
        context.load_cert_chain(certificate, key, refuse_to_ask)
    except OSError as error:
        raise BadCertificate(certificate, _why(error, key)) from error
    return context


def _read(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise BadCertificate(path, (error.strerror or "").lower()) from error


def _why(error: OSError, key: Path | None) -> str:
    reason = (getattr(error, "reason", None) or "").lower().replace("_", " ")
    if reason == "key values mismatch":
        return f"the key {'in it' if key is None else key} belongs to another certificate"
    return (
        "no certificate and key in PEM form"
        if reason in ("", "pem lib", "no start line")
        else reason
    )


def explain_handshake(error: BaseException, tls: ssl.SSLContext, now: float) -> str:
    """Explain for the log why a client's handshake with *tls* has failed with *error*.

    *error* is that of a stream, *now* is the Unix time.  Mentions any fault of the certificate.
    """
    cause = error.__cause__
    fault = tls.fault(now) if isinstance(tls, ServerTls) else ""
    if isinstance(cause, ssl.SSLEOFError):  # usually without a reason
        return (
            f"TLS handshake aborted; {fault or 'perhaps the client does not trust the certificate'}"
        )
    reason = transport.describe_error(error)
    if not isinstance(cause, ssl.SSLError):  # a broken connection
        return reason
    fault = fault or _ALERTS.get(transport.peers_alert(error), "")
    return f"{reason}; {fault}" if fault else reason


def read_validity(pem: bytes) -> Validity | None:
    """Return the validity of all certificates in *pem*; None if it cannot be read."""
    try:
        found = [_validity(a2b_base64(body)) for _, body in _PEM.findall(pem)]
    except (ValueError, IndexError, OverflowError):
        return None
    if not found:
        return None
    return Validity(max(each.begins for each in found), min(each.ends for each in found))


def _validity(der: bytes) -> Validity:
    """Return the validity of the certificate *der* (RFC 5280, 4.1); raises `ValueError`.

    It begins with: SEQUENCE { SEQUENCE { [0] version, serial number, signature, issuer, validity.
    """
    [(_, certificate)] = islice(_elements(der), 1)
    [(_, signed)] = islice(_elements(certificate), 1)
    elements = (content for tag, content in _elements(signed) if tag != _VERSION)
    _serial, _signature, _issuer, validity = islice(elements, 4)
    begins, ends = (_moment(tag, content) for tag, content in islice(_elements(validity), 2))
    return Validity(begins, ends)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element in *data*, which is DER."""
    position = 0
    while position < len(data):
        tag, size = data[position], data[position + 1]
        position += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[position : position + count], "big")
            position += count
        content = data[position : position + size]
        if len(content) < size:
            raise ValueError("it is cut off")
        yield tag, content
        position += size


def _moment(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280: from 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("it is not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
