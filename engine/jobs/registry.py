"""Which jobs there are on this machine: a small file for each, which says in which folder it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ...schemas.errors import ConfigurationError
from .desk import MANIFEST

__all__ = ["find_job", "forget_job", "jobs_below", "known_jobs", "remember_job"]

_FOLDER = "jobs"
_DEEPEST = 6


def remember_job(state: Path, job: str, folder: Path) -> None:
    """Takes down where a job is; a state folder that cannot be written is no reason not to run it."""
    with contextlib.suppress(OSError):
        (state / _FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in [it for it, path in known_jobs(state) if path == folder and it != job]:  # it had the folder before
            forget_job(state, other)
        draft = state / _FOLDER / f".{job}"
        draft.write_text(json.dumps({"folder": str(folder)}), encoding="utf-8")
        draft.replace(state / _FOLDER / f"{job}.json")


def forget_job(state: Path, job: str) -> None:
    """Strikes it out."""
    with contextlib.suppress(OSError):
        (state / _FOLDER / f"{job}.json").unlink()


def known_jobs(state: Path) -> Iterator[tuple[str, Path]]:
    """The jobs that were taken down, and are there still: id and folder."""
    for file in sorted((state / _FOLDER).glob("*.json")):
        try:
            folder = Path(json.loads(file.read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (folder / MANIFEST).is_file():
            yield file.stem, folder


def jobs_below(folder: Path) -> Iterator[Path]:
    """The folders of jobs below a folder, itself included, some levels deep."""
    for path, folders, files in os.walk(folder):
        if MANIFEST in files:
            yield Path(path)
        if len(Path(path).relative_to(folder).parts) >= _DEEPEST:
            folders.clear()
        folders.sort()


def find_job(given: str, state: Path) -> Path:
    """The folder of a job, by its folder or its id.

    Raises:
        ConfigurationError: there is no such job.
    """
    if (Path(given) / MANIFEST).is_file():
        return Path(given).absolute()
    found = [folder for job, folder in known_jobs(state) if job == given]
    if not found:
        raise ConfigurationError(f"{given}: neither the folder of a job nor the id of one; see rankmq job list")
    return found[0]
