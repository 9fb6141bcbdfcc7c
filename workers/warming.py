"""What the first call of a graph is given, and what its outputs show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..schemas.messages import GraphInfo, GraphPlan, TensorSpec
from ..schemas.tensors import dtype_name, numpy_dtype

__all__ = ["warm_inputs", "with_outputs"]

Array = np.ndarray[Any, Any]

_ROWS = 3  # the batch of a first call: a number that a graph hardly has among its own sizes


def warm_inputs(info: GraphInfo) -> list[Array]:
    """Zeros of the shapes of a graph's inputs."""
    return [
        np.zeros([_ROWS if size < 0 else size for size in spec.shape], numpy_dtype(spec.dtype)) for spec in info.inputs
    ]


def with_outputs(info: GraphInfo, plan: GraphPlan, outputs: Sequence[Array]) -> GraphInfo:
    """What a graph gives, as its call on `warm_inputs` has shown: files leave out some of it.

    Args:
        info: as the file has it.
        plan: how the graph is run.
        outputs: of the call.
    """
    in_file = info.outputs if len(info.outputs) == len(outputs) else ()
    found = []
    for index, output in enumerate(outputs):
        shape = list(output.shape)
        if plan.stacked and shape and shape[0] == _ROWS:
            shape[0] = -1
        if in_file and len(in_file[index].shape) == len(shape):
            shape = [-1 if said < 0 else size for size, said in zip(shape, in_file[index].shape, strict=True)]
        found.append(TensorSpec(name=f"output{index}", dtype=dtype_name(output.dtype), shape=tuple(shape)))
    return msgspec.structs.replace(info, outputs=tuple(found))
