"""What may be declared, what is refused at once, and what is checked when the whole file has been read."""

import pytest
from rankmq.engine.layouts import AllEqual, Concat, FromRank, Replicate, Shard, Sum
from rankmq.engine.loader import load_servable
from rankmq.engine.servable import Subgraph
from rankmq.schemas.errors import ServableError

from tests.unit.engine.servable_files import MODEL, WORDS, load, refused, write_config, write_devices

METHOD = "@register.register_method('y')\ndef m(x):\n    y = register.call_servable(x)\n    return y\n"


def test_layouts_are_kept_per_subgraph(tmp_path):
    text = """\
model = distributed.declare_servable(8, 2, subgraphs=[
    "row_{rank}.mindir",
    distributed.subgraph("b/{rank}.mindir", inputs=[distributed.shard(1), distributed.replicate()],
                         outputs=[distributed.concat(0), distributed.sum(), distributed.all_equal(),
                                  distributed.from_rank(7), distributed.from_rank()]),
], batch_size=32, without_batch_dim_inputs=[1], communication="mccl")
@register.register_method("y")
def m(x):
    a, b, c, d, e = register.call_servable(x, x, subgraph=1)
    return a
"""
    servable = load(tmp_path, WORDS + text)
    assert (servable.rank_size, servable.stage_size, servable.communication) == (8, 2, "mccl")
    (model,) = servable.models
    assert (model.batch_size, model.without_batch_dim_inputs, model.result_rank, model.name) == (32, (1,), 4, "matmul")
    plain, full = servable.subgraph(0), servable.subgraph(1)
    assert plain == Subgraph("row_{rank}.mindir", None, None)
    assert (plain.input_layout(5), plain.output_layout(5)) == (Replicate(), FromRank(None))
    assert full.inputs == (Shard(1), Replicate())
    assert full.outputs == (Concat(0), Sum(), AllEqual(), FromRank(7), FromRank(None))
    assert full.output_layout(1) == Sum()
    for number in (-1, 2):
        with pytest.raises(ServableError, match=f"no subgraph {number}"):
            servable.subgraph(number)


