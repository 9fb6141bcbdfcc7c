"""What a configuration file has said so far, while it is being executed.

The words (`register`, `distributed`) find the declaration through a context variable, so that nothing of one load is
seen by another, in the same thread or beside it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, cast, get_args

from ..schemas.errors import ServableError
from .layouts import AllEqual, Concat, FromRank, InputLayout, OutputLayout, Replicate, Shard, Sum
from .servable import Communication, Method, MethodCall, Model, Pipeline, Subgraph, Where

__all__ = ["Declaration", "current_declaration", "declaring", "one_line"]

_MOST_ROWS, _MOST_COMPILED = 1024, 16
_LONGEST = 400  # characters of a foreign message that are worth a person's line


class Declaration:
    """Collects what the words say and refuses what is wrong at once, with the line that said it.

    Args:
        name: the servable's.
        file: the configuration file, as it was compiled.
    """

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.file = file
        self.models: list[Model] = []
        self.entries: dict[str, Method | Pipeline] = {}
        self.calls: list[MethodCall] = []

    def here(self) -> Where:
        """The line of the configuration file that is being executed (the innermost, if it calls itself)."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == self.file:
                return Where(self.file, frame.f_lineno)
            frame = frame.f_back
        return Where(self.file, 1)

    def error(self, message: str, where: Where | None = None) -> ServableError:
        """The error for `message`, at `where` or at the line that is being executed."""
        where = where or self.here()
        return ServableError(message, file=where.file, line=where.line)

    def failed(self, error: BaseException, prefix: str = "") -> ServableError:
        """The error for an exception that the file's own code raised: one line, at the innermost line in that file."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self.file and frame.lineno]
        if isinstance(error, SyntaxError) and error.filename == self.file:
            return ServableError(f"{prefix}{type(error).__name__}: {error.msg}", file=self.file, line=error.lineno)
        if isinstance(error, ServableError):
            return ServableError(prefix + error.message, file=self.file, line=lines[-1] if lines else None)
        message = f"{prefix}{type(error).__name__}: {one_line(error)}".rstrip(": ")
        if frames and frames[-1].filename != self.file:
            message += f" (from {frames[-1].filename}:{frames[-1].lineno})"
        return ServableError(message, file=self.file, line=lines[-1] if lines else None)

    def add_model(
        self,
        *,
        name: str,
        rank_size: int,
        stage_size: int,
        with_batch_dim: bool,
        without_batch_dim_inputs: int | Sequence[int] | None,
        batch_size: int | None,
        max_wait: float,
        subgraphs: tuple[Subgraph, ...] | None,
        communication: str,
        slots: int = 0,
        shared_parameters: Sequence[str] = (),
    ) -> Model:
        """Declare a model; its subgraphs get the next numbers.

        Raises:
            ServableError: a value that cannot be, or a model that does not go with those before it.
        """
        for word, value in (("rank_size", rank_size), ("stage_size", stage_size)):
            if not _is_int(value) or value <= 0:
                raise self.error(f"{word} must be a whole number above 0, not {value!r}")
        if rank_size % stage_size:
            raise self.error(f"rank_size {rank_size} cannot be divided into {stage_size} stages of the same size")
        if not isinstance(with_batch_dim, bool):
            raise self.error(f"with_batch_dim must be True or False, not {with_batch_dim!r}")
        if batch_size is not None and (not _is_int(batch_size) or batch_size <= 0):
            raise self.error(f"batch_size must be a whole number above 0, or None, not {batch_size!r}")
        if batch_size is not None and not with_batch_dim:
            raise self.error("batch_size needs with_batch_dim=True: without a batch axis there is nothing to stack")
        if not with_batch_dim and any(subgraph.compiled_rows for subgraph in subgraphs or ()):
            raise self.error("compiled_rows needs with_batch_dim=True: without a batch axis every step has one row")
        if not isinstance(max_wait, int | float) or isinstance(max_wait, bool) or not 0 <= max_wait <= 60:
            raise self.error(f"max_wait must be a number of seconds from 0 to 60, not {max_wait!r}")
        if communication not in get_args(Communication):
            known = ", ".join(repr(value) for value in get_args(Communication))
            raise self.error(f"communication must be one of {known}, not {communication!r}")
        if not _is_int(slots) or slots < 0:
            raise self.error(f"slots must be a whole number from 0, not {slots!r}")
        if isinstance(shared_parameters, str) or not all(isinstance(it, str) and it for it in shared_parameters):
            raise self.error(f"shared_parameters must be a list of name patterns, not {shared_parameters!r}")
        model = Model(
            name=name,
            rank_size=rank_size,
            stage_size=stage_size,
            with_batch_dim=with_batch_dim,
            without_batch_dim_inputs=self._indices(without_batch_dim_inputs) if with_batch_dim else (),
            batch_size=batch_size,
            max_wait=max_wait,
            subgraphs=subgraphs,
            communication=cast(Communication, communication),
            first_subgraph=sum(len(model.subgraphs or ()) for model in self.models),
            slots=slots,
            shared_parameters=tuple(shared_parameters),
            where=self.here(),
        )
        self._check_ranks(model)
        self._check_beside_others(model)
        self.models.append(model)
        return model

    def add_entry(self, entry: Method | Pipeline) -> None:
        """Register a method or a pipeline.

        Raises:
            ServableError: the name is taken.
        """
        taken = self.entries.get(entry.name)
        if taken is not None:
            kind = "method" if isinstance(taken, Method) else "pipeline"
            raise self.error(f"{entry.name!r} is already a {kind}, registered at line {taken.where.line}", entry.where)
        self.entries[entry.name] = entry

    def subgraph(
        self,
        file: str | None,
        inputs: Sequence[Any] | None,
        outputs: Sequence[Any] | None,
        compiled_rows: Sequence[int] = (),
    ) -> Subgraph:
        """A subgraph, its layouts checked.

        Raises:
            ServableError: not a file name, a layout that cannot be, or numbers of rows that cannot be.
        """
        if file is not None and (not isinstance(file, str) or not file.strip()):
            raise self.error(f"a subgraph's file must be a file name, not {file!r}")
        for word, layouts in (("inputs", inputs), ("outputs", outputs)):
            if layouts is not None and not isinstance(layouts, list | tuple):
                raise self.error(f"{word} must be a list with a layout for each, not {layouts!r}")
        return Subgraph(
            file,
            None if inputs is None else tuple(self._input_layout(layout) for layout in inputs),
            None if outputs is None else tuple(self._output_layout(layout) for layout in outputs),
            self._rows(compiled_rows),
        )

    def _rows(self, rows: Any) -> tuple[int, ...]:
        known = isinstance(rows, list | tuple) and all(_is_int(it) and 0 < it <= _MOST_ROWS for it in rows)
        if not known or len(set(rows)) != len(rows) or len(rows) > _MOST_COMPILED:
            raise self.error(
                f"compiled_rows must be up to {_MOST_COMPILED} different numbers from 1 to {_MOST_ROWS}, not {rows!r}"
            )
        return tuple(sorted(rows))

    def _input_layout(self, layout: Any) -> InputLayout:
        if not isinstance(layout, Replicate | Shard):
            raise self.error(f"an input's layout is replicate() or shard(axis), not {layout}")
        if isinstance(layout, Shard):
            self._check_axis(layout)
        return layout

    def _output_layout(self, layout: Any) -> OutputLayout:
        if not isinstance(layout, FromRank | Concat | Sum | AllEqual):
            raise self.error(f"an output's layout is from_rank(r), concat(axis), sum() or all_equal(), not {layout}")
        if isinstance(layout, Concat):
            self._check_axis(layout)
        return layout

    def _check_axis(self, layout: Shard | Concat) -> None:
        if not _is_int(layout.axis) or layout.axis < 0:
            raise self.error(f"{layout}: the axis must be a whole number from 0")

    def _check_ranks(self, model: Model) -> None:
        for number, subgraph in enumerate(model.subgraphs or ()):
            for layout in subgraph.outputs or ():
                if not isinstance(layout, FromRank) or layout.rank is None:
                    continue
                if not _is_int(layout.rank) or not 0 <= layout.rank < model.rank_size:
                    raise self.error(f"subgraph {number}: {layout}: the ranks are 0 to {model.rank_size - 1}")

    def _check_beside_others(self, model: Model) -> None:
        if not self.models:
            return
        first = self.models[0]
        line = first.where.line if first.where else "?"
        if not all(beside.subgraphs and all(graph.file for graph in beside.subgraphs) for beside in (first, model)):
            raise self.error(
                f"another model is declared at line {line}: with more than one, each must name its files "
                "(subgraphs=[...]), so that their subgraphs can be numbered"
            )
        for word in ("rank_size", "stage_size", "communication"):
            if getattr(first, word) != getattr(model, word):
                raise self.error(
                    f"{word} is {getattr(model, word)!r} here and {getattr(first, word)!r} at line {line}: "
                    "the models of a servable live on the same ranks"
                )

    def _indices(self, indices: Any) -> tuple[int, ...]:
        values = () if indices is None else (indices,) if _is_int(indices) else indices
        if not isinstance(values, list | tuple) or not all(_is_int(index) and index >= 0 for index in values):
            raise self.error(f"without_batch_dim_inputs must be numbers of inputs, from 0, not {indices!r}")
        if len(set(values)) != len(values):
            raise self.error(f"without_batch_dim_inputs names an input twice: {indices!r}")
        return tuple(values)


_DECLARATION: ContextVar[Declaration | None] = ContextVar("rankmq_declaration", default=None)


@contextmanager
def declaring(declaration: Declaration) -> Iterator[None]:
    """Let the words speak to `declaration` within the block."""
    token = _DECLARATION.set(declaration)
    try:
        yield
    finally:
        _DECLARATION.reset(token)


def current_declaration(word: str) -> Declaration:
    """The declaration that is being made.

    Args:
        word: what was called, for the error.

    Raises:
        ServableError: no configuration file is being loaded.
    """
    declaration = _DECLARATION.get()
    if declaration is None:
        raise ServableError(f"{word} belongs at the top of a servable_config.py, and rankmq must be loading it")
    return declaration


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, cut to what fits on a screen."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
