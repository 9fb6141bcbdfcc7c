"""Given loops that collect outputs of every turn, then no row collects more than a reply may carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.edge_blobs import EdgeBlobs
from rankmq.engine.loop import Loop
from rankmq.engine.loop_plan import Turned
from rankmq.engine.repeats import LoopRow
from rankmq.schemas.errors import LimitExceeded

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of
from tests.unit.engine.servable_files import load
from tests.unit.engine.simulation import ready_world

LOOP = """
@register.register_method(output_names=["all"])
def grow(x, times):
    return register.repeat(x, times=times, at_most=10**9, feed={0: 0}, collect=[0], slice_turns=4)
"""
X = np.array([-1, -1, -1], np.float32)
MOST = 6000


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(max_reply=1 << 20, max_message=MOST, **given):
        world = ready_world(methods=load(tmp_path, MODEL + LOOP).methods, max_reply=max_reply)
        edges.append(Edge(tmp_path, {"matmul": MODEL + LOOP}, world, max_message=max_message, **given))
        return edges[-1]

    yield make
    for edge in edges:
        edge.close()


def ask(edge, *times):
    fate = edge.ask("grow", *({"x": X, "times": np.int64(it)} for it in times))
    edge.run()
    return fate


def test_where_only_the_turns_end_a_loop_it_is_known_after_its_first_slice(make):
    edge = make()
    fate = ask(edge, 10**9, 60, 501)
    assert errors_of(fate) == {0: "limit_exceeded", 2: "limit_exceeded"}
    assert outputs_of(fate)[1] == {"all": [[-1, -1, -1]] * 60}
    sizes = [len(task.work.turns) for _, _, task in edge.world.tasks]
    assert sizes == [3, *[1] * 15], "one slice of them all, and the others of one row"


def test_it_is_said_what_is_too_large_and_what_helps(make):
    code, message = error_of(ask(make(), 10**9))
    assert code == "limit_exceeded"
    assert message.startswith("a loop collects 12000000000 bytes of a row in 1000000000 turns, most")
    assert "of output 0, and a reply may carry 6000: collect less, run fewer turns, or give the engine" in message


def test_with_a_blob_store_it_is_what_goes_through_that(make):
    blobs = EdgeBlobs(None, None, None, inline_limit=1 << 20, most_bytes=9000, max_message=MOST)
    edge = make(blobs=blobs)
    assert "a reply may carry 9000" in error_of(ask(edge, 751))[1]
    assert "the reply has 9" in error_of(ask(edge, 750))[1]


@given(
    slices=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    most=st.integers(0, 200),
    more=st.integers(0, 5),
    ends=st.booleans(),
)
def test_a_row_has_collected_too_much_with_the_slice_that_passes_the_bound(slices, sizes, most, more, ends):
    """Or, where only the turns end its loop, with the first one."""
    loop = Loop(feed=((0, 0),), until="done" if ends else None, collect=("a", "b"), last=())
    row, collected = LoopRow((), sum(slices) + more), 0
    for number, turns in enumerate(slices):
        parts = tuple(np.zeros((turns, size), np.uint8) for size in sizes)
        row.took(Turned((), parts, (), turns, stopped=False))
        collected += turns * sum(sizes)
        total = collected if ends else (sum(slices) + more) * sum(sizes)
        if total <= most:
            row.check_size(loop, most)
        else:
            name = "a" if sizes[0] >= sizes[1] else "b"
            with pytest.raises(LimitExceeded, match=f"collects {total} bytes .* of output '{name}', .* carry {most}:"):
                row.check_size(loop, most)
            assert ends or number == 0
            return
    row.check_size(loop, None)


# ------------------------------------------------------------------------------------------------- what a slice gives


def room_for(rows, turns):
    """Bytes that the answer of a rank to a slice takes at most, with what the broker needs beside it."""
    return 4096 + 300 + rows * (turns + 1) * X.nbytes


def test_a_slice_that_gives_more_than_a_message_takes_is_made_smaller(make):
    edge = make(max_reply=room_for(32, 2), max_message=1 << 20)
    fate = ask(edge, *[12] * 32)
    assert outputs_of(fate) == [{"all": [[-1, -1, -1]] * 12}] * 32
    turns = [max(task.work.turns) for _, _, task in edge.world.tasks]
    assert turns == [1, 4, 2, 2, 2, 2, 2, 1]


def test_rows_of_which_one_turn_is_too_large_are_parted(make):
    edge = make(max_reply=room_for(8, 1), max_message=1 << 20)
    fate = ask(edge, *[3] * 32)
    assert outputs_of(fate) == [{"all": [[-1, -1, -1]] * 3}] * 32


def test_one_turn_of_one_row_that_is_too_large_fails_with_what_helps(make):
    edge = make(max_reply=4300)
    code, message = error_of(ask(edge, 12))
    assert code == "limit_exceeded"
    assert "the broker takes 4300; what helps is a blob store (blob_store), or" in message
    assert "(plane_bytes)" in message
