"""`rankmq bench` up to where something would be measured: figures, rows, tables, plots, and what it refuses."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.loader import load_servable
from rankmq.schemas import codec
from rankmq.schemas.errors import ConfigurationError, OperatorError
from rankmq.schemas.messages import ErrorInfo, Reply
from rankmq.schemas.tensors import from_array
from rankmq.scripts.app import app
from rankmq.scripts.bench.tools import gpt
from rankmq.scripts.bench.tools.bench import Bench, Machine
from rankmq.scripts.bench.tools.benchmark import benchmarks, chosen
from rankmq.scripts.bench.tools.matmul import Asking
from rankmq.scripts.bench.tools.plot import check_plot, plot
from rankmq.scripts.bench.tools.rounds import in_turns
from rankmq.scripts.bench.tools.row import Row, alone, compared, percentile, to_json
from rankmq.scripts.bench.tools.table import number, spread, table
from rankmq.scripts.show import console
from typer.testing import CliRunner

COLUMNS = ["name", "case", "value", "unit", "ceiling", "ratio", "ratio_min", "ratio_max", "rounds"]
positive = st.floats(1e-3, 1e6)


def test_a_ratio_is_taken_within_its_round():
    row = compared("edge", "8 in flight", "requests/s", [(10, 20), (30, 100), (8, 10)])
    assert row == Row("edge", "8 in flight", 10, "requests/s", 20, 0.5, 0.3, 0.8, 3)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9))
def test_the_ratio_is_among_the_rounds(pairs):
    row = compared("n", "c", "u", pairs)
    ratios = sorted(a / b for a, b in pairs)
    assert (row.ratio_min, row.ratio_max, row.rounds) == (ratios[0], ratios[-1], len(pairs))
    assert row.ratio_min <= row.ratio * (1 + 1e-9)
    assert row.ratio <= row.ratio_max * (1 + 1e-9)
    assert sum(ratio <= row.ratio * (1 + 1e-9) for ratio in ratios) >= len(pairs) / 2


def test_a_figure_without_a_ceiling():
    assert alone("growth", "1 KB", "MB", [3, 1, 2]) == Row("growth", "1 KB", 2, "MB", None, None, None, None, 3)


def test_percentiles():
    assert percentile(range(101), 50) == 50
    assert percentile(range(101), 99) == 99
    assert percentile([7.0], 99) == 7


def test_rounds_go_in_turns_after_one_that_does_not_count():
    done = []

    def side(name):
        return lambda: done.append(name) or len(done)

    assert in_turns(3, side("a"), side("b")) == [(3, 4), (5, 6), (7, 8)]
    assert done == ["a", "b"] * 4


def test_json_has_the_columns_and_nothing_else():
    rows = json.loads(to_json([compared("n", "c", "u", [(1, 3)]), alone("n", "d", "u", [2.0])]))
    assert [list(row) for row in rows] == [COLUMNS, COLUMNS]
    assert rows[0]["ratio"] == 0.333333
    assert rows[1]["ceiling"] is None
    assert rows[1]["rounds"] == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.04567, "0.0457"), (999.6, "1,000"), (1.0, "1.00")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_table_has_it_all(capsys):
    rows = [compared("edge", "8 [in flight]", "requests/s", [(10, 20), (12, 20)]), alone("growth", "1 KB", "MB", [3])]
    console().print(table(rows))
    edge, growth = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()][1:]
    assert edge == ["edge", "8", "[in", "flight]", "11.0", "20.0", "requests/s", "0.550", "0.500", "..", "0.600", "2"]
    assert growth == ["growth", "1", "KB", "3.00", "MB", "1"]
    assert spread(rows[1]) == ""


def test_a_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "rows.png"
    plot(
        [compared("a", "b", "u", [(1, 3), (1, 300)]), alone("c", "d", "u", [1]), alone("c", "e", "u", [900])], file, ""
    )
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rankmq\[bench\]'"):
        check_plot()


def test_every_benchmark_says_what_it_is():
    known = benchmarks()
    assert {"codec", "collectives", "decode", "edge", "latency"} <= set(known)
    for name, it in known.items():
        assert it.name == name
        assert it.about
        assert "\n" not in it.about
    assert [it.order for it in known.values()] == sorted({it.order for it in known.values()})


def test_benchmarks_are_chosen_in_their_order_and_once():
    known = benchmarks()
    assert [it.name for it in chosen(["edge", "codec", "edge"], known)] == ["codec", "edge"]
    assert chosen([], known) == list(known.values())
    with pytest.raises(KeyError, match="speed"):
        chosen(["speed"], known)


def test_how_much_is_measured(tmp_path):
    def bench(**given):
        return Bench("b", Machine(None, tmp_path, tmp_path, **given))

    usual, quick, some = bench(), bench(quick=True), bench(rounds=3)
    assert (usual.rounds(7), usual.seconds(2), usual.count(300)) == (7, 2, 300)
    assert (quick.rounds(7), quick.rounds(1), quick.seconds(2), quick.count(300), quick.count(3)) == (2, 1, 0.2, 30, 2)
    assert (some.rounds(7), some.seconds(2)) == (3, 2)
    with pytest.raises(ConfigurationError, match="--examples"):
        usual.example("matmul")


def test_what_a_benchmark_enters_is_left_in_the_end(tmp_path):
    said = []

    @contextmanager
    def noted(name):
        said.append(f"{name} in")
        yield
        said.append(f"{name} out")

    with Bench("b", Machine(None, tmp_path, tmp_path, say=said.append)) as bench:
        bench.say("begins")
        bench.enter(noted("one"))
        bench.enter(noted("two"))
    assert said == ["b: begins", "one in", "two in", "two out", "one out"]


# ----------------------------------------------------------------------------------------------------------- answers


def reply(*rows):
    return codec.encode_reply(Reply(outputs=[{"y": from_array(row.astype(np.float32))} for row in rows]))


def test_right_answers_pass_and_wrong_ones_do_not():
    asking = Asking(2)
    request = codec.decode_request(asking.body)
    assert [value["x"].shape for value in request.instances] == [(128, 96)] * 2
    one, other = (-1.5 * np.frombuffer(it["x"].data, np.float32).reshape(128, 96).sum(1, keepdims=True) * np.ones(16)
                  for it in request.instances)  # fmt: skip
    asking.check([reply(one, other)])
    with pytest.raises(OperatorError, match="wrong numbers"):
        asking.check([reply(one, other), reply(other, one)])
    with pytest.raises(OperatorError, match="no room"):
        asking.check([codec.encode_reply(Reply(error=ErrorInfo(code="limit", message="no room", side="sender")))])


def test_ranks_that_are_driven_directly_compile_what_the_servable_does():
    served = load_servable(Path(__file__).parents[3] / "examples" / "gpt", gpt.SERVABLE, require_models=False)
    assert [served.subgraph(number).compiled_rows for number in range(3)] == list(gpt._COMPILED_ROWS)


def test_the_whole_model_is_computed_right(tmp_path):
    """Against all of it again for every token, one position at a time, in plain loops."""
    random = np.random.default_rng(0)
    width, hidden, vocabulary, context, layers = 16, 12, 10, 9, 2
    shapes = {
        "token_embedding": (vocabulary, width),
        "position_embedding": (context, width),
        "head": (width, vocabulary),
    }
    for layer in range(layers):
        shapes |= {f"qkv.{layer}": (width, 3 * width), f"out.{layer}": (width, width)}
        shapes |= {f"up.{layer}": (width, hidden), f"down.{layer}": (hidden, width)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "weights.npz", **weights)

    def norm(row):
        return (row - row.mean()) / np.sqrt(row.var() + 1e-7)

    def best(tokens):
        rows = [weights["token_embedding"][t] + weights["position_embedding"][i] for i, t in enumerate(tokens)]
        for layer in range(layers):
            parts = [(norm(row) @ weights[f"qkv.{layer}"]).reshape(3, 8, 2) for row in rows]
            for i, row in enumerate(list(rows)):
                mixed = []
                for head in range(8):
                    scores = np.exp([parts[i][0, head] @ parts[j][1, head] / np.sqrt(2) for j in range(i + 1)])
                    mixed.append(sum(s * parts[j][2, head] for j, s in enumerate(scores / scores.sum())))
                up = norm(row) @ weights[f"up.{layer}"]
                rows[i] = row + np.concatenate(mixed) @ weights[f"out.{layer}"]
                rows[i] = rows[i] + (up / (1 + np.exp(-up))) @ weights[f"down.{layer}"]
        return int((norm(rows[-1]) @ weights["head"]).argmax())

    prompt, written = [3, 1, 4, 1], []
    for _ in range(5):
        written.append(best(prompt + written))
    assert gpt.expected_tokens(tmp_path, np.array(prompt, np.int32), 5) == written


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKMQ_CONFIG", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_the_list(run):
    result = run("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(benchmarks())


def test_an_unknown_name(run):
    result = run("codec", "speed")
    assert result.exit_code == 2
    assert result.stderr.startswith("rankmq: there is nothing called speed to measure: codec, ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written(run, tmp_path):
    for option in ("--json", "--plot"):
        result = run("codec", option, tmp_path / "none" / "rows")
        assert result.exit_code == 3
        assert f"{option} " in result.stderr
        assert "cannot be written" in result.stderr


def test_a_package_that_is_missing(run, monkeypatch):
    known = benchmarks()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("decode")
    assert result.exit_code == 3
    assert result.stderr == "rankmq: decode needs mindspore: pip install 'rankmq[agent]'\n"
    measured = []
    monkeypatch.setattr(
        "rankmq.scripts.commands.bench._measure", lambda wanted, *_, **__: measured.extend(it.name for it in wanted)
    )
    result = run()
    assert result.exit_code == 0
    assert measured == [name for name, it in known.items() if not it.needs]
    assert "left out: decode needs mindspore: pip install 'rankmq[agent]'" in result.stderr
