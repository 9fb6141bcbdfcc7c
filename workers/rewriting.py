"""A model file as it is loaded where the ranks talk through shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .collectives import rewrite
from .executor import read_model_file

__all__ = ["Rewriting"]


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What the collectives of a rank's graphs become.

    Attributes:
        library: the compiled library.
        size: number of ranks.
    """

    library: Path
    size: int

    @contextmanager
    def source(self, file: Path, parse: Callable[[bytes], Any]) -> Iterator[Path]:
        """The file to load: the model file, or for a while one elsewhere whose collectives are those of the library.

        Args:
            file: the model file.
            parse: makes a ModelProto of its content.

        Raises:
            ModelError: it is missing or may not be read.
            CollectivesUnavailable: a collective that the library does not have.
        """
        model = parse(read_model_file(file)[0])
        if not rewrite(model, self.library, self.size):
            yield file
            return
        with tempfile.TemporaryDirectory(prefix="rankmq-") as folder:
            changed = Path(folder) / file.name
            changed.write_bytes(model.SerializeToString())
            for name in {it.external_data.location for it in model.graph.parameter if it.HasField("external_data")}:
                _link(file.parent / name, Path(folder) / name)
            yield changed


def _link(file: Path, other: Path) -> None:
    """The same file under another name, or a copy: MindSpore takes weights from the model file's folder alone."""
    other.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), other)
    except OSError:
        shutil.copyfile(file, other)
