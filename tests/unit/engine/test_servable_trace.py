"""Methods are traced: what a method may do, and how the rest is refused."""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.engine.servable import Constant, InputRef, StageRef

from tests.unit.engine.servable_files import MODEL, load, refused, run_method

FUNCTIONS = """\
def one(x): return x
def two(x): return x, x
"""


def method_of(directory, body, inputs="x", names="['y']"):
    text = f"{MODEL}{FUNCTIONS}@register.register_method(output_names={names})\ndef m({inputs}):\n"
    text += "".join(f"    {line}\n" for line in body.splitlines())
    return load(directory, text).methods["m"]


def refused_method(directory, body, match, *, inputs="x", names="['y']", more="", at="HERE"):
    text = f"{MODEL}{FUNCTIONS}{more}@register.register_method(output_names={names})  # DECORATOR\ndef m({inputs}):\n"
    return refused(directory, text + "".join(f"    {line}\n" for line in body.splitlines()), match, at)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("a, b = register.call_preprocess(two, x)\nreturn a", 2),
        ("a, (b) = register.call_preprocess(two, x)\nreturn b", 2),
        ("r = register.call_preprocess(two, x)\na, b = r\nreturn a", 2),
        ("(a,) = register.call_preprocess(one, x)\nreturn a", 1),
        ("a = register.call_preprocess(one, x)\nreturn a", 1),
        ("register.call_preprocess(one, x)\nreturn x", 1),
        ("[a, b, c] = register.call_servable(x)\nreturn c", 3),
        ("a, b = r = register.call_servable(x)\nreturn a", 2),
    ],
)
def test_a_result_has_as_many_outputs_as_it_is_unpacked_into(tmp_path, body, count):
    assert method_of(tmp_path, body).stages[0].outputs_count == count


def test_unpacking_into_hundreds_of_names(tmp_path):
    names = ", ".join(f"a{i}" for i in range(300))
    method = method_of(tmp_path, f"{names} = register.call_servable(x)\nreturn a299")
    assert method.stages[0].outputs_count == 300
    assert method.outputs == (StageRef(0, 299),)


def test_a_result_returned_whole_has_as_many_outputs_as_the_method(tmp_path):
    method = method_of(tmp_path, "return register.call_servable(x)", names="['a', 'b']")
    assert method.stages[0].outputs_count == 2
    assert method.outputs == (StageRef(0, 0), StageRef(0, 1))


def test_inputs_and_constants_may_be_returned_and_passed(tmp_path):
    body = (
        "limit = np.arange(3)\ny = register.add_stage(lambda x, n: x + n, x, limit)\nlimit[0] = 9\nreturn y, x, 7, 's'"
    )
    method = method_of(tmp_path, body, names="['y', 'x', 'n', 's']")
    assert method.outputs[1] == InputRef(0)
    constant = method.stages[0].inputs[1]
    assert isinstance(constant, Constant)
    assert not constant.value.flags.writeable
    y, x, n, s = run_method(method, (np.ones(3),), {})
    np.testing.assert_array_equal(y, [1, 2, 3])
    assert (x.tolist(), n, s) == ([1, 1, 1], 7, "s")


def test_symbols_can_be_printed_and_kept_in_a_dict(tmp_path, capsys):
    method = method_of(tmp_path, "kept = {x: 1}\nprint(f'{x}', list(kept)[0])\nreturn x")
    assert method.outputs == (InputRef(0),)
    assert capsys.readouterr().out.split() == ["<input", "x>", "<input", "x>"]


@pytest.mark.parametrize(
    "use",
    [
        "x + 1",
        "1 + x",
        "x @ x",
        "x[0]",
        "-x",
        "x == 1",
        "x < 1",
        "np.add(x, x)",
        "np.asarray(x)",
        "np.concatenate([x, x])",
        "x.astype('f4')",
        "x.shape",
        "len(x)",
        "float(x)",
        "int(x)",
        "bool(x)",
        "not x",
        "3 in x",
        "list(x)",
        "[*x]",
        "[v for v in x]",
        "one(*register.call_servable(x))",
        "list(register.call_servable(x))",
        "tuple(v for v in register.call_servable(x))",
        "np.zeros(x)",
        "x()",
        "range(x)",
    ],
)
def test_any_other_use_of_a_value_is_refused(tmp_path, use):
    refused_method(tmp_path, f"y = {use}  # HERE\nreturn y", r"method m: .*(function of its own|unpacked)")


