"""Bans: addresses and networks, parsing, lookup, and the ban file."""

import math
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.errors import InvalidBan, InvalidBanFile, InvalidName, TooManyBans
from multichat.net.transport import format_address
from multichat.protocol.commands import split_target
from multichat.protocol.framing import clean
from multichat.protocol.names import fold_name, parse_name
from multichat.server.bans import (
    MAX_BANS,
    Ban,
    Bans,
    Network,
    format_bans,
    host_of,
    network_of,
    parse_duration,
    parse_target,
    read_bans,
)

pytestmark = pytest.mark.unit

NOW = 1_736_937_045.25  # 2025-01-15T10:30:45.25Z
FILE = "bans.txt"


def is_name(text: str) -> bool:
    try:
        return not parse_name(text).isdecimal()
    except InvalidName:
        return False


NAMES = st.one_of(
    st.sampled_from(["bob", "name", "until", "because", "forever", "10m", "1.2.3.4", "Straße"]),
    st.text(st.characters(categories=["L", "Nd", "Pd"]), min_size=1, max_size=32),
).filter(is_name)
NETWORKS = st.one_of(
    st.builds(
        lambda ip, length: IPv4Network((ip, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda ip, length: IPv6Network((ip, length), strict=False),
        st.one_of(
            st.integers(0, 2**128 - 1),
            st.integers(0, 2**64),
            st.integers(0xFE80 << 112, (0xFE80 << 112) + 9),
            st.integers(0xFFFF << 32, (0x10000 << 32) - 1),
        ),
        st.integers(0, 128),
    ),
)
BANS = st.builds(
    lambda target, until, reason: Ban(target=target, until=until, reason=reason),
    st.one_of(NAMES, NETWORKS),
    st.one_of(st.none(), st.floats(0, 253402300799)),
    st.text(max_size=200),
)


def key_of(ban: Ban) -> object:
    return fold_name(ban.target) if isinstance(ban.target, str) else ban.target


def peer(ip: IPv4Address | IPv6Address) -> str:
    return format_address((str(ip), 51234))


# What counts as one address


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7:51234", "203.0.113.7/32"),
        ("[2001:db8:1:2:3:4:5:6]:51234", "2001:db8:1:2::/64"),
        ("[::ffff:203.0.113.7]:51234", "203.0.113.7/32"),
        ("[::1]:9000", "::1/128"),
        ("[fe80::1%eth0]:9000", "fe80::1/128"),
    ],
)
def test_which_addresses_count_as_one(address: str, network: str) -> None:
    assert network_of(address) == ip_network(network)


@pytest.mark.parametrize("address", ["", "/run/chat", "/run/a:b", "@abstract", "bob:1", "[bob]:1"])
def test_a_client_without_an_address_is_in_no_network(address: str) -> None:
    assert network_of(address) is None
    assert Bans([Ban(target=ip_network("0.0.0.0/0"))]).find_address(address, NOW) is None


@given(NETWORKS.map(lambda network: network.network_address))
def test_an_address_is_in_its_network_however_it_is_written(ip: IPv4Address | IPv6Address) -> None:
    network = network_of(peer(ip))
    assert network is not None
    mapped = isinstance(ip, IPv6Address) and ip.ipv4_mapped
    assert (mapped or ip) in network
    assert host_of(peer(ip)) == str(ip)
    if isinstance(ip, IPv4Address):
        assert network_of(peer(IPv6Address(f"::ffff:{ip}"))) == network


