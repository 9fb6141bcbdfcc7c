"""Inputs as they are written on a command line, and outputs as files."""

import json
import math

import numpy as np
import pytest
from rankmq.schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16
from rankmq.scripts.report import Usage
from rankmq.scripts.show import first_values, human_bytes, shape_of
from rankmq.scripts.values import json_text, named_value, named_values, read_instances, write_outputs


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("x=1", "x", 1),
        ("x=-1.5e3", "x", -1500.0),
        ("x=[[1,2],[3,4]]", "x", [[1, 2], [3, 4]]),
        ('x="a=b"', "x", "a=b"),
        ("x=true", "x", True),
        ("a_b= 3 ", "a_b", 3),
    ],
)
def test_json_stays_without_a_dtype(text, name, value):
    assert named_value(text) == (name, value)


def test_a_json_tensor_has_its_dtype():
    name, value = named_value('x={"dtype":"int8","shape":[2,2],"data":[[1,2],[3,4]]}')
    assert name == "x"
    assert value.dtype == np.int8
    assert value.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "write it as name=VALUE"),
        ("=1", "write it as name=VALUE"),
        ("x=hello", """-i 'x="text"'"""),
        ("x=", "is not JSON"),
        ("x=[1,2", "is not JSON"),
        ('x={"dtype":"int8"}', "input x: a tensor needs"),
        ('x={"dtype":"complex64","data":[1]}', "input x: dtype 'complex64' is not one of"),
        ("x=@nowhere.npy", "input x: nowhere.npy cannot be read: No such file"),
        ("x=@nowhere.npz:a", "input x: nowhere.npz cannot be read"),
        ("x=@nowhere.txt", "no .npy, .npz or .json file"),
        ("x=@nowhere.json", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(text, says):
    with pytest.raises(Usage) as caught:
        named_value(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_input_is_given_once():
    assert named_values(["x=1", "y=2"]) == {"x": 1, "y": 2}
    with pytest.raises(Usage, match=r"--input x=B: x is given already; name each input once") as caught:
        named_values(["x=1", "y=2", "x=B"])
    assert "\n" not in str(caught.value)


def test_arrays_come_from_files(tmp_path):
    x, y = np.arange(6, dtype=np.int16).reshape(2, 3), np.ones(2, np.float64)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    np.savez(tmp_path / "one.npz", y=y)
    (tmp_path / "x.json").write_text('{"dtype": "int16", "data": [[0, 1, 2], [3, 4, 5]]}')
    for text in ("x.npy", "both.npz:x", "x.json"):
        _, found = named_value(f"i=@{tmp_path / text}")
        assert found.dtype == np.int16
        assert np.array_equal(found, x)
    assert np.array_equal(named_value(f"i=@{tmp_path / 'one.npz'}")[1], y)
    with pytest.raises(Usage, match=r"say which array .* one of x, y"):
        named_value(f"i=@{tmp_path / 'both.npz'}")
    with pytest.raises(Usage, match="no array 'z' in the file; there are: x, y"):
        named_value(f"i=@{tmp_path / 'both.npz'}:z")


def test_no_file_can_bring_code(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    for text in ("evil.npy", "evil.npz:x"):
        with pytest.raises(Usage, match="cannot be read"):
            named_value(f"x=@{tmp_path / text}")


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00garbage"])
def test_a_damaged_file_is_a_message(tmp_path, content):
    for name in ("x.npy", "x.npz", "x.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Usage, match=r"cannot be read|is not JSON|not an .npz"):
            named_value(f"x=@{tmp_path / name}")


def test_instances_from_json(tmp_path):
    file = tmp_path / "in.json"
    file.write_text('{"x": [1, 2], "t": {"dtype": "int8", "data": [3]}}')
    rows, as_list = read_instances(file)
    assert not as_list
    assert rows[0]["x"] == [1, 2]
    assert rows[0]["t"].dtype == np.int8
    file.write_text('[{"x": 1}, {"x": 2}]')
    assert read_instances(file) == ([{"x": 1}, {"x": 2}], True)


def test_instances_from_npz(tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros(3), y=np.ones(2, np.int8))
    rows, as_list = read_instances(tmp_path / "in.npz")
    assert not as_list
    assert [sorted(row) for row in rows] == [["x", "y"]]
    assert rows[0]["y"].dtype == np.int8


@pytest.mark.parametrize("text", ["[]", "3", '[{"x": 1}, 2]', "{", ""])
def test_what_holds_no_instances_is_refused(tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(Usage, match="--inputs"):
        read_instances(tmp_path / "in.json")


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(Usage, match=r"a \.json or an \.npz"):
        read_instances(tmp_path / "in.csv")
    with pytest.raises(Usage, match=r"a \.json or an \.npz"):
        write_outputs(tmp_path / "out.csv", [{"y": np.zeros(1)}], as_list=False)


ROW = {"y": np.array([[1.5, math.inf]], np.float32), "n": np.array(7, np.int64), "t": np.array(["ä", "b"])}


def test_npz_gives_back_what_was_written(tmp_path):
    write_outputs(tmp_path / "out.npz", [ROW], as_list=False)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["n", "t", "y"]
        assert np.array_equal(found["y"], ROW["y"])
        assert found["n"][()] == 7
        assert found["t"].tolist() == ["ä", "b"]


def test_several_instances_in_npz_are_numbered_and_failed_ones_left_out(tmp_path):
    write_outputs(tmp_path / "out.npz", [{"y": np.zeros(1)}, None, {"y": np.ones(1)}], as_list=True)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["0/y", "2/y"]
        assert found["2/y"].tolist() == [1.0]


def test_text_of_numpy_goes_into_npz_and_bytes_do_not(tmp_path):
    strings = np.array(["a", "bcd"], np.dtypes.StringDType())
    write_outputs(tmp_path / "out.npz", [{"t": strings}], as_list=False)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found["t"].tolist() == ["a", "bcd"]
    binary = np.empty(1, object)
    binary[0] = b"\x00"
    with pytest.raises(Usage, match="output b is bytes"):
        write_outputs(tmp_path / "out.npz", [{"b": binary}], as_list=False)


def test_json_is_what_infer_takes_as_inputs(tmp_path):
    write_outputs(tmp_path / "out.json", [ROW, None], as_list=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found[1] is None
    (tmp_path / "in.json").write_text(json.dumps(found[:1]))
    rows, _ = read_instances(tmp_path / "in.json")
    assert rows[0]["y"].dtype == np.float32
    assert np.array_equal(rows[0]["y"], ROW["y"])
    assert rows[0]["n"] == 7
    assert json.loads(json_text([ROW], as_list=False)).keys() == ROW.keys()


def test_an_unwritable_place_is_a_message(tmp_path):
    with pytest.raises(Usage, match="No such file"):
        write_outputs(tmp_path / "nowhere" / "out.json", [{"y": np.zeros(1)}], as_list=False)


def test_values_are_shown_in_short():
    assert first_values(np.arange(3)) == "0, 1, 2"
    assert first_values(np.arange(9)) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
    assert first_values(np.array(2.5, np.float32)) == "2.5"
    assert first_values(np.zeros((0, 3))) == ""
    brain = float32_to_bfloat16(np.array([1.0, -2.0], np.float32))
    assert brain.dtype == BFLOAT16
    assert first_values(brain) == "1, -2"
    assert np.array_equal(bfloat16_to_float32(brain), [1, -2])
    assert len(first_values(np.array(["x" * 500]))) < 80
    assert shape_of(np.zeros((128, 16))) == "128 x 16"
    assert shape_of(np.array(1)) == "scalar"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (44_900_000, "44.9 MB"), (5e12, "5e+03 GB")])
def test_bytes_are_shown_in_short(count, text):
    assert human_bytes(count) == text
