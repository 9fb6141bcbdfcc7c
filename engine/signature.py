"""What a function that is registered takes and gives, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .declaration import Declaration
from .servable import Where

__all__ = ["signature_of"]


def signature_of(
    function: Callable[..., Any], output_names: Any, kind: str, declaration: Declaration, where: Where
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The input and output names of a method or pipeline.

    Args:
        function: what is registered.
        output_names: as they were given.
        kind: "method" or "pipeline", for messages.
        declaration: of the file it stands in.
        where: its line.

    Raises:
        ServableError: it is no plain function, or the names are none.
    """
    name = getattr(function, "__name__", "")
    if not callable(function) or isinstance(function, type) or not name.isidentifier():
        raise declaration.error(f"a {kind} is a function with a name, not {function!r}", where)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(inspect.unwrap(function)):
        raise declaration.error(f"{kind} {name} must be a plain function, not async and without yield", where)
    inputs = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise declaration.error(f"{kind} {name}: {parameter}: its inputs are plain parameters, each a name", where)
        if parameter.default is not parameter.empty:
            raise declaration.error(f"{kind} {name}: input {parameter.name} has a default: a request names all", where)
        inputs.append(parameter.name)
    outputs = [output_names] if isinstance(output_names, str) else output_names
    if not isinstance(outputs, list | tuple) or not outputs or not all(isinstance(o, str) and o for o in outputs):
        raise declaration.error(f"{kind} {name}: output_names must be a list of names, not {output_names!r}", where)
    if len(set(outputs)) != len(outputs):
        raise declaration.error(f"{kind} {name}: output_names names an output twice: {output_names!r}", where)
    return tuple(inputs), tuple(outputs)