# Typed targets


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("203.0.113.7/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::/64"),
        ("[2001:db8::1]:51234", "2001:db8::/64"),
        ("[2001:db8::1]", "2001:db8::/64"),
        ("2001:DB8::1/128", "2001:db8::1/128"),
        ("2001:db8:1::/32", "2001:db8::/32"),
        ("::/64", "::/64"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]:51234", "fe80::1"),
        ("fe80::1/64", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7/120", "203.0.113.0/24"),
        ("::ffff:203.0.113.7/95", "::fffe:0:0/95"),
        ("bob", "name bob"),
        ("name bob", "name bob"),
        ("ｂｏｂ", "name bob"),
        ("name", "name name"),
        ("name name", "name name"),
        ("name 203.0.113.7", "name 203.0.113.7"),
        ("name ...", "name ..."),
    ],
)
def test_targets_of_an_operator(text: str, subject: str) -> None:
    ban = Ban(target=parse_target(text))
    assert ban.subject == subject
    assert parse_target(ban.subject) == ban.target


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing is not an address, network or name"),
        ("a b", "a b is not an address, network or name"),
        ("a\x1b[2J", "a␛[2J is not an address, network or name"),
        ("name a b", "a b is not an address, network or name"),
        ("x" * 99, f"{'x' * 44}… is not an address, network or name"),
        ("[bob]:51234", "[bob]:51234 is not an address, network or name"),
        ("203.0.113.7:port", "203.0.113.7:port is not an address, network or name"),
        ("[2001:db8::]/32", "[2001:db8::]/32 is not a network"),
        ("3", "3 is the number of a client, not a name"),
        ("name ٣", "٣ is the number of a client, not a name"),
        ("203.0.113.256", "203.0.113.256 is not an address"),
        ("203.0.113", "203.0.113 is not an address"),
        ("bob/24", "bob/24 is not a network"),
        ("203.0.113.0/", "203.0.113.0/: the length of a network is 0 to 32"),
        ("203.0.113.0/33", "203.0.113.0/33: the length of a network is 0 to 32"),
        ("203.0.113.0/٣", "203.0.113.0/٣: the length of a network is 0 to 32"),
        ("203.0.113.0/0.0.0.255", "203.0.113.0/0.0.0.255: the length of a network is 0 to 32"),
        ("2001:db8::/129", "2001:db8::/129: the length of a network is 0 to 128"),
    ],
)
def test_invalid_targets_of_an_operator(text: str, reason: str) -> None:
    with pytest.raises(InvalidBan) as caught:
        parse_target(text)
    assert str(caught.value) == reason


@given(st.one_of(st.text(), st.text("0123456789.:/[]% abcdefname")))
@example("\ud800")
@example("::%")
@example("1.2.3.4/1_0")
def test_any_text_is_a_target_or_a_clear_error(text: str) -> None:
    reason = ""
    try:
        ban = Ban(target=parse_target(text))
    except InvalidBan as error:
        reason = str(error)
    else:
        assert parse_target(ban.subject) == ban.target
    assert clean(reason) == reason


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "")),
        ("bob", ("bob", "")),
        ("  bob  10m  too loud ", ("bob", "10m  too loud")),
        ("name", ("name", "")),
        ("name bob", ("name bob", "")),
        ("name  bob 10m", ("name bob", "10m")),
    ],
)
def test_a_target_is_split_off_the_front(text: str, parts: tuple[str, str]) -> None:
    assert split_target(text) == parts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("30", 1800),
        ("2h", 7200),
        ("1D", 86400),
        ("3w", 1_814_400),
        ("36500d", 3_153_600_000),
        ("forever", None),
    ],
)
def test_durations_are_parsed(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "1.5h", "-1m", "٣m", "10 m", "10m10s", "\x1b"])
def test_invalid_durations_are_refused(text: str) -> None:
    message = f"{clean(text)} is not a duration; examples: 90s, 10m, 2h, 1d, forever"
    with pytest.raises(InvalidBan) as caught:
        parse_duration(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["0", "0s", "36501d", "9999999999"])
def test_durations_are_positive_and_bounded(text: str) -> None:
    message = "a ban is for 1 second to 100 years, or forever"
    with pytest.raises(InvalidBan, match=message):
        parse_duration(text)


# A ban


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (None, "for ever"),
        (NOW - 1, "for 0 s"),
        (math.floor(NOW) + 1, "for 1 s"),
        (NOW + 60, "for 60 s"),
        (NOW + 88, "for 88 s"),
        (NOW + 90, "for 2 min"),
        (NOW + 9 * 60, "for 9 min"),
        (NOW + 3600, "for 60 min"),
        (NOW + 2 * 3600, "for 2 h"),
        (NOW + 86400, "for 24 h"),
        (NOW + 30 * 86400, "for 30 d"),
    ],
)
def test_the_remaining_time_is_formatted_in_words(until: float | None, words: str) -> None:
    ban = Ban(target="bob", until=until)
    assert ban.describe(NOW) == f"name bob {words}"
    assert ban.refusal(NOW) == f"banned {words}"


