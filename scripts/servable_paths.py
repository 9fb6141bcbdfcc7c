"""From the paths on a command line to servables that are loaded and checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..engine.loader import CONFIGURATION_FILE, load_servable
from ..engine.servable import Servable
from ..schemas.errors import ModelError, ServableError
from .report import Usage

__all__ = ["expand", "find_servables", "load_servables", "parse_ranks"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MOST_RANKS = 4096


def find_servables(paths: Sequence[Path]) -> list[Path]:
    """The servables' folders among paths: each is one itself, or has some in it.

    Raises:
        ServableError: a path without a servable, or a folder whose name cannot be a servable's.
    """
    found: dict[Path, None] = {}
    for path in paths:
        path = path.absolute()
        if (path / CONFIGURATION_FILE).is_file():
            homes = [path]
        else:
            homes = sorted(it.parent for it in path.glob(f"*/{CONFIGURATION_FILE}"))
        if not homes:
            what = "no such folder" if not path.exists() else f"no {CONFIGURATION_FILE} in it, nor in a folder of it"
            raise ServableError(what, file=str(path))
        found.update(dict.fromkeys(homes))
    for home in found:
        if not _NAME.fullmatch(home.name):
            raise ServableError(
                "a servable has the name of its folder: letters, digits, _ and -, not first a digit, 64 at most",
                file=str(home),
            )
    return list(found)


def load_servables(
    paths: Sequence[Path], version: int, *, model_files: Sequence[str] = (), require_models: bool = True
) -> list[Servable]:
    """Loads all servables among paths, and checks them.

    Args:
        paths: see `find_servables`.
        version: of each; 0 is the newest.
        model_files: a file per subgraph, `{rank}` in it for the rank; only where there is one servable.
        require_models: every rank's model files must be there.

    Raises:
        ServableError: a configuration is wrong; with file and line.
        ModelError: a model file is missing.
    """
    homes = find_servables(paths)
    if model_files and len(homes) > 1:
        names = ", ".join(home.name for home in homes)
        raise ServableError(f"--model-files says nothing about which servable it is for: there are {names}")
    loaded = []
    for home in homes:
        given = None
        if model_files:
            ranks = load_servable(home.parent, home.name, version, require_models=False).rank_size
            given = list(expand(model_files, range(ranks)).values())
        loaded.append(load_servable(home.parent, home.name, version, model_files=given, require_models=require_models))
    return loaded


def expand(patterns: Sequence[str], ranks: Collection[int]) -> dict[int, list[Path]]:
    """The files of ranks: each pattern with the rank for its `{rank}`.

    Raises:
        ModelError: several ranks, and a pattern that gives them all the same file.
    """
    for pattern in patterns:
        if "{rank}" not in pattern and len(ranks) > 1:
            raise ModelError(f"--model-files {pattern}: put {{rank}} where the rank's number stands")
    return {rank: [Path(pattern.replace("{rank}", str(rank))) for pattern in patterns] for rank in ranks}


def parse_ranks(text: str) -> tuple[int, ...]:
    """Ranks as `0-7`, `0,2,5` or `0-3,6`; ascending.

    Raises:
        Usage: it is not that, or names a rank twice.
    """
    ranks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or len(ranks) + last - first >= _MOST_RANKS:
            raise Usage(f"--ranks {text}: write them as 0-7 or 0,2,5")
        ranks += range(first, last + 1)
    if len(set(ranks)) < len(ranks):
        raise Usage(f"--ranks {text}: a rank is named twice")
    return tuple(sorted(ranks))
