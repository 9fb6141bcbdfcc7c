"""Given methods with loops on the ranks, when they are asked, then turns run in slices, rows of all together."""

import numpy as np
import pytest
from rankmq.engine.loop import Loop
from rankmq.engine.servable import Constant, InputRef, RepeatStage
from rankmq.schemas.messages import Repeat

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of
from tests.unit.engine.graphs_in_memory import BAD
from tests.unit.engine.servable_files import load, refused
from tests.unit.engine.simulation import ready_world

LOOP = """
@register.register_method(output_names=["all", "y"])
def grow(x, times):
    return register.repeat(x, times=times, at_most=20, feed={0: 0}, collect=0, last=[0], slice_turns=4)
"""

X = np.array([20, 30, 40], np.float32)


def method_of(directory, stage):
    text = MODEL + f"@register.register_method(output_names=['y'])\ndef m(x, n):\n    return {stage}\n"
    return load(directory, text).methods["m"]


# ------------------------------------------------------------------------------------------------------- configurations


def test_a_loop_is_a_stage(tmp_path):
    stage = "register.repeat(x, x, times=n, at_most=9, feed={'x': 0, 1: 'z'}, until=2, collect='t', subgraph=1)"
    (found,) = method_of(tmp_path, stage).stages
    assert isinstance(found, RepeatStage)
    assert found.loop == Loop((("x", 0), (1, "z")), 2, ("t",), ())
    assert (found.subgraph, found.inputs, found.times) == (1, (InputRef(0), InputRef(0)), InputRef(1))
    assert (found.at_most, found.slice_turns, found.outputs_count, found.where.line) == (9, 8, 1, 7)


def test_a_loop_of_a_number_of_turns(tmp_path):
    (found,) = method_of(tmp_path, "register.repeat(x, times=5, feed={0: 0}, last=0)").stages
    assert isinstance(found.times, Constant)
    assert (found.times.value, found.at_most) == (5, 5)


def test_a_loop_that_its_flag_has_to_end(tmp_path):
    (found,) = method_of(tmp_path, "register.repeat(x, feed={0: 0}, last=0, until='done', at_most=50)").stages
    assert isinstance(found.times, Constant)
    assert (found.times.value, found.at_most, found.must_stop) == (50, 50, True)
    (cut,) = method_of(tmp_path, "register.repeat(x, times=50, feed={0: 0}, last=0, until='done')").stages
    assert not cut.must_stop


def test_a_loop_over_a_models_subgraph(tmp_path):
    text = (
        MODEL.rpartition("distributed")[0]
        + "register.declare_model('a.mindir')\nmodel = register.declare_model(['b.mindir', 'c.mindir'])\n"
        "@register.register_method(output_names=['a', 'b', 'c'])\ndef m(x):\n"
        "    a, b = register.repeat(model, x, times=2, feed={0: 0}, collect=[1], last=0, subgraph=1)\n"
        "    c = register.add_stage(model, b, subgraph=0)\n    return a, b, c\n"
    )
    (found, _) = load(tmp_path, text).methods["m"].stages
    assert (found.subgraph, len(found.inputs), found.outputs_count) == (2, 1, 2)


def test_a_loop_that_shows_how_far_it_is(tmp_path):
    stage = "register.repeat(x, times=5, feed={0: 0}, collect=0, stream=max, stream_args=[n, 7])"
    (found,) = method_of(tmp_path, stage).stages
    assert found.stream is max
    assert found.stream_inputs[0] == InputRef(1)
    assert found.stream_inputs[1].value == 7


