"""How large arrays are as they travel. Pure.

By shape and dtype, and not by the memory that is held: an array that was broadcast holds one element, and would be
written out whole wherever it goes. Nothing is copied to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..schemas.errors import LimitExceeded
from .references import LEAST_BYTES

__all__ = ["check_row", "least_json_bytes", "may_be_blob", "size_of"]


def _is_text(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "UTSO"


def size_of(array: np.ndarray[Any, Any]) -> int:
    """How many bytes of a message an array's data takes: exactly so of numbers, at least of text."""
    if not _is_text(array):
        return array.nbytes
    if not array.size:
        return 0
    held = array[..., *(slice(None if step else 1) for step in array.strides)]  # without what is repeated
    if array.dtype.kind == "O":
        lengths = sum(len(it) for it in held.flat if isinstance(it, str | bytes))
    else:
        lengths = int(np.strings.str_len(held).sum())
    return array.size + lengths * (array.size // held.size)


def may_be_blob(array: np.ndarray[Any, Any]) -> bool:
    """Whether it is numbers, and enough of them to go by reference where there is no room for them in a message."""
    return not _is_text(array) and array.nbytes >= LEAST_BYTES


def least_json_bytes(array: np.ndarray[Any, Any]) -> int:
    """The same in JSON: a number is a digit and a comma at least, however many bytes it has in memory."""
    return size_of(array) if _is_text(array) else array.size * min(array.itemsize, 2)


def check_row(arrays: Sequence[np.ndarray[Any, Any]], most: int | None, what: str) -> None:
    """Whether what a servable's Python gave for a row is not more than can go anywhere.

    Args:
        arrays: what it gave.
        most: how many bytes they may have together; None: any number.
        what: that has given it, for the error.

    Raises:
        LimitExceeded: they have more.
    """
    if most is None:
        return
    total = sum(it.size if _is_text(it) else it.nbytes for it in arrays)
    if total <= most:  # else there may be too much text to look at
        total = sum(map(size_of, arrays))
    if total > most:
        raise LimitExceeded(
            f"{what} {total} bytes for a row, and no reply or step can carry more than {most}: give less, or have the "
            "engine use a blob store with room for it (blob_store, max_tensor_bytes)"
        )
