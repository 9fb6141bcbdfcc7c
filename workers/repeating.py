"""A loop on a rank: one graph run again and again over the rows of a step. Pure, but for the graph that it is given.

What it does follows from the step and from the graph's outputs alone, so that ranks whose outputs are the same run the
same turns over the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..schemas.errors import GraphFailed
from ..schemas.messages import Repeat

__all__ = ["Repeated", "repeat"]

Array: TypeAlias = np.ndarray[Any, Any]
Run: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]


@dataclass(slots=True)
class Repeated:
    """What the turns of a step gave.

    Attributes:
        turns: per row, how many it ran.
        last: by output, as each row's last turn gave it: one array of stacked rows, or one a row.
        collected: by output, of every turn: one array of turns and rows, or one of turns a row.
    """

    turns: list[int] = field(default_factory=list)
    last: dict[int, list[Array]] = field(default_factory=dict)
    collected: dict[int, list[Array]] = field(default_factory=dict)


def repeat(run: Run, work: Repeat, columns: Sequence[Sequence[Array]], unstacked: Sequence[int] = ()) -> Repeated:
    """Runs a step's turns.

    Args:
        run: runs the graph on its inputs.
        work: what to do.
        columns: per input one array of stacked rows (padded, where the graph takes a fixed number), or one a row.
        unstacked: the inputs that have no batch axis where the others have one.

    Raises:
        GraphFailed: the graph does not give what is fed or kept, or gives it in another shape than before.
    """
    if work.stacked:
        return _Stacked(run, work, [column[0] for column in columns], frozenset(unstacked)).repeat()
    found = Repeated(last={it: [] for it in work.last}, collected={it: [] for it in work.collect})
    for row in range(work.rows):
        _repeat_row(run, work, [column[row] for column in columns], work.turns[row], found)
    return found


def _repeat_row(run: Run, work: Repeat, inputs: list[Array], turns: int, found: Repeated) -> None:
    """One row by itself."""
    kept: dict[int, list[Array]] = {output: [] for output in work.collect}
    outputs: Sequence[Array] = ()
    ran = 0
    while ran < turns:
        outputs = _checked(run(inputs), work)
        ran += 1
        for output, values in kept.items():
            values.append(outputs[output])
        if work.until is not None and np.any(outputs[work.until] != 0):
            break
        for index, output in work.feed:
            inputs[index] = outputs[output]
    found.turns.append(ran)
    for output, rows in found.last.items():
        rows.append(outputs[output])
    for output, rows in found.collected.items():
        rows.append(_in_one(output, kept[output]))


class _Stacked:
    """All rows at once, in a batch that may become smaller."""

    def __init__(self, run: Run, work: Repeat, inputs: list[Array], unstacked: frozenset[int]) -> None:
        self._run = run
        self._work = work
        self._inputs = inputs
        self._unstacked = unstacked
        self._size = next((it.shape[0] for number, it in enumerate(inputs) if number not in unstacked), work.rows)
        self._turns = np.zeros(work.rows, np.int64)
        self._last: dict[int, Array] = {}
        self._kept: dict[int, list[Array]] = {output: [] for output in work.collect}

    def repeat(self) -> Repeated:
        work = self._work
        most = np.array(work.turns)
        going = np.arange(work.rows)  # the rows that go on
        while going.size:
            outputs = _checked(self._run(self._inputs), work)
            for output in {*work.last, *work.collect, *([] if work.until is None else [work.until])}:
                self._check_rows(output, outputs[output])
            # Where rows leave the batch, what is left of it are those that go on; else each stays in its place.
            places = np.arange(going.size) if work.shrink else going
            self._turns[going] += 1
            for output in work.last:
                self._keep_last(output, outputs[output], places, going)
            for output, values in self._kept.items():
                values.append(self._in_place(output, outputs[output], places, going))
            done = self._turns[going] >= most[going]
            if work.until is not None:
                done |= np.any(outputs[work.until][places].reshape(going.size, -1) != 0, axis=1)
            for index, output in work.feed:
                self._inputs[index] = outputs[output]
            if done.any():
                self._leave(places, done)
                going = going[~done]
        return Repeated(
            turns=self._turns.tolist(),
            last={output: [values] for output, values in self._last.items()},
            collected={output: [_in_one(output, values)] for output, values in self._kept.items()},
        )

    def _check_rows(self, output: int, values: Array) -> None:
        if values.ndim == 0 or values.shape[0] != self._size:
            raise GraphFailed(f"output {output}: shape {values.shape} for {self._size} rows, in a loop")

    def _keep_last(self, output: int, values: Array, places: Array, going: Array) -> None:
        if output not in self._last or going.size == self._work.rows:
            self._last[output] = values[: self._work.rows]
            return
        known = self._last[output]
        if known.shape[1:] != values.shape[1:]:
            raise _other_shape(output, known.shape[1:], values.shape[1:])
        if not known.flags.writeable or known.base is not None:
            known = self._last[output] = known.copy()
        known[going] = values[places]

    def _in_place(self, output: int, values: Array, places: Array, going: Array) -> Array:
        """The values of a turn for all rows; those of rows that are done are nothing."""
        if going.size == self._work.rows:
            return values[: self._work.rows]
        whole = np.zeros((self._work.rows, *values.shape[1:]), values.dtype)
        whole[going] = values[places]
        return whole

    def _leave(self, places: Array, done: Array) -> None:
        """Rows are done: they leave, or become copies of one that is not, which does again what it does anyway."""
        staying = places[~done]
        if not staying.size:
            return
        if self._work.shrink:
            chosen = staying
        else:
            chosen = np.full(self._size, staying[0])
            chosen[staying] = staying
        self._inputs = [one if number in self._unstacked else one[chosen] for number, one in enumerate(self._inputs)]
        self._size = len(chosen)


def _checked(outputs: Sequence[Array], work: Repeat) -> Sequence[Array]:
    wanted = max([*(output for _, output in work.feed), *work.last, *work.collect, work.until or 0])
    if wanted >= len(outputs):
        raise GraphFailed(f"subgraph {work.subgraph} has {len(outputs)} outputs, not output {wanted}")
    return outputs


def _in_one(output: int, values: Sequence[Array]) -> Array:
    for value in values[1:]:
        if value.shape != values[0].shape:
            raise _other_shape(output, values[0].shape, value.shape)
    return np.stack(values)


def _other_shape(output: int, before: tuple[int, ...], now: tuple[int, ...]) -> GraphFailed:
    return GraphFailed(f"output {output} has shape {now} in one turn of a loop and {before} in another")