def test_the_reason_of_a_ban_is_cleaned_and_shown() -> None:
    ban = Ban(target=parse_target("203.0.113.7"), reason=" too\x1b[2J\n \u202eloud ")
    assert ban.describe(NOW) == "203.0.113.7 for ever: too␛[2J␊ loud"
    assert ban.refusal(NOW) == "banned for ever: too␛[2J␊ loud"


def test_a_long_reason_is_cut() -> None:
    assert Ban(target="bob", reason="x" * 120).reason == "x" * 120
    assert Ban(target="bob", reason="x" * 121).reason == "x" * 119 + "…"


@pytest.mark.parametrize("until", [math.nan, math.inf, -1, 253402300800])
def test_a_ban_ends_in_a_year_of_four_digits(until: float) -> None:
    message = "a ban ends between the years 1970 and 9999, or never"
    with pytest.raises(InvalidBan, match=message):
        Ban(target="bob", until=until)


@pytest.mark.parametrize("name", ["", "bob smith", "b/b", "7"])
def test_a_ban_of_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidBan):
        Ban(target=name)


@given(BANS)
def test_a_ban_is_kept_in_one_form_that_is_fit_to_be_shown(ban: Ban) -> None:
    assert Ban(target=ban.target, until=ban.until, reason=ban.reason) == ban
    for shown in (ban.subject, ban.describe(NOW), ban.refusal(NOW)):
        assert shown == clean(shown)
    assert Ban(target=parse_target(ban.subject)).subject == ban.subject


# Looking up


def test_an_address_is_found_in_the_narrowest_network_that_holds() -> None:
    wide = Ban(target=parse_target("203.0.0.0/16"))
    narrow = Ban(target=parse_target("203.0.113.0/24"), until=NOW + 60)
    bans = Bans([wide, narrow], now=NOW)
    assert bans.find_address("203.0.113.7:1", NOW) is narrow
    assert bans.find_address("[::ffff:203.0.113.7]:1", NOW) is narrow
    assert bans.find_address("203.0.113.7:1", NOW + 61) is wide
    assert bans.find_address("203.1.113.7:1", NOW) is None
    assert bans.find_address("[2001:db8::1]:1", NOW) is None


def test_an_address_of_ipv6_is_banned_with_its_neighbours() -> None:
    ban = Ban(target=parse_target("2001:db8::1"))
    bans = Bans([ban], now=NOW)
    assert bans.find_address("[2001:db8::2]:1", NOW) is ban
    assert bans.find_address("[2001:db8:0:1::1]:1", NOW) is None


def test_a_name_is_found_as_the_server_compares_names() -> None:
    ban = Ban(target="Straße", until=NOW + 60)
    bans = Bans([ban], now=NOW)
    assert bans.find_name("STRASSE", NOW) is ban
    assert bans.find_name("Client 7", NOW) is None
    assert bans.find_name("STRASSE", NOW + 61) is None
    assert ban.covers("", "strasse")
    assert not ban.covers("203.0.113.7:1", "Client 7")


def test_a_ban_of_a_name_covers_the_names_that_look_like_it() -> None:
    ban = Ban(target="alice", until=NOW + 60)
    bans = Bans([ban], now=NOW)
    for name in ("аӏісе", "aIice", "ali\u0307ce", "ALICE"):
        assert bans.find_name(name, NOW) is ban, name
        assert ban.covers("", name), name
    for name in ("alicia", "alic", "Client 7"):
        assert bans.find_name(name, NOW) is None, name
        assert not ban.covers("", name), name
    other = Ban(target="aIice")
    bans.add(other, NOW)
    bans.remove("name alice")
    assert bans.find_name("alice", NOW) is other
    bans.add(Ban(target="AIICE", until=NOW + 1), NOW)  # replaces aIice
    assert bans.find_name("alice", NOW) is None
    bans.remove("name aiice")
    assert bans.find_name("AIICE", NOW) is None


@pytest.mark.parametrize("name", ["Server", "client_7", "αlice", "10m", "...", "花子Ζωή"])
def test_a_ban_of_a_name_that_is_no_longer_allowed_stays_in_its_file(name: str) -> None:
    data = f"name {name}\n".encode()
    [ban] = read_bans(data, "bans")
    assert ban.subject == f"name {name}"
    assert format_bans([ban], data) == data
    assert Bans([ban], now=NOW).remove(f"name {name}") is ban