GOOD = {"times": "n", "at_most": "3", "feed": "{0: 0}", "collect": "0"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"at_most": None}, r"say what it may be at most \(at_most=\)"),
        ({"times": "3"}, "at_most is for times that come with the request, and for loops without times"),
        ({"times": None}, r"it would never end: say how many turns it runs \(times=\), or what ends it \(until=\)"),
        (
            {"times": None, "until": "0", "at_most": None},
            r"turns it may take until its flag is set \(at_most=\)",
        ),
        (
            {"times": None, "until": "0", "at_most": "10**6 + 1"},
            "of a loop without times must be up to 1000000",
        ),
        ({"times": None, "until": "0", "at_most": "0"}, "at_most must be a whole number above 0"),
        ({"times": "0", "at_most": None}, "times must be a whole number above 0"),
        ({"times": "'3'", "at_most": None}, "times must be a whole number above 0"),
        ({"times": "10**6 + 1", "at_most": None}, "up to 1000000, not 1000001: .* let it come with the request"),
        ({"at_most": "0"}, "at_most must be a whole number above 0"),
        ({"slice_turns": "0"}, "slice_turns must be a whole number above 0"),
        ({"slice_seconds": "0"}, "slice_seconds must be a number above 0"),
        ({"slice_seconds": "True"}, "slice_seconds must be a number above 0"),
        ({"slice_seconds": "61"}, "slice_seconds must be a number above 0, and up to 60"),
        ({"subgraph": "-1"}, "subgraph must be a whole number from 0"),
        ({"tag": "3"}, "tag must be a string"),
        ({"feed": "[0]"}, "feed must be a dict of inputs"),
        ({"feed": "{1: 0}"}, "feed names argument 1, and there are 1"),
        ({"feed": "{0: -1}"}, "feed: an input or output is named by its name or its place from 0, not by -1"),
        ({"feed": "{True: 0}"}, "not by True"),
        ({"feed": "{'': 0}"}, "not by ''"),
        ({"until": "1.5"}, "until: .* not by 1.5"),
        ({"collect": None}, "it gives nothing"),
        ({"collect": "{0}"}, "collect must be an output or a list of them"),
        ({"collect": "[0, 0]"}, "collect names an output twice"),
        ({"last": "['a', 'a']"}, "last names an output twice"),
        ({"last": "[None]"}, "last: .* not by None"),
        ({"stream": "3"}, "stream is a function, not 3"),
        ({"stream_args": "[x]"}, "stream_args is a list of what the function stream is given"),
        ({"stream": "lambda a: {}", "stream_args": "x"}, "stream_args is a list"),
        ({"stream": "lambda a: {}", "stream_args": "[x]"}, r"is given 2 argument\(s\)"),
        ({"stream": "lambda: {}"}, r"is given 1 argument\(s\)"),
    ],
)
def test_what_is_no_loop_is_refused_with_its_line(tmp_path, change, match):
    words = ", ".join(f"{word}={value}" for word, value in {**GOOD, **change}.items() if value is not None)
    text = (
        f"@register.register_method(output_names=['y'])\ndef m(x, n):\n    return register.repeat(x, {words})  # HERE\n"
    )
    refused(tmp_path, MODEL + text, match)


@pytest.mark.parametrize(
    ("stage", "model", "match"),
    [
        ("register.repeat(3, times=2, feed={0: 0}, last=0)", "", "subgraph 0 is given 3"),
        ("register.repeat(x, times=2, feed={0: 0}, last=1)", "", "names output 1 of subgraph 0, which has 1"),
        ("register.repeat(x, times=2, feed={0: 0}, until=1, last=0)", "", "names output 1 of subgraph 0"),
        ("register.repeat(x, x, times=2, feed={0: 0}, last=0)", "", r"with 2 input\(s\), and line 6 calls it with 1"),
        ("register.repeat(x, times=2, feed={0: 0}, last=0)", "stage_size=3", "that cannot be with stage_size=3"),
        (
            "register.repeat(x, feed={}, until=0, at_most=9, last=0)",
            "",
            "nothing is fed, so all its turns are the same",
        ),
    ],
)
def test_what_does_not_go_with_the_rest_of_the_file(tmp_path, stage, model, match):
    text = MODEL.replace("stage_size=1", model or "stage_size=1") + (
        "@register.register_method(output_names=['y'])\ndef one(x): return register.call_servable(x)\n"
        f"@register.register_method(output_names=['y'])\ndef m(x):\n    return {stage}  # HERE\n"
    )
    refused(tmp_path, text, match)


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        ("register.repeat(x, feed={}, until=0, at_most=9, last=0)", "stage_size=1, slots=2"),
        ("register.repeat(x, times=2, feed={}, collect=0)", "stage_size=1"),
    ],
)
def test_nothing_need_be_fed_where_the_ranks_keep_state_or_turns_are_counted(tmp_path, stage, model):
    text = MODEL.replace("stage_size=1", model)
    text += f"@register.register_method(output_names=['y'])\ndef m(x):\n    return {stage}\n"
    (found,) = load(tmp_path, text).methods["m"].stages
    assert found.loop.feed == ()


def test_it_cannot_stand_outside_a_method(tmp_path):
    refused(tmp_path, MODEL + "register.repeat(1, times=1, feed={0: 0}, last=0)  # HERE\n", "belongs into a function")


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(text=LOOP, world=None):
        servable = load(tmp_path, MODEL + text)
        world = world or ready_world(methods=servable.methods)
        edges.append(Edge(tmp_path, {"matmul": MODEL + text}, world))
        return edges[-1]

    yield make
    for edge in edges:
        edge.close()


def grown(x, times):
    """What `grow` gives."""
    turns = [x]
    for _ in range(times):
        turns.append(turns[-1] * 2 + 1)
    return {"all": [it.tolist() for it in turns[1:]], "y": turns[-1].tolist()}