@pytest.mark.parametrize(
    "statement", ["if x: pass", "while x: pass", "for v in x: pass", "assert x", "x += 1", "x[0] = 1", "a, b = x"]
)
def test_statements_on_values_are_refused(tmp_path, statement):
    refused_method(tmp_path, f"{statement}  # HERE\nreturn x", "method m: input x")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("a, *b = register.call_servable(x)  # HERE\nreturn a", "unpacked into names"),
        ("r = register.call_servable(x)\na, b = r\na, b, c = r  # HERE\nreturn a", "used as 2 value.* into 3"),
        (
            "r = register.call_servable(x)\none(r)\ny = register.add_stage(one, r)\na, b = r  # HERE\nreturn a",
            "as 1 value",
        ),
        (
            "r = register.call_servable(x)\na, b = r\nreturn register.add_stage(one, r)  # HERE",
            "unpacked into 2 values",
        ),
        ("a, b = register.add_stage(two, x)  # HERE\nreturn a", "outputs_count=2"),
        ("y = register.add_stage(one, [x, x])  # HERE\nreturn y", "inside a list or dict"),
        ("y = register.add_stage(one, {'x': (x,)})  # HERE\nreturn y", "inside a list or dict"),
        ("y = register.add_stage(model, 3)  # HERE\nreturn y", "a number with a dtype"),
        ("y = register.add_stage(one, x, x)  # HERE\nreturn y", r"one\(x\) is given 2 argument"),
        ("y = register.call_preprocess(one)  # HERE\nreturn y", r"one\(x\) is given 0 argument"),
        ("y = register.add_stage(two_instances, x, batch_size=2)  # HERE\nreturn y", "the list of instances"),
        ("y = register.add_stage(yields, x)  # HERE\nreturn y", "yields, which only .* batch_size"),
        ("y = register.add_stage(waits, x)  # HERE\nreturn y", "async"),
        ("y = register.add_stage(model, x, subgraph=2)  # HERE\nreturn y", "has no subgraph 2; it has 0 to 1"),
        ("y = register.add_stage(model, x, subgraph=-1)  # HERE\nreturn y", "has no subgraph -1"),
        ("y = register.add_stage(model, x, batch_size=1)  # HERE\nreturn y", "batch_size is for functions"),
        ("y = register.add_stage(one, x, subgraph=1)  # HERE\nreturn y", "subgraph is for models"),
        ("y = register.add_stage(one, x, batch_size=-1)  # HERE\nreturn y", "batch_size must be"),
        ("y = register.add_stage(one, x, outputs_count=0)  # HERE\nreturn y", "outputs_count must be"),
        ("y = register.add_stage('builtin', x)  # HERE\nreturn y", "a function or a declared model, not 'builtin'"),
        ("y = register.call_preprocess(model, x)  # HERE\nreturn y", "first argument is a function"),
        ("y = register.call_servable(x, subgraph=-1)  # HERE\nreturn y", "subgraph must be"),
        ("y = register.add_stage(register.Model('m', 1, 1), x)  # HERE\nreturn y", "not declared in this file"),
        ("y = model.call(x)  # HERE\nreturn y", "register.add_stage is the word"),
        ("y = undefined  # HERE\nreturn y", "method m: NameError: name 'undefined' is not defined"),
        ("y = register.add_stag(one, x)  # HERE\nreturn y", "method m: AttributeError"),
        ("y = 1 / 0  # HERE\nreturn y", "method m: ZeroDivisionError"),
    ],
)
def test_what_a_method_cannot_say(tmp_path, body, match):
    more = "def two_instances(x, y): pass\ndef yields(x): yield x\nasync def waits(x): pass\n"
    refused_method(tmp_path, body, match, more=more)


@pytest.mark.parametrize(
    ("body", "names", "match"),
    [
        ("return x, x  # HERE", "['y']", "returns 2 value.s., and output_names has 1"),
        ("return x  # HERE", "['y', 'z']", "returns 1 value.s., and output_names has 2"),
        ("return  # HERE", "['y']", "returns nothing"),
        ("y = register.add_stage(one, x)  # HERE", "['y']", "returns nothing"),
        ("return one  # HERE", "['y']", "returns function"),
        ("return {'y': x}  # HERE", "['y']", "returns dict"),
        ("a, b = r = register.call_servable(x)\nreturn r  # HERE", "['a', 'b', 'c']", "returns 2 value"),
    ],
)
def test_what_a_method_returns_must_fit_its_output_names(tmp_path, body, names, match):
    refused_method(tmp_path, body, match, names=names)


def test_with_several_returns_the_method_is_named(tmp_path):
    refused_method(tmp_path, "if 1 > 2:\n    return x\nreturn x, x", "returns 2 value", at="DECORATOR")


@pytest.mark.parametrize(
    ("inputs", "match"),
    [("x=1", "input x has a default"), ("*x", "plain parameters"), ("x, *, z", "plain"), ("x, **z", "plain")],
)
@pytest.mark.parametrize("word", ["method", "pipeline"])
def test_inputs_are_plain_parameters(tmp_path, word, inputs, match):
    text = f"{MODEL}@register.register_{word}(output_names=['y'])  # HERE\ndef m({inputs}):\n    return x\n"
    refused(tmp_path, text, match)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("[]", "list of names"),
        ("''", "list of names"),
        ("[1]", "list of names"),
        ("['y', 'y']", "twice"),
        ("3", "list"),
    ],
)
@pytest.mark.parametrize("word", ["method", "pipeline"])
def test_output_names_are_different_names(tmp_path, word, names, match):
    refused(tmp_path, f"{MODEL}@register.register_{word}({names})  # HERE\ndef m(x):\n    return x, x\n", match)


