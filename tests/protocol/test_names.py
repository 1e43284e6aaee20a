"""Names: which are valid for clients and rooms, and when two are the same."""

import socket
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.errors import InvalidBan, InvalidName
from multichat.protocol.commands import split_target
from multichat.protocol.framing import clean
from multichat.protocol.lookalikes import NameIndex
from multichat.protocol.names import (
    MAX_NAME_CHARACTERS,
    SERVER_NAME,
    default_name,
    fold_name,
    parse_name,
    parse_person_name,
)
from multichat.server.bans import parse_duration, parse_target

pytestmark = pytest.mark.unit

TOO_LONG = "a name has at most 32 characters"
CHARACTERS = "a name consists of letters, digits, '-', '_' and '.'"
MIXED = "a name cannot mix scripts, except Latin with Chinese, Japanese or Korean"
DIGITS = "a name cannot mix digits of different scripts"
SMALL = "a name cannot contain phonetic letters that look like small capitals"
START = "a name needs a letter or a digit, and cannot start with '-'"
RIGHT_TO_LEFT = "a name that is written from right to left must start with a letter"


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "Alice-2_b.c",
        "x",
        "42",
        "_x_",
        ".x-",
        "a" * 32,
        "é" * 32,
        "ß" * 32,  # longer once it is folded
        "Ζωή",
        "Зоя",
        "한국어",
        "あおい",
        "がんばれ",
        "花子",
        "हिन्दी",  # vowel signs and a virama
        "ภาษาไทย",
        "น\u0e49\u0e4dา",  # two marks on one letter
        "محمد",
        "مُحَمَّد",
        "דָּנִי",
        "alice花子",
        "花子Alice",
        "アリスalice花子あ",
        "ㄅㄆㄇ花a",
        "지민Kim金",
        "دیما7",
        "דנה-7",
        "servers",
        "Client-7a",
        "theclient",
    ],
)
def test_valid_names_of_people_and_rooms(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "Jürgen", "张伟", "地球", "지민", "Σίσυφος", "Женя", "Ольга", "दीप", "ديما", "דנה",
        "Ngọc", "Đặng", "Łukasz", "Ñandú", "İbrahim", "ibrahim", "Işıl", "Weiß", "Groß", "Åse",
        "Øyvind", "Þór", "Ægir", "สมชาย", "ณัฐ", "さくら", "サクラ", "田中ゆき", "田中Yuki",
        "ユキちゃん", "김Minjun", "金민준", "Ọlá", "Mỹ-Anh", "Siân", "Zoë", "François", "Škoda",
        "Ջուլիա", "ნინო", "அருண்", "রুবি", "ਸਿੰਘ", "ខ្មែរ", "አበበ", "Ian", "Lan", "ALI", "Ali",
        "Neil", "Nell", "Al", "Bo", "Io", "Lo", "lol", "Ox", "x", "Y", "ß", "alice7", "7of9",
        "2fast", "r2d2", "c3po", "v1.2", "a1", "3d-printer", "x.y_z-0", "1337alice",
        "build-bot", "thank-you", "yourname", "Alla", "Callum", "Observer", "Cliente", "Badmin",
        "DevOps", "co-op", "mops", "opal", "Modi", "Owen", "Rooter", "Stafford", "hostel",
        "name1", "nameless", "MacLeod", "McDonald", "O.Brien",
    ],
)  # fmt: skip
def test_names_of_people_in_many_languages_are_valid(name: str) -> None:
    assert parse_person_name(name) == name