def test_the_last_ban_of_a_target_applies() -> None:
    first, second = (Ban(target=name, reason=name) for name in ("bob", "BOB"))
    bans = Bans([first], now=NOW)
    bans.add(second, NOW)
    assert bans.current(NOW) == [second]


def test_a_ban_is_removed_by_any_spelling_of_its_target() -> None:
    texts = ["203.0.113.7", "203.0.113.0/24", "2001:db8::/64", "name bob"]
    bans = Bans([Ban(target=parse_target(text)) for text in texts], now=NOW)
    for text in ("203.0.113.8", "2001:db8::/65", "alice"):
        assert bans.remove(text) is None
    for text in ("203.0.113.7:51234", "203.0.113.99/24", "2001:db8::5", "BOB"):
        assert bans.remove(text) is not None
        assert bans.remove(text) is None
    assert not len(bans)
    assert bans.find_address("203.0.113.7:1", NOW) is None
    with pytest.raises(InvalidBan):
        bans.remove("3")


def test_an_expired_ban_applies_again_when_the_clock_is_set_back() -> None:
    short = Ban(target=parse_target("203.0.113.7"), until=NOW + 60)
    long = Ban(target="bob")
    bans = Bans([short, long], now=NOW)
    assert bans.current(NOW + 59) == [short, long]
    assert len(bans) == 2
    assert bans.current(NOW + 61) == [long]
    assert bans.current(NOW + 59) == bans.known() == [short, long]


def test_the_number_of_bans_is_limited() -> None:
    bans = Bans([Ban(target="a", until=NOW + 60), Ban(target="b")], now=NOW, max_bans=2)
    with pytest.raises(TooManyBans, match=r"too many bans \(limit: 2\)"):
        bans.add(Ban(target="c"), NOW)
    bans.add(Ban(target="b", reason="again"), NOW)
    bans.add(Ban(target="c"), NOW + 61)
    assert [ban.target for ban in bans.current(NOW)] == ["b", "c"]


def test_a_lookup_does_not_depend_on_the_number_of_bans(monkeypatch: pytest.MonkeyPatch) -> None:
    bans = Bans((Ban(target=IPv4Network((i << 8, 24))) for i in range(MAX_BANS)), now=NOW)
    looked_at: list[Ban] = []

    def is_expired(ban: Ban, now: float) -> bool:
        looked_at.append(ban)
        return False

    monkeypatch.setattr(Ban, "is_expired", is_expired)
    assert bans.find_address("0.0.99.1:1", NOW) is not None
    assert bans.find_address("203.0.113.7:1", NOW) is None
    assert len(looked_at) == 1


@given(st.lists(NETWORKS, max_size=8), NETWORKS, st.data())
def test_a_lookup_finds_the_same_as_a_linear_search(
    networks: list[Network], other: Network, data: st.DataObject
) -> None:
    network = data.draw(st.sampled_from([*networks, other]))
    ip = network[data.draw(st.integers(0, network.num_addresses - 1))]
    bans = Bans((Ban(target=each) for each in networks), now=NOW)
    found = bans.find_address(peer(ip), NOW)
    covering = [ban for ban in bans.current(NOW) if ban.covers(peer(ip), "")]
    if found is None:
        assert not covering
    else:
        assert found in covering
        lengths = [ban.target.prefixlen for ban in covering if not isinstance(ban.target, str)]
        assert not isinstance(found.target, str)
        assert found.target.prefixlen == max(lengths)


# The file


