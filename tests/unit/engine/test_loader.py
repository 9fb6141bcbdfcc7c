"""Loading: versions, modules beside the file, errors with file and line, and nothing left behind."""

import shutil
import sys
import threading
from pathlib import Path

import pytest
from rankmq.engine.loader import files_of_ranks, load_servable
from rankmq.schemas.errors import ModelError, ServableError

from tests.unit.engine.servable_files import MODEL, ORIGINAL, WORDS, load, refused, touch, write_config, write_devices

METHOD = "@register.register_method('y')\ndef m(x):\n    return register.call_servable(x)\n"
NO_MODEL = WORDS + "@register.register_method('y')\ndef m(x):\n    return x\n"


@pytest.mark.parametrize(
    ("folders", "asked", "version"),
    [
        ([], 0, 1),
        ([], 1, 1),
        (["1"], 0, 1),
        (["1", "2", "10"], 0, 10),
        (["1", "2", "10"], 2, 2),
        (["3", "v4", "0", "05", "__pycache__"], 0, 3),
    ],
)
def test_versions(tmp_path, folders, asked, version):
    write_config(tmp_path, NO_MODEL)
    for folder in folders:
        (tmp_path / "matmul" / folder).mkdir()
    (tmp_path / "matmul" / "99").touch()
    servable = load_servable(tmp_path, "matmul", asked)
    assert (servable.version, servable.directory) == (version, tmp_path / "matmul")


@pytest.mark.parametrize(
    ("folders", "asked", "match"),
    [(["1", "2"], 3, "no version 3 .*there is: 1, 2"), ([], 2, "no version 2 .*there is: 1"), ([], -1, "not -1")],
)
def test_a_version_that_is_not_there(tmp_path, folders, asked, match):
    write_config(tmp_path, NO_MODEL)
    for folder in folders:
        (tmp_path / "matmul" / folder).mkdir()
    with pytest.raises(ServableError, match=match):
        load_servable(tmp_path, "matmul", asked)


def test_where_the_models_are_elsewhere_any_version_may_be_served(tmp_path):
    write_config(tmp_path, ORIGINAL)
    assert load_servable(tmp_path, "matmul", 5, require_models=False).version == 5


def test_versions_have_their_own_model_files(tmp_path):
    write_config(tmp_path, WORDS + "distributed.declare_servable(2, 1)\n" + METHOD)
    touch(*(tmp_path / f"matmul/{v}/device{r}/g{v}.mindir" for v in (1, 2) for r in (0, 1)))
    for asked, found in ((1, 1), (2, 2), (0, 2)):
        servable = load_servable(tmp_path, "matmul", asked)
        assert [[path.name for path in of_rank] for of_rank in servable.model_files] == [[f"g{found}.mindir"]] * 2


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc"])
def test_names_that_no_folder_has(tmp_path, name):
    with pytest.raises(ServableError, match="name of its folder"):
        load_servable(tmp_path, name)


def test_no_such_servable(tmp_path):
    with pytest.raises(ServableError, match=r"nowhere/servable_config.py: .* cannot be read: No such file"):
        load_servable(tmp_path, "nowhere")


def test_given_model_files(tmp_path):
    write_config(tmp_path, ORIGINAL)
    files = [[tmp_path / f"{r}_{i}.x" for i in range(2)] for r in range(8)]
    with pytest.raises(ModelError, match=r"model file of rank 0 is missing: .*0_0\.x"):
        load_servable(tmp_path, "matmul", model_files=files)
    touch(*(path for of_rank in files for path in of_rank))
    servable = load_servable(tmp_path, "matmul", 3, model_files=files)
    assert (servable.version, servable.subgraph_count) == (3, 2)
    assert servable.model_files == tuple(map(tuple, files))
    with pytest.raises(ModelError, match=r"for 7 rank\(s\), and the servable has 8"):
        load_servable(tmp_path, "matmul", model_files=files[:7])
    with pytest.raises(ModelError, match=r"rank 7 has 1 model file.* where 2 are needed"):
        load_servable(tmp_path, "matmul", model_files=[*files[:7], files[7][:1]])


