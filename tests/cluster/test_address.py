"""URLs of `--cluster`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.cluster.address import ClusterAddress

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("valkey://db", ClusterAddress(hosts=(("db", 6379),))),
        ("valkey://db:7000/3", ClusterAddress(hosts=(("db", 7000),), database=3)),
        ("valkeys://chat@db/", ClusterAddress(hosts=(("db", 6379),), tls=True, user="chat")),
        ("valkey://[::1]:7000", ClusterAddress(hosts=(("::1", 7000),))),
        ("redis://a%40b@db", ClusterAddress(hosts=(("db", 6379),), user="a@b")),
        ("rediss://db", ClusterAddress(hosts=(("db", 6379),), tls=True)),
        (
            "valkey+sentinel://one,two:7001/chat/2",
            ClusterAddress(hosts=(("one", 26379), ("two", 7001)), sentinel_name="chat", database=2),
        ),
        (
            "valkeys+sentinel://one/my%2Fchat",
            ClusterAddress(hosts=(("one", 26379),), sentinel_name="my/chat", tls=True),
        ),
    ],
)
def test_addresses(text: str, address: ClusterAddress) -> None:
    assert ClusterAddress.parse(text) == address
    assert ClusterAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS"),
        ("db:6379", "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS"),
        ("http://db", "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS"),
        ("valkey+unix://db", "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS"),
        ("valkey://", "has no host"),
        ("valkey://@db", "no user before the @"),
        ("valkey://db:0", "is not a port"),
        ("valkey://db/x", "does not end with the number of a database"),
        ("valkey://db/1/2", "does not end with the number of a database"),
        ("valkey://db/1?x=y", "does not end with the number of a database"),
        ("valkey://a,b", "has several hosts"),
        ("valkey+sentinel://a,b", "lacks the name of the primary"),
        ("valkey+sentinel://a,/chat", "has no host"),
        ("valkey+sentinel://" + "a," * 16 + "a/chat", "more than 16 Sentinels"),
    ],
)
def test_invalid_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClusterAddress.parse(text)


@pytest.mark.parametrize("text", ["valkey://chat:hunter2@db", "valkey://:hunter2@db/x?y"])
def test_a_password_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="--cluster-password-file") as caught:
        ClusterAddress.parse(text)
    assert "hunter2" not in str(caught.value)


@given(st.text() | st.text("valkeys+sentinel:/@,[]12%ab"))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = ClusterAddress.parse(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert ClusterAddress.parse(str(address)) == address
