"""The tensor on the wire: `{dtype, shape, data}`, little-endian, C order, the bytes given as they are.

The dtypes are an allow-list. Numbers and booleans travel as one binary string; `string` and `bytes` tensors travel as a
flat array of their elements in C order. Nothing here pickles, and no name on the wire selects code.

numpy has no bfloat16: an array of it is one of the one-field dtype `BFLOAT16` (its 16 bits as `<u2`), and arrays of
the `ml_dtypes` package's bfloat16 are taken as well. `bfloat16_to_float32` and `float32_to_bfloat16` convert.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from .blobs import Blob, check_blob
from .errors import InvalidInput, LimitExceeded
from .nested import from_plain, strings_of

__all__ = [
    "BFLOAT16",
    "DTYPES",
    "MAX_DIMENSIONS",
    "MAX_EMPTY_ROWS",
    "NO_DATA",
    "Tensor",
    "bfloat16_to_float32",
    "blob_of",
    "dtype_name",
    "float32_to_bfloat16",
    "from_array",
    "from_plain",
    "nbytes",
    "numpy_dtype",
    "to_array",
]

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
MAX_DIMENSIONS = 32
MAX_EMPTY_ROWS = 1 << 20
"""Product of the dimensions before the first 0 of an empty tensor: it has no bytes that would bound it, and as nested
lists, or row by row, it takes that much work all the same."""

_NUMERIC: dict[str, np.dtype[Any]] = {
    "bool": np.dtype("?"),
    **{f"{kind}{bits}": np.dtype(f"<{kind[0]}{bits // 8}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "bfloat16": BFLOAT16,
}
_STRING = np.dtypes.StringDType()
_OBJECT = np.dtype(object)

DTYPES: tuple[str, ...] = (*_NUMERIC, "string", "bytes")
"""Every dtype that a tensor on the wire may have."""

_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _NUMERIC.items()}

NO_DATA = memoryview(b"")
"""Stands for the data of a tensor by reference; it is known by its identity, since a tensor may well be empty."""


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor as it travels: with its data, or by reference to a blob that has them.

    Attributes:
        dtype: one of `DTYPES`.
        shape: its dimensions, none for a scalar.
        data: the bytes, little-endian and in C order; for `string` and `bytes` the flat list of elements.
        blob: where the bytes are, in place of `data`; not for `string` and `bytes`.
    """

    dtype: Annotated[str, Meta(extra_json_schema={"enum": list(DTYPES)})]
    shape: Annotated[
        tuple[Annotated[int, Meta(extra_json_schema={"minimum": 0})], ...],
        Meta(extra_json_schema={"maxItems": MAX_DIMENSIONS}),
    ]
    data: memoryview | tuple[Any, ...] = NO_DATA
    blob: Blob | None = None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype on the wire.

    Raises:
        InvalidInput: the name is off the list.
    """
    if name in _NUMERIC:
        return _NUMERIC[name]
    if name == "string":
        return _STRING
    if name == "bytes":
        return _OBJECT
    raise InvalidInput(f"dtype {name[:40]!r} is not one of {', '.join(DTYPES)}")


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name on the wire of a numpy dtype of either byte order.

    Raises:
        InvalidInput: the dtype cannot travel (complex, datetime, a record, ...).
    """
    name = _NAMES.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "biuf":
        name = _NAMES.get(dtype.newbyteorder("<"))
        if name is not None:
            return name
    if dtype.name == "bfloat16":  # ml_dtypes
        return "bfloat16"
    if dtype.kind in "UT":
        return "string"
    if dtype.kind in "SO":
        return "bytes"
    raise InvalidInput(f"an array of dtype {dtype} cannot be sent: use one of {', '.join(DTYPES)}")


