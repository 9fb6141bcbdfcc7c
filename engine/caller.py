"""The way from a servable's own Python back into the engine, while a request is served."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ..schemas.errors import RankmqError, ServableError, StageFailed

__all__ = ["Caller", "GivenUp", "call_with", "current_caller", "send_part_for_caller", "use_caller"]

_Result = TypeVar("_Result")


class GivenUp(BaseException):
    """Ends a servable's Python that goes on asking when its request is over; not caught with its ordinary errors.

    Args:
        reason: why the request is over.
    """

    def __init__(self, reason: RankmqError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Caller(Protocol):
    """What a pipeline function or a function stage can ask for while it runs; blocks until the answer is there."""

    def call_method(self, servable: str, version: int, method: str, args: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """Run a method on one instance.

        Args:
            servable: its name.
            version: its version; 0 is the newest.
            method: its name.
            args: the instance's inputs, in the order of the method's input names.
        """
        ...

    def call_subgraph(self, subgraph: int, args: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """Run a subgraph of the servable that is running, on one instance.

        Args:
            subgraph: its number within the servable.
            args: the graph's inputs.
        """
        ...

    def send_part(self, outputs: Mapping[str, Any]) -> None:
        """Tell what there is of the instance's answer so far, where its request asked for that; does not block.

        Args:
            outputs: by name.

        Raises:
            StageFailed: one cannot be sent, or what runs takes several instances at a time.
        """
        ...


_CALLER: ContextVar[Caller | None] = ContextVar("rankmq_caller", default=None)


@contextmanager
def use_caller(caller: Caller) -> Iterator[None]:
    """Make `caller` the one that `PipelineServable.run` and `Model.call` use within the block, in this thread."""
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)


def current_caller(word: str) -> Caller:
    """The caller of the request that is being served.

    Args:
        word: what the configuration called, for the error.

    Raises:
        ServableError: no request is being served here.
    """
    caller = _CALLER.get()
    if caller is None:
        raise ServableError(
            f"{word} works only while a request is served: in a pipeline function or a function stage, in the thread "
            "that runs it; not at the top of the file, nor in a method (there register.add_stage is the word)"
        )
    return caller


def call_with(args: tuple[Any, ...], call: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    """One call: a single output is given as itself, several as a tuple."""
    outputs = call(args)
    return outputs[0] if len(outputs) == 1 else outputs


def send_part_for_caller(outputs: Mapping[str, Any]) -> None:
    """What `register.send_part` does, for it alone: an error names the line that has called that.

    Args:
        outputs: by name.

    Raises:
        ServableError: no request is being served here.
        StageFailed: see `Caller.send_part`.
    """
    caller = current_caller("register.send_part")
    try:
        caller.send_part(outputs)
    except StageFailed as error:
        frame = sys._getframe(2)
        place = f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        raise StageFailed(f"{place}: send_part: {error.message}") from error
