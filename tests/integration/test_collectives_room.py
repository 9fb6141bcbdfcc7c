"""Shared memory that cannot be had: said when the group is opened, in one line, and never as a bus error later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rankmq.schemas.errors import GroupError
from rankmq.workers.collectives import library as compiled
from rankmq.workers.collectives import segment_name
from rankmq.workers.collectives.build import find_compiler
from rankmq.workers.collectives.segment import opened

from tests.small_shm import small_shm, within

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")

RANK = """
import json, resource, sys
import numpy as np
from pathlib import Path
from rankmq.schemas.errors import GroupError
from rankmq.workers.collectives import SharedGroup, segment_name

library, limit, sizes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
group, told = SharedGroup(Path(library)), []
for size in sizes:
    try:
        group.open(segment_name("test-room", size), 0, size, 0.5)
        given = np.arange(3_000_000, dtype=np.float32)
        told.append(bool((group.all_reduce(given) == given).all()))
    except GroupError as error:
        told.append(error.message)
print(json.dumps([told, [it.name for it in Path("/dev/shm").glob("rankmq-group-test-room*")]]))
"""


def told(*sizes: int, limit: int = 0, before: str = "") -> list[bool | str]:
    """What a process is told that opens groups of these sizes by itself, under a limit and after a command."""
    command = [sys.executable, "-c", RANK, str(compiled()), str(limit), json.dumps(sizes)]
    if before:
        command = within(before, command)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, (done.returncode, done.stderr)  # -7 would be the bus error
    answers, left = json.loads(done.stdout)
    assert left == []
    assert not any("\n" in str(it) for it in answers)
    return answers


def test_a_small_file_system_has_room_for_a_small_group_only() -> None:
    """Half a megabyte for one rank, twice that for two."""
    one, two, again = told(1, 2, 1, before=small_shm("800k"))
    assert (one, again) == (True, True)
    assert two.startswith("/dev/shm has no room for the 1.1 MB that the ranks share, only 0.8 MB: make it larger")
    assert "lower plane_bytes, or set communication='mccl'" in two


def test_a_file_system_that_others_have_filled() -> None:
    before = small_shm("800k") + " && { dd if=/dev/zero of=/dev/shm/full bs=1k count=500 2>/dev/null || true; }"
    (message,) = told(1, before=before)
    assert message.startswith("/dev/shm has no room for the 0.5 MB that the ranks share, only 0.3 MB")


def test_a_limit_of_the_process() -> None:
    one, two = told(1, 2, limit=600_000)
    assert one is True
    assert "bytes of shared memory cannot be had in /dev/shm: File too large" in two


def test_no_place_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", Path("/proc")):
        with (
            pytest.raises(GroupError, match=f"{folder}/rankmq-group-.* cannot be opened"),
            opened(segment_name("g", 1), 4096, folder),
        ):
            raise AssertionError("it was opened")
