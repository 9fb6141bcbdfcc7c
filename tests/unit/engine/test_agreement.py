"""Given methods and the ranks' graphs, when the group forms, then each call has as many inputs as its graph takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.agreement import plan_all, stateful
from rankmq.schemas.errors import ModelError
from rankmq.schemas.messages import GraphInfo, GroupId, TensorSpec

from tests.unit.engine.servable_files import WORDS, load
from tests.unit.engine.simulation import World

GROUP = GroupId(servable="matmul", version=1)
CALLS = {
    "calls": "register.call_servable(ARGS, subgraph=1)",
    "repeats": "register.repeat(ARGS, subgraph=1, times=2, feed={0: 0}, last=0)",
}


def graph(*names):
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=(-1, 4)) for name in names)
    output = TensorSpec(name="out", dtype="float32", shape=(-1, 4))
    return GraphInfo(file="g", digest="g", inputs=inputs, outputs=(output,))


def planned(tmp_path, does, inputs, given_, slots=0):
    text = WORDS + (
        f"distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=True, slots={slots})\n"
        "@register.register_method(output_names=['y'])\n"
        f"def m(x):\n    return {CALLS[does].replace('ARGS', ', '.join(['x'] * given_))}\n"
    )
    held = (graph("x"), graph(*inputs))
    return plan_all(load(tmp_path, text), GROUP, {0: held, 1: held})


@pytest.mark.parametrize("does", CALLS)
@pytest.mark.parametrize(
    ("inputs", "given_", "slots", "takes", "hint"),
    [
        ("ab", 1, 0, "2 (a, b)", ""),
        ("ab", 3, 0, "2 (a, b)", ""),
        ("ab", 1, 2, "2 (a, b)", ""),
        (("a", ""), 1, 0, "2 (a, 1)", ""),
        (("a", "slot"), 1, 0, "2 (a, slot)", "; its input slot is filled in where the model is declared with slots="),
        (("a", "slot"), 2, 2, "1 (a)", "; its input slot is filled in, and is not to be given"),
        (("slot", "a", "b"), 1, 2, "2 (a, b)", ""),
        (("slot", "a", "b"), 1, 0, "3 (slot, a, b)", ""),
    ],
)
def test_a_wrong_number_of_inputs_is_refused_with_its_line(tmp_path, does, inputs, given_, slots, takes, hint):
    with pytest.raises(ModelError) as refused:
        planned(tmp_path, does, inputs, given_, slots)
    text = refused.value.message
    assert text.endswith(
        f"servable_config.py:7: method m {does} subgraph 1 with {given_} input(s), and it takes {takes}{hint}"
    )


@pytest.mark.parametrize("does", CALLS)
@pytest.mark.parametrize(
    ("inputs", "given_", "slots"), [("ab", 2, 0), ("ab", 2, 2), (("a", "slot"), 1, 2), (("a", "slot"), 2, 0)]
)
def test_as_many_as_it_takes_are_right(tmp_path, does, inputs, given_, slots):
    assert set(planned(tmp_path, does, inputs, given_, slots)) == {0, 1}


def test_the_group_does_not_form(tmp_path):
    text = WORDS + (
        "distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True)\n"
        "@register.register_method(output_names=['y'])\ndef m(x):\n    return register.call_servable(x, subgraph=3)\n"
    )
    world = World(kept=True, methods=load(tmp_path, text).methods)
    for rank in range(3):
        world.starts(rank)
    while not world.gave_up:
        world.choices()[0]()
    (error,) = world.gave_up
    assert "m calls subgraph 3 with 1 input(s), and it takes 2" in error.message


@given(st.lists(st.booleans(), min_size=1, max_size=4))
def test_the_graphs_that_keep_state_are_those_with_a_slot_or_all(slots):
    class Plan:
        def __init__(self, slot):
            self.slot_input = 1 if slot else None

    plans = {number: (Plan(slot),) for number, slot in enumerate(slots)}
    assert stateful(plans) == ({it for it, slot in enumerate(slots) if slot} or set(plans))
