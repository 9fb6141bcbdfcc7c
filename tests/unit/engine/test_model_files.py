"""Finding model files: patterns, folders by convention, natural order, and what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.model_files import check_model_files, find_model_files, natural_key, versions_of
from rankmq.schemas.errors import ModelError

from tests.unit.engine.servable_files import touch


def found(directory, rank_size=2, patterns=None, version=1):
    files = find_model_files(directory, "s", version, rank_size, patterns)
    return [[str(path.relative_to(directory)) for path in of_rank] for of_rank in files]


@given(st.sets(st.integers(0, 10**12), min_size=1))
def test_numbers_in_names_sort_as_numbers(numbers):
    names = sorted((f"matmul_{number}.mindir" for number in numbers), key=natural_key)
    assert names == [f"matmul_{number}.mindir" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=12), unique=True), st.randoms())
def test_any_names_have_one_order(names, random):
    ordered = sorted(names, key=natural_key)
    assert sorted(random.sample(names, len(names)), key=natural_key) == ordered


def test_natural_order_of_what_people_write():
    names = ["g10", "G2", "g1", "b", "g2a", "g02", "g"]
    assert sorted(names, key=natural_key) == ["b", "g", "g1", "G2", "g02", "g2a", "g10"]


@given(st.sets(st.integers(1, 99)))
def test_versions(tmp_path_factory, numbers):
    home = tmp_path_factory.mktemp("home")
    for name in [*map(str, numbers), "model", "07", "0", "1.5", "²"]:
        (home / name).mkdir()
    (home / "100").touch()
    assert versions_of(home) == tuple(sorted(numbers))


@pytest.mark.parametrize("folder", ["device{}", "rank_{}"])
@pytest.mark.parametrize("root", ["s/1", "s/model", "model"])
def test_folders_of_ranks(tmp_path, root, folder):
    for rank in range(2):
        home = tmp_path / root / folder.format(rank)
        touch(*(home / f"g_{i}.mindir" for i in range(11)), home / "group_config.pb", home / "g_0.ckpt")
    files = found(tmp_path)
    assert files == [[f"{root}/{folder.format(rank)}/g_{i}.mindir" for i in range(11)] for rank in range(2)]


def test_the_version_folder_comes_first_and_alone(tmp_path):
    touch(*(tmp_path / root / f"device{r}/g.mindir" for root in ("s/1", "s/model", "model") for r in (0, 1)))
    assert found(tmp_path) == [["s/1/device0/g.mindir"], ["s/1/device1/g.mindir"]]
    (tmp_path / "s/2").mkdir()
    with pytest.raises(ModelError, match=r"rank 0 .* in .*/s/2$"):
        found(tmp_path, version=2)


@pytest.mark.parametrize("root", ["s/1", "s/model", "model"])
def test_one_rank_needs_no_folder_of_its_own(tmp_path, root):
    touch(tmp_path / root / "b.mindir", tmp_path / root / "a.MINDIR")
    assert found(tmp_path, rank_size=1) == [[f"{root}/a.MINDIR", f"{root}/b.mindir"]]
    with pytest.raises(ModelError, match="rank 0 has no folder"):
        found(tmp_path, rank_size=2)


@pytest.mark.parametrize(
    ("pattern", "file"),
    [
        ("g_{rank}.mindir", "s/1/g_{}.mindir"),
        ("g_{rank}.mindir", "s/g_{}.mindir"),
        ("g_{rank}.mindir", "g_{}.mindir"),
        ("graphs/r{rank}/{rank}.mindir", "s/graphs/r{0}/{0}.mindir"),
        ("model/device{rank}/m.mindir", "model/device{}/m.mindir"),
        ("m.mindir", "model/device{}/m.mindir"),
        ("m.mindir", "s/1/rank_{}/m.mindir"),
        ("m.mindir", "s/m.mindir"),
        ("{x}.mindir", "s/{{x}}.mindir"),
    ],
)
def test_patterns(tmp_path, pattern, file):
    expected = [[file.format(rank)] for rank in range(3)]
    touch(*(tmp_path / path for (path,) in expected))
    assert found(tmp_path, 3, [pattern]) == expected


def test_patterns_give_the_order_of_the_subgraphs(tmp_path):
    touch(tmp_path / "s/1/b.mindir", tmp_path / "s/1/a.mindir")
    assert found(tmp_path, 1, ["b.mindir", "a.mindir"]) == [["s/1/b.mindir", "s/1/a.mindir"]]


def test_a_ranks_own_file_comes_before_a_shared_one(tmp_path):
    touch(tmp_path / "s/1/m.mindir", tmp_path / "s/1/device0/m.mindir")
    assert found(tmp_path, 2, ["m.mindir"]) == [["s/1/device0/m.mindir"], ["s/1/m.mindir"]]


def test_a_missing_file_is_named_with_its_rank(tmp_path):
    touch(*(tmp_path / f"s/1/g_{rank}.mindir" for rank in (0, 1, 3)))
    with pytest.raises(ModelError, match=r"rank 2 has no file for subgraph 0: no g_2\.mindir in .*/s/1"):
        found(tmp_path, 4, ["g_{rank}.mindir"])
    touch(tmp_path / "s/1/g_2.mindir", *(tmp_path / f"s/1/device{rank}/h.mindir" for rank in (0, 1, 2)))
    with pytest.raises(ModelError, match=r"rank 3 has no file for subgraph 1: no h\.mindir"):
        found(tmp_path, 4, ["g_{rank}.mindir", "h.mindir"])


def test_a_missing_folder_is_named_with_its_rank(tmp_path):
    touch(*(tmp_path / f"model/device{rank}/g.mindir" for rank in (0, 1, 3)))
    with pytest.raises(ModelError, match=r"rank 2 has no model files: there is no folder .*model/device2"):
        found(tmp_path, 4)
    (tmp_path / "model/device2").mkdir()
    with pytest.raises(ModelError, match=r"rank 2 has no model files: there is no \.mindir files in .*device2"):
        found(tmp_path, 4)


def test_a_differing_number_of_files_is_told_with_the_file(tmp_path):
    touch(*(tmp_path / f"model/device{rank}/g_{i}.mindir" for rank in range(3) for i in range(3)))
    (tmp_path / "model/device1/g_1.mindir").unlink()
    with pytest.raises(ModelError, match=r"rank 1 has 2 .* rank 0 has 3: .*device1 has no g_1\.mindir"):
        found(tmp_path, 3)
    (tmp_path / "model/device0/g_2.mindir").unlink()
    with pytest.raises(ModelError, match=r"rank 0 has 2 .* rank 2 has 3: .*device0 has no g_2\.mindir"):
        found(tmp_path, 3)


@pytest.mark.parametrize("patterns", [None, ["g.mindir"]])
def test_of_the_ranks_of_another_host_no_files_need_be_here(tmp_path, patterns):
    touch(*(tmp_path / f"model/device{rank}/g.mindir" for rank in (2, 3)))
    files = find_model_files(tmp_path, "s", 1, 8, patterns, [3, 2])
    assert files == tuple((tmp_path / f"model/device{rank}/g.mindir",) for rank in (3, 2))
    with pytest.raises(ModelError, match="rank 4 has no"):
        find_model_files(tmp_path, "s", 1, 8, patterns, [2, 3, 4])
    with pytest.raises(ModelError, match="rank 5 has no"):
        find_model_files(tmp_path, "s", 1, 8, patterns, [5])
    with pytest.raises(ModelError, match="rank 0 has no"):
        find_model_files(tmp_path, "s", 1, 8, patterns)


def test_a_graph_without_a_folder_is_no_rank_of_several(tmp_path):
    touch(tmp_path / "model/g.mindir")
    assert find_model_files(tmp_path, "s", 1, 1, None, [0]) == ((tmp_path / "model/g.mindir",),)
    with pytest.raises(ModelError, match="rank 0 has no folder device0 or rank_0"):
        find_model_files(tmp_path, "s", 1, 2, None, [0])


def test_errors_name_the_ranks_that_were_asked_for(tmp_path):
    touch(tmp_path / "model/device6/g.mindir", tmp_path / "model/device7/g.mindir", tmp_path / "model/device7/h.mindir")
    with pytest.raises(ModelError, match=r"rank 6 has 1 .* rank 7 has 2: .*device6 has no h\.mindir"):
        find_model_files(tmp_path, "s", 1, 8, None, [6, 7])
    a = tmp_path / "model/device6/g.mindir"
    with pytest.raises(ModelError, match=r"rank 7 has 1 .* where 2"):
        check_model_files([[a, a], [a]], 2, None, [6, 7])
    with pytest.raises(ModelError, match="model file of rank 7 is missing"):
        check_model_files([[a], [tmp_path / "c"]], 2, None, [6, 7])


def test_given_files_are_checked(tmp_path):
    touch(tmp_path / "a", tmp_path / "b")
    a, b = tmp_path / "a", tmp_path / "b"
    assert check_model_files([[a], [b]], 2, None) == ((a,), (b,))
    for files, ranks, subgraphs, match in (
        ([[a]], 2, None, r"for 1 rank\(s\), and the servable has 2"),
        ([[a], [a, b]], 2, None, "rank 1 has 2 .* where 1"),
        ([[a], [b]], 2, 2, "rank 0 has 1 .* where 2"),
        ([[], []], 2, None, r"rank 0 has 0 model file\(s\) \(none\)"),
        ([[a], [tmp_path / "c"]], 2, None, "model file of rank 1 is missing: .*/c"),
        ([[a], [tmp_path]], 2, None, "model file of rank 1 is missing"),
    ):
        with pytest.raises(ModelError, match=match):
            check_model_files(files, ranks, subgraphs)