def test_a_ban_file_written_by_hand() -> None:
    data = (
        "\ufeff# spammers\r\n"
        "\n"
        "203.0.113.7\r\n"
        "  203.0.113.0/24   until 2025-01-15T10:30:45Z  because   of # 3  \n"
        "2001:db8::1 until 2025-01-15\n"
        "name until until 2025-01-15T12:30:45+02:00 because because\n"
        "bob because until 2025"
    ).encode()
    moment = datetime(2025, 1, 15, 10, 30, 45, tzinfo=UTC).timestamp()
    assert read_bans(data, FILE) == [
        Ban(target=IPv4Network("203.0.113.7")),
        Ban(target=IPv4Network("203.0.113.0/24"), until=moment, reason="of # 3"),
        Ban(target=IPv6Network("2001:db8::/64"), until=moment - 37845),
        Ban(target="until", until=moment, reason="because"),
        Ban(target="bob", reason="until 2025"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "this is not UTF-8"),
        (b"203.0.113.256", "203.0.113.256 is not an address"),
        (b"bob flooding", "expected [until TIME] [because REASON] after bob"),
        (b"bob because", "expected [until TIME] [because REASON] after bob"),
        (b"name bob # why", "expected [until TIME] [because REASON] after name bob"),
        (b"bob because x until 2025-01-15", None),
        (b"bob until tomorrow", "tomorrow is not a time like 2025-01-15T10:30:45Z"),
        (b"bob until 1969-12-31", "a ban ends between the years 1970 and 9999, or never"),
        (b"bob until 2025-01-15 10:30", "expected [until TIME] [because REASON] after bob"),
        (b"ALICE", "name ALICE is already banned in line 2"),
    ],
)
def test_an_invalid_line_is_named(line: bytes, reason: str | None) -> None:
    data = b"# why\nalice\n%b\n" % line
    if reason is None:
        assert len(read_bans(data, FILE)) == 2
        return
    with pytest.raises(InvalidBanFile) as caught:
        read_bans(data, FILE)
    assert str(caught.value) == f"bans.txt line 3: {reason}"
    assert (caught.value.file, caught.value.line) == (FILE, 3)


def test_a_new_ban_file_explains_its_format() -> None:
    bans = [
        Ban(target=parse_target("203.0.113.7"), until=NOW, reason="flooding the lobby"),
        Ban(target="bob"),
    ]
    *header, first, second = format_bans(bans).decode().splitlines()
    assert all(line.startswith("# ") for line in header)
    assert first == "203.0.113.7 until 2025-01-15T10:30:46Z because flooding the lobby"
    assert second == "name bob"


def test_lines_written_by_hand_are_preserved() -> None:
    data = b"# from Monday\n\n  BOB  because of # 3\n\n203.0.113.7\r\n# Tuesday\n2001:db8::/32\n\n"
    bob, address, network = read_bans(data, FILE)
    assert format_bans([network, address, bob], data) == data.rstrip(b"\n") + b"\n"
    until = Ban(target=address.target, until=NOW)
    assert format_bans([Ban(target="alice"), until, bob], data) == (
        b"# from Monday\n\n  BOB  because of # 3\n\n"
        b"203.0.113.7 until 2025-01-15T10:30:46Z\n# Tuesday\nname alice\n"
    )


@given(st.lists(BANS, unique_by=key_of), st.lists(BANS, unique_by=key_of))
def test_formatted_bans_are_parsed_back_unchanged(bans: list[Ban], later: list[Ban]) -> None:
    data = format_bans(bans)
    assert read_bans(data, FILE) == bans
    assert format_bans(bans, data) == data
    changed = read_bans(format_bans(later, data), FILE)
    assert {key_of(ban): ban for ban in changed} == {key_of(ban): ban for ban in later}


WORDS = ["name", "bob", "203.0.113.7", "::1/64", "until", "2025-01-15", "because", "#", "\n", "\r"]


@given(st.one_of(st.binary(), st.text().map(lambda t: t.encode("utf-8", "replace"))))
@example(b"bob until 0001-01-01T00:00:00+23:59")
@example(b"bob until 9999-12-31T23:59:59-23:59")
@example(b"bob until 9999-12-31T23:59:59.5Z")
@example(b"a\x1cuntil\x852025")
def test_any_bytes_are_bans_or_a_clear_error(data: bytes) -> None:
    assert_is_read_or_refused(data)


@given(st.lists(st.sampled_from(WORDS)))
def test_any_words_are_bans_or_a_clear_error(words: list[str]) -> None:
    assert_is_read_or_refused(" ".join(words).encode())


def assert_is_read_or_refused(data: bytes) -> None:
    reason = ""
    try:
        bans = read_bans(data, FILE)
    except InvalidBanFile as error:
        reason = str(error)
    else:
        assert read_bans(format_bans(bans, data), FILE) == bans
    assert clean(reason) == reason