def ask(edge, *instances):
    return edge.ask("grow", *({"x": x, "times": np.int32(times)} for x, times in instances))


def steps(world):
    """The turns of each step's rows, as its task says them."""
    return [task.work.turns for _, _, task in world.tasks if isinstance(task.work, Repeat)]


def test_rows_run_as_often_as_they_ask_for(make):
    edge = make()
    rows = [(X, 1), (X * 2, 20), (X * 3, 4), (X * 4, 0), (X * 5, 9)]
    fate = ask(edge, *rows)
    edge.run()
    assert outputs_of(fate) == [grown(*row) for row in rows]
    turns = steps(edge.world)
    assert turns[0] == (1, 1, 1, 1), "how long a turn takes is not known yet"
    assert turns[1:] == [(4, 3, 4), (4, 4), (4,), (4,), (3,)]


def test_slices_of_a_loop_do_not_wait_for_company(make, tmp_path):
    world = ready_world(methods=load(tmp_path, MODEL + LOOP).methods, max_wait=0.25)
    edge, began = make(world=world), world.clock.now
    fate = ask(edge, (X, 20))
    edge.run()
    assert outputs_of(fate) == [grown(X, 20)]
    assert len(steps(world)) > 3
    assert world.clock.now == began


def test_times_that_cannot_be_fail_only_their_rows(make):
    edge = make()
    fate = edge.ask(
        "grow",
        *({"x": X, "times": np.array(times)} for times in (2, 21, -1, 1.5, [1], True)),
        {"x": X * 0 + BAD, "times": np.int32(2)},
    )
    edge.run()
    assert errors_of(fate) == {**dict.fromkeys([1, 2, 3, 4, 5], "invalid_input"), 6: "graph_failed"}
    assert outputs_of(fate)[0] == grown(X, 2)


def test_newcomers_join_between_slices_and_are_one_batch_with_the_others(make):
    edge = make()
    first = ask(edge, (X, 20))
    others = [ask(edge, (X * n, 20)) for n in range(2, 6)]
    edge.run()
    assert [outputs_of(it) for it in [first, *others]] == [[grown(X * n, 20)] for n in range(1, 6)]
    counts = [len(turns) for turns in steps(edge.world)]
    assert counts[0] == 1
    assert max(counts) == 5
    assert len(counts) <= 9, "never two small batches, one behind the other"


def test_a_rank_that_dies_in_a_slice_loses_that_slice_only(make):
    edge = make()
    fate = ask(edge, (X, 20))
    world = edge.world
    while len(steps(world)) < 4:
        world.choices()[0]()
    world.dies(world.agents[1])
    edge.run()
    assert outputs_of(fate) == [grown(X, 20)]
    assert steps(world) == [(1,), (4,), (4,), (4,), (4,), (4,), (3,)], "one slice again, where it stood"


def test_a_request_that_is_given_up_ends_with_its_slice(make):
    edge = make()
    fate = edge.ask("grow", {"x": X, "times": np.int32(20)}, message_id="a")
    other = ask(edge, (X, 6))
    while len(steps(edge.world)) < 2:
        edge.world.choices()[0]()
    assert edge.service.cancel("a") == "cancelled"
    edge.run()
    assert error_of(fate)[0] == "cancelled"
    assert outputs_of(other) == [grown(X, 6)]
    assert len(steps(edge.world)) == 3, "one of the first alone, one of both, and the rest of the other"


def test_with_slots_a_rank_that_dies_has_the_requests_start_again_from_their_inputs(tmp_path):
    text = MODEL.replace("with_batch_dim=True", "with_batch_dim=True, slots=2") + LOOP
    world = ready_world(methods=load(tmp_path, text).methods, slots=2)
    edge = Edge(tmp_path, {"matmul": text}, world)
    rows = [(X, 18), (X * 2, 13), (X * 3, 11), (X * 4, 7)]
    fates = [ask(edge, row) for row in rows]
    while len(steps(world)) < 3:
        world.choices()[0]()
    assert (world.driver.slots.held, world.driver.slots.waiting) == (2, 2)
    world.dies(world.agents[2])
    edge.run()
    assert [outputs_of(fate) for fate in fates] == [[grown(*row)] for row in rows]
    assert all(len(turns) <= 2 for turns in steps(world))
    assert world.driver.slots.held == 0
    edge.close()


def test_a_slice_has_fewer_turns_where_they_are_slow(make):
    edge = make()
    edge.world.seconds_per_row = 4.0  # of 60 s that a step may take, it is planned for 12
    fate = ask(edge, (X, 10))
    edge.run()
    assert outputs_of(fate) == [grown(X, 10)]
    assert steps(edge.world) == [(1,), (3,), (3,), (3,)]
