"""Where the model files of a servable are: one per rank and subgraph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ..schemas.errors import ModelError

__all__ = ["ModelFiles", "check_model_files", "find_model_files", "natural_key", "versions_of"]

ModelFiles: TypeAlias = tuple[tuple[Path, ...], ...]
"""Per rank, per subgraph."""

_RANK_FOLDERS = ("device{rank}", "rank_{rank}")
_SUFFIXES = (".mindir", ".npz")


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """A key that sorts names as people do: matmul_2 before matmul_10, capitals beside small letters."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if index % 2 else part.lower() for index, part in enumerate(parts)), name


def versions_of(home: Path) -> tuple[int, ...]:
    """The versions that a servable's folder has numbered sub-folders for, ascending.

    Args:
        home: the servable's folder.
    """
    names = [entry.name for entry in home.iterdir() if entry.is_dir()]
    return tuple(sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]*", name)))


def find_model_files(
    directory: Path,
    name: str,
    version: int,
    rank_size: int,
    patterns: Sequence[str] | None,
    ranks: Sequence[int] | None = None,
) -> ModelFiles:
    """Find the model files of every rank, or of some.

    Without patterns they are the *.mindir files (or *.npz, for the numpy executor), in natural order, of the folders
    `device<r>` or `rank_<r>` in `<name>/<version>`; where there is no such version folder, in `<name>/model` or
    `<directory>/model`. A servable
    of one rank may have them in these folders themselves.

    Args:
        directory: the folder that holds the servable's folder.
        name: the servable's name.
        version: its version, from 1.
        rank_size: how many ranks the servable has.
        patterns: a file name per subgraph, relative to the version folder, the servable's folder or its parent, or to a
            rank's folder; `{rank}` in it stands for the rank. None: by convention.
        ranks: whose files to find, in this order; those of the others need not be here. None: all.

    Raises:
        ModelError: a rank has no file, or not as many as the others; names the rank and the file.
    """
    home = directory / name
    roots = [home / str(version)]
    if not roots[0].is_dir():
        roots += [home / "model", directory / "model"]
    ranks = range(rank_size) if ranks is None else ranks
    try:
        if patterns is None:
            return _by_convention(roots, ranks, rank_size)
        places = [home / str(version), home, directory]
        return tuple(
            tuple(_by_pattern(roots, places, pattern, number, rank) for number, pattern in enumerate(patterns))
            for rank in ranks
        )
    except OSError as error:
        raise ModelError(f"the model files of {name} cannot be read: {error}") from error


def check_model_files(
    files: Sequence[Sequence[Path]], rank_size: int, subgraphs: int | None, ranks: Sequence[int] | None = None
) -> ModelFiles:
    """Check files that were given.

    Args:
        files: per rank, per subgraph.
        rank_size: how many ranks there must be.
        subgraphs: how many subgraphs there must be; None: as many as the first rank has.
        ranks: whose files they are, for messages; None: of ranks 0, 1 and so on.

    Raises:
        ModelError: a rank or a file is missing, or there are too many; names the rank and the file.
    """
    if len(files) != rank_size:
        raise ModelError(f"model files are given for {len(files)} rank(s), and the servable has {rank_size}")
    for rank, of_rank in zip(range(rank_size) if ranks is None else ranks, files, strict=True):
        expected = len(files[0]) if subgraphs is None else subgraphs
        if len(of_rank) != expected or not of_rank:
            names = ", ".join(str(path) for path in of_rank) or "none"
            raise ModelError(f"rank {rank} has {len(of_rank)} model file(s) ({names}) where {expected} are needed")
        for path in of_rank:
            if not path.is_file():
                raise ModelError(f"the model file of rank {rank} is missing: {path}")
    return tuple(tuple(of_rank) for of_rank in files)


def _by_pattern(roots: Sequence[Path], places: Sequence[Path], pattern: str, subgraph: int, rank: int) -> Path:
    file = pattern.replace("{rank}", str(rank))
    folders = [root / folder.replace("{rank}", str(rank)) for root in roots for folder in _RANK_FOLDERS]
    candidates = [folder / file for folder in [*folders, *places]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(str(place) for place in places)
    raise ModelError(f"rank {rank} has no file for subgraph {subgraph}: no {file} in {looked}, nor in a rank's folder")


def _by_convention(roots: Sequence[Path], ranks: Sequence[int], rank_size: int) -> ModelFiles:
    for root in roots:
        for folder in _RANK_FOLDERS:
            folders = {rank: root / folder.replace("{rank}", str(rank)) for rank in ranks}
            if any(path.is_dir() for path in folders.values()):
                return _of_folders(folders)
        if rank_size == 1 and _graphs(root):
            return (_graphs(root),)
    looked = " or ".join(str(root) for root in roots)
    first = next(iter(ranks), 0)
    raise ModelError(
        f"no model files: rank {first} has no folder device{first} or rank_{first} with .mindir files in {looked}"
    )


def _of_folders(folders: Mapping[int, Path]) -> ModelFiles:
    files = {rank: _graphs(folder) for rank, folder in folders.items()}
    other, fullest = max(files.items(), key=lambda item: len(item[1]))
    for rank, of_rank in files.items():
        folder = folders[rank]
        if not of_rank:
            missing = f"no .mindir files in {folder}" if folder.is_dir() else f"no folder {folder}"
            raise ModelError(f"rank {rank} has no model files: there is {missing}")
        if len(of_rank) < len(fullest):
            lacking = [path.name for path in fullest if path.name not in {own.name for own in of_rank}]
            raise ModelError(
                f"rank {rank} has {len(of_rank)} model file(s) and rank {other} has {len(fullest)}: "
                f"{folder} has no {', '.join(lacking)}"
            )
    return tuple(files.values())


def _graphs(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    files = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return tuple(sorted(files, key=lambda path: natural_key(path.name)))
