"""What a compiled library has for others, as its file says: nothing is loaded."""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

import numpy as np

__all__ = ["defines"]

_ELF = b"\x7fELF\x02\x01"  # of 64 bits, the least of a number first
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size
_DYNAMIC_SYMBOLS = 11
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("at", "<u8", 2)])


def defines(library: Path, symbol: str) -> bool:
    """Whether a library has a symbol itself; one that it only takes from another does not count.

    Args:
        library: its file; one that is missing, or no library of this kind of machine, has nothing.
        symbol: its mangled name.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _defines(content, symbol.encode())
    except (OSError, ValueError, IndexError, struct.error):
        return False


def _defines(content: mmap.mmap, symbol: bytes) -> bool:
    if content[: len(_ELF)] != _ELF:
        return False
    (first,), (count,) = struct.unpack_from("<Q", content, 0x28), struct.unpack_from("<H", content, 0x3C)
    sections = [_SECTION.unpack_from(content, first + index * _SECTION.size) for index in range(count)]
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != _DYNAMIC_SYMBOLS:
            continue
        at, length = sections[link][4:6]
        named = [it.start() for it in re.finditer(re.escape(symbol) + b"\0", content[at : at + length])]
        symbols = np.frombuffer(content[offset : offset + size], _SYMBOL)
        if bool(np.any(np.isin(symbols["name"], named) & (symbols["section"] != 0))):
            return True
    return False
