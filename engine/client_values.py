"""What the producer library turns a caller's values into, and what it makes of a reply. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..schemas.errors import InstancesFailed, InvalidInput, ProducerError, RankmqError, from_wire
from ..schemas.messages import Reply, Value
from ..schemas.tensors import Tensor, from_array, to_array

__all__ = ["Instances", "Result", "failures_of", "result_of", "rows_of", "to_wire"]

Instances = Mapping[str, Any] | Sequence[Mapping[str, Any]]
Result = list[dict[str, np.ndarray[Any, Any]]]


def to_wire(instances: Instances) -> list[dict[str, Value]]:
    """The instances of a request as its message has them.

    Args:
        instances: one dict of named inputs, or a list of them.

    Raises:
        InvalidInput: no instances, or a value that cannot be sent.
    """
    rows = [instances] if isinstance(instances, Mapping) else list(instances)
    if not rows:
        raise InvalidInput("a request needs at least one instance")
    for row in rows:
        if not isinstance(row, Mapping):
            raise InvalidInput(f"an instance is a dict of named inputs, not {type(row).__name__}")
    return [{name: _value(name, value) for name, value in row.items()} for row in rows]


def _value(name: str, value: object) -> Value:
    try:
        if isinstance(value, bytes | bytearray):
            return Tensor("bytes", (), (bytes(value),))
        if isinstance(value, np.ndarray | np.generic):
            return from_array(np.asarray(value))
        if value is None or isinstance(value, bool | int | float | str | list):
            return value
        if isinstance(value, tuple):
            return list(value)
        return from_array(np.asarray(value))
    except RankmqError as error:
        raise type(error)(f"input {name}: {error.message}") from error


def rows_of(reply: Reply) -> list[dict[str, np.ndarray[Any, Any]] | RankmqError]:
    """Per instance its outputs, as arrays of their own, or its error.

    Raises:
        RankmqError: the request failed as a whole; the error that the reply holds.
    """
    if reply.error is not None:
        raise from_wire(reply.error.code, reply.error.message)
    failed = {it.index: from_wire(it.error.code, it.error.message) for it in reply.errors}
    return [
        failed.get(index) or ProducerError("no outputs and no error")
        if row is None
        else {name: to_array(tensor).copy() for name, tensor in row.items()}
        for index, row in enumerate(reply.outputs)
    ]


def result_of(reply: Reply) -> Result:
    """Per instance its outputs.

    Raises:
        InstancesFailed: some instances failed; its `results` has the others.
        RankmqError: the request failed as a whole; the error that the reply holds.
    """
    rows = rows_of(reply)
    good: Result = [row for row in rows if not isinstance(row, RankmqError)]
    if len(good) < len(rows):
        raise InstancesFailed(failures_of(rows), rows)
    return good


def failures_of(rows: Sequence[Any]) -> str:
    """How many of a request's instances failed, and how the first of them did.

    Args:
        rows: per instance what became of it; one of them at least is an error.
    """
    failed = [(index, row.message) for index, row in enumerate(rows) if isinstance(row, RankmqError)]
    index, message = failed[0]
    return f"{len(failed)} of {len(rows)} instances failed; the first, instance {index}: {message}"
