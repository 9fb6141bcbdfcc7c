"""Loops under way: slice after slice, until each row is done.

The ranks run a slice by themselves (`loop_plan`); what comes of it decides here which rows go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..schemas.errors import GraphFailed, InvalidInput, LimitExceeded, RankmqError, TemporaryFailure, TurnsExhausted
from ..schemas.tensors import dtype_name
from . import retry
from .loop import Loop
from .loop_plan import Turned
from .previews import Preview
from .run_ports import RunContext, RunPorts
from .scatter import describe
from .servable import RepeatStage
from .ticket import Done, RowResult

__all__ = ["LoopRow", "RepeatRun", "turns_of"]

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class LoopRow:
    """How far one row has come in its loop. Pure.

    Attributes:
        arguments: of the next slice.
        left: how many turns it may still run.
        collected: by slice, what was collected.
        last: of the newest slice.
        turns: how many it has run.
        stopped: whether its flag has ended it.
        sizes: per output that is collected, its bytes so far.
    """

    arguments: tuple[Any, ...]
    left: int
    collected: list[tuple[Array, ...]] = field(default_factory=list)
    last: tuple[Array, ...] = ()
    turns: int = 0
    stopped: bool = False
    sizes: tuple[int, ...] = ()

    def took(self, turned: Turned) -> bool:
        """Takes down what a slice gave.

        Returns:
            Whether the row is done.
        """
        self.arguments = turned.arguments
        self.left -= turned.turns
        self.collected.append(turned.collected)
        self.last = turned.last
        self.turns += turned.turns
        before = self.sizes or (0,) * len(turned.collected)
        self.sizes = tuple(size + part.nbytes for size, part in zip(before, turned.collected, strict=True))
        self.stopped = turned.stopped
        return turned.stopped or self.left <= 0

    def check_size(self, loop: Loop, most: int | None) -> None:
        """Whether what is collected is not more than anybody can be given; to be asked after each slice.

        Args:
            loop: of the row.
            most: bytes that may be collected for a row; None: any number.

        Raises:
            LimitExceeded: it is; or it will be, where nothing but the number of turns ends the loop.
        """
        total = sum(self.sizes)
        if most is None or not self.turns:
            return
        ahead = total // self.turns * self.left if loop.until is None else 0
        if total + ahead <= most:
            return
        number = self.sizes.index(max(self.sizes))
        turns = self.turns + (self.left if ahead else 0)
        raise LimitExceeded(
            f"a loop collects {total + ahead} bytes of a row in {turns} turns, most of them of output "
            f"{loop.collect[number]!r}, and a reply may carry {most}: collect less, run fewer turns, or give the "
            "engine a blob store with room for it (blob_store, max_tensor_bytes)"
        )

    def result(self) -> RowResult:
        """What the stage gives for it, once it is done; until then, what it would give were it done now."""
        whole = []
        for parts in zip(*self.collected, strict=True):
            if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
                return GraphFailed(f"an output that is collected has shape {parts[0].shape[1:]}, and another later")
            whole.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return (*whole, *self.last)


class RepeatRun:
    """One loop over rows.

    Args:
        ports: how it reaches the engine.
        context: the request's.
        stage: the loop.
        rows: per row the arguments of its first turn.
        times: per row, how many turns it may run, as it was given.
        done: called on the loop with one result or error per row.
        previews: by row, what shows how far it has come; none where nobody asked.
    """

    def __init__(
        self,
        ports: RunPorts,
        context: RunContext,
        stage: RepeatStage,
        rows: Sequence[tuple[Any, ...]],
        times: Sequence[Any],
        done: Done,
        previews: Sequence[Preview] = (),
    ) -> None:
        self._ports = ports
        self._context = context
        self._stage = stage
        self._rows: dict[int, LoopRow] = {}
        self._results: list[RowResult | None] = [None] * len(rows)
        self._left = len(rows)
        self._done = done
        self._previews = dict(enumerate(previews))
        self._given = list(zip(rows, times, strict=True))

    def start(self) -> None:
        """Begins with the first slice."""
        refused: list[tuple[int, RankmqError]] = []
        for place, (arguments, times) in enumerate(self._given):
            try:
                self._rows[place] = LoopRow(arguments, turns_of(times, self._stage.at_most))
            except InvalidInput as error:
                refused.append((place, error))
        for place, refusal in refused:
            self._settle(place, refusal)
        if self._rows:
            self._slice(list(self._rows), 1)

    def _slice(self, places: Sequence[int], attempt: int) -> None:
        over = self._context.life.over
        if over is not None:
            for place in places:
                self._settle(place, over)
            return
        rows = [self._rows[place] for place in places]
        turns = [min(row.left, self._stage.slice_turns) for row in rows]
        took = partial(self._took, places, attempt)
        self._ports.repeat_subgraph(self._context, self._stage, [row.arguments for row in rows], turns, took)

    def _took(self, places: Sequence[int], attempt: int, results: Sequence[RowResult]) -> None:
        going: list[int] = []
        again: list[int] = []
        pause = 0.0
        for place, result in zip(places, results, strict=True):
            if isinstance(result, TemporaryFailure):
                pause = retry.pause_before(result, attempt) or 0.0
                if attempt < self._context.max_attempts:
                    again.append(place)
                else:
                    self._settle(place, retry.given_up(result, attempt))
            elif isinstance(result, RankmqError):
                self._settle(place, result)
            else:
                over = self._took_row(place, result)
                if over is None:
                    going.append(place)
                    self._show(place)
                else:
                    self._settle(place, over)
        if going:
            self._slice(going, 1)
        if again:
            self._ports.later(pause, lambda: self._slice(again, attempt + 1))

    def _took_row(self, place: int, result: tuple[Array, ...]) -> RowResult | None:
        """Takes down what a slice gave for a row; None where the row goes on."""
        row, loop = self._rows[place], self._stage.loop
        done = row.took(Turned.unpacked(result, loop))
        try:
            row.check_size(loop, self._context.most_collected)
        except LimitExceeded as error:
            return error
        if done and self._stage.must_stop and not row.stopped:
            return TurnsExhausted(
                f"the loop over subgraph {self._stage.subgraph} did not end: its output {loop.until!r} was not set in "
                f"{row.turns} turns, and that is how many it may take (at_most)"
            )
        return row.result() if done else None

    def _show(self, place: int) -> None:
        preview = self._previews.get(place)
        if preview is not None:
            so_far = self._rows[place].result()
            if not isinstance(so_far, RankmqError):
                preview.show(so_far)

    def _settle(self, place: int, result: RowResult) -> None:
        self._results[place] = result
        if place in self._previews:
            self._previews[place].end()
        self._left -= 1
        if self._left == 0:
            self._done([it for it in self._results if it is not None])


def turns_of(times: Any, at_most: int) -> int:
    """How many turns a row asks for.

    Args:
        times: as it came: one whole number.
        at_most: the largest that it may be.

    Raises:
        InvalidInput: it is none, or too large.
    """
    value = np.asarray(times)
    whole = not value.ndim and value.dtype.kind in "iu"
    if not whole or not 0 <= int(value) <= at_most:
        name = dtype_name(value.dtype)
        if whole:
            shown = str(value)
        elif value.ndim or name in ("bytes", "bfloat16"):
            shown = describe(name, value.shape)
        else:
            shown = f"{value.item()!r:.40} ({name})"
        raise InvalidInput(f"times of a loop must be one whole number from 0 to {at_most}, not {shown}")
    return int(value)
