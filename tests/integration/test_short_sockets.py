"""The folder for temporary files may have a long name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing
from multiprocessing import forkserver
from rankmq.engine.short_sockets import keep_sockets_short

if __name__ == "__main__":
    keep_sockets_short()
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=print, args=("from a process",))
    process.start()
    process.join(60)
    print(multiprocessing.current_process()._config.get("tempdir"))
"""


@pytest.mark.parametrize("length", [1, 120])
def test_processes_can_talk_to_each_other(tmp_path, length):
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": path}
    said = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=100, check=True
    ).stdout.split("\n")
    assert said[0] == "from a process"
    if length > 60:
        assert Path(said[1]).parent == Path("/tmp")
        assert not Path(said[1]).exists(), "it goes with its process"
