"""What MindSpore raises, as our errors of one line. Nothing here imports MindSpore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..schemas.errors import GroupError, ModelError

__all__ = ["MINDSPORE_ERRORS", "first_line", "group_errors", "model_errors"]

MINDSPORE_ERRORS = (RuntimeError, TypeError, ValueError)


def first_line(error: BaseException) -> str:
    """What MindSpore says, without its rulers, headings and call stacks."""
    for line in str(error).splitlines():
        text = line.rpartition(" exception:")[2].strip()
        if text and not text.startswith("-") and not text.startswith("mindspore/"):
            return text[:300]
    return type(error).__name__


@contextmanager
def model_errors(file: Path) -> Iterator[None]:
    """What is raised within is the fault of a model file.

    Raises:
        ModelError: names the file.
    """
    try:
        yield
    except MINDSPORE_ERRORS as error:
        raise ModelError(f"the model file {file} does not run: {first_line(error)}") from error


@contextmanager
def group_errors(rank: int, address: str) -> Iterator[None]:
    """What is raised within means that a rank cannot join its group.

    Raises:
        GroupError: names the rank, and where the group was to meet.
    """
    try:
        yield
    except MINDSPORE_ERRORS as error:
        raise GroupError(f"rank {rank} cannot join the group at {address}: {first_line(error)}") from error
