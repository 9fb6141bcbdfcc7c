"""A job's results as a file, of the kind that its name says. Written at the end, from the first row to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import msgspec.json

from ...schemas.errors import ConfigurationError
from ...schemas.plain import tensor_to_json
from ...schemas.tensors import Tensor
from .assembly import Result
from .manifest import Failure
from .places import Place

__all__ = ["Results", "check_results", "write_errors", "write_results"]

Results = Callable[[], Iterator[Result]]
"""The results, from the first row on, as often as it is called."""

_FILE_BUFFER: Final = 1 << 20
_encode = msgspec.json.Encoder().encode


class _Write(Protocol):
    def __call__(self, place: Place, results: Results) -> None: ...


def _writer(place: Place, *, base64: bool) -> _Write:
    from . import write_arrays, write_parquet

    match place.suffix:
        case ".jsonl" | ".ndjson":
            return lambda place, results: _write_lines(place, _lines(results(), base64=base64))
        case ".npz":
            return write_arrays.write_npz
        case ".npy":
            return write_arrays.write_npy
        case "/":
            return write_arrays.write_folder
        case ".parquet":
            write_parquet.check()
            return write_parquet.write_parquet
        case _:
            raise ConfigurationError(
                f"results in {place}: what kind of file is it? Known are .jsonl, .npz, .npy, .parquet, and a folder, "
                "whose name ends with /"
            )


def check_results(place: Place) -> None:
    """Whether results can be written there: what would fail at the end must fail before the start.

    Raises:
        ConfigurationError: they cannot.
    """
    _writer(place, base64=False)


def write_results(place: Place, results: Results, *, base64: bool = False) -> None:
    """Writes results; the same ones give the same bytes.

    Args:
        place: where.
        results: see `Results`.
        base64: tensors in JSON lines have dtype, shape and base64, and are no nested lists.

    Raises:
        JobStopped: no space left, or results of a kind that such a file cannot hold.
    """
    _writer(place, base64=base64)(place, results)


def write_errors(place: Place, failures: Iterable[Failure]) -> None:
    """Writes a line for each row that failed: custom_id, row, code, message.

    Raises:
        JobStopped: no space left.
    """
    _write_lines(
        place,
        (
            _encode({"custom_id": it.custom_id, "row": it.row, "code": it.code, "message": it.message})
            for it in failures
        ),
    )


def _write_lines(place: Place, lines: Iterable[bytes]) -> None:
    with place.writing() as file:
        held: list[bytes] = []
        size = 0
        for line in lines:
            held += (line, b"\n")
            size += len(line) + 1
            if size >= _FILE_BUFFER:
                file.write(b"".join(held))
                held, size = [], 0
        file.write(b"".join(held))


def _lines(results: Iterable[Result], *, base64: bool) -> Iterator[bytes]:
    for it in results:
        outputs = {name: _json_of(tensor, base64=base64) for name, tensor in it.outputs.items()}
        yield _encode({"custom_id": it.custom_id, "outputs": outputs})


def _json_of(tensor: Tensor, *, base64: bool) -> object:
    """Nested lists, or a bare value; a map of dtype, shape and data where JSON has no word for a number."""
    if base64 and isinstance(tensor.data, memoryview):
        return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": bytes(tensor.data)}
    told = tensor_to_json(tensor)
    finite = not isinstance(told["data"], str) or tensor.dtype == "string"
    return told["data"] if finite and tensor.dtype != "bytes" else told
