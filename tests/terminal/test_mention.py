"""What counts as a mention of a name, in scripts with and without spaces."""

import time
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.messages import Said
from multichat.terminal.mention import find_mentions
from multichat.terminal.render import Identity, Renderer, mentions

pytestmark = pytest.mark.unit

NOW = datetime(2025, 1, 15, 10, 30, 45, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("小明", "请小明看一下"),
        ("小明", "小明2号"),
        ("alice", "请alice看一下"),
        ("さくら", "今日はさくらちゃんと話した"),
        ("サクラ", "サクラさん、どう?"),
        ("サクラ", "ｻｸﾗさん"),  # half-width
        ("ガク", "ｶﾞｸさん"),
        ("มานะ", "ขอให้มานะดูหน่อย"),
        ("ສົມ", "ຖາມສົມເບິ່ງ"),
        ("សុខា", "សូមសុខាមើល"),
        ("အောင်", "ကိုအောင်ကြည့်ပါ"),
        ("지민", "지민아 이것 좀 봐"),
        ("지민", "지민이가 했어"),
        ("지민", "이거 지민에게 줘"),
        ("지민", "지민님, 안녕하세요"),
        ("수연", "수연이는 어디?"),
        ("지민", unicodedata.normalize("NFD", "지민아 봐")),
        ("alice", "alice는 어디?"),
        ("דנה", "תן את זה לדנה בבקשה"),
        ("דנה", "ודנה?"),
        ("דנה", "שלדנה"),
        ("ديما", "قل لديما"),
        ("ديما", "وديما؟"),
        ("José", unicodedata.normalize("NFD", "hola José!")),
        (unicodedata.normalize("NFD", "José"), "hola José!"),
        ("Ngọc", unicodedata.normalize("NFD", "hỏi Ngọc đi")),
        ("alice", "ａｌｉｃｅ, hi"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ!"),
        ("Женя", "спроси ЖЕНЮ или женя"),
        ("Straße", "die STRASSE"),
        ("दीप", "नमस्ते दीप"),
        ("alice", "alice's turn"),
        ("alice", "@alice: hi"),
        ("alice", "alice-san"),
        ("alice", "“alice”"),
        ("Client 7", "ask client 7"),
        ("a.c", "(a.c)"),
    ],
)
def test_a_mention_is_found(name: str, text: str) -> None:
    assert mentions(text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("al", "also"),
        ("al", "final"),
        ("al", "real_al2"),
        ("alice", "malice and alices"),
        ("Client 7", "ask client 70"),
        ("an", "an\u0303o"),  # the letter is ñ
        ("alic", "alice\u0301"),
        ("alice", "alice\u0301"),
        ("지민", "지민석 씨"),  # another name
        ("지민", "김지민아"),
        ("지민", "지민2"),
        ("דנה", "אלדנה"),
        ("דנה", "דנהון"),
        ("ديما", "دائديما"),
        ("दीप", "दीपा और दीप्ति"),  # other letters, with the marks on them
        ("Женя", "Женян"),
        ("a.c", "abc"),
        ("小明", "小 明"),
        ("alice", ""),
        ("", "anything"),
    ],
)
def test_a_part_of_a_longer_word_is_not_a_mention(name: str, text: str) -> None:
    assert not mentions(text, name)


def test_a_marked_mention_is_the_original_text() -> None:
    text = unicodedata.normalize("NFD", "¿José? ＪＯＳÉ, joséphine")
    [line] = Renderer().event(Said(client=2, name="bob", text=text), Identity(1, "José"), NOW)
    marked = [piece for style, piece in line.fragments if "reverse" in style]
    assert [unicodedata.normalize("NFKC", piece) for piece in marked] == ["José", "JOSÉ"]
    assert "".join(piece for _, piece in line.fragments).endswith(text)


WORDS = st.sampled_from(
    ["al", "ALSO", "é", "e\u0301", "小", "ไ", "지", "민", "아", " ", "ſ", "ﬁ", "ß"]
)


@given(st.lists(WORDS | st.text(max_size=3)).map("".join), WORDS | st.text(max_size=4))
def test_mentions_are_in_order_and_within_the_text(text: str, name: str) -> None:
    end = 0
    for start, stop in find_mentions(text, name):
        assert end <= start < stop <= len(text)
        end = stop


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301\u0323" * 11_000,
        "e" + "\u0301\u0323" * 16_000,
        "小" * 21_000,
        "al" * 32_000,
        "아" * 21_000,
        "ש" * 32_000,
        "".join(map(chr, range(0x4E00, 0x9FA5))),
        "al " * 400_000,  # from a hostile server
    ],
)
@pytest.mark.parametrize("name", ["al", "小", "e\u0301\u0323", "아", "שש", "\u0301\u0323"])
def test_the_longest_message_takes_no_longer_than_a_screen_does(text: str, name: str) -> None:
    started = time.process_time()
    found = list(find_mentions(text, name))
    assert len(found) <= 100
    # A quadratic search takes minutes; this takes hundredths of a second.
    assert time.process_time() - started < 5
