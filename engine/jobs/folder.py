"""The folder that a job is to have: whether it is free, and what an earlier one leaves in it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from ...schemas.errors import ConfigurationError
from ..claims import ClaimFolder
from .desk import MANIFEST, SPOOL
from .inputs import kind_of
from .places import Place
from .spec import Spec
from .status import LOCK, status_of
from .writers import check_results

__all__ = ["INPUT", "check_free", "clear", "forget_bodies", "results_place"]

_RESULTS: Final = {
    "jsonl": "results.jsonl",
    "npz": "results.npz",
    "npy": "results.npy",
    "parquet": "results.parquet",
}
"""The name of the results' file, by the kind of the input; a folder for all others."""

INPUT: Final = "input.jsonl"
"""Where standard input is kept."""

_OWN: Final = frozenset({MANIFEST, SPOOL, LOCK, INPUT, "errors.jsonl", "summary.json", "job.log"})


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
    for name in (*_RESULTS.values(), "errors.jsonl", "summary.json"):
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


def results_place(output: Place, name: str | None, source: Place) -> Place:
    """Where the results go.

    Args:
        output: the job's folder for results.
        name: of their file, as it was given.
        source: the input, whose kind they have where no name was given.

    Raises:
        ConfigurationError: a name that cannot be, or is taken.
    """
    if name is None:
        name = _RESULTS.get(kind_of(source), "results/")
    parts = name.rstrip("/").split("/")
    if "://" not in name and (not name.strip("/") or name.startswith("/") or not {"", ".", ".."}.isdisjoint(parts)):
        raise ConfigurationError(f"--results {name!r}: the name of a file in the job's folder, or a URL")
    if parts[0] in _OWN or parts[0].startswith(MANIFEST):
        raise ConfigurationError(f"--results {name}: the job has a file of that name itself; take another")
    place = Place(name) if "://" in name else output.within(name)
    check_results(place)
    if place.exists():
        raise ConfigurationError(f"{place} is there already: name another file")
    return place
