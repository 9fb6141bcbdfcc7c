"""Values that people and other languages write by hand: numbers, text, nested lists, and tensors in JSON.

In JSON a tensor is `{"dtype": ..., "shape": ..., "data": ...}` where `data` is base64 of the bytes (then `shape` is
needed) or nested lists (then `shape`, if given, must agree). One by reference has `blob` for `data`, as in MessagePack.
A bare value has no dtype: see `tensors.from_plain`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from .blobs import Blob
from .errors import InvalidInput, LimitExceeded
from .limits import Limits
from .messages import Value
from .nested import Nested, flatten, from_plain, strings_of, to_floats, whole_numbers
from .tensors import (
    MAX_DIMENSIONS,
    Tensor,
    bfloat16_to_float32,
    float32_to_bfloat16,
    from_array,
    numpy_dtype,
    to_array,
)

__all__ = ["array_of", "is_untyped", "tensor_from_json", "tensor_to_json", "value_to_json"]

_FIELDS = frozenset({"dtype", "shape", "data", "blob"})


def is_untyped(value: object) -> bool:
    """Whether the value came without a dtype, so that the engine may convert it to what the graph takes."""
    return not isinstance(value, Tensor | Mapping)


def array_of(value: Value | Mapping[str, Any], limits: Limits) -> np.ndarray[Any, Any]:
    """The array of an input of a request.

    Raises:
        InvalidInput: it cannot be one array of an allowed dtype.
        LimitExceeded: nested deeper, or with more elements, than allowed.
    """
    if isinstance(value, Tensor):
        return to_array(value)
    if isinstance(value, Mapping):
        return to_array(tensor_from_json(value, limits))
    return from_plain(value, limits)


def tensor_from_json(value: object, limits: Limits | None = None) -> Tensor:
    """The tensor that a JSON object, or a bare JSON value, stands for.

    Raises:
        InvalidInput: a field is missing or unknown, or dtype, shape and data do not go together.
        LimitExceeded: nested deeper, or with more elements, than allowed.
    """
    if not isinstance(value, Mapping):
        return from_array(from_plain(value, limits))
    if unknown := value.keys() - _FIELDS:
        raise InvalidInput(f"a tensor has dtype, shape and data, not {min(map(str, unknown))[:40]!r}")
    name, data, shape = value.get("dtype"), value.get("data"), value.get("shape")
    if "blob" in value:
        return _by_reference(value)
    if not isinstance(name, str) or "data" not in value:
        raise InvalidInput("a tensor needs dtype (text) and data (base64 text or nested lists)")
    dtype = numpy_dtype(name)
    if shape is not None:
        _check_shape(shape)
    if isinstance(data, str) and name not in ("string", "bytes"):
        if shape is None:
            raise InvalidInput("a tensor with base64 data needs its shape")
        return Tensor(name, tuple(shape), memoryview(_from_base64(data)))
    nested = flatten(data, limits)
    array = _typed(nested, name, dtype)
    if shape is not None and tuple(shape) != nested.shape:
        if nested.leaves or math.prod(shape) != 0:
            raise InvalidInput(f"data of shape {list(nested.shape)} does not match the shape that is given")
        empty = memoryview(b"") if name not in ("string", "bytes") else ()
        return Tensor(name, tuple(shape), empty)
    return from_array(array)


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """A JSON object of a tensor: nested lists, or base64 where JSON has no word for a number (NaN, infinity).

    Raises:
        InvalidInput: the tensor's dtype, shape and data do not go together.
        LimitExceeded: as in `to_array`.
    """
    out: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.blob is not None:
        return {**out, "blob": msgspec.to_builtins(tensor.blob)}
    array = to_array(tensor)
    if array.size == 0:
        return {**out, "data": []}
    if tensor.dtype == "bytes":
        flat = np.empty(array.size, object)
        flat[:] = [base64.b64encode(element).decode("ascii") for element in array.reshape(-1).tolist()]
        return {**out, "data": flat.reshape(array.shape).tolist()}
    if tensor.dtype == "bfloat16":
        array = bfloat16_to_float32(array)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return {**out, "data": base64.b64encode(tensor.data).decode("ascii")}  # type: ignore[arg-type]
    return {**out, "data": array.tolist()}


def _by_reference(value: Mapping[str, Any]) -> Tensor:
    name, shape = value.get("dtype"), value.get("shape")
    if not isinstance(name, str) or shape is None or "data" in value:
        raise InvalidInput("a tensor by reference needs dtype (text), shape and blob, and has no data")
    _check_shape(shape)
    try:
        blob = msgspec.convert(value["blob"], Blob)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a blob has name, bytes and digest: {error}") from None
    return Tensor(name, tuple(shape), blob=blob)


def value_to_json(value: Value) -> object:
    """An input of a request as JSON takes it: NaN, infinity and binary, for which it has no word, become tensors.

    Raises:
        InvalidInput: a value with such an element of which no tensor can be made.
    """
    if isinstance(value, Tensor):
        return value
    kinds = flatten(value).kinds if isinstance(value, list | tuple) else {type(value)}
    if not kinds & {float, bytes}:
        return value
    tensor = from_array(from_plain(value))
    if tensor.dtype == "bytes" or not np.isfinite(to_array(tensor)).all():
        return tensor
    return value


def _typed(nested: Nested, name: str, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array of the named dtype, and only if every element can be told in it."""
    shape, leaves, kinds = nested
    if name in ("string", "bytes"):
        if not kinds <= {str}:
            raise InvalidInput(f"data of a {name} tensor must be {'' if name == 'string' else 'base64 '}text")
        return strings_of(leaves if name == "string" else list(map(_from_base64, leaves)), dtype).reshape(shape)
    if name == "bool":
        if not kinds <= {bool}:
            raise InvalidInput("data of a bool tensor must be true and false")
        return np.array(leaves, dtype).reshape(shape)
    if not kinds <= {int, float}:
        raise InvalidInput(f"data of a {name} tensor must be base64, or nested lists of numbers and nothing else")
    if name == "bfloat16":
        return _to_bfloat16(leaves).reshape(shape)
    return (to_floats if dtype.kind == "f" else whole_numbers)(leaves, dtype).reshape(shape)


def _to_bfloat16(leaves: list[Any]) -> np.ndarray[Any, Any]:
    single = to_floats(leaves, np.dtype(np.float32))
    array = float32_to_bfloat16(single)
    if not np.array_equal(np.isinf(bfloat16_to_float32(array)), np.isinf(single)):
        raise InvalidInput("a number does not fit into bfloat16")
    return array


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("data is not base64") from None


def _check_shape(shape: object) -> None:
    if not isinstance(shape, list | tuple):
        raise InvalidInput("shape must be a list")
    if len(shape) > MAX_DIMENSIONS:
        raise LimitExceeded(f"a tensor of {len(shape)} dimensions: {MAX_DIMENSIONS} are allowed")
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise InvalidInput("shape must be a list of whole numbers from 0 to 2**63 - 1")
