"""Which column of a row is which input of the method. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...schemas.errors import ConfigurationError, InvalidInput, LimitExceeded, RankmqError
from ...schemas.limits import Limits
from ...schemas.messages import Value
from ...schemas.plain import array_of, is_untyped, tensor_from_json
from ...schemas.tensors import (
    BFLOAT16,
    DTYPES,
    Tensor,
    bfloat16_to_float32,
    float32_to_bfloat16,
    from_array,
    numpy_dtype,
)

__all__ = ["Columns", "Input", "Mapped"]

_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where an input comes from.

    Attributes:
        input: its name.
        column: the column; "" for the only one there is.
        dtype: what its numbers become; "" leaves them as they are.
    """

    input: str
    column: str = ""
    dtype: str = ""

    @classmethod
    def parse(cls, text: str) -> Mapped:
        """One that is written `input`, `input=column` or `input=column:dtype`.

        Raises:
            ConfigurationError: it is not.
        """
        name, _, rest = text.partition("=")
        column, colon, dtype = rest.rpartition(":") if rest else name.rpartition(":")
        if colon and not rest and dtype not in DTYPES:
            raise ConfigurationError(f"--map {text}: {_no_dtype(dtype)}")
        if not colon or dtype not in DTYPES:
            column, dtype = rest, ""
        elif not rest:
            name, column = column, ""
        if not name:
            raise ConfigurationError(f"--map {text}: write it as input=column, or input=column:dtype")
        return cls(name, column, dtype)

    def __str__(self) -> str:
        """As it is written."""
        return self.input + (f"={self.column}" if self.column else "") + (f":{self.dtype}" if self.dtype else "")


@dataclass(frozen=True, slots=True)
class Input:
    """A row as an instance of a request.

    Attributes:
        values: by name.
        lenient: some came without a dtype, and the engine converts them all.
    """

    values: dict[str, Value]
    lenient: bool


class Columns:
    """Makes inputs out of columns.

    Args:
        mapped: where each input comes from; nothing: each column is the input of its name.
        known: the columns that all rows have; None where each has its own.

    Raises:
        ConfigurationError: a column that there is not, an input that comes twice, or more than one column without a
            word on which is meant.
    """

    def __init__(self, mapped: Sequence[Mapped], known: Iterable[str] | None) -> None:
        columns = None if known is None else tuple(known)
        names = [it.input for it in mapped]
        if len(set(names)) < len(names):
            raise ConfigurationError("--map: an input is named twice")
        self._mapped: tuple[Mapped, ...] = tuple(_resolved(it, columns) for it in mapped)
        if columns is not None and not mapped:
            self._mapped = tuple(Mapped(name, name) for name in columns)

    @property
    def wanted(self) -> frozenset[str] | None:
        """The columns that are needed; None for all."""
        return frozenset(it.column for it in self._mapped) if self._mapped else None

    def input_of(self, values: Mapping[str, Any]) -> Input:
        """The inputs of a row.

        Raises:
            RankmqError: a column is missing, or a value cannot be sent.
        """
        mapped = self._mapped or [Mapped(name, name) for name in values]
        if len(mapped) > _LIMITS.inputs:
            raise LimitExceeded(f"{len(mapped)} inputs: {_LIMITS.inputs} are allowed")
        made = {it.input: _made(it, values) for it in mapped}
        return Input(made, any(map(is_untyped, made.values())))


def _resolved(mapped: Mapped, known: tuple[str, ...] | None) -> Mapped:
    if known is None:
        return mapped if mapped.column else Mapped(mapped.input, mapped.input, mapped.dtype)
    column = mapped.column or (mapped.input if mapped.input in known else known[0] if len(known) == 1 else "")
    if column not in known:
        before, _, dtype = column.rpartition(":")
        if before in known:
            raise ConfigurationError(f"--map {mapped}: {_no_dtype(dtype)}")
        what = f"no column {column!r}" if column else "which column is meant"
        raise ConfigurationError(f"--map {mapped}: {what}; there are: {', '.join(known)}")
    return Mapped(mapped.input, column, mapped.dtype)


def _made(mapped: Mapped, values: Mapping[str, Any]) -> Value:
    name = mapped.column
    if name not in values:
        before, _, dtype = name.rpartition(":")
        if before in values:
            raise InvalidInput(f"column {before!r:.80}: {_no_dtype(dtype)}")
        there = ", ".join(sorted(values)[:20]) or "none"
        raise InvalidInput(f"no column {name!r:.80}; there are: {there:.300}")
    if len(mapped.input) > _LIMITS.name_length:
        raise LimitExceeded(f"a name of {len(mapped.input)} characters: {_LIMITS.name_length} are allowed")
    try:
        value = _value(values[name])
        return value if not mapped.dtype else _cast(value, mapped.dtype)
    except RankmqError as error:
        raise type(error)(f"column {name!r:.80}: {error.message}") from None


def _no_dtype(name: str) -> str:
    return f"no such dtype {name:.40}; there are: {', '.join(DTYPES)}"


def _value(value: Any) -> Value:
    if isinstance(value, np.ndarray | np.generic):
        return from_array(np.asarray(value))
    if isinstance(value, bytes):
        return Tensor("bytes", (), (value,))
    if isinstance(value, Mapping):
        return tensor_from_json(value, _LIMITS)
    if value is None:
        raise InvalidInput("it is null")
    found: Value = value
    return found


def _cast(value: Value, name: str) -> Tensor:
    """The same numbers in another dtype, if they fit."""
    array = array_of(value, _LIMITS)
    dtype = numpy_dtype(name)
    if array.dtype == dtype:
        return from_array(array)
    if array.dtype.kind not in "biuf" or dtype.kind not in "biufV":
        raise InvalidInput(f"{array.dtype.name} does not become {name}")
    with np.errstate(all="ignore"):
        if dtype == BFLOAT16:
            made = float32_to_bfloat16(array.astype(np.float32))
            back = bfloat16_to_float32(made)
            if not (np.isinf(back) == np.isinf(array) if array.dtype.kind == "f" else back == array).all():
                raise InvalidInput(f"a number does not fit into {name}")
            return from_array(made)
        cast = array.astype(dtype)
        if dtype.kind == "f" and array.dtype.kind == "f":  # rounded, as every conversion of floats is
            same = np.array_equal(np.isinf(cast), np.isinf(array))
        else:
            same = _whole(cast, array)
    if not same:
        raise InvalidInput(f"a number does not fit into {name}")
    return from_array(cast)


def _whole(cast: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> bool:
    back = cast.astype(array.dtype)
    return bool(np.array_equal(back, array)) and not bool(np.any((cast < 0) != (array < 0)))
