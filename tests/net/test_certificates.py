"""The dates of certificates: read as others read them, judged by any clock."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import PEM_cert_to_DER_cert

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from multichat import ServerConfig, ServerTls
from multichat.errors import BadCertificate
from multichat.net.certificates import Validity, read_validity, server_tls
from multichat.server.live_settings import LiveSettings
from multichat.server.server import Server

pytestmark = pytest.mark.unit

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
FILE = Path("chain.pem")


def chain(ca: trustme.CA, not_before: datetime, not_after: datetime) -> bytes:
    leaf = ca.issue_cert("chat.example.org", not_before=not_before, not_after=not_after)
    return b"".join(each.bytes() for each in leaf.cert_chain_pems)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def good(ca: trustme.CA) -> bytes:
    return chain(ca, not_before=NOON - timedelta(days=90), not_after=NOON + timedelta(days=90))


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (datetime(1960, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (datetime(2000, 2, 29, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
        (datetime(2051, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_dates_are_read_as_another_library_reads_them(
    begins: datetime, ends: datetime, ca: trustme.CA
) -> None:
    pem = ca.issue_cert("x", not_before=begins, not_after=ends).cert_chain_pems[0].bytes()
    other = x509.load_pem_x509_certificate(pem)
    assert (other.not_valid_before_utc, other.not_valid_after_utc) == (begins, ends)
    assert read_validity(pem) == Validity(begins, ends)


def test_the_whole_chain_counts(good: bytes, ca: trustme.CA) -> None:
    short = chain(ca, not_before=NOON, not_after=NOON + timedelta(days=1))
    assert read_validity(good + short) == read_validity(short + good)
    assert read_validity(good + short) == Validity(NOON, NOON + timedelta(days=1))


def test_a_key_before_the_certificates_does_not_count(ca: trustme.CA) -> None:
    leaf = ca.issue_cert("x", not_before=NOON, not_after=NOON + timedelta(days=1))
    assert read_validity(leaf.private_key_and_cert_chain_pem.bytes()) == Validity(
        NOON, NOON + timedelta(days=1)
    )


@given(st.binary(max_size=300))
def test_anything_else_has_no_dates(data: bytes) -> None:
    assert read_validity(data) is None
    pem = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % b64encode(data)
    assert read_validity(pem) is None


@given(st.data())
def test_a_damaged_certificate_raises_nothing(good: bytes, data: st.DataObject) -> None:
    der = bytearray(PEM_cert_to_DER_cert(good.decode()))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    del der[data.draw(st.integers(0, len(der))) :]
    read_validity(b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % b64encode(der))


@pytest.mark.parametrize(
    ("left", "advice"),
    [
        (timedelta(days=15), ""),
        (timedelta(days=14, seconds=1), ""),
        (timedelta(days=14), "expires on 2026-06-15 at 12:00 UTC, in 14 days: renew it"),
        (timedelta(days=1, hours=23), "expires on 2026-06-03 at 11:00 UTC, in 1 day: renew it"),
        (timedelta(hours=5), "expires on 2026-06-01 at 17:00 UTC, in 5 hours: renew it"),
        (
            timedelta(seconds=1),
            "expires on 2026-06-01 at 12:00 UTC, in less than an hour: renew it",
        ),
        (timedelta(0), "expired on 2026-06-01 at 12:00 UTC, and clients refuse it: renew it"),
        (timedelta(days=-9), "expired on 2026-05-23 at 12:00 UTC, and clients refuse it: renew"),
    ],
)
def test_advice_by_the_time_that_is_left(left: timedelta, advice: str) -> None:
    validity = Validity(NOON - timedelta(days=90), NOON + left)
    found = validity.advice(FILE, NOON)
    assert found.startswith(f"The certificate {FILE} {advice}") if advice else not found
    assert "\n" not in found
    assert bool(validity.fault(NOON)) == (left <= timedelta(0))


def test_a_certificate_of_the_future_is_a_matter_of_the_clock() -> None:
    validity = Validity(NOON + timedelta(days=1), NOON + timedelta(days=90))
    assert "not valid before 2026-06-02 at 12:00 UTC" in validity.fault(NOON)
    assert "check this machine's clock" in validity.advice(FILE, NOON)
    assert not validity.fault(NOON + timedelta(days=1))


@pytest.fixture
def settings() -> LiveSettings:
    return Server(ServerConfig(), clock=NOON.timestamp).settings


def tls(folder: Path, ca: trustme.CA, begins: int, ends: int) -> ServerTls:
    """A context whose certificate is valid from so many days after noon to so many."""
    file = folder / f"{begins} {ends}.pem"
    leaf = ca.issue_cert(
        "x", not_before=NOON + timedelta(days=begins), not_after=NOON + timedelta(days=ends)
    )
    leaf.private_key_and_cert_chain_pem.write_to_path(str(file))
    return server_tls(file)


async def test_a_new_certificate_that_clients_refuse_does_not_replace_one_that_they_accept(
    tmp_path: Path, ca: trustme.CA, settings: LiveSettings
) -> None:
    settings.tls = good = tls(tmp_path, ca, -90, 90)
    for begins, ends, reason in ((-90, -1, "expired"), (1, 90, "not valid before")):
        with pytest.raises(ValueError, match=reason):
            settings.change_certificate(tls(tmp_path, ca, begins, ends))
        assert settings.tls is good
    assert "expires on" in settings.change_certificate(tls(tmp_path, ca, -90, 3))
    assert settings.tls is not good


async def test_a_certificate_that_clients_refuse_is_replaced_by_any(
    tmp_path: Path, ca: trustme.CA, settings: LiveSettings
) -> None:
    settings.tls = tls(tmp_path, ca, -90, -2)
    assert "expired on" in settings.change_certificate(tls(tmp_path, ca, -90, -1))
    assert settings.change_certificate(tls(tmp_path, ca, -1, 90)) == ""


def test_a_pair_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    old, new = (
        ca.issue_cert("x", not_before=NOON, not_after=NOON + timedelta(days=days))
        for days in (1, 2)
    )
    load = ServerTls.load_cert_chain
    done: list[str] = []

    def replace_meanwhile(self: ServerTls, *arguments: object) -> None:
        if not done:
            done.append("replaced")
            chain.write_bytes(b"".join(each.bytes() for each in new.cert_chain_pems))
            with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
                load(self, *arguments)  # type: ignore[arg-type]
            key.write_bytes(new.private_key_pem.bytes())
            raise OSError("key values mismatch")
        load(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ServerTls, "load_cert_chain", replace_meanwhile)
    old.cert_chain_pems[0].write_to_path(str(chain))
    key.write_bytes(old.private_key_pem.bytes())
    assert server_tls(chain, key).validity == Validity(NOON, NOON + timedelta(days=2))


@pytest.mark.parametrize("name", ["certificate", "key"])
def test_a_huge_file_is_not_read(name: str, tmp_path: Path, ca: trustme.CA) -> None:
    huge, good = tmp_path / "huge", tmp_path / "good.pem"
    huge.touch()
    with huge.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    ca.issue_cert("x").private_key_and_cert_chain_pem.write_to_path(str(good))
    with pytest.raises(BadCertificate, match="larger than"):
        server_tls(*((huge, good) if name == "certificate" else (good, huge)))


def test_a_file_to_which_keys_are_logged_is_that_of_the_environment(
    tmp_path: Path, ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(file))
    assert tls(tmp_path, ca, -1, 1).keylog_filename == str(file)
