from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rankmq.schemas.errors import LockstepError
from rankmq.schemas.messages import Call, Column, GroupId, Repeat, Task
from rankmq.schemas.tensors import from_array, to_array
from rankmq.workers.lockstep import LockstepGuard

GROUP = GroupId(servable="matmul", version=1)
OTHER = GroupId(servable="matmul", version=1, group="g1")
WORK = Call(subgraph=1, rows=2)


def column(index, *values):
    return Column(index=index, tensors=tuple(from_array(np.array(value)) for value in values))


def task(step, part=0, parts=1, inputs=None, group=GROUP, epoch=5, work=WORK, requests=()):
    if inputs is None:
        inputs = (column(part, step, step),)
    return Task(
        group=group, epoch=epoch, step=step, part=part, parts=parts, work=work, inputs=tuple(inputs), requests=requests
    )


def guard():
    return LockstepGuard(GROUP, rank=3, epoch=5)


def test_a_step_in_one_part_is_let_through_at_once():
    one = guard()

    step = one.accept(task(0, inputs=[column(1, 10, 11), column(0, 20, 21)], requests=("a", "b")))

    assert (step.step, step.work, step.requests) == (0, WORK, ("a", "b"))
    assert [[int(to_array(tensor)) for tensor in tensors] for tensors in step.inputs] == [[20, 21], [10, 11]]
    assert one.expected == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_parts_of_a_step_are_put_together(order):
    one = guard()
    parts = [
        task(0, 0, 2, [column(0, 1, 2), column(2, 5, 6)], requests=("a",)),
        task(0, 1, 2, [column(1, 3, 4)], requests=("a", "b")),
    ]

    assert one.accept(parts[order[0]]) is None
    assert one.expected == 0
    step = one.accept(parts[order[1]])

    assert [[int(to_array(tensor)) for tensor in tensors] for tensors in step.inputs] == [[1, 2], [3, 4], [5, 6]]
    assert step.requests == ("a", "b")
    assert one.accept(task(1)).step == 1


def test_a_step_may_have_no_inputs():
    assert guard().accept(task(0, inputs=[])).inputs == ()


def test_stacked_inputs_are_one_tensor_each():
    work = Call(subgraph=0, rows=3, stacked=True)

    step = guard().accept(task(0, inputs=[column(0, [1, 2, 3])], work=work))

    assert to_array(step.inputs[0][0]).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("before", "bad", "message"),
    [
        ([], task(1), "expected step 0, got step 1: a gap"),
        ([task(0)], task(2), "expected step 1, got step 2: a gap"),
        ([task(0)], task(0), "expected step 1, got step 0 again"),
        ([task(0, 0, 2)], task(1), r"expected step 0, of which 1 part\(s\) are there, got step 1: a gap"),
        ([task(0, 0, 2)], task(0, 0, 2), "step 0: part 0 of 2 came again"),
        ([task(0, 0, 2)], task(0, 1, 3), "step 0: part 1 says 3 parts, not 2"),
        ([task(0, 0, 2)], task(0, 1, 2, work=Call(subgraph=0, rows=2)), "step 0: part 1 says Call"),
        ([], task(0, 2, 2), "step 0: part 2 of 2"),
        ([], task(0, epoch=4), "rank 3 of matmul.v1.g0, epoch 5: expected epoch 5, got step 0 of epoch 4"),
        ([], task(0, epoch=6), "expected epoch 5, got step 0 of epoch 6"),
        ([], task(0, group=OTHER), "expected a task of group matmul.v1.g0, got step 0 of group matmul.v1.g1"),
        ([], task(0, inputs=[column(1, 1, 1)]), "step 0: input 0 did not come, but input 1 did"),
        ([], task(0, inputs=[column(4, 1, 1), column(1, 1, 1)]), "step 0: input 0 did not come, but input 4 did"),
        ([], task(0, inputs=[column(0, 1, 1), column(0, 1, 1)]), "step 0: input 0 came twice"),
        ([task(0, 0, 2)], task(0, 1, 2, [column(0, 1, 1)]), "step 0: input 0 came twice"),
        ([], task(0, inputs=[column(0, 1)]), r"step 0: expected 2, got 1 tensor\(s\) for input 0"),
        ([], task(0, work=Call(subgraph=0, rows=2, stacked=True)), "expected 1, got 2"),
        ([], task(0, work=Repeat(subgraph=0, rows=2, turns=(1,))), "step 0: turns for 1 rows, and there are 2"),
    ],
)
def test_what_is_out_of_step_is_refused_and_changes_nothing(before, bad, message):
    one = guard()
    for good in before:
        one.accept(good)
    expected = one.expected

    with pytest.raises(LockstepError, match=message) as caught:
        one.accept(bad)

    assert "\n" not in str(caught.value)
    assert one.expected == expected
    last = before[-1] if before else None
    if last is not None and last.parts == 2:
        assert one.accept(task(expected, 1, 2)).step == expected
    else:
        assert one.accept(task(expected)).step == expected