@pytest.mark.parametrize("head", ["async def m(x): return x", "def m(x): yield x", "class m: pass"])
@pytest.mark.parametrize("word", ["method", "pipeline"])
def test_methods_and_pipelines_are_plain_functions(tmp_path, word, head):
    refused(tmp_path, f"{MODEL}@register.register_{word}('y')  # HERE\n{head}\n", "must be a plain|is a function")


def test_a_value_of_another_method_is_refused(tmp_path):
    text = """\
kept = []
@register.register_method("y")
def first(x):
    kept.append(x)
    return x
@register.register_method("y")
def second(x):
    y = register.add_stage(lambda v: v, kept[0])  # HERE
    return y
"""
    refused(tmp_path, MODEL + text, "belongs to another method")


def test_a_method_inside_a_method_is_refused(tmp_path):
    text = """\
@register.register_method("y")
def outer(x):
    @register.register_method("y")  # HERE
    def inner(x):
        return x
    return x
"""
    refused(tmp_path, MODEL + text, "inside another method")


def test_stage_words_outside_a_method_are_refused(tmp_path):
    refused(tmp_path, MODEL + "register.call_servable(1)  # HERE\n", "call_servable belongs into")
    refused(tmp_path, MODEL + "register.add_stage(print, 1)  # HERE\n", "add_stage belongs into")


def test_the_line_is_that_of_the_unpacking_also_under_a_tracer(tmp_path):
    """Coverage tools change the code that runs; the unpacking is found all the same."""
    previous = sys.gettrace()
    sys.settrace(lambda *_: lambda *_: None)
    try:
        method = method_of(tmp_path, "a, b, c = register.call_servable(x)\nreturn b")
    finally:
        sys.settrace(previous)
    assert method.stages[0].outputs_count == 3


# A generated chain of stages, run once as traced data and once directly, by words that call the functions at once.

GRAPHS = {0: lambda x: x * 3, 1: lambda x: (x - 1, x + 5)}
HELPERS = """\
def add(x, y): return x + y
def split(x): return [x // 2, x - x // 2]
def many(instances): return [(x * 7,) for x, in instances]
"""


@st.composite
def programs(draw):
    names, lines = ["x0", "x1"], []
    for step in range(draw(st.integers(0, 8))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from([*names, "np.int64(11)"]))
        new, other = f"v{step}", draw(st.sampled_from([f"w{step}", *names]))
        line, made = draw(
            st.sampled_from(
                [
                    (f"{new} = register.call_preprocess(add, {a}, {b})", [new]),
                    (f"{new} = register.add_stage(add, {a}, {b}, outputs_count=1)", [new]),
                    (f"{new}, {other} = register.call_postprocess(split, {a})", [new, other]),
                    (f"{new}, {other} = register.add_stage(split, {a}, outputs_count=2)", [new, other]),
                    (f"{new} = register.call_servable({a}, subgraph=0)", [new]),
                    (f"{new}, {other} = register.call_servable({a}, subgraph=1)", [new, other]),
                    (f"{new} = register.add_stage(model, {a}, subgraph=0)", [new]),
                    (f"{new} = register.add_stage(many, {a}, batch_size=0)", [new]),
                    (f"for _ in range(3): {a} = register.call_preprocess(add, {a}, {b})", []),
                ]
            )
        )
        lines.append(line)
        names = list(dict.fromkeys([*names, *made]))
    returned = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    outputs = [f"o{i}" for i in range(len(returned))]
    body = "".join(f"    {line}\n" for line in [*lines, f"return {', '.join(returned)}"])
    return f"@register.register_method({outputs})\ndef m(x0, x1):\n{body}"


def eagerly(text, args):
    def add_stage(stage, *args, subgraph=0, outputs_count=1, batch_size=None):
        function = stage or GRAPHS[subgraph]
        result = function(*args) if batch_size is None else function([args])[0]
        return result[0] if isinstance(result, tuple) and len(result) == 1 else result

    register = SimpleNamespace(
        register_method=lambda _: lambda function: function,
        add_stage=add_stage,
        call_preprocess=add_stage,
        call_postprocess=add_stage,
        call_servable=lambda *args, subgraph: add_stage(None, *args, subgraph=subgraph),
    )
    names = {"register": register, "np": np, "model": None}
    exec(text, names)
    returned = names["m"](*args)
    return returned if isinstance(returned, tuple) else (returned,)


@settings(max_examples=80, deadline=None)
@given(programs(), st.integers(-50, 50), st.integers(-50, 50))
def test_a_traced_chain_gives_what_the_function_gives_when_run_directly(program, x0, x1):
    args = (np.int64(x0), np.int64(x1))
    with tempfile.TemporaryDirectory() as directory:
        method = load(Path(directory), MODEL + HELPERS + program).methods["m"]
    assert run_method(method, args, GRAPHS) == eagerly(HELPERS + program, args)
    for number, stage in enumerate(method.stages):  # a chain: nothing is used before it is there
        assert all(ref.stage < number for ref in stage.inputs if isinstance(ref, StageRef))
