"""Detects damage in the write-ahead log (WAL) that a killed server left.

SQLite reads the frames up to the first wrong checksum and silently ignores all transactions after
it; the next transaction overwrites them.  This module only reads.

Source: https://www.sqlite.org/walformat.html
"""

import struct
import sys
from pathlib import Path

from multichat.protocol.counts import counted

__all__ = ["describe_wal_damage"]

_PAGE_SIZE_OFFSET = 16  # in the file's header

# In the -shm: how many frames of the WAL are valid.
_FRAMES_OFFSET = 16

_MAGIC = b"\x37\x7f\x06"  # and a byte whose last bit is the byte order of the checksums
_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


def describe_wal_damage(real: Path) -> str:
    """Return a warning that says how much of the WAL of *real* is lost; empty if nothing is.

    Call this after a connection has read the file, and while none is open in this process: closing
    a file releases all locks that SQLite holds on it.
    """
    wal = Path(f"{real}-wal")
    try:
        with real.open("rb") as file:
            file.seek(_PAGE_SIZE_OFFSET)
            page_bytes = int.from_bytes(file.read(2), "big")
        with Path(f"{real}-shm").open("rb") as index:
            index.seek(_FRAMES_OFFSET)
            valid = int.from_bytes(index.read(4), sys.byteorder)
        lost = _count_lost(wal, valid, 65536 if page_bytes == 1 else page_bytes)
    except OSError:  # there is no WAL
        return ""
    if not lost:
        return ""
    what = counted(lost, "transaction")
    return (
        f"{wal} is damaged, or the machine lost power: {what if lost > 0 else 'what is'} in it "
        "could not be read; messages may be missing, which a backup may have"
    )


def _count_lost(path: Path, valid: int, page_bytes: int) -> int:
    """Count the transactions after the *valid* frames; -1 if there may have been some."""
    with path.open("rb") as wal:
        header = wal.read(_HEADER_BYTES)
        salts = header[16:24]
        is_whole = _is_whole(header)
        lost = 0
        frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        for n in range(valid, (path.stat().st_size - _HEADER_BYTES) // frame_bytes):
            wal.seek(_HEADER_BYTES + n * frame_bytes)
            frame = wal.read(_FRAME_HEADER_BYTES)
            if not (n or is_whole):
                salts = frame[8:16]
            # The last frame of a transaction says how long the file is.
            lost += frame[8:16] == salts and any(frame[4:8])
    return lost if lost or is_whole or not header else -1


def _is_whole(header: bytes) -> bool:
    """Return whether the checksum of the header of a WAL is right."""
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        return False
    order = ">" if header[3] & 1 else "<"
    one = two = 0
    for first, second in struct.iter_unpack(f"{order}II", header[:24]):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return struct.pack(">II", one, two) == header[24:]
