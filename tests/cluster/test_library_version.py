"""The version of the functions in the engine follows their text."""

import re

import pytest

from multichat.cluster.library import LibraryTooNew, Version, library_text, load_command

pytestmark = pytest.mark.unit

# The digest of each version's text.  A node of an older text with the same number refuses to share
# an engine with a newer one, so that a rolling upgrade ends: after a release, a change of the text
# takes a higher number in library.lua and library.py, and adds its digest here.  Before the release
# of a version, the new digest replaces the old one.
PINNED = {1: "82f35095b91ab5fe073e6a5f6235458a5ff60f07c723aec5327445d4ee62fe54"}


def test_a_changed_text_of_the_library_has_a_version_and_a_digest_of_its_own() -> None:
    text = library_text()
    number = re.search(r"^local VERSION = (\d+)$", text, re.MULTILINE)
    digest = re.search(r"^local DIGEST = '([0-9a-f]{64})'", text, re.MULTILINE)
    assert number
    assert digest
    assert {int(number[1]): digest[1]}.items() <= PINNED.items(), (
        "the functions have changed: see PINNED here"
    )
    # The node's own number is the same.
    assert load_command(Version(int(number[1]), digest[1])) is None
    with pytest.raises(LibraryTooNew):
        load_command(Version(int(number[1]) + 1, digest[1]))
