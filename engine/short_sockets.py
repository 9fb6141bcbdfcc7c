"""Sockets of multiprocessing: a path has 107 bytes at most, and the folder for temporary files may have a long name."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import shutil
import tempfile
from pathlib import Path

__all__ = ["keep_sockets_short"]

_LONGEST_FOLDER = 60
_SHORT = Path("/tmp")


def keep_sockets_short() -> None:
    """Has multiprocessing put its sockets elsewhere, where the folder for temporary files has a long name.

    To be called before anything of multiprocessing that needs one. The folder goes when the process ends.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # there is no other way to say it
    if config.get("tempdir") or len(tempfile.gettempdir()) <= _LONGEST_FOLDER or not _SHORT.is_dir():
        return
    folder = config["tempdir"] = tempfile.mkdtemp(prefix="rankmq-", dir=_SHORT)
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
