"""Grapheme clusters: what a reader takes for one character, of one or more code points.  Pure.

An emoji with a skin tone, a family of joined emoji, a flag, a letter with its accents and a Korean
syllable of jamo are one cluster each (Unicode Standard Annex 29).
"""

from wcwidth import grapheme_boundary_before, iter_graphemes

__all__ = ["clusters", "end_of_cluster", "start_of_cluster"]

clusters = iter_graphemes
"""Yields the clusters of a text."""


def start_of_cluster(text: str, index: int) -> int:
    """Return *index*, or where the cluster that it is in the middle of begins.

    An index outside of *text* counts as its nearest end.
    """
    index = max(0, min(index, len(text)))
    return grapheme_boundary_before(text, index + 1) if 0 < index < len(text) else index


def end_of_cluster(text: str, index: int) -> int:
    """Return *index*, or where the cluster that it is in the middle of ends.

    An index outside of *text* counts as its nearest end.
    """
    index = max(0, min(index, len(text)))
    start = start_of_cluster(text, index)
    return index if start == index else start + len(next(clusters(text, start)))