def from_array(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of an array of any shape, strides and byte order; aliases the array's memory where it can.

    Raises:
        InvalidInput: a dtype that cannot travel, an object array of anything but str or bytes, a lone surrogate.
        LimitExceeded: more than `MAX_DIMENSIONS` dimensions.
    """
    array = np.asarray(array)  # a subclass (np.matrix) has ideas of its own about reshape
    name = dtype_name(array.dtype)
    shape = array.shape
    if len(shape) > MAX_DIMENSIONS:
        raise LimitExceeded(f"a tensor of {len(shape)} dimensions: {MAX_DIMENSIONS} are allowed")
    if name in ("string", "bytes"):
        return _from_strings(array)
    dtype = _NUMERIC[name]
    if array.dtype != dtype:
        array = array.view(BFLOAT16) if name == "bfloat16" else array.astype(dtype)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if array.size == 0:
        return Tensor(name, shape, memoryview(b""))
    return Tensor(name, shape, array.reshape(-1).view(np.uint8).data)


def _from_strings(array: np.ndarray[Any, Any]) -> Tensor:
    flat = tuple(array.reshape(-1).tolist())
    kinds = set(map(type, flat))
    if kinds <= {str} and (flat or array.dtype.kind in "UT"):
        if not _is_unicode(flat):
            raise InvalidInput("text with a lone surrogate is not Unicode")
        return Tensor("string", array.shape, flat)
    if kinds <= {bytes}:
        return Tensor("bytes", array.shape, flat)
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise InvalidInput(f"an object array may hold only str or only bytes, not {found}")


def _is_unicode(elements: tuple[str, ...]) -> bool:
    text = "".join(elements)
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The array of a tensor; numbers are a read-only view of the message they came in, possibly unaligned.

    Returns:
        The array; `string` gives numpy's StringDType, `bytes` an object array of bytes.

    Raises:
        InvalidInput: dtype off the list, a negative dimension, bytes or elements that do not match the shape; no data,
            since the tensor is one by reference or not whole.
        LimitExceeded: more than `MAX_DIMENSIONS` dimensions, or an empty tensor of more than `MAX_EMPTY_ROWS` rows.
    """
    shape, data = tensor.shape, tensor.data
    if tensor.blob is not None:
        raise InvalidInput(f"a tensor by reference: its bytes are in the blob {tensor.blob.name!r:.60}")
    if data is NO_DATA:
        raise InvalidInput("a tensor needs data, or a blob that has them")
    _check_shape(shape)
    dtype = _NUMERIC.get(tensor.dtype)
    if dtype is None:
        return _to_strings(tensor)
    if isinstance(data, tuple):
        raise InvalidInput(f"data of a {tensor.dtype} tensor must be one binary string")
    expected = math.prod(shape) * dtype.itemsize
    if data.nbytes != expected:
        raise InvalidInput(f"{data.nbytes} bytes do not match {tensor.dtype} of shape {list(shape)}: {expected}")
    if expected == 0:
        return _empty(shape, dtype)
    if tensor.dtype == "bool" and np.frombuffer(data, np.uint8).max() > 1:
        raise InvalidInput("a bool tensor may hold only the bytes 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def blob_of(tensor: Tensor) -> Blob:
    """The checked reference of a tensor by reference.

    Raises:
        InvalidInput: it is none, or has data as well; it is text, or has no elements; its blob cannot have this name or
            digest, or another number of bytes than its dtype and shape say.
        LimitExceeded: more than `MAX_DIMENSIONS` dimensions.
    """
    blob = tensor.blob
    if blob is None or tensor.data is not NO_DATA:
        raise InvalidInput("a tensor has either data or a blob")
    dtype = _NUMERIC.get(tensor.dtype)
    if dtype is None:
        numpy_dtype(tensor.dtype)  # which refuses what is off the list
        raise InvalidInput(f"a {tensor.dtype} tensor cannot be a blob: give its elements")
    check_blob(blob)
    _check_shape(tensor.shape)
    expected = math.prod(tensor.shape) * dtype.itemsize
    if blob.bytes != expected or not expected:
        raise InvalidInput(
            f"a blob of {blob.bytes} bytes does not match {tensor.dtype} of shape {list(tensor.shape)}: "
            + (f"{expected}" if expected else "an empty tensor has none")
        )
    return blob


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_DIMENSIONS:
        raise LimitExceeded(f"a tensor of {len(shape)} dimensions: {MAX_DIMENSIONS} are allowed")
    if shape and min(shape) < 0:
        raise InvalidInput("a shape with a negative dimension")


def _to_strings(tensor: Tensor) -> np.ndarray[Any, Any]:
    dtype, shape, data = numpy_dtype(tensor.dtype), tensor.shape, tensor.data
    if not isinstance(data, tuple):
        raise InvalidInput(f"data of a {tensor.dtype} tensor must be an array of its elements, not one binary string")
    if len(data) != math.prod(shape):
        raise InvalidInput(f"{len(data)} elements do not match shape {list(shape)}")
    wanted = str if dtype is _STRING else bytes
    if not set(map(type, data)) <= {wanted}:
        raise InvalidInput(f"a {tensor.dtype} tensor may hold only {'text' if wanted is str else 'binary'} elements")
    return strings_of(data, dtype).reshape(shape) if data else _empty(shape, dtype)


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if math.prod(shape[: shape.index(0)]) > MAX_EMPTY_ROWS:
        raise LimitExceeded(f"an empty tensor of more than {MAX_EMPTY_ROWS} rows")
    try:
        array = np.empty(shape, dtype)
    except ValueError:  # a dimension, or the product of the others, past numpy's index range
        raise InvalidInput(f"an empty tensor with dimensions past {dtype}'s range") from None
    array.flags.writeable = False
    return array


def nbytes(tensor: Tensor) -> int:
    """About how many bytes of a message the tensor's data takes."""
    data = tensor.data
    return data.nbytes if isinstance(data, memoryview) else sum(len(element) + 5 for element in data)


def bfloat16_to_float32(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Exactly the same values as float32, from a `BFLOAT16` (or ml_dtypes) array."""
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(array.shape)


def float32_to_bfloat16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The nearest `BFLOAT16` values (ties to even; past the range infinity; NaN stays NaN)."""
    values = np.ascontiguousarray(array, dtype="<f4")
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(values)
    upper = np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype("<u2")
    return upper.view(BFLOAT16).reshape(array.shape)
