"""Grapheme clusters: what a reader sees as one character, of one or more code points.  Pure.

An emoji with a skin tone, a family of joined emoji, a flag, a letter with its accents and a Korean
syllable of jamo are one cluster each (Unicode Standard Annex 29).
"""

from wcwidth import iter_graphemes

__all__ = ["clusters", "end_of_cluster", "start_of_cluster"]

clusters = iter_graphemes
"""Yields the clusters of a text."""


def start_of_cluster(text: str, index: int) -> int:
    """Return *index*, or the start of the cluster if it is within one.

    An index outside of *text* counts as its nearest end.
    """
    index = start = max(0, min(index, len(text)))
    if not 0 < index < len(text):
        return index
    # Forward from a certain boundary: wcwidth's search backwards misses characters that join to the
    # one behind them, such as U+0600.
    while start and not (_stands_alone(text[start - 1]) and _stands_alone(text[start])):
        start -= 1
    for cluster in clusters(text, start):
        if start + len(cluster) > index:
            break
        start += len(cluster)
    return start


def _stands_alone(character: str) -> bool:
    """Return whether there is certainly a boundary between two such characters."""
    return (character < "\u0300" and character != "\r") or "\u4e00" <= character <= "\u9fff"


def end_of_cluster(text: str, index: int) -> int:
    """Return *index*, or the end of the cluster if it is within one.

    An index outside of *text* counts as its nearest end.
    """
    index = max(0, min(index, len(text)))
    start = start_of_cluster(text, index)
    return index if start == index else start + len(next(clusters(text, start)))