def test_missing_model_files_are_refused_only_where_they_are_needed(tmp_path):
    write_config(tmp_path, ORIGINAL)
    with pytest.raises(ModelError, match="no model files: rank 0"):
        load_servable(tmp_path, "matmul")
    assert load_servable(tmp_path, "matmul", require_models=False).model_files is None
    write_devices(tmp_path, ranks=8, graphs=2)
    assert load_servable(tmp_path, "matmul", require_models=False).subgraph_count == 2


def test_of_ranks_elsewhere_no_files_are_needed(tmp_path):
    write_config(tmp_path, ORIGINAL)
    write_devices(tmp_path, ranks=8, graphs=2)
    whole = load_servable(tmp_path, "matmul", require_models=False)
    for rank in (0, 1, 2, 7):
        shutil.rmtree(whole.model_files[rank][0].parent)
    part = load_servable(tmp_path, "matmul", require_models=False)
    assert part.model_files is None
    expected = {rank: whole.model_files[rank] for rank in (3, 4, 6)}
    assert files_of_ranks(part, (3, 4, 6)) == files_of_ranks(whole, (3, 4, 6)) == expected
    with pytest.raises(ModelError, match="rank 2 has no model files"):
        files_of_ranks(part, (2, 3))


def test_fewer_files_than_declared_subgraphs(tmp_path):
    text = "distributed.declare_servable(2, 1, subgraphs=[distributed.subgraph(), distributed.subgraph()])\n"
    write_config(tmp_path, WORDS + text + METHOD)
    write_devices(tmp_path, ranks=2, graphs=1)
    with pytest.raises(ModelError, match=r"rank 0 has 1 model file.* where 2 are needed"):
        load_servable(tmp_path, "matmul")


@pytest.mark.parametrize(
    ("text", "match", "line"),
    [
        ("x = 1\ny = = 2\n", "SyntaxError: invalid syntax", 2),
        ("x = (\n", "SyntaxError: '\\(' was never closed", 1),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError: division by zero$", 2),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'$", 1),
        ("from rankmq.engine.register import nothing\n", "ImportError: cannot import name 'nothing'", 1),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one two$", 1),
        ("raise KeyError\n", "KeyError$", 1),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .*\(from .*json/decoder\.py:\d+\)$", 2),
        ("raise ValueError('x' * 5000)\n", r"ValueError: x+\.\.\.$", 1),
    ],
)
def test_any_error_in_the_file_is_one_line_with_its_place(tmp_path, text, match, line):
    assert len(refused(tmp_path, text, match, at=line).message) < 700


def test_a_file_that_is_no_python(tmp_path):
    file = write_config(tmp_path, "")
    for content in (b"\x00", b"# coding: nonsense\n", b"x = '\xff'\n"):
        file.write_bytes(content)
        with pytest.raises(ServableError, match=r"servable_config.py:"):
            load_servable(tmp_path, "matmul")


def test_a_file_that_registers_nothing(tmp_path):
    write_config(tmp_path, MODEL)
    with pytest.raises(ServableError, match="registers no method and no pipeline"):
        load_servable(tmp_path, "matmul", require_models=False)


def test_an_error_in_a_module_beside_it_is_told_at_the_import(tmp_path):
    write_config(tmp_path, "")
    (tmp_path / "matmul/tokens.py").write_text("\n\nraise ValueError('no vocabulary')\n")
    refused(tmp_path, "\nimport tokens\n", r"ValueError: no vocabulary \(from .*matmul/tokens\.py:3\)", at=2)
    (tmp_path / "matmul/tokens.py").write_text("x = = 1\n")
    refused(tmp_path, "\nimport tokens\n", r"SyntaxError: invalid syntax \(tokens\.py, line 1\)$", at=2)


HELPED = f"""{WORDS}
import helper, inner.deep
@register.register_method("y")
def m(x):
    return register.add_stage(helper.value, x)
"""


def write_helped(directory, name, value):
    write_config(directory, HELPED, name)
    home = directory / name
    (home / "helper.py").write_text(f"import inner.deep\ndef value(x): return inner.deep.constant() + x + {value}\n")
    (home / "inner").mkdir(exist_ok=True)
    (home / "inner/__init__.py").touch()
    (home / "inner/deep.py").write_text(f"def constant(): return {value}000\n")


