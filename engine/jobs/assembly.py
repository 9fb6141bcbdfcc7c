"""The results of a job, in the order of its rows, out of what is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...schemas import codec
from ...schemas.errors import JobStopped
from ...schemas.tensors import Tensor
from .desk import MANIFEST, SPOOL
from .manifest import Chunk, Manifest
from .spool import Spool

__all__ = ["Record", "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """One row's outputs.

    Attributes:
        row: its number, from 0.
        custom_id: its id.
        outputs: by name.
    """

    row: int
    custom_id: str
    outputs: dict[str, Tensor]


class Record:
    """What is on record of a job, to be read. Belongs to one thread.

    Args:
        folder: of the manifest.
        stopped: asked now and then; True ends the reading.
    """

    def __init__(self, folder: Path, stopped: Callable[[], bool] = lambda: False) -> None:
        self.manifest = Manifest(folder / MANIFEST)
        try:
            self._spool = Spool(folder / SPOOL, self.manifest.counts.end)
        except BaseException:
            self.manifest.close()
            raise
        self._stopped = stopped

    def close(self) -> None:
        """Closes its files."""
        self.manifest.close()
        self._spool.close()

    def results(self) -> Iterator[Result]:
        """The rows that have results, in their order; may be asked for more than once.

        Raises:
            JobStopped: what is on record is damaged, or it was told to stop.
        """
        for chunk in self.manifest.chunks():
            if self._stopped():
                raise JobStopped("it was told to stop while the results were put together")
            outputs = self._outputs_of(chunk)
            for row in sorted(outputs):
                yield Result(row, chunk.id_of(row), outputs[row])

    def _outputs_of(self, chunk: Chunk) -> dict[int, dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for key, count, span in self.manifest.replies(chunk):
            body = self._spool.read(span)
            kind = codec.JSON if body[:1] == b"{" else codec.MSGPACK
            outputs = codec.decode_reply(body, kind).outputs
            if outputs:
                rows = chunk.rows(key.first, count)
                found.update((row, made) for row, made in zip(rows, outputs, strict=True) if made is not None)
        return found