# Names that look like the server, its operator or a client without a name.
IMPOSTORS = [
    "Server", "server", "SERVER", "_Server-", "S.e.r_v.e.r", "ſerver", "Ｓｅｒｖｅｒ", "Servеr",
    "Serᴠer", "ꓢerver", "ꓢꓰꓣꓦꓰꓣ", "Seʀver", "Śerver", "Sérver", "5erver.server", "Server-admin",
    "ServerAdmin", "serveradmin", "chat-server", "Server2", "the.Server", "admin", "ADMIN",
    "Admin7", "adrnin", "ADMlN", "аdmin", "alice_admin", "bobAdmin", "administrator",
    "AdminConsole", "moderator", "sysop", "System", "Client", "client", "Client7", "client_07",
    "CLIENT-7", ".client.7.", "cl.ie.nt", "client٧", "client²", "Client１", "ᴄlient.7",
    "CIient_7", "C1ient-7", "cli̇ent7", "clıent7", "Client1O", "CLlENT", "сlient",
    "Łukasz-admin", "cłient", "multichat",
    "root", "r00t", "ROOT", "rõot", "owner", "0wner", "TheOwner", "staff", "bob_staff", "Staff2",
    "mod", "mods", "Mod-Bob", "m0d", "op", "Op", "OPS", "0p", "ops7", "ModOps", "support",
    "tech-support", "Support24", "S3rver", "Serv3r", "5erver", "s3rv3r", "4dmin", "Cli3nt7",
    "C丨ient7", "ꓚꓡꓲꓰꓠꓔ7", "ꓮꓓꓟꓲꓠ", "mult丨chat", "multㅣchat",
]  # fmt: skip

# Names that could be mistaken for another argument of a command.
ARGUMENTS = [
    "7", "42", "٣", "１２", "007", "1-2", "2024-05-01", "_7_", "l0", "O1", "1O1", "З",
    "127.0.0.1", "10.0.0.0", "127.1", "1.2", "1.2.3.4.", "l27.0.0.1", "127.O.O.1", "0x7f.1",
    "0x7f000001", "0xdeadbeef", "0x7F.0x0.0x0.0x1", "10m", "1Om", "90s", "2h", "1d", "3w",
    "5min", "10M", "10", "forever", "Forever", "name", "NAME", "nаme", "n.a.m.e", "localhost",
    "all", "All", "al1", "everyone", "here", "you", "You", "y0u", "уоu", "yоu", "me", "nobody",
    "aIl", "AlI", "aII", "a丨丨", "locaIhost", "丨ocalhost", "ꓮꓡꓡ",
]  # fmt: skip


@pytest.mark.parametrize("name", [*IMPOSTORS, *ARGUMENTS])
def test_names_like_the_server_an_operator_or_an_argument_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        parse_person_name(name)


@pytest.mark.parametrize(
    ("name", "taken_for"),
    [
        ("Server-admin", "the server or its operator"),
        ("CIient_7", "a client without a name"),
        ("127.0.0.1", "a number or an address"),
        ("0x7f.1", "a number, an address or a time"),
        ("10m", "a number, an address or a time"),
        ("you", "a word that commands use"),
    ],
)
def test_the_error_says_what_a_name_can_be_mistaken_for(name: str, taken_for: str) -> None:
    with pytest.raises(InvalidName) as refused:
        parse_person_name(name)
    assert (
        str(refused.value)
        == f"the name '{name}' is not allowed: it can be mistaken for {taken_for}"
    )


