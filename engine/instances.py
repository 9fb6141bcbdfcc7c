"""One instance of a request: from named inputs to a method's arguments, and from its results to named outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..schemas import plain
from ..schemas.errors import GroupUnavailable, InvalidInput, RankmqError, StageFailed
from ..schemas.limits import Limits
from ..schemas.tensors import Tensor, from_array
from .ticket import RowResult

__all__ = ["arguments_of", "named_outputs"]


def arguments_of(instance: Mapping[str, Any], names: Sequence[str], limits: Limits) -> tuple[np.ndarray[Any, Any], ...]:
    """An instance's inputs, in the order of the method's or pipeline's input names.

    Args:
        instance: by name, a tensor or a plain value.
        names: what is asked for.
        limits: the bounds on plain values.

    Raises:
        InvalidInput: an input is missing or not asked for, or cannot be an array.
        LimitExceeded: an input is nested too deeply, or has too many elements.
    """
    if missing := [name for name in names if name not in instance]:
        raise InvalidInput(f"missing input {', '.join(missing)}; the inputs are {', '.join(names)}")
    if len(instance) != len(names):
        extra = sorted(set(instance) - set(names))
        raise InvalidInput(f"unknown input {', '.join(extra)[:200]}; the inputs are {', '.join(names)}")
    row = []
    for name in names:
        try:
            row.append(plain.array_of(instance[name], limits))
        except RankmqError as error:
            raise type(error)(f"input {name}: {error.message}") from error
    return tuple(row)


def named_outputs(names: Sequence[str], result: RowResult | None) -> dict[str, Tensor] | RankmqError:
    """An instance's outputs by name, or the error that it met.

    Args:
        names: of the outputs.
        result: what the method or pipeline gave.
    """
    if result is None or isinstance(result, RankmqError):
        return result or GroupUnavailable("no result")
    outputs: dict[str, Tensor] = {}
    for name, array in zip(names, result, strict=True):
        try:
            outputs[name] = from_array(array)
        except RankmqError as error:  # not the sender's fault
            return StageFailed(f"output {name} cannot be sent: {error.message}")
    return outputs
