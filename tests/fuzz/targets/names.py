"""Names: which are valid, which are reserved, and which are equal."""

import re
import socket
import unicodedata
from contextlib import suppress

from multichat.protocol.commands import split_target
from multichat.protocol.framing import clean
from multichat.protocol.messages import Direct, Join, Rename, Said
from multichat.protocol.names import MAX_NAME_CHARACTERS, fold_name, parse_name, parse_person_name
from multichat.protocol.text_codec import TEXT
from multichat.server.bans import parse_target
from tests.fuzz.targets.checks import assert_harmless, assert_same, kept

__all__ = ["check_names"]

_WESTERN = ("LATIN", "GREEK", "CYRILLIC")


def check_names(data: bytes) -> None:
    """Check a requested name."""
    requested = data.decode("utf-8", "surrogateescape")
    folded = fold_name(requested)
    assert_same(fold_name(folded), folded, "folding twice is folding once")
    for parse in (parse_name, parse_person_name):
        name, refusal = kept(requested, parse)
        assert_harmless(refusal)
        assert len(refusal) < 120, "a refusal is short"
        if name:
            _check_name(requested, name)
    if name:
        _check_person_name(name)


def _check_name(requested: str, name: str) -> None:
    assert_same(parse_name(name), name, "a name that is kept is kept as it is")
    assert len(name) <= MAX_NAME_CHARACTERS, f"{name!r} is too long"
    assert_same(clean(name), name, "a name is clean")
    for character in name:
        assert character in "-_." or unicodedata.category(character) in (
            *("Ll", "Lm", "Lo", "Lt", "Lu"),
            *("Mn", "Mc", "Nd"),
        ), f"{character!r} is neither letter nor digit"
    for form in (name, fold_name(name)):
        scripts = {unicodedata.name(character, "").split(" ")[0] for character in form}
        assert len(scripts.intersection(_WESTERN)) <= 1, f"{form!r} mixes {scripts}"
    _check_folding(requested, name)
    _check_name_in_text(name)


def _check_person_name(name: str) -> None:
    # Marks may be removed before or after folding, which turns one mark into a letter.
    for form in (name, name.replace("I", "l")):
        for bare in (_bare(fold_name(form)), fold_name(_bare(form))):
            assert not re.fullmatch(r"server|client\d*", bare), f"{name!r} looks like somebody else"
    for act in (False, True):
        said = Said(name=name, text=" x ", act=act)
        assert_same(list(TEXT.parse_events(TEXT.format(said))), [said], "a name survives a tag")
    direct = Direct(name, "7 x")
    read = list(TEXT.parse_requests(TEXT.encode_request(direct)))
    assert_same(read, [direct], "one can be told something by name")
    assert_same(parse_target(name), name, "no address")
    assert_same(split_target(f"{name} 10m"), (name, "10m"), "no word of a command")
    with suppress(OSError):
        assert not socket.inet_aton(name), f"{name!r} is an address"


def _bare(name: str) -> str:
    """Return only the letters and digits of a name."""
    return "".join(
        character
        for character in unicodedata.normalize("NFKD", name).replace("ı", "i")
        if character.isalnum() and unicodedata.category(character) != "Lm"
    )


def _check_folding(requested: str, name: str) -> None:
    """Check that canonically equivalent names are the same name."""
    folded = fold_name(name)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert_same(fold_name(unicodedata.normalize(form, requested)), folded, f"a name in {form}")
        assert_same(fold_name(unicodedata.normalize(form, name)), folded, f"a name in {form}")
    # For the stored name: folding is not defined for marks that are not in canonical order.
    assert_same(fold_name(name.casefold()), folded, "a name without its capitals")
    assert_same(fold_name(name.lower()), folded, "a name in lower case")


def _check_name_in_text(name: str) -> None:
    """Check that a name survives the text protocol, which has no quoting."""
    for request in (Rename(name), Join(name)):
        read = list(TEXT.parse_requests(TEXT.encode_request(request)))
        assert_same(read, [request], "a name survives a command")
