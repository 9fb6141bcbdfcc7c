"""Given a servable's functions, good or bad, when they run, then each instance gets its outputs or a typed error."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of
from tests.unit.engine.graphs_in_memory import BAD

ROW = np.array([1, 2, 3], np.float32)


@pytest.fixture(params=["inline", "threads"])
def make(request, tmp_path):
    edges = []

    def make(text="", *, model=MODEL, **given):
        edge = Edge(tmp_path, {"matmul": model + text}, **{"pool": request.param, **given})
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        edge.close()


def one_stage(body, *, outputs=1, names=("y",)):
    """A method `m` of one function stage `f` with this body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"""
def f(x):
{lines}

@register.register_method(output_names={list(names)!r})
def m(x):
    return register.add_stage(f, x, outputs_count={outputs})
"""


CHAIN = """
def double(x):
    return x + x

def both(x, y):
    return x - y, np.stack([x, y])

@register.register_method(output_names=["d", "s", "x", "c"])
def chain(x):
    a = register.call_preprocess(double, x)
    b = register.call_servable(a, subgraph=0)
    d, s = register.call_postprocess(both, b, a)
    return d, s, x, 7
"""


def test_a_chain_of_stages(make):
    edge = make(CHAIN)
    fate = edge.ask("chain", {"x": ROW}, {"x": ROW * 2})
    edge.run()
    assert outputs_of(fate) == [
        {"d": [3, 5, 7], "s": [[5, 9, 13], [2, 4, 6]], "x": [1, 2, 3], "c": 7},
        {"d": [5, 9, 13], "s": [[9, 17, 25], [4, 8, 12]], "x": [2, 4, 6], "c": 7},
    ]
    assert fate.acked == 1


def test_a_method_that_only_passes_on(make):
    edge = make("@register.register_method(output_names=['b', 'a'])\ndef swap(a, b):\n    return b, a\n")
    fate = edge.ask("swap", {"a": np.array("text"), "b": np.array([True])})
    edge.run()
    assert outputs_of(fate) == [{"b": [True], "a": "text"}]


def test_a_row_that_fails_in_one_stage_is_not_in_the_next(make):
    edge = make(
        """
def positive(x):
    if x[0] < 0:
        raise ValueError("negative:  \\n no")
    return x

def tell(xs):
    return [np.float32(len(xs)) for _ in xs]

@register.register_method(output_names=["y", "n"])
def m(x):
    x = register.add_stage(positive, x)
    n = register.add_stage(tell, x, batch_size=0)
    y = register.call_servable(x, subgraph=0)
    return y, n
"""
    )
    rows = [np.full(3, value, np.float32) for value in (1, -1, BAD, 2, -5)]
    fate = edge.ask("m", *({"x": row} for row in rows))
    edge.run()
    assert errors_of(fate) == {1: "stage_failed", 2: "graph_failed", 4: "stage_failed"}
    assert outputs_of(fate)[0] == {"y": [3, 3, 3], "n": 3}
    message = fate.replies[0][0].reply.errors[0].error.message
    assert message == "stage positive raised ValueError: negative: no"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return None", "NoneType"),
        ("pass", "NoneType"),
        ("return object()", "object"),
        ("return {'y': x}", "dict"),
        ("return lambda: 0", "function"),
        ("return ValueError('as a value')", "ValueError"),
        ("return np.array([1, None], object)", "NoneType, int"),
        ("return x.astype(complex)", "complex128"),
        ("return np.datetime64('2020-01-01')", "datetime64"),
        ("return np.zeros(2, [('a', int)])", "cannot be sent"),
        ("return np.array(['a', b'b'], object)", "bytes, str"),
        ("return np.array([[1], [1, 2]], object)", "list"),
        ("return [[1], [1, 2]],", "inhomogeneous"),
        ("return 2**70", "int"),
    ],
)
def test_what_cannot_be_sent_fails_where_it_was_returned(make, body, found):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    code, message = error_of(fate)
    assert code == "stage_failed"
    assert message.startswith("stage f")
    assert found in message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 3", 3),
        ("return 2.5", 2.5),
        ("return True", True),
        ("return 'text'", "text"),
        ("return b'bytes'", b"bytes"),
        ("return np.array([b'a', b'bc'], object)", [b"a", b"bc"]),
        ("return np.array(['a', 'bc'])", ["a", "bc"]),
        ("return x", [1, 2, 3]),
        ("return x[::-1]", [3, 2, 1]),
        ("return x[:0]", []),
        ("return np.ma.masked_array([1, 2])", [1, 2]),
        ("return x.astype('>f8')", [1, 2, 3]),
        ("return [[1, 2]]", [1, 2]),
    ],
)
def test_what_can_be_sent(make, body, value):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert outputs_of(fate) == [{"y": value}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1, 2", "stage f returned 2 value(s) where 1 are declared"),
        ("return ()", "stage f returned 0 value(s) where 1 are declared"),
        ("raise KeyError('k')", "stage f raised KeyError: 'k'"),
        ("x += 1", "stage f raised ValueError: output array is read-only"),
        ("raise ValueError('x' * 10000)", "stage f raised ValueError: xxx"),
        ("return f(x)", "stage f raised RecursionError"),
        (
            "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
            "stage f raised Mute: (without words)",
        ),
    ],
)
def test_a_function_that_fails(make, body, message):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW}, {"x": ROW})
    edge.run()
    code, found = error_of(fate)
    assert code == "stage_failed"
    assert found.startswith(message)
    assert len(found) <= 500


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_a_function_that_would_end_the_process(make, name):
    edge = make(one_stage(f"raise {name}"))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(fate) == ("internal", f"stage f ended with {name}")
    again = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(again)[0] == "internal"


