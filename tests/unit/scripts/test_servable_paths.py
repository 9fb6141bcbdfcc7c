"""From the paths on a command line to servables."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.schemas.errors import ModelError, ServableError
from rankmq.scripts.report import Usage
from rankmq.scripts.servable_paths import expand, find_servables, load_servables, parse_ranks

CONFIGURATION = """
from rankmq.engine import distributed, register
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False)

@register.register_method(output_names=["y"])
def twice(x):
    return register.call_servable(x, subgraph=0)
"""


def servable(home: Path, text: str = CONFIGURATION) -> Path:
    home.mkdir(parents=True)
    (home / "servable_config.py").write_text(text)
    return home


def test_a_servable_or_a_folder_of_servables(tmp_path):
    one, two = servable(tmp_path / "all/one"), servable(tmp_path / "all/two")
    three = servable(tmp_path / "three")
    (tmp_path / "all" / "notes").mkdir()
    assert find_servables([tmp_path / "all"]) == [one, two]
    assert find_servables([three, tmp_path / "all", one]) == [three, one, two]


def test_relative_paths_find_them_too(tmp_path, monkeypatch):
    home = servable(tmp_path / "matmul")
    monkeypatch.chdir(home)
    assert find_servables([Path()]) == [home]
    assert [it.name for it in load_servables([Path()], 0, require_models=False)] == ["matmul"]


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(ServableError, match="nowhere: no such folder"):
        find_servables([tmp_path / "nowhere"])
    with pytest.raises(ServableError, match=r"no servable_config.py in it"):
        find_servables([tmp_path])


@pytest.mark.parametrize("name", ["1st", "a.b", "ä", "x" * 65, "a b"])
def test_a_name_that_cannot_travel_is_refused(tmp_path, name):
    servable(tmp_path / name)
    with pytest.raises(ServableError, match="name of its folder"):
        find_servables([tmp_path])


def test_files_by_pattern(tmp_path):
    home = servable(tmp_path / "matmul")
    for rank in range(2):
        (tmp_path / f"graph{rank}.npz").touch()
    (loaded,) = load_servables([home], 0, model_files=[str(tmp_path / "graph{rank}.npz")])
    assert loaded.model_files == ((tmp_path / "graph0.npz",), (tmp_path / "graph1.npz",))
    (tmp_path / "graph1.npz").unlink()
    with pytest.raises(ModelError, match=r"rank 1 is missing: .*graph1.npz"):
        load_servables([home], 0, model_files=[str(tmp_path / "graph{rank}.npz")])


def test_a_pattern_is_for_one_servable_and_for_its_ranks(tmp_path):
    servable(tmp_path / "one")
    servable(tmp_path / "two")
    with pytest.raises(ServableError, match="which servable it is for: there are one, two"):
        load_servables([tmp_path], 0, model_files=["{rank}.npz"])
    with pytest.raises(ModelError, match=r"put \{rank\}"):
        load_servables([tmp_path / "one"], 0, model_files=["same.npz"])
    assert expand(["a.npz", "b.npz"], [0]) == {0: [Path("a.npz"), Path("b.npz")]}


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("0", (0,)), ("0-7", tuple(range(8))), ("0,2,5", (0, 2, 5)), ("6,0-2", (0, 1, 2, 6)), (" 1 - 2 , 4", (1, 2, 4))],
)
def test_ranks(text, ranks):
    assert parse_ranks(text) == ranks


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "3-1", "0,", "0-", "1.5", "0-2,2", "1,1", "0-9999999", "0-99999", "0;1", "٣"]
)
def test_what_are_no_ranks(text):
    with pytest.raises(Usage, match="--ranks"):
        parse_ranks(text)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_any_set_of_ranks_can_be_written(ranks):
    assert parse_ranks(",".join(map(str, ranks))) == tuple(sorted(ranks))
