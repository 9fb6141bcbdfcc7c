"""An orchestrator's end of the shared memory of a group, with the ranks': used by all, or given back, and told once."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator

import pytest
from msgspec import structs
from rankmq.engine import shared_file
from rankmq.engine.group_plane import GroupPlane
from rankmq.engine.shared_file import FOLDER, SharedFile
from rankmq.schemas.messages import Form, Ready
from rankmq.workers.rank_plane import RankPlane

from tests.unit.engine.group_life import GROUP, ready

MIB = 1024 * 1024
RANKS = 3


class Group:
    """Both ends, epoch by epoch; those of the ranks do not know of each other."""

    def __init__(self, nbytes: int = MIB) -> None:
        self.plane = GroupPlane(GROUP, RANKS, nbytes)
        self.ranks: list[RankPlane] = []
        self.epoch = 0

    def form(self) -> Form:
        """Begins an epoch."""
        self.epoch += 1
        form = Form(group=GROUP, epoch=self.epoch, rank=0, agent="a0", results="r", peers=tuple(range(RANKS)))
        return self.plane.offer(form)

    def joins(self, rank: int, form: Form) -> None:
        own = RankPlane(form)
        self.ranks.append(own)
        self.says(rank, plane=own.name, no_plane=own.why_not)

    def says(self, rank: int, **fields: str) -> None:
        message: Ready = structs.replace(ready(rank, self.epoch), **fields)
        self.plane.accept(message)

    def close(self) -> None:
        self.plane.close()
        for rank in self.ranks:
            rank.close()


@pytest.fixture
def group() -> Iterator[Group]:
    found = Group()
    yield found
    found.close()


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody makes anything more."""

    def fallocate(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_file.os, "posix_fallocate", fallocate)
        yield


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if "no shared memory with" in it.getMessage()]


def names() -> set[str]:
    return {path.name for path in FOLDER.glob(f"rankmq-plane-{os.getpid()}-*")}


def test_it_is_used_where_all_have_it_and_leaves_no_names(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = names()
    form = group.form()
    assert form.plane in names() - before
    for rank in range(RANKS):
        assert group.plane.writer() is None
        group.joins(rank, form)
    writer = group.plane.writer()
    assert writer is not None
    assert writer.size == MIB
    assert names() == before
    assert told(caplog) == []


@pytest.mark.usefixtures("no_room")
def test_where_the_orchestrator_has_no_room_it_says_so_once(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert group.form().plane == ""
        for rank in range(RANKS):
            group.says(rank)
        assert group.plane.writer() is None
    (line,) = told(caplog)
    assert line == (
        "no shared memory with matmul.v1.g0: /dev/shm has no room: make it larger (docker run --shm-size=1g), "
        "or lower plane_bytes; tensors go through the broker"
    )


def test_a_rank_without_room_is_not_taken_for_one_on_another_host(
    group: Group, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        form = group.form()
        group.joins(0, form)
        with monkeypatch.context() as patch:
            patch.setattr(shared_file, "share_of", lambda *_: 0)
            group.joins(1, form)
        group.joins(2, form)  # which still finds the orchestrator's
        assert group.ranks[-1].name
        assert group.plane.writer() is None
    (line,) = told(caplog)
    assert line.startswith("no shared memory with rank 1 of matmul.v1.g0: /dev/shm has no room: ")


def test_a_rank_on_another_host_is_and_once_in_a_group(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for epoch in range(3):
        form = group.form()
        elsewhere = structs.replace(form, plane="rankmq-plane-1-nobodys")
        for rank in range(RANKS):
            group.joins(rank, elsewhere if rank != epoch else form)
        assert group.plane.writer() is None
    (line,) = told(caplog)
    assert line == (
        "no shared memory with rank 1, 2 of matmul.v1.g0: on another host, or in another container; "
        "tensors go through the broker"
    )


def test_each_reason_is_told(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    group.form()
    group.says(0, no_plane="Permission denied")
    group.says(1)
    group.says(2, plane="rankmq-plane-1-nobodys")
    assert group.plane.writer() is None
    assert [line.split(": ")[:2] for line in told(caplog)] == [
        ["no shared memory with rank 0 of matmul.v1.g0", "Permission denied; tensors go through the broker"],
        ["no shared memory with rank 1 of matmul.v1.g0", "it has none; tensors go through the broker"],
        [
            "no shared memory with rank 2 of matmul.v1.g0",
            "on another host, or in another container; tensors go through the broker",
        ],
    ]


def test_memory_that_is_not_used_is_given_back_at_once(group: Group) -> None:
    """Though ranks still have it open; the names of all are gone."""
    before = names()
    form = group.form()
    ours = SharedFile.open(form.plane)
    assert _taken(ours) == MIB
    for rank in range(RANKS - 1):
        group.joins(rank, form)
    group.says(RANKS - 1, no_plane="no room")
    assert group.plane.writer() is None
    assert _taken(ours) == 0
    assert names() == before
    ours.close()


def _taken(file: SharedFile) -> int:
    return os.fstat(file._file).st_blocks * 512


@pytest.mark.parametrize("nbytes", [1, 4096, MIB - 1, MIB, 3 * MIB + 7])
def test_it_has_the_size_that_is_set(nbytes: int) -> None:
    group = Group(nbytes)
    form = group.form()
    for rank in range(RANKS):
        group.joins(rank, form)
    writer = group.plane.writer()
    assert writer is not None
    assert writer.size == nbytes
    assert all(rank.name for rank in group.ranks)
    group.close()


def test_none_is_none() -> None:
    group = Group(0)
    before = names()
    assert group.form().plane == ""
    assert names() == before