@pytest.mark.parametrize(
    ("rank_size", "stage_size", "result_rank"), [(8, 1, 0), (8, 2, 4), (8, 4, 6), (8, 8, 7), (1, 1, 0), (6, 3, 4)]
)
def test_the_result_comes_from_the_first_rank_of_the_last_stage(tmp_path, rank_size, stage_size, result_rank):
    servable = load(tmp_path, WORDS + f"distributed.declare_servable({rank_size}, {stage_size})\n" + METHOD)
    assert servable.models[0].result_rank == result_rank


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ("distributed.declare_servable(0, 1)", "rank_size must be"),
        ("distributed.declare_servable(-8, 1)", "rank_size must be"),
        ("distributed.declare_servable('8', 1)", "rank_size must be"),
        ("distributed.declare_servable(True, 1)", "rank_size must be"),
        ("distributed.declare_servable(8, 0)", "stage_size must be"),
        ("distributed.declare_servable(8, 3)", "rank_size 8 cannot be divided into 3 stages"),
        ("distributed.declare_servable(2, 4)", "rank_size 2 cannot be divided into 4 stages"),
        ("distributed.declare_servable(8)", "TypeError: .*missing 1 required positional argument: 'stage_size'"),
        ("distributed.declare_servable(8, 1, with_batch_dim=1)", "with_batch_dim must be"),
        ("distributed.declare_servable(8, 1, enable_pipeline_infer='no')", "enable_pipeline_infer must be"),
        ("distributed.declare_servable(8, 1, without_batch_dim_inputs=-1)", "without_batch_dim_inputs must be"),
        ("distributed.declare_servable(8, 1, without_batch_dim_inputs=['x'])", "without_batch_dim_inputs must be"),
        ("distributed.declare_servable(8, 1, without_batch_dim_inputs=[1, 1])", "names an input twice"),
        ("distributed.declare_servable(8, 1, batch_size=0)", "batch_size must be"),
        ("distributed.declare_servable(8, 1, False, batch_size=4)", "batch_size needs with_batch_dim=True"),
        (
            "distributed.subgraph('a', compiled_rows=1)",
            "compiled_rows must be up to 16 different numbers from 1 to 1024",
        ),
        ("distributed.subgraph('a', compiled_rows=[0])", "compiled_rows must be"),
        ("distributed.subgraph('a', compiled_rows=[True])", "compiled_rows must be"),
        ("distributed.subgraph('a', compiled_rows=[2, 2])", "compiled_rows must be"),
        ("distributed.subgraph('a', compiled_rows=range(1, 18))", "compiled_rows must be"),
        (
            "distributed.declare_servable(8, 1, False, subgraphs=[distributed.subgraph('a', compiled_rows=[1])])",
            "compiled_rows needs with_batch_dim=True",
        ),
        ("distributed.declare_servable(8, 1, communication='nccl')", "communication must be one of 'auto', 'none'"),
        ("distributed.declare_servable(8, 1, subgraphs=[])", "subgraphs must be a list"),
        ("distributed.declare_servable(8, 1, subgraphs='a.mindir')", "subgraphs must be a list"),
        ("distributed.declare_servable(8, 1, subgraphs=[3])", "file name, not 3"),
        ("distributed.declare_servable(8, 1, subgraphs=['a', distributed.subgraph()])", "either all have a file"),
        (
            "distributed.declare_servable(8, 1, subgraphs=[distributed.subgraph(outputs=[distributed.from_rank(8)])])",
            r"subgraph 0: from_rank\(8\): the ranks are 0 to 7",
        ),
        (
            "distributed.declare_servable(8, 1, subgraphs=[distributed.subgraph(outputs=[distributed.from_rank(-1)])])",
            r"from_rank\(-1\)",
        ),
        ("distributed.subgraph(' ')", "must be a file name"),
        ("distributed.subgraph(inputs=[distributed.shard(-1)])", r"shard\(-1\): the axis must be"),
        ("distributed.subgraph(inputs=[distributed.shard(0.5)])", "the axis must be"),
        ("distributed.subgraph(outputs=[distributed.concat(-2)])", r"concat\(-2\): the axis must be"),
        ("distributed.subgraph(inputs=[distributed.concat(0)])", r"replicate\(\) or shard\(axis\), not concat\(0\)"),
        ("distributed.subgraph(inputs=[distributed.replicate])", r"replicate\(\) or shard\(axis\), not <function"),
        ("distributed.subgraph(outputs=[distributed.shard(0)])", r"not shard\(0\)"),
        ("distributed.subgraph(inputs=distributed.shard(0))", "inputs must be a list"),
        ("register.declare_model([], 'MindIR')", "a file name or a list of them"),
        ("register.declare_model(3, 'MindIR')", "a file name or a list of them"),
        ("register.declare_model('a.om', 'OM')", "'OM' is not served"),
        ("register.declare_servable('a.mindir', 'MindIR_Lite')", "'MindIR_Lite' is not served"),
        ("PipelineServable('matmul', 'm', -1)", "version_number must be"),
        ("PipelineServable('matmul', 3)", "the names are strings"),
        ("PipelineServable('matmul', 'm').run(1)", "only while a request is served"),
    ],
)
def test_what_cannot_be_declared(tmp_path, call, match):
    refused(tmp_path, f"{WORDS}\n{call}  # HERE\n", match)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        ("distributed.declare_servable(1, 1)", "each must name its files"),
        ("distributed.declare_servable(2, 1, subgraphs=['c'])", "rank_size is 2 here and 1 at line 4"),
        ("distributed.declare_servable(1, 1, subgraphs=['c'], communication='none')", "communication is 'none' here"),
        ("distributed.declare_servable(1, 1, subgraphs=[distributed.subgraph()])", "each must name its files"),
    ],
)
def test_models_of_one_servable_must_go_together(tmp_path, second, match):
    refused(tmp_path, f"{MODEL}{second}  # HERE\n", match)


def test_declaring_a_second_model_without_files_is_refused(tmp_path):
    text = WORDS + "distributed.declare_servable(8, 1)\ndistributed.declare_servable(8, 1)  # HERE\n"
    refused(tmp_path, text, "another model is declared at line 4")


@pytest.mark.parametrize("first", ["method", "pipeline"])
@pytest.mark.parametrize("second", ["method", "pipeline"])
def test_two_of_one_name(tmp_path, first, second):
    text = f"""\
@register.register_{first}("y")
def same(x):
    return x
@register.register_{second}("y")  # HERE
def same(x):
    return x
"""
    refused(tmp_path, WORDS + text, f"'same' is already a {first}, registered at line 4")


def test_a_subgraph_without_a_model_file(tmp_path):
    text = (
        WORDS
        + "distributed.declare_servable(8, 1)\n"
        + METHOD.replace("(x)\n    return", "(x, subgraph=2)\n    return")
    )
    write_devices(tmp_path, ranks=8, graphs=2)
    file = write_config(tmp_path, text)
    with pytest.raises(ServableError, match=r"calls subgraph 2, .* there are 2 subgraphs, 0 to 1") as caught:
        load_servable(tmp_path, "matmul")
    assert (caught.value.file, caught.value.line) == (str(file), 7)


def test_a_subgraph_beyond_the_declared_ones(tmp_path):
    text = f"{MODEL}{METHOD}".replace("call_servable(x)", "call_servable(x, subgraph=2)  # HERE")
    refused(tmp_path, text, "calls subgraph 2, and no model file stands for it: there are 2 subgraphs, 0 to 1")


