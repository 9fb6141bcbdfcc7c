"""Given loops without `times`, then each row's flag ends it, and a row that never sets it fails alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.loop import Loop
from rankmq.engine.loop_plan import Turned
from rankmq.engine.repeats import RepeatRun, turns_of
from rankmq.engine.run_ports import RunContext
from rankmq.engine.servable import Constant, RepeatStage, Where
from rankmq.schemas.errors import InvalidInput, TurnsExhausted
from rankmq.schemas.plain import from_plain
from rankmq.schemas.tensors import float32_to_bfloat16

LOOP = Loop(((0, 0),), "reached", (0,), ())


class Counting:
    """Ranks that count down from a row's number, and set its flag at 0."""

    def __init__(self):
        self.slices = []

    def repeat_subgraph(self, context, stage, rows, turns, done):
        self.slices.append(list(turns))
        results = []
        for (at,), most in zip(rows, turns, strict=True):
            ran = int(min(most, max(at, 1)))
            values = at - np.arange(1, ran + 1)
            results.append(Turned((values[-1],), (values,), (), ran, stopped=bool(values[-1] == 0)).packed())
        done(results)


def results_of(begin, at_most, slice_turns, *, must_stop):
    """What a loop gives for rows that begin with these numbers."""
    where = Where("servable_config.py", 1)
    stage = RepeatStage(3, (), Constant(at_most), at_most, LOOP, slice_turns, 1, where, must_stop=must_stop)
    found = []
    ports, rows = Counting(), [(np.int64(it),) for it in begin]
    context = RunContext(None, "r", lenient=False)
    RepeatRun(ports, context, stage, rows, [at_most] * len(rows), found.extend).start()
    assert max(sum(turns[0] for turns in ports.slices), 0) <= at_most, "bounded, whatever the flags say"
    return found


@given(
    begin=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    at_most=st.integers(1, 30),
    slice_turns=st.integers(1, 9),
)
def test_who_ends_in_time_has_its_result_and_who_does_not_its_error(begin, at_most, slice_turns):
    for number, result in zip(begin, results_of(begin, at_most, slice_turns, must_stop=True), strict=True):
        if number <= at_most:
            assert result[0].tolist() == list(range(number - 1, -1, -1))
        else:
            assert isinstance(result, TurnsExhausted)
            assert result.code == "turns_exhausted"
            assert result.message == (
                "the loop over subgraph 3 did not end: its output 'reached' was not set in "
                f"{at_most} turns, and that is how many it may take (at_most)"
            )


@given(begin=st.integers(1, 30), at_most=st.integers(1, 30), slice_turns=st.integers(1, 9))
def test_with_times_who_does_not_end_has_what_there_is_by_then(begin, at_most, slice_turns):
    ((found,),) = results_of([begin], at_most, slice_turns, must_stop=False)
    assert found.tolist() == [begin - turn for turn in range(1, min(begin, at_most) + 1)]


# ------------------------------------------------------------------------------------- how many turns a row asks for


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        (from_plain("many"), "'many' (string)"),
        (from_plain("x" * 90_000), f"'{'x' * 39} (string)"),
        (from_plain(2.5), "2.5 (float32)"),
        (np.float64(3.0), "3.0 (float64)"),
        (from_plain(True), "True (bool)"),
        (from_plain([3]), "int32 (1,)"),
        (from_plain([["a"], ["b"]]), "string (2, 1)"),
        (np.array(b"abc", object), "bytes ()"),
        (float32_to_bfloat16(np.array(2.0, np.float32)), "bfloat16 ()"),
        (41, "41"),
        (-1, "-1"),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
    ],
)
def test_times_that_are_none_are_shown_as_they_came(times, shown):
    with pytest.raises(InvalidInput) as caught:
        turns_of(times, 40)
    assert caught.value.message == f"times of a loop must be one whole number from 0 to 40, not {shown}"


@pytest.mark.parametrize("times", [0, 40, np.int64(7), np.uint8(7), from_plain(3)])
def test_times_that_are_one_whole_number_are_taken(times):
    assert turns_of(times, 40) == int(times)
