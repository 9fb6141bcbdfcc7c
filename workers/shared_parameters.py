"""Parameters that are one and the same in all graphs of a rank, such as a cache of keys and values.

They are taken as any objects of the shape of MindSpore's, so that this module imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..schemas.errors import ModelError

__all__ = ["share"]


def share(patterns: Sequence[str], parameters: Iterable[Any], owners: Iterable[Any], file: Path) -> None:
    """Has parameters of a graph that was not called yet be those of the same name in others.

    Args:
        patterns: of the names of those that are shared; `*` stands for anything.
        parameters: of the graph.
        owners: the parameters of the other graphs.
        file: the graph's, for messages.

    Raises:
        ModelError: two that are to be one have different shapes or dtypes.
    """
    known = {it.name: it for it in owners}
    for parameter in parameters:
        owner = known.get(parameter.name)
        if owner is not None and any(fnmatchcase(parameter.name, pattern) for pattern in patterns):
            if (parameter.shape, parameter.dtype) != (owner.shape, owner.dtype):
                raise ModelError(
                    f"the model file {file}: parameter {parameter.name} is {parameter.dtype} {list(parameter.shape)}, "
                    f"to be shared with one that is {owner.dtype} {list(owner.shape)}"
                )
            parameter.assign_value(owner)