@pytest.mark.parametrize("name", ["server", "admin", "all", "2024", "v1.2", "10m", "127.1", "7"])
def test_rooms_may_have_names_that_persons_may_not(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("e\u0301va", "éva"),
        ("n\u0303" * 32, "ñ" * 32),
        ("\u1112\u1161\u11ab", "한"),
        ("\u304b\u3099", "が"),
        ("ａｌｉｃｅ＿７", "alice_7"),
        ("ﾊﾅ", "ハナ"),
        ("ﬁn", "fin"),
        ("Ⅶ", "VII"),
        ("a²", "a2"),
        ("\u212bsa", "Åsa"),  # the sign of the unit
    ],
)
def test_a_name_is_stored_in_nfkc(name: str, kept: str) -> None:
    assert parse_name(name) == kept


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "a name has at least one character"),
        ("a" * 33, TOO_LONG),
        ("ﬃ" * 11, TOO_LONG),  # 33 once it is spelled out
        ("\ufdfa" * 32, TOO_LONG),  # 18 each
        ("a" * 10_000_000, TOO_LONG),
        ("alice cooper", CHARACTERS),
        (" alice", CHARACTERS),
        ("a\u00a0b", CHARACTERS),
        ("a\u3000b", CHARACTERS),
        ("a\tb", CHARACTERS),
        ("a\nb", CHARACTERS),
        ("a\x1b[31m", CHARACTERS),
        ("a\x9b", CHARACTERS),
        ("a\u202eb", CHARACTERS),
        ("a\u200bb", CHARACTERS),
        ("a\u200db", CHARACTERS),
        ("a\u00adb", CHARACTERS),
        ("\ufeffa", CHARACTERS),
        ("a\ud800", CHARACTERS),
        ("a\U000e0041", CHARACTERS),  # a tag
        ("a\ue000", CHARACTERS),  # private use
        ("a\u0378", CHARACTERS),  # nothing yet
        ("🙂", CHARACTERS),
        ("alice🙂", CHARACTERS),
        ("[alice]", CHARACTERS),
        ("alice]", CHARACTERS),
        ("a/b", CHARACTERS),
        ("*", CHARACTERS),
        ('a"b', CHARACTERS),
        ("a\\b", CHARACTERS),
        ("a@b", CHARACTERS),
        ("a→b", CHARACTERS),
        ("a½", CHARACTERS),
        ("\u115f", CHARACTERS),
        ("a\u1160", CHARACTERS),
        ("\u3164", CHARACTERS),
        ("a\uffa0b", CHARACTERS),
        ("ក\u17b4", CHARACTERS),
        ("z\u0335\u0321\u0347a\u0336l", CHARACTERS),
        ("x\u0301\u0302", CHARACTERS),
        ("x\u0336", CHARACTERS),
        ("a\u20dd", CHARACTERS),
        ("\u0301a", CHARACTERS),
        ("\u093fक", CHARACTERS),
        ("1\u093f", CHARACTERS),
        ("-\u093f", CHARACTERS),
        ("क" + "\u093f" * 5, CHARACTERS),
        ("аlice", MIXED),  # begins in Cyrillic
        ("aliceα", MIXED),
        ("Зωя", MIXED),
        ("a.б", MIXED),
        ("aµ", MIXED),  # Greek after NFKC
        ("bօb", MIXED),  # an Armenian o
        ("ꓢerver", MIXED),  # a Lisu S
        ("花子Ζωή", MIXED),
        ("한あ", MIXED),
        ("aไ", MIXED),
        ("דa", MIXED),
        ("bob٧", MIXED),
        ("ديما٣۴", DIGITS),
        ("Serᴠer", SMALL),
        ("ᴀlice", SMALL),
        ("aʟice", SMALL),
        ("-", START),
        ("...", START),
        ("-alice", START),
        ("7דנה", RIGHT_TO_LEFT),
        ("_ديما", RIGHT_TO_LEFT),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_invalid_names_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidName) as refused:
        parse_name(name)
    assert str(refused.value) == reason
    assert refused.value.code == "invalid-name"


@pytest.mark.parametrize("client", [1, 7, 10**15])
def test_the_default_name_of_a_client_cannot_be_chosen(client: int) -> None:
    assert default_name(client) == f"Client {client}"
    for name in (default_name(client), SERVER_NAME):
        with pytest.raises(InvalidName):
            parse_person_name(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("alice", "ALICE"),
        ("straße", "STRASSE"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("éva", "E\u0301VA"),
        ("alice", "Ａｌｉｃｅ"),
        ("ﬁn", "FIN"),
        ("Client 7", "client 7"),
    ],
)
def test_two_names_that_look_the_same_are_the_same(one: str, other: str) -> None:
    assert fold_name(one) == fold_name(other)


@pytest.mark.parametrize(
    ("one", "other"), [("alice", "alice2"), ("eva", "éva"), ("a-b", "ab"), ("a-b", "a_b")]
)
def test_two_names_that_look_different_are_different(one: str, other: str) -> None:
    assert fold_name(one) != fold_name(other)


@pytest.mark.parametrize(
    "selector", ["\ufe00", "\ufe0f", "\u180b", "\u180f", "\U000e0100", "\U000e01ef", "\U00016fe4"]
)
def test_invisible_characters_do_not_make_names_different(selector: str) -> None:
    with pytest.raises(InvalidName):
        parse_name(f"alice{selector}")


@pytest.mark.parametrize(
    "name",
    ["al\u034fice", "Ser\u034fver", "Serv\u17d2er", "Se\u1a60rver", "S\u0951erver", "server\u02d1",
     "Serve\u0640r", "clıent7", "Sérver"],
)  # fmt: skip
def test_names_that_look_like_the_server_or_another_name_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        parse_person_name(name)