def test_modules_beside_the_file_are_its_own(tmp_path):
    write_helped(tmp_path, "a", 1)
    write_helped(tmp_path, "b", 2)
    a, b = load_servable(tmp_path, "a"), load_servable(tmp_path, "b")
    assert not [name for name in sys.modules if name.partition(".")[0] in ("helper", "inner")]
    assert a.methods["m"].stages[0].function(0) == 1001
    assert b.methods["m"].stages[0].function(0) == 2002


def test_nothing_stays_behind(tmp_path):
    write_helped(tmp_path, "a", 1)
    application = type(sys)("helper")
    application.value = "the application's own"
    sys.modules["helper"] = application
    path, modules = list(sys.path), dict(sys.modules)
    try:
        servable = load_servable(tmp_path, "a")
        assert sys.path == path
        assert sys.modules == modules
        (tmp_path / "a/helper.py").write_text("raise ValueError\n")
        with pytest.raises(ServableError, match="ValueError"):
            load_servable(tmp_path, "a")
        assert sys.path == path
        assert sys.modules == modules
    finally:
        del sys.modules["helper"]
    assert servable.methods["m"].stages[0].function(0) == 1001


def test_a_module_beside_it_does_not_replace_one_of_the_standard_library(tmp_path):
    write_config(tmp_path, NO_MODEL + "import json\nassert json.loads('1') == 1\n")
    (tmp_path / "matmul/json.py").write_text("loads = None\n")
    before = sys.modules["json"]
    load_servable(tmp_path, "matmul")
    assert sys.modules["json"] is before


def test_what_the_file_adds_to_the_path_stays(tmp_path):
    added = str(tmp_path / "elsewhere")
    write_config(tmp_path, NO_MODEL + f"import sys\nsys.path.append({added!r})\n")
    try:
        load_servable(tmp_path, "matmul")
        assert added in sys.path
        assert str(tmp_path / "matmul") not in sys.path
    finally:
        sys.path.remove(added)


def test_the_file_knows_where_it_is_and_may_hold_dataclasses(tmp_path, monkeypatch):
    text = """\
from __future__ import annotations
import dataclasses, os
from rankmq.engine import register
@dataclasses.dataclass
class Settings:
    size: int = 3
here = os.path.dirname(os.path.realpath(__file__))
labels = open(os.path.join(here, "labels.txt")).read()
assert __name__ != "__main__"
@register.register_method("y")
def m(x):
    return register.add_stage(lambda x: (labels, Settings().size), x, outputs_count=2)[0]
"""
    file = write_config(tmp_path, text)
    (file.parent / "labels.txt").write_text("cat")
    monkeypatch.chdir(tmp_path)
    servable = load_servable(Path("."), "matmul")
    assert servable.methods["m"].stages[0].function(0) == ("cat", 3)
    assert servable.file == file


def test_the_same_file_twice_gives_two_servables(tmp_path):
    text = MODEL + "import itertools\ncounter = itertools.count()\ndef f(x): return next(counter)\n"
    text += "@register.register_method('y')\ndef m(x):\n    return register.add_stage(f, x)\n"
    first, second = load(tmp_path, text), load(tmp_path, text)
    assert [servable.methods["m"].stages[0].function(0) for servable in (first, first, second)] == [0, 1, 0]
    assert first.models == second.models
    assert first.models[0] is not second.models[0]


def test_a_failed_load_leaves_nothing_for_the_next(tmp_path):
    refused(tmp_path, MODEL + METHOD + "boom  # HERE\n", "NameError")
    refused(tmp_path, MODEL + METHOD.replace("servable(x)", "servable(x.T)  # HERE"), "method m")
    assert set(load(tmp_path, NO_MODEL).methods) == {"m"}


def test_a_changed_file_is_read_again(tmp_path):
    for number in range(3):
        text = NO_MODEL.replace("def m", f"def m{number}")
        assert set(load(tmp_path, text).methods) == {f"m{number}"}


def test_from_many_threads(tmp_path):
    names = [f"servable{i}" for i in range(8)]
    for number, name in enumerate(names):
        write_helped(tmp_path, name, number)
    path, loaded, start = list(sys.path), {}, threading.Barrier(len(names))

    def work(name):
        start.wait(10)
        loaded[name] = load_servable(tmp_path, name)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, name in enumerate(names):
        assert loaded[name].name == name
        assert loaded[name].methods["m"].stages[0].function(0) == number * 1001
    assert sys.path == path
