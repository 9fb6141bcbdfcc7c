"""Shared memory for tensors beside what the ranks' collectives must have, in a /dev/shm as small as Docker's own."""

import json
import os
import subprocess
import sys

import pytest

from tests.small_shm import small_shm, within

MIB = 1024 * 1024

# Of each group the orchestrator's end and all ranks', then its collectives.
GROUPS = """
import json, os, sys
from rankmq.engine.group_plane import GroupPlane
from rankmq.schemas.errors import GroupError
from rankmq.schemas.messages import Form, GroupId, Ready
from rankmq.workers.collectives import segment_name
from rankmq.workers.collectives.segment import opened
from rankmq.workers.rank_plane import RankPlane

count, epochs, ranks, collectives = map(int, sys.argv[1:])
groups = [GroupId(servable=f"s{number}", version=1) for number in range(count)]
planes = [GroupPlane(group, ranks, 64 << 20) for group in groups]
ours, told = {}, []
for epoch in range(epochs):
    for group, plane in zip(groups, planes):
        form = Form(group=group, epoch=epoch, rank=0, agent="a", results="r", peers=tuple(range(ranks)))
        form, before = plane.offer(form), ours.get(group, [])
        while before:
            before.pop().close()
        ours[group] = [RankPlane(form) for _ in range(ranks)]
        for rank, own in enumerate(ours[group]):
            plane.accept(Ready(group=group, epoch=epoch, rank=rank, agent="a", graphs=(), plane=own.name))
        writer = plane.writer()
        told.append(writer.size if writer is not None else 0)
        del writer
held = []
for group in groups:
    segment = opened(segment_name(str(group), 1), collectives)
    try:
        held.append((segment, segment.__enter__()))
    except GroupError as error:
        told.append(error.message)
print(json.dumps(told))
"""


def told(size: str, groups: int, *, epochs: int = 1, ranks: int = 8) -> list[int | str]:
    """The sizes of the orchestrator's memory, and what a group's collectives had no room for."""
    command = [sys.executable, "-c", GROUPS, str(groups), str(epochs), str(ranks), "4200000"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = within(small_shm(size), command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    found: list[int | str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_the_collectives_have_room_beside_it(ranks: int) -> None:
    assert told("64m", 1, ranks=ranks) == [16 * MIB]


def test_those_of_several_groups_have() -> None:
    assert told("64m", 3) == [16 * MIB, 8 * MIB, 4 * MIB]


def test_it_does_not_shrink_from_epoch_to_epoch() -> None:
    """The ranks still have that of the last epoch when that of the next one is made."""
    assert told("64m", 1, epochs=5) == [16 * MIB, 8 * MIB, 8 * MIB, 8 * MIB, 8 * MIB]


def test_where_there_is_hardly_any_all_of_it_is_left() -> None:
    size, message = told("3m", 1)
    assert size == 0
    assert str(message).startswith("/dev/shm has no room for the 4.2 MB that the ranks share, only 3.1 MB: ")
