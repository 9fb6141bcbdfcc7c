"""A loop on the ranks, once the graph that it runs is known: checked against it, and its slices put together.

The ranks run a slice, some turns, by themselves: each feeds its own outputs to its own inputs. So what is fed, and what
says when a row is done, must be the same on every rank, or divided among them in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..schemas.errors import InvalidInput, ModelError, RanksDisagree
from ..schemas.messages import Column, RankReply, Repeat
from ..schemas.tensors import numpy_dtype
from .gather import OutputPlan
from .layouts import AllEqual, Concat, FromRank
from .loop import Loop, Name
from .plan import SubgraphPlan
from .scatter import InputPlan, describe, matches

__all__ = ["LoopPlan", "Turned", "plan_loop"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Turned:
    """What a slice gave for one row.

    Attributes:
        arguments: what the next slice is given.
        collected: per output that is collected, its turns along an axis in front.
        last: per output that is kept of the last turn.
        turns: how many turns it ran.
        stopped: whether its flag was set.
    """

    arguments: tuple[Array, ...]
    collected: tuple[Array, ...]
    last: tuple[Array, ...]
    turns: int
    stopped: bool

    def packed(self) -> tuple[Array, ...]:
        """The same as the results of a call are given: arrays, one after the other."""
        return (*self.arguments, *self.collected, *self.last, np.asarray(self.turns), np.asarray(self.stopped))

    @classmethod
    def unpacked(cls, row: Sequence[Array], loop: Loop) -> Turned:
        """What `packed` has packed for a loop."""
        end = len(row) - 2
        last = end - len(loop.last)
        collected = last - len(loop.collect)
        return cls(
            tuple(row[:collected]), tuple(row[collected:last]), tuple(row[last:end]), int(row[-2]), bool(row[-1])
        )


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """A loop over one subgraph, in the graph's own numbers.

    Attributes:
        feed: pairs of an input and an output.
        arguments: per pair, which argument of the stage that input is.
        until: the output with the flag.
        collect: the outputs that are kept of every turn.
        last: the outputs that are kept of the last turn.
        slice_seconds: as in `Loop`.
    """

    feed: tuple[tuple[int, int], ...]
    arguments: tuple[int, ...]
    until: int | None
    collect: tuple[int, ...]
    last: tuple[int, ...]
    slice_seconds: float | None = None

    @property
    def sent(self) -> tuple[int, ...]:
        """The outputs of its last turn that a slice sends back: what is fed, the flag, and what is asked for."""
        flag = () if self.until is None else (self.until,)
        return tuple(dict.fromkeys((*(output for _, output in self.feed), *flag, *self.last)))

    def work(self, plan: SubgraphPlan, turns: Sequence[int]) -> Repeat:
        """What the ranks are told.

        Args:
            plan: of the subgraph.
            turns: per row, how many it runs at most.
        """
        return Repeat(
            subgraph=plan.subgraph,
            rows=len(turns),
            stacked=plan.stacked,
            turns=tuple(turns),
            feed=self.feed,
            until=self.until,
            last=self.sent,
            collect=self.collect,
            shrink=plan.stacked and plan.static_rows is None,
        )

    def gather(
        self,
        plan: SubgraphPlan,
        replies: Mapping[int, RankReply],
        given: Sequence[Sequence[Any]],
        most: Sequence[int],
    ) -> list[tuple[Array, ...]]:
        """What a slice gave, per row, packed (see `Turned`).

        Args:
            plan: of the subgraph.
            replies: by rank.
            given: per row, the stage's arguments.
            most: per row, how many turns it was to run at most.

        Raises:
            RanksDisagree: the ranks ran different turns, or their parts do not go together.
            GraphFailed: an output that does not fit its layout.
            InternalError: what a rank sent is no tensor.
        """
        turns = _turns(replies, most)
        rows = len(turns)
        sent, last = self.sent, {}
        for place, number in enumerate(sent):
            columns = _columns(plan, number, place, replies)
            last[number] = plan.outputs[number].gather(columns, rows, rows)
        collected = [
            plan.outputs[number].gather_turns(_columns(plan, number, len(sent) + place, replies), turns)
            for place, number in enumerate(self.collect)
        ]
        found = []
        for row in range(rows):
            arguments = [np.asarray(value) for value in given[row]]
            for argument, (_, output) in zip(self.arguments, self.feed, strict=True):
                arguments[argument] = last[output][row]
            stopped = self.until is not None and bool(np.any(last[self.until][row] != 0))
            turned = Turned(
                tuple(arguments),
                tuple(values[row] for values in collected),
                tuple(last[output][row] for output in self.last),
                turns[row],
                stopped,
            )
            found.append(turned.packed())
        return found

    def without_turns(self, plan: SubgraphPlan, given: Sequence[Any]) -> tuple[Array, ...]:
        """What a row gives that is to run no turn at all, packed.

        Raises:
            InvalidInput: the last turn is asked for an output that is fed nowhere.
        """
        arguments = tuple(np.asarray(value) for value in given)
        fed = {output: arguments[argument] for argument, (_, output) in zip(self.arguments, self.feed, strict=True)}
        missing = [output for output in self.last if output not in fed]
        if missing:
            raise InvalidInput(f"a loop of 0 turns has no last one, of which output {missing[0]} could be given")
        nothing = []
        for output in self.collect:
            spec = plan.outputs[output].spec
            shape = [max(0, size) for size in _row_shape(plan.outputs[output])]
            nothing.append(np.zeros((0, *shape), numpy_dtype(spec.dtype)))
        return Turned(arguments, tuple(nothing), tuple(fed[it] for it in self.last), 0, True).packed()


def plan_loop(loop: Loop, plan: SubgraphPlan, *, slots: bool) -> LoopPlan:
    """Finds what a loop names in the graph, and checks that its turns can follow each other on the ranks.

    Args:
        loop: as the configuration says it.
        plan: of the subgraph.
        slots: the ranks keep state, and the input named `slot` is no argument of the stage.

    Raises:
        ModelError: the graph has no such input or output, or what is fed does not fit or is not the same on every rank.
    """
    own = [one.index for one in plan.inputs if not (slots and one.spec.name == "slot")]
    split = next((one for one in plan.inputs if one.splits_rows), None)
    if split is not None:
        raise _error(plan, f"input {split.index} is divided by rows ({split.layout}): the ranks would turn apart")
    feed: list[tuple[int, int]] = []
    arguments: list[int] = []
    for taken, given in loop.feed:
        one, output = _input(plan, own, taken), _output(plan, given)
        if one.index in dict(feed):
            raise _error(plan, f"input {one.index} is fed twice")
        _check_fed(plan, one, output)
        feed.append((one.index, output.index))
        arguments.append(own.index(one.index))
    until = None if loop.until is None else _output(plan, loop.until)
    if until is not None:
        _check_flag(plan, until)
    collect, last = ([_output(plan, name) for name in names] for names in (loop.collect, loop.last))
    for output in (*collect, *last):
        if output.batched and output.layout == Concat(0):
            raise _error(plan, f"{output} is joined along its rows ({output.layout})")
    return LoopPlan(
        tuple(feed),
        tuple(arguments),
        None if until is None else until.index,
        tuple(output.index for output in collect),
        tuple(output.index for output in last),
        loop.slice_seconds,
    )


def _input(plan: SubgraphPlan, own: Sequence[int], name: Name) -> InputPlan:
    if isinstance(name, int):
        if name < len(own):
            return plan.inputs[own[name]]
        raise _error(plan, f"there is no argument {name}: the graph takes {len(own)}")
    found = [index for index in own if plan.inputs[index].spec.name == name]
    if len(found) != 1:
        known = ", ".join(plan.inputs[index].spec.name for index in own) or "none"
        raise _error(plan, f"no input to feed is named {name!r}; there are: {known}")
    return plan.inputs[found[0]]


def _output(plan: SubgraphPlan, name: Name) -> OutputPlan:
    found = [it for it in plan.outputs if name in (it.index, it.spec.name)]
    if len(found) != 1:
        known = ", ".join(f"{it.index} ({it.spec.name})" for it in plan.outputs) or "none"
        raise _error(plan, f"there is no output {name!r}; there are: {known}")
    return found[0]


def _row_shape(output: OutputPlan) -> tuple[int, ...]:
    return output.spec.shape[1:] if output.batched else output.spec.shape


def _check_fed(plan: SubgraphPlan, one: InputPlan, output: OutputPlan) -> None:
    taken, given = one.row_shape, _row_shape(output)
    known = [size if -1 not in (size, other) else -1 for size, other in zip(given, taken, strict=False)]
    if output.batched != one.batched:
        raise _error(plan, f"input {one.index} has no batch axis, and cannot be fed from {output}, which has one")
    if one.axis is None and not isinstance(output.layout, AllEqual | FromRank):
        raise _error(plan, f"every rank gets input {one.index} whole, and has only a part of {output}: {output.layout}")
    if one.axis is not None and output.layout != Concat(one.axis):
        raise _error(
            plan,
            f"input {one.index} is divided, {one.layout}: it can be fed only from an output with concat({one.axis})",
        )
    if one.spec.dtype != output.spec.dtype or len(taken) != len(given) or not matches(taken, known):
        takes, gives = describe(one.spec.dtype, taken), describe(output.spec.dtype, given)
        raise _error(plan, f"input {one.index} takes {takes}, and {output} is {gives}")


def _check_flag(plan: SubgraphPlan, until: OutputPlan) -> None:
    if not isinstance(until.layout, AllEqual | FromRank):
        raise _error(plan, f"{until} says when a row is done, and must be the same on every rank, not {until.layout}")
    dtype = until.spec.dtype
    if not (dtype == "bool" or "int" in dtype) or any(size not in (1, -1) for size in _row_shape(until)):
        shown = describe(dtype, _row_shape(until))
        raise _error(plan, f"{until} says when a row is done: one bool or whole number a row, not {shown}")


def _error(plan: SubgraphPlan, message: str) -> ModelError:
    return ModelError(f"subgraph {plan.subgraph} cannot be repeated like this: {message}")


def _turns(replies: Mapping[int, RankReply], most: Sequence[int]) -> tuple[int, ...]:
    """How many turns each row ran, of which all ranks must know the same."""
    said = {reply.turns: rank for rank, reply in replies.items()}
    (turns, rank), *others = said.items()
    if others:
        raise RanksDisagree(f"ranks {rank} and {others[0][1]} ran different turns of a loop")
    fit = len(turns) == len(most) and all(1 <= ran <= allowed for ran, allowed in zip(turns, most, strict=True))
    if not fit:
        raise RanksDisagree(f"rank {rank} ran {list(turns)} turns of a loop, not up to {list(most)}")
    return turns


def _columns(plan: SubgraphPlan, number: int, place: int, replies: Mapping[int, RankReply]) -> dict[int, list[Column]]:
    """By rank that has to send it, in their order, an output as the graph numbers it."""
    return {
        rank: [
            Column(index=number, tensors=column.tensors) for column in replies[rank].outputs if column.index == place
        ]
        for rank in plan.ranks
        if plan.outputs[number].needs(rank)
    }