def test_a_function_may_raise_our_own_errors(make):
    edge = make("from rankmq.schemas.errors import InvalidInput\n" + one_stage("raise InvalidInput('no such word')"))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(fate) == ("invalid_input", "no such word")


@pytest.mark.parametrize(("size", "sizes"), [(0, [5]), (2, [2, 2, 1]), (99, [5])])
@pytest.mark.parametrize("how", ["return", "yield"])
def test_a_stage_that_takes_many_instances(make, size, sizes, how):
    result = "[row[0] * len(rows) for row in rows]"
    edge = make(
        f"""
seen = []
def f(rows):
    seen.append(len(rows))
    {f"return {result}" if how == "return" else f"yield from {result}"}

def g(x):
    return np.array(seen)

@register.register_method(output_names=["y", "seen"])
def m(x):
    y = register.add_stage(f, x, batch_size={size})
    return y, register.add_stage(g, y)
"""
    )
    fate = edge.ask("m", *({"x": ROW + number} for number in range(5)))
    edge.run()
    expected = [count for count in sizes for _ in range(count)]
    assert [row["y"] for row in outputs_of(fate)] == [
        ((ROW + number) * count).tolist() for number, count in enumerate(expected)
    ]
    assert outputs_of(fate)[0]["seen"] == sizes


@pytest.mark.parametrize(
    ("result", "errors", "message"),
    [
        ("rows[:-1]", {0, 1, 2}, "stage f returned 2 results for 3 instances"),
        ("None", {0, 1, 2}, "stage f raised TypeError"),
        ("[x for x, in rows[:2]] + [None]", {2}, "stage f returned NoneType"),
        ("[(1, 2)] + [1, 1]", {0}, "stage f returned 2 value(s) where 1"),
        ("[1 / (x[0] - 2) if False else 1 // int(x[0] - 2) for x, in rows]", {0, 1, 2}, "ZeroDivisionError"),
    ],
)
def test_one_bad_result_of_many_harms_only_its_instance(make, result, errors, message):
    edge = make(
        f"""
def f(rows):
    return {result}

@register.register_method(output_names=["y"])
def m(x):
    return register.add_stage(f, x, batch_size=0)
"""
    )
    fate = edge.ask("m", *({"x": ROW + number} for number in range(3)))
    edge.run()
    if len(errors) == 3:
        assert message in error_of(fate)[1]
    else:
        assert errors_of(fate) == dict.fromkeys(errors, "stage_failed")
        assert message in fate.replies[0][0].reply.errors[0].error.message
