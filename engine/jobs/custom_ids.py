"""The ids that rows bring, alike in all kinds of input. Pure."""

from __future__ import annotations

import numpy as np

from ...schemas.errors import InvalidInput

__all__ = ["CUSTOM_ID", "custom_id_of"]

CUSTOM_ID = "custom_id"
"""The column that has them."""

_MOST_ID = 512


def custom_id_of(given: object) -> str | None:
    """A row's id: text, or an integer as its decimal digits; None where it brought none.

    Raises:
        InvalidInput: it is something else, or too long.
    """
    value = given.tolist() if isinstance(given, np.ndarray | np.generic) else given
    if value is None:
        return None
    try:
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and 1 <= len(value) <= _MOST_ID and value.encode():
            return value
    except ValueError:  # not UTF-8, or thousands of digits
        value = "what is no UTF-8" if isinstance(value, bytes | str) else "an integer of thousands of digits"
        raise InvalidInput(f"custom_id is text of 1 to {_MOST_ID} characters, or an integer, not {value}") from None
    raise InvalidInput(f"custom_id is text of 1 to {_MOST_ID} characters, or an integer, not {value!r:.60}")
