"""Inputs as a person writes them on a command line or in a file, and outputs as files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas.errors import RankmqError
from ..schemas.plain import tensor_from_json, tensor_to_json
from ..schemas.tensors import from_array, to_array
from .report import Usage

if TYPE_CHECKING:
    from ..engine.client import Part

__all__ = ["Outputs", "named_value", "named_values", "part_text", "read_instances", "write_outputs"]

Array = np.ndarray[Any, Any]
Instance = dict[str, Any]
Outputs = Sequence[Mapping[str, Array] | None]

_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def named_value(text: str) -> tuple[str, Any]:
    """An input given as `name=VALUE`.

    VALUE is JSON (a number, text in quotes, a list, `{"dtype": ..., "shape": ..., "data": ...}`) or names a file:
    `@x.npy`, `@inputs.npz:x`, `@x.json`.

    Raises:
        Usage: it is not that; one line that says how to write it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Usage(f"--input {text}: write it as name=VALUE, for example x=[1,2] or x=@x.npy")
    return name, _of_file(name, value[1:]) if value.startswith("@") else _of_json_text(name, value)


def named_values(texts: Sequence[str]) -> dict[str, Any]:
    """Inputs given as `name=VALUE`, one after the other.

    Raises:
        Usage: one of them is not that, or has the name of one before it.
    """
    found: dict[str, Any] = {}
    for text in texts:
        if text.partition("=")[0] in found:
            raise Usage(f"--input {text}: {text.partition('=')[0]} is given already; name each input once")
        name, found[name] = named_value(text)
    return found


def read_instances(path: Path) -> tuple[list[Instance], bool]:
    """The instances in a file: a .json file with one instance or a list of them, or an .npz file with one.

    Returns:
        The instances, and whether they were a list.

    Raises:
        Usage: the file cannot be read, or holds something else.
    """
    if path.suffix == ".npz":
        with _npz(path, str(path)) as arrays:
            return [{name: _member(arrays, name, str(path)) for name in arrays.files}], False
    if path.suffix != ".json":
        raise Usage(f"--inputs {path}: a .json or an .npz file is needed")
    found = _json_file(path, f"--inputs {path}")
    rows = found if isinstance(found, list) else [found]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Usage(f'--inputs {path}: an instance is a JSON object, {{"x": ...}}; or a list of them')
    return [{name: _of_json(name, value) for name, value in row.items()} for row in rows], isinstance(found, list)


def write_outputs(path: Path, outputs: Outputs, *, as_list: bool) -> None:
    """Writes outputs to a .npz or .json file; in JSON an instance that failed is null, in .npz it is left out.

    Args:
        path: where to.
        outputs: per instance its named outputs, or None where it failed.
        as_list: of a single instance too: a JSON list, and names with the number of the instance, `0/y`.

    Raises:
        Usage: another kind of file, or one that cannot hold the outputs or be written.
    """
    try:
        if path.suffix == ".json":
            path.write_text(json_text(outputs, as_list=as_list) + "\n", encoding="utf-8")
        elif path.suffix == ".npz":
            rows = list(enumerate(outputs))
            arrays = {
                f"{index}/{name}" if as_list else name: _storable(name, array)
                for index, row in rows
                for name, array in (row or {}).items()
            }
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        else:
            raise Usage(f"--output {path}: a .json or an .npz file, or - for JSON on standard output")
    except OSError as error:
        raise Usage(f"--output {path}: {error.strerror or error}") from None


def json_text(outputs: Outputs, *, as_list: bool) -> str:
    """Outputs as JSON: one object of tensors, or a list of them."""
    rows = [
        None if row is None else {name: tensor_to_json(from_array(array)) for name, array in row.items()}
        for row in outputs
    ]
    return json.dumps(rows if as_list else rows[0], ensure_ascii=False)


def part_text(part: Part) -> str:
    """A part of an answer as one line of JSON."""
    outputs = {name: tensor_to_json(from_array(array)) for name, array in part.outputs.items()}
    fields = {"instance": part.instance, "attempt": part.attempt, "number": part.number, "outputs": outputs}
    return json.dumps(fields, ensure_ascii=False)


def _of_file(name: str, given: str) -> Any:
    where = f"input {name}"
    file, colon, member = given.partition(".npz:")
    if colon:
        with _npz(Path(file + ".npz"), where) as arrays:
            return _member(arrays, member, where)
    path = Path(given)
    match path.suffix:
        case ".npy":
            try:
                return np.load(path, allow_pickle=False)
            except _UNREADABLE as error:
                raise Usage(f"{where}: {path} cannot be read: {_why(error)}") from None
        case ".npz":
            with _npz(path, where) as arrays:
                names = arrays.files
                if len(names) == 1:
                    return _member(arrays, names[0], where)
            raise Usage(f"{where}: say which array of {path}: @{path}:NAME, one of {', '.join(names) or 'none'}")
        case ".json":
            return _of_json(name, _json_file(path, where))
        case _:
            raise Usage(f"{where}: {path} is no .npy, .npz or .json file")


def _npz(path: Path, where: str) -> Any:
    try:
        arrays = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise Usage(f"{where}: {path} cannot be read: {_why(error)}") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise Usage(f"{where}: {path} is not an .npz file")
    return arrays


def _member(arrays: Any, name: str, where: str) -> Array:
    try:
        found: Array = arrays[name]
    except KeyError:
        raise Usage(f"{where}: no array {name!r} in the file; there are: {', '.join(arrays.files)}") from None
    except _UNREADABLE as error:
        raise Usage(f"{where}: the array {name!r} cannot be read: {_why(error)}") from None
    return found


def _json_file(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Usage(f"{where}: {path} cannot be read: {_why(error)}") from None
    except (ValueError, RecursionError) as error:
        raise Usage(f"{where}: {path} is not JSON: {_why(error)}") from None


def _of_json_text(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise Usage(f"""input {name}: {shown} is not JSON; text needs quotes: -i '{name}="text"'""") from None
    return _of_json(name, value)


def _of_json(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        return to_array(tensor_from_json(value))
    except RankmqError as error:
        raise Usage(f"input {name}: {error.message}") from None


def _storable(name: str, array: Array) -> Array:
    if array.dtype.kind == "T":
        return np.array(array.tolist(), np.str_).reshape(array.shape)
    if array.dtype.kind == "O":
        raise Usage(f"output {name} is bytes, which an .npz file cannot hold: write a .json file")
    return array


def _why(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