@pytest.mark.parametrize(
    ("one", "stale"),
    [
        (task(7, epoch=4), True),
        (task(0, epoch=6), False),
        (task(3), False),
        (task(0), False),
        (task(0, epoch=4, group=OTHER), False),
    ],
)
def test_only_a_task_of_an_older_epoch_is_stale(one, stale):
    assert guard().is_stale(one) is stale


def test_a_very_large_input_number_takes_no_memory():
    with pytest.raises(LockstepError, match="did not come"):
        guard().accept(task(0, inputs=[column(2**62, 1, 1)]))


@given(st.lists(st.sampled_from([1, 1, 2, 3]), max_size=12), st.randoms(use_true_random=False))
def test_any_mix_of_drops_repeats_and_swaps_lets_only_whole_steps_through_in_order(shape, random):
    stream = [task(step, part, parts) for step, parts in enumerate(shape) for part in range(parts)]
    mixed = []
    for one in stream:
        mixed += [one] * random.choice([0, 1, 1, 1, 1, 2])
    for _ in range(random.randint(0, 3)):
        if len(mixed) > 1:
            place = random.randrange(len(mixed) - 1)
            mixed[place], mixed[place + 1] = mixed[place + 1], mixed[place]
    one = guard()
    steps = []
    for item in mixed:
        try:
            step = one.accept(item)
        except LockstepError:
            continue
        if step is not None:
            steps.append(step)

    assert [step.step for step in steps] == list(range(len(steps)))
    for step in steps:
        assert len(step.inputs) == shape[step.step]
        assert {int(to_array(tensor)) for tensors in step.inputs for tensor in tensors} == {step.step}


def test_an_undisturbed_stream_is_let_through_whole():
    one = guard()
    stream = [task(step, part, 1 + step % 3) for step in range(30) for part in range(1 + step % 3)]

    steps = [step for item in stream if (step := one.accept(item)) is not None]

    assert [step.step for step in steps] == list(range(30))


class Machine(RuleBasedStateMachine):
    """A queue that drops, repeats and brings in strays, at will; what must come next always gets through."""

    def __init__(self):
        super().__init__()
        self.guard = guard()
        self.steps: list[int] = []
        self.place = 0

    @initialize(shape=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=10))
    def start(self, shape):
        self.shape = shape
        self.stream = [task(step, part, parts) for step, parts in enumerate(shape) for part in range(parts)]

    @rule()
    def next_task(self):
        """The task that is due is never refused, whatever came before."""
        if self.place == len(self.stream):
            return
        due = self.stream[self.place]
        self.place += 1
        step = self.guard.accept(due)
        assert (step is not None) == (due.part == due.parts - 1)
        if step is not None:
            self.steps.append(step.step)

    @rule(data=st.data())
    def any_other(self, data):
        place = data.draw(st.integers(0, len(self.stream) - 1))
        other = self.stream[place]
        due = self.stream[self.place] if self.place < len(self.stream) else None
        if due is not None and other.step == due.step and other.part >= due.part:
            return  # parts of the step that is due may come in any order
        with pytest.raises(LockstepError):
            self.guard.accept(other)

    @rule(data=st.data(), epoch=st.sampled_from([4, 6]), foreign=st.booleans())
    def foreign(self, data, epoch, foreign):
        one = self.stream[data.draw(st.integers(0, len(self.stream) - 1))]
        changed = {"group": OTHER} if foreign else {"epoch": epoch}
        one = msgspec.structs.replace(one, **changed)
        assert self.guard.is_stale(one) == (not foreign and epoch == 4)
        with pytest.raises(LockstepError):
            self.guard.accept(one)

    @invariant()
    def in_order(self):
        assert self.steps == list(range(len(self.steps)))
        assert self.guard.expected == len(self.steps)


TestGuardAgainstModel = Machine.TestCase