def test_how_many_subgraphs_is_not_checked_where_it_cannot_be_known(tmp_path):
    text = f"{WORDS}distributed.declare_servable(8, 1)\n{METHOD}".replace("servable(x)", "servable(x, subgraph=7)")
    servable = load(tmp_path, text)
    assert (servable.subgraph_count, servable.model_files) == (None, None)
    assert servable.subgraph(7) == Subgraph()


def test_a_subgraph_call_without_a_model(tmp_path):
    refused(
        tmp_path, f"{WORDS}{METHOD}".replace("call_servable(x)", "call_servable(x)  # HERE"), "no model is declared"
    )


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ("y = register.call_servable(x)", "y = register.call_servable(x, x)", r"2 input\(s\), and line 7 .* with 1"),
        ("y = register.call_servable(x)", "y, z = register.call_servable(x)", r"2 output\(s\), and line 7 .* with 1"),
    ],
)
def test_calls_of_one_subgraph_must_agree(tmp_path, first, second, match):
    text = f"""\
@register.register_method("y")
def one(x):
    {first}
    return y
@register.register_method("y")
def two(x):
    {second}  # HERE
    return y
"""
    refused(tmp_path, MODEL + text, match)


@pytest.mark.parametrize(
    ("layouts", "match"),
    [
        ("inputs=[distributed.shard(0), distributed.shard(0)]", r"with 1 input\(s\), .* a layout for 2"),
        ("outputs=[distributed.sum(), distributed.sum()]", r"with 1 output\(s\), .* a layout for 2"),
    ],
)
def test_calls_must_agree_with_the_layouts(tmp_path, layouts, match):
    text = f"{WORDS}distributed.declare_servable(8, 1, subgraphs=[distributed.subgraph({layouts})])\n{METHOD}"
    refused(tmp_path, text.replace("call_servable(x)", "call_servable(x)  # HERE"), match)


def test_an_input_without_batch_axis_must_be_one_of_some_call(tmp_path):
    declare = "distributed.declare_servable(8, 1, without_batch_dim_inputs={})"
    refused(tmp_path, f"{WORDS}{declare.format(1)}  # HERE\n{METHOD}", "names input 1, and no subgraph has one")
    assert load(tmp_path, f"{WORDS}{declare.format(0)}\n{METHOD}").models[0].without_batch_dim_inputs == (0,)
    two = METHOD.replace("call_servable(x)", "call_servable(x, x, subgraph=1)") + METHOD.replace("def m", "def n")
    assert load(tmp_path, f"{WORDS}{declare.format(1)}\n{two}").models[0].without_batch_dim_inputs == (1,)


def test_inputs_without_batch_axis_mean_nothing_where_none_has_one(tmp_path):
    text = f"{WORDS}distributed.declare_servable(8, 1, False, without_batch_dim_inputs=5)\n{METHOD}"
    assert load(tmp_path, text).models[0].without_batch_dim_inputs == ()


def test_a_pipeline_servable_must_name_a_method(tmp_path):
    pipeline = "@register.register_pipeline('y')\ndef p(x):\n    return x\n"
    for name, match in (("typo", "unknown method, typo; there are: m"), ("p", "names p, a pipeline")):
        for version in (0, 1):
            text = f"{MODEL}{METHOD}{pipeline}s = PipelineServable('matmul', '{name}', {version})  # HERE\n"
            refused(tmp_path, text, match)


def test_a_pipeline_servable_of_another_servable_or_version_is_left_to_the_catalog(tmp_path):
    text = f"{MODEL}{METHOD}PipelineServable('other', 'n')\nPipelineServable('matmul', 'old', 7)\n"
    assert [(call.servable, call.method) for call in load(tmp_path, text).calls] == [("other", "n"), ("matmul", "old")]


def test_a_servable_may_have_no_model(tmp_path):
    text = "@register.register_method('y')\ndef m(x):\n    return register.add_stage(abs, x)\n"
    servable = load(tmp_path, WORDS + text)
    assert (servable.models, servable.rank_size, servable.stage_size, servable.subgraph_count) == ((), 0, 0, 0)
    with pytest.raises(ServableError, match="no subgraph 0"):
        servable.model_of(0)


def test_words_outside_a_configuration_file():
    from rankmq.engine import distributed, register

    for call in (
        lambda: distributed.declare_servable(8, 1),
        lambda: distributed.subgraph(),
        lambda: register.declare_model("a.mindir"),
        lambda: register.register_method("y"),
        lambda: register.register_pipeline("y"),
        lambda: register.PipelineServable("a", "b"),
        lambda: register.add_stage(abs, 1),
    ):
        with pytest.raises(ServableError):
            call()
