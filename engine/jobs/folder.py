"""The folder that a job is to have: whether it is free, and what an earlier one leaves in it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from ...schemas.errors import ConfigurationError
from ..claims import ClaimFolder
from .desk import MANIFEST, SPOOL
from .places import Place
from .spec import Spec
from .status import status_of

__all__ = ["RESULTS", "check_free", "clear", "forget_bodies"]

RESULTS: Final = {
    "jsonl": "results.jsonl",
    "npz": "results.npz",
    "npy": "results.npy",
    "parquet": "results.parquet",
}
"""The name of the results' file, by the kind of the input; a folder for all others."""


def check_free(folder: Path, output: Place) -> bool:
    """Makes sure that a new job can have a folder.

    Args:
        folder: for its manifest.
        output: for its results.

    Returns:
        Whether a job is there that none of its rows can be sent for, and nothing was answered: it is to be cleared.

    Raises:
        ConfigurationError: it is taken, or something is in it that the job would write.
    """
    found = (folder / MANIFEST).is_file()
    if found:
        status = status_of(folder)
        if not (status.state == "failed" and status.way == "again" and status.runner is None):
            ended = status.state in ("completed", "cancelled")
            way = "" if ended else f"resume it (rankmq job resume {folder}), or "
            raise ConfigurationError(
                f"{folder} is the folder of {status.spec.id} ({status.word}), over {status.spec.source}: "
                f"{way}name another folder"
            )
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file: name a folder")
    for name in (*RESULTS.values(), "errors.jsonl", "summary.json"):
        if output.within(name).exists():
            raise ConfigurationError(f"{output.within(name)} is there already: name another folder")
    return found


def clear(folder: Path) -> None:
    """Deletes what is on record of a job; its input stays where it is."""
    forget_bodies(status_of(folder).spec)
    for name in (MANIFEST, f"{MANIFEST}-wal", f"{MANIFEST}-shm", SPOOL):
        (folder / name).unlink(missing_ok=True)


def forget_bodies(spec: Spec) -> None:
    """Deletes the bodies in memory of a runner that was killed."""
    with contextlib.suppress(OSError):
        ClaimFolder.open(spec.claims).remove()
