"""Shared memory by name: found by who is told it, gone with the last of them, swept up after those who were killed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rankmq.engine import shared_file
from rankmq.engine.shared_file import SharedFile

DEV = str(Path(__file__).parents[3] / ".dev")


def test_two_see_the_same_memory(tmp_path):
    one = SharedFile.make(4096, least=4096, folder=tmp_path)
    other = SharedFile.open(one.name, tmp_path)
    one.memory[10:13] = b"abc"
    assert bytes(other.memory[10:13]) == b"abc"
    assert (one.size, other.size) == (4096, 4096)
    one.unlink()
    assert not list(tmp_path.iterdir())
    other.memory[10:13] = b"xyz"
    assert bytes(one.memory[10:13]) == b"xyz"
    for file in (one, other, one):
        file.close()


@pytest.mark.parametrize("name", ["", "rankmq-plane-1-none", "passwd", "rankmq-plane-/../../etc/passwd", "../x"])
def test_a_name_that_is_none_of_ours_is_not_opened(tmp_path, name):
    with pytest.raises(OSError, match=r"none|not the name|No such"):
        SharedFile.open(name, tmp_path)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    (tmp_path / "rankmq-plane-1-link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        SharedFile.open("rankmq-plane-1-link", tmp_path)


def test_what_the_killed_have_left_is_swept_up_and_nothing_else(tmp_path):
    killed = f"""
import os, sys
sys.path.insert(0, {DEV!r})
from pathlib import Path
from rankmq.engine.shared_file import SharedFile
SharedFile.make(4096, least=4096, folder=Path({str(tmp_path)!r}))
os.kill(os.getpid(), 9)
"""
    living = SharedFile.make(4096, least=4096, folder=tmp_path)
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    (tmp_path / "somebody-elses").write_bytes(b"")
    left = {path.name for path in tmp_path.iterdir()} - {living.name, "somebody-elses"}
    assert len(left) == 1
    new = SharedFile.make(4096, least=4096, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, "somebody-elses", new.name}
    for file in (living, new):
        file.close()


def test_where_there_is_less_room_it_is_smaller(tmp_path, monkeypatch):
    def fallocate(file, offset, size):
        if size > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.ftruncate(file, size)

    monkeypatch.setattr(shared_file.os, "posix_fallocate", fallocate)
    file = SharedFile.make(32_768, least=4096, folder=tmp_path)
    assert file.size == 8192
    file.close()
    with pytest.raises(OSError, match="No space left"):
        SharedFile.make(32_768, least=16_384, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_who_has_made_it_takes_its_name_away(tmp_path):
    one = SharedFile.make(4096, least=4096, folder=tmp_path)
    for _ in range(2):
        SharedFile.open(one.name, tmp_path).close()  # there for the next one as well
    one.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("among", [1, 8])
def test_it_leaves_room_for_others(tmp_path, monkeypatch, among):
    monkeypatch.setattr(shared_file, "_free", lambda folder: 64 * 4096)
    file = SharedFile.make(64 * 4096, least=4096, among=among, folder=tmp_path)
    assert file.size == 16 * 4096 // among
    file.close()
    with pytest.raises(OSError, match="No space left"):
        SharedFile.make(64 * 4096, least=17 * 4096, folder=tmp_path)
    assert not list(tmp_path.iterdir())
