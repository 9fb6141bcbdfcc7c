"""The rank's side of lockstep: every step of an epoch in order, none skipped, none twice, no other epoch's.

A pure value: it takes tasks as they come from the rank's queue and says which step may run. The orchestrator's side is
`engine.ledger.StepLedger`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..schemas.errors import LockstepError
from ..schemas.messages import Call, GroupId, Repeat, Task
from ..schemas.tensors import Tensor

__all__ = ["LockstepGuard", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """A step with all its parts, ready to run.

    Attributes:
        step: its number in the epoch.
        work: what to run.
        inputs: per input, in the graph's order, one tensor of stacked rows or one tensor for each row.
        requests: the ids of the requests that it serves, for logs.
    """

    step: int
    work: Call | Repeat
    inputs: tuple[tuple[Tensor, ...], ...]
    requests: tuple[str, ...]


class LockstepGuard:
    """Lets the steps of one epoch of one group through to one rank, strictly in order.

    A refused task changes nothing: the guard goes on expecting what it expected, so that what it lets through is always
    step 0, 1, 2 and so on, each once. Whether to end the epoch over a refusal is for the caller to say.

    Args:
        group: the group that this rank is part of.
        rank: this rank's number, for messages.
        epoch: the epoch that it is ready for.
    """

    def __init__(self, group: GroupId, rank: int, epoch: int) -> None:
        self.group = group
        self.rank = rank
        self.epoch = epoch
        self._next = 0
        self._parts: dict[int, Task] = {}

    @property
    def expected(self) -> int:
        """The number of the step that may come next, or of which parts are still to come."""
        return self._next

    def is_stale(self, task: Task) -> bool:
        """Whether a task belongs to an older epoch of this group: it was under way when that epoch ended.

        `accept` refuses it like any other foreign task; but it harms nothing, and may be dropped without a word.
        """
        return task.group == self.group and task.epoch < self.epoch

    def accept(self, task: Task) -> Step | None:
        """Take a task in.

        Args:
            task: the next message of the rank's queue.

        Returns:
            The step that is complete with this task, None where parts of it are still to come.

        Raises:
            LockstepError: a foreign group or epoch, a gap, a repeat of a step or of a part, parts that do not belong
                together, or inputs that are missing or given twice. See `is_stale` for the one kind that is harmless.
        """
        self._check_origin(task)
        self._check_order(task)
        if len(self._parts) + 1 < task.parts:
            self._parts[task.part] = task
            return None
        step = self._assemble({**self._parts, task.part: task})
        self._parts.clear()
        self._next += 1
        return step

    def _check_origin(self, task: Task) -> None:
        if task.group != self.group:
            raise self._refusal(f"expected a task of group {self.group}, got step {task.step} of group {task.group}")
        if task.epoch != self.epoch:
            raise self._refusal(f"expected epoch {self.epoch}, got step {task.step} of epoch {task.epoch}")

    def _check_order(self, task: Task) -> None:
        if task.step < self._next:
            raise self._refusal(f"expected step {self._next}, got step {task.step} again")
        if task.step > self._next:
            rest = f", of which {len(self._parts)} part(s) are there" if self._parts else ""
            raise self._refusal(f"expected step {self._next}{rest}, got step {task.step}: a gap")
        if task.part >= task.parts:
            raise self._refusal(f"step {task.step}: part {task.part} of {task.parts} (parts count from 0)")
        if task.part in self._parts:
            raise self._refusal(f"step {task.step}: part {task.part} of {task.parts} came again")
        for other in self._parts.values():
            if other.parts != task.parts:
                raise self._refusal(f"step {task.step}: part {task.part} says {task.parts} parts, not {other.parts}")
            if other.work != task.work:
                raise self._refusal(f"step {task.step}: part {task.part} says {task.work}, not {other.work}")

    def _assemble(self, parts: dict[int, Task]) -> Step:
        tasks = [parts[number] for number in sorted(parts)]
        first = tasks[0]
        work = first.work
        inputs: dict[int, tuple[Tensor, ...]] = {}
        expected = 1 if work.stacked else work.rows
        if isinstance(work, Repeat) and len(work.turns) != work.rows:
            raise self._refusal(f"step {first.step}: turns for {len(work.turns)} rows, and there are {work.rows}")
        for column in (column for task in tasks for column in task.inputs):
            if column.index in inputs:
                raise self._refusal(f"step {first.step}: input {column.index} came twice")
            if len(column.tensors) != expected:
                found = f"{len(column.tensors)} tensor(s) for input {column.index}"
                raise self._refusal(f"step {first.step}: expected {expected}, got {found}")
            inputs[column.index] = column.tensors
        missing = [index for index in range(len(inputs)) if index not in inputs]
        if missing:
            raise self._refusal(f"step {first.step}: input {missing[0]} did not come, but input {max(inputs)} did")
        return Step(
            step=first.step,
            work=work,
            inputs=tuple(inputs[index] for index in range(len(inputs))),
            requests=tuple(dict.fromkeys(request for task in tasks for request in task.requests)),
        )

    def _refusal(self, what: str) -> LockstepError:
        return LockstepError(f"rank {self.rank} of {self.group}, epoch {self.epoch}: {what}")
