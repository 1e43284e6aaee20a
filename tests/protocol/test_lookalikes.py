"""Lookalikes: which names can be mistaken for each other, and who holds them."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from multichat.errors import InvalidName
from multichat.protocol.lookalikes import (
    NameIndex,
    fold_name,
    lookalike_keys,
    may_mix,
    readings,
    script_of,
    skeleton,
)
from multichat.protocol.names import parse_person_name

pytestmark = pytest.mark.unit

# Letters of several scripts that are drawn alike, and what they can be combined with.
LOOKALIKES = "abceilmorxyABCEILMOXY01аӏісеоӀОΑΒΕοıſļł\u0307\u0301\u0323ꓢꓰᴄᴠօ工エ口ロ-_."
texts = st.text(st.one_of(st.sampled_from(LOOKALIKES), st.characters()), max_size=40)
names = st.text(LOOKALIKES, min_size=1, max_size=6)


def look_alike(one: str, other: str) -> bool:
    return not set(lookalike_keys(one)).isdisjoint(lookalike_keys(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("alice", "ALICE"),
        ("alice", "aIice"),
        ("alice", "AIice"),
        ("alice", "ali\u0307ce"),
        ("alice", "alıce"),
        ("alice", "аӏісе"),
        ("alice", "ΑLICE"),
        ("bob", "b0b"),
        ("bob", "bօb"),
        ("bob", "BОB"),
        ("clara", "c1ara"),
        ("mary", "rnary"),
        ("victor", "ᴠictor"),
        ("Ægir", "AEgir"),
        ("ibrahim", "İbrahim"),
        ("ịbo", "ị\u0307bo"),
        ("工口", "エロ"),
        ("Weiß", "Weiss"),
        ("Женя", "ЖЕНЯ"),
        ("сосо", "coco"),
        ("David", "DAVlD"),
        ("David", "DAV1D"),
        ("David", "ꓓꓮꓦꓲꓓ"),
        ("alice", "ALlCE"),
        ("alice", "AL1CE"),
        ("alice", "ꓮꓡꓲꓚꓰ"),
        ("alice", "ᎪᏞᏆᏟᎬ"),
        ("alice", "ꭺꮮꮖꮯꭼ"),
        ("Nick", "NlCK"),
        ("Neil", "NElL"),
        ("Kevin", "ꓗꓰꓦꓲꓠ"),
        ("ivan", "lvan"),
        ("ivan", "1van"),
        ("Al", "AI"),
        ("alice", "a丨ice"),
    ],
)
def test_lookalikes_share_a_key(one: str, other: str) -> None:
    assert look_alike(one, other)
    assert look_alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("alice", "alicia"),
        ("alice", "alice2"),
        ("alice2", "alice3"),
        ("eva", "éva"),
        ("Jürgen", "Jurgen"),
        ("Lukasz", "Łukasz"),
        ("Neil", "Nell"),
        ("Ali", "All"),
        ("Kari", "Karl"),
        ("Sheila", "Shelia"),
        ("Bianca", "Blanca"),
        ("Ciara", "Clara"),
        ("Mila", "Mlla"),
        ("a-b", "a_b"),
        ("张伟", "张玮"),
        ("지민", "지만"),
        ("ديما", "ريما"),
    ],
)
def test_distinct_names_share_no_key(one: str, other: str) -> None:
    assert not look_alike(one, other)


def test_the_table_is_that_of_unicode() -> None:
    for pair in ("аa", "ոn", "0O", "1l", "Il", "оo", "ΑA", "ꓢS"):
        assert skeleton(pair[0]) == skeleton(pair[1]), pair
    assert skeleton("m") == "rn"
    assert skeleton("rn") == "rn"
    changed = sum(skeleton(chr(code)) != chr(code) for code in range(0x20000) if _plain(code))
    assert changed > 4000


def _plain(code: int) -> bool:
    character = chr(code)
    return unicodedata.category(character) != "Cs" and not unicodedata.decomposition(character)


def test_reading_a_reading_again_changes_nothing() -> None:
    for code in range(0x20000):  # after it only ideographs, which nothing changes
        if not 0xD800 <= code < 0xE000:
            for key in readings.__wrapped__(chr(code)):
                assert fold_name(skeleton(key)) == key, hex(code)


@given(texts)
@example("İ")
@example("ß")
@example("Ꭰꭰ")
def test_readings_depend_on_neither_case_nor_form(text: str) -> None:
    keys = readings(text)
    assert lookalike_keys(text)[: len(keys)] == keys
    assert keys[0] == readings(fold_name(text))[0]
    assert keys[0] == readings(unicodedata.normalize("NFKC", text))[0]
    for key in keys:
        assert skeleton(skeleton(key)) == skeleton(key)
        assert fold_name(skeleton(key)) == key
        assert readings(key)[0] == key


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("alice", True),
        ("alice-7_.", True),
        ("Женя", True),
        ("Σίσυφος", True),
        ("田中ゆきユキYuki", True),
        ("漢ㄅab", True),
        ("漢한ab", True),
        ("あ한", False),
        ("ㅋㅋ지민", True),
        ("aㅣice", False),
        ("aᅵice", False),
        ("bㅇb", False),
        ("multㅣchat", False),
        ("aж", False),
        ("aα", False),
        ("жα", False),
        ("aไ", False),
        ("aא", False),
        ("אا", False),
        ("漢ж", False),
        ("aꓢ", False),
        ("bօb", False),
    ],
)
def test_scripts_mix_as_the_profile_highly_restrictive_says(text: str, can: bool) -> None:
    assert may_mix(text) is can


def test_every_letter_has_the_script_that_its_name_says() -> None:
    for code in range(0x20000):
        name = unicodedata.name(chr(code), "")
        script = script_of(chr(code))
        for word in ("GREEK", "CYRILLIC", "THAI", "HIRAGANA", "HEBREW", "DEVANAGARI"):
            if re.match(rf"{word} (SMALL LETTER|CAPITAL LETTER|LETTER|CHARACTER) ", name):
                assert script == word, name
    assert [script_of(c) for c in "\0a-.7é花한\u0301\u0378\U0010ffff"] == [
        "COMMON", "LATIN", "COMMON", "COMMON", "COMMON", "LATIN", "HAN", "HANGUL", "INHERITED",
        "UNKNOWN", "UNKNOWN",
    ]  # fmt: skip


class NameIndexMachine(RuleBasedStateMachine):
    """An index beside a model that compares every name with every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.index: NameIndex[int] = NameIndex()
        self.model: dict[int, str] = {}

    @rule(holder=st.integers(0, 5), name=names)
    def claim(self, holder: int, name: str) -> None:
        others = [each for each in self.index.lookalikes(name) if each != holder]
        assert set(others) == {
            each for each, has in self.model.items() if each != holder and look_alike(name, has)
        }
        if not others:
            self.index.add(holder, name)
            self.model[holder] = name

    @rule(holder=st.integers(0, 5), name=names)
    def add_beside_lookalikes(self, holder: int, name: str) -> None:
        """As a room whose messages are kept is always opened."""
        if self.index.find(name) in (None, holder):
            self.index.add(holder, name)
            self.model[holder] = name

    @rule(holder=st.integers(0, 5))
    def release(self, holder: int) -> None:
        self.index.discard(holder)
        self.model.pop(holder, None)

    @invariant()
    def holders_are_found_by_their_names_alone(self) -> None:
        for holder in range(6):
            assert (holder in self.index) == (holder in self.model)
        for holder, name in self.model.items():
            for form in (name, fold_name(name), unicodedata.normalize("NFD", name)):
                assert self.index.find(form) == holder

    @invariant()
    def nothing_is_kept_of_names_that_were_released(self) -> None:
        assert len(self.index._by_name) == len(self.model)
        keys = {key for name in self.model.values() for key in lookalike_keys(name)}
        assert self.index._by_key.keys() == keys


TestNameIndexMachine = NameIndexMachine.TestCase


@given(texts)
def test_any_text_is_accepted_or_refused_as_a_name(text: str) -> None:
    try:
        name = parse_person_name(text)
    except InvalidName:
        return
    index: NameIndex[str] = NameIndex()
    index.add("holder", name)
    assert index.lookalikes(text) == ["holder"]
    assert index.find(text) == "holder"