@pytest.mark.parametrize("name", ["ញ៉ាំ", "မြွှေ", "རྒྱུད"])
def test_khmer_burmese_and_tibetan_words_are_names(name: str) -> None:
    assert parse_name(name) == name


def is_name(name: str) -> bool:
    try:
        parse_name(name)
    except InvalidName:
        return False
    return True


# Characters that names consist of, and those that would like to.
characters = st.one_of(
    st.characters(categories=["L", "M", "Nd"]),
    st.characters(),
    st.sampled_from("aeiosßǅŉİıſΣςµЗй\u0300\u0301\u0345\u093f\u3164-_. 7７ﬃ"),
)


@given(st.one_of(st.text(characters, max_size=40), st.text(st.characters())))
@example("İ")
@example("\u1fb3")
@example("ŉ")
def test_any_text_is_a_name_or_raises_invalid_name(text: str) -> None:
    try:
        name = parse_person_name(text)
    except InvalidName as refused:
        reason = str(refused)
    else:
        reason = ""
        assert_is_kept(name)
    assert clean(reason) == reason
    assert len(reason) < 120


def assert_is_kept(name: str) -> None:
    assert parse_name(name) == name
    assert 1 <= len(name) <= MAX_NAME_CHARACTERS
    assert clean(name) == name
    assert not any(character.isspace() or character in '[]"\\' for character in name)


@given(st.text(characters, max_size=40))
@example("İ")
@example("\u1fb3")
@example("\u0345\u0301a")
@example("α\u0345\u0301")
def test_the_key_of_a_name_depends_on_neither_form_nor_case(text: str) -> None:
    folded = fold_name(text)
    assert fold_name(folded) == folded
    assert fold_name(unicodedata.normalize("NFKC", text)) == folded
    if is_name(text):
        assert fold_name(parse_name(text)) == folded
        for form in ("NFC", "NFD", "NFKD"):
            assert fold_name(unicodedata.normalize(form, text)) == folded
        assert fold_name(parse_name(text).casefold()) == folded
        assert fold_name(parse_name(text).lower()) == folded


@given(st.one_of(st.text(characters, max_size=40), st.text("0123456789lOox.-_fsmhdw", max_size=20)))
@example("l0")
@example("10m")
@example("0x7f.1")
def test_no_valid_name_is_an_argument_of_an_admin_command(text: str) -> None:
    try:
        name = parse_person_name(text)
    except InvalidName:
        return
    assert parse_target(name) == name
    assert split_target(f"{name} 10m") == (name, "10m")
    with pytest.raises(InvalidBan):
        parse_duration(name)
    with pytest.raises(OSError, match="illegal"):
        socket.inet_aton(name)


def test_text_too_long_for_a_name_is_not_normalized() -> None:
    assert fold_name("A" * 256) == "a" * 256
    assert fold_name("A" * 257) == "A" * 257
    marks = "A" + "\u0301\u0316" * 1_000_000  # sorted in quadratic time
    assert fold_name(marks) == marks
    assert NameIndex[int]().find(marks) is None
    with pytest.raises(InvalidName, match=TOO_LONG):
        parse_name(marks)


def test_a_name_of_one_character_has_only_allowed_characters() -> None:
    for code in (*range(0x20000), *range(0xE0000, 0xE1000)):  # the planes with anything to refuse
        character = chr(code)
        if is_name(character):
            for part in parse_name(character):
                assert part in "-_." or unicodedata.category(part)[0] in "LNM", ascii(character)
        folded = fold_name(character)
        assert fold_name(folded) == folded


@pytest.mark.process
def test_a_server_loads_the_character_tables_at_startup() -> None:
    code = """
import sys, trio, multichat
from functools import partial
TABLES = {"confusable_homoglyphs.confusables", "confusable_homoglyphs.categories"}
async def main():
    assert not TABLES & {*sys.modules}
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host="127.0.0.1"))
        with trio.fail_after(60):
            while not TABLES <= {*sys.modules}:
                await trio.sleep(0.01)
        server.shutdown()
trio.run(main)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.process
def test_help_and_clients_do_not_load_the_character_tables() -> None:
    ours = "cli.main", "cli.serve", "cli.commands", "cli.log_client", "client.connect"
    code = f"import sys, {', '.join(f'multichat.{name}' for name in ours)}; print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not [name for name in names if name.startswith("confusable")]
