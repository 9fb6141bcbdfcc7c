"""Values without a dtype: a number, text, binary, or nested lists of one kind of them.

numpy alone would guess: it turns `[1, "a"]` into text, `[True, 2]` into numbers and `[2**63, -1]` into floats, drops
NULs at the end of text, and pads every text to the longest. Here the kinds are looked at first, level by level, within
limits.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from .errors import InvalidInput, LimitExceeded
from .limits import Limits

__all__ = ["Nested", "flatten", "from_plain", "strings_of", "to_floats", "whole_numbers"]

_LISTS = frozenset({list, tuple})
_PLAIN = frozenset({list, tuple, bool, int, float, str, bytes})
_STRING = np.dtypes.StringDType()
_DEFAULT = Limits()


class Nested(NamedTuple):
    """Nested lists taken apart.

    Attributes:
        shape: their lengths, outermost first; none for a bare value.
        leaves: the values in C order.
        kinds: the types that occur among the leaves; empty if there are none.
    """

    shape: tuple[int, ...]
    leaves: list[Any]
    kinds: set[type]


def flatten(value: object, limits: Limits | None = None) -> Nested:
    """Shape, leaves and kinds of nested lists; arrays and scalars of numpy among them count as lists and numbers.

    Raises:
        InvalidInput: lists of different lengths, or lists beside values.
        LimitExceeded: deeper, or more elements, than allowed.
    """
    limits = limits or _DEFAULT
    level: list[Any] = [value]
    shape: list[int] = []
    while True:
        kinds = set(map(type, level))
        if not kinds <= _PLAIN:
            level = [_without_numpy(element) for element in level]
            kinds = set(map(type, level))
        if not kinds & _LISTS:
            return Nested(tuple(shape), level, kinds)
        if not kinds <= _LISTS or len(sizes := set(map(len, level))) != 1:
            raise InvalidInput("nested lists must all have the same length and hold one kind of value")
        if len(shape) == limits.nesting:
            raise LimitExceeded(f"lists nested deeper than {limits.nesting}")
        shape.append(sizes.pop())
        if len(level) * shape[-1] > limits.elements:
            what = "elements in nested lists: give tensors as dtype, shape and data (base64 in JSON)"
            raise LimitExceeded(f"more than {limits.elements} {what}")
        level = list(chain.from_iterable(level))


def from_plain(value: object, limits: Limits | None = None) -> np.ndarray[Any, Any]:
    """The array of a value given without a dtype: a number, a str, bytes, or nested lists of one of them.

    Whole numbers become int32 (int64, then uint64, where they do not fit), others float32, as in MindSpore Serving's
    REST interface; an empty list becomes float32.

    Raises:
        InvalidInput: ragged or mixed lists, null, a map, a whole number past 64 bits, or a number past float32.
        LimitExceeded: deeper, or more elements, than allowed.
    """
    shape, leaves, kinds = flatten(value, limits)
    if kinds == {int}:
        array = _smallest(leaves)
    elif kinds <= {int, float}:
        array = to_floats(leaves, np.dtype(np.float32))
    elif kinds == {bool}:
        array = np.array(leaves, np.bool_)
    elif kinds == {str}:
        array = strings_of(leaves, _STRING)
    elif kinds == {bytes}:
        array = strings_of(leaves, np.dtype(object))
    else:
        raise InvalidInput(f"a value without a dtype must be numbers, text or bytes of one kind, not {_names(kinds)}")
    return array.reshape(shape)


def whole_numbers(leaves: list[Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of integers, from ints and from floats that are whole.

    Raises:
        InvalidInput: a float that is not whole, or a number that does not fit into the dtype.
    """
    if float in set(map(type, leaves)):
        if not all(leaf.is_integer() for leaf in leaves if type(leaf) is float):
            raise InvalidInput(f"data of a {dtype.name} tensor must be whole numbers")
        leaves = [int(leaf) for leaf in leaves]
    try:
        return np.array(leaves, dtype)
    except OverflowError:
        raise InvalidInput(f"a number does not fit into {dtype.name}") from None


def to_floats(leaves: list[Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of floats, each the nearest to its number.

    Raises:
        InvalidInput: a finite number past the dtype's range.
    """
    try:
        exact = np.array(leaves, np.float64)
    except OverflowError:
        raise InvalidInput(f"a number does not fit into {dtype.name}") from None
    with np.errstate(over="ignore"):
        array = exact.astype(dtype)
    if not np.array_equal(np.isinf(array), np.isinf(exact)):
        raise InvalidInput(f"a number does not fit into {dtype.name}")
    return array


def strings_of(elements: list[Any] | tuple[Any, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A flat array of str (StringDType) or bytes (object), each kept to its last NUL.

    Raises:
        InvalidInput: text with a lone surrogate, which UTF-8 cannot say.
    """
    array = np.empty(len(elements), dtype)
    try:
        array[:] = elements
    except UnicodeEncodeError:
        raise InvalidInput("text with a lone surrogate is not Unicode") from None
    return array


def _smallest(leaves: list[int]) -> np.ndarray[Any, Any]:
    low, high = min(leaves), max(leaves)
    for dtype in (np.int32, np.int64, np.uint64):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return np.array(leaves, dtype)
    raise InvalidInput("whole numbers must fit into 64 bits")


def _without_numpy(element: object) -> object:
    if isinstance(element, np.ndarray | np.generic):
        if element.dtype.kind not in "biufUSTO":
            raise InvalidInput(f"an array of dtype {element.dtype} cannot stand in a list")
        return element.tolist()
    if isinstance(element, list | tuple):
        return list(element)
    return element


def _names(kinds: set[type]) -> str:
    names = {type(None): "null", dict: "map", str: "text", bool: "true/false"}
    return ", ".join(sorted(names.get(kind, kind.__name__) for kind in kinds))
