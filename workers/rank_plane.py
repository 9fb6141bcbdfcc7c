"""A rank's end of the shared memory of its group: it reads what the orchestrator wrote, and writes its own results."""

from __future__ import annotations

import logging

from msgspec import structs

from ..engine.plane import PlaneReader, ResultWriter
from ..engine.shared_file import SharedFile, why_not
from ..schemas.errors import LockstepError
from ..schemas.messages import Form, RankReply, Task

__all__ = ["RankPlane"]

log = logging.getLogger(__name__)

_LEAST_BYTES = 64 * 1024
"""What is worth having, unless less is wanted."""


class RankPlane:
    """The memory of one epoch; none where the orchestrator offered none, is on another host, or there is no room.

    Args:
        form: what the orchestrator said when the group formed.

    Attributes:
        why_not: why there is none, for the orchestrator; "" where it offered none.
    """

    def __init__(self, form: Form) -> None:
        self.epoch = form.epoch
        self.why_not = ""
        self._theirs: SharedFile | None = None
        self._own: SharedFile | None = None
        if not form.plane:
            return
        try:
            self._theirs = SharedFile.open(form.plane)
            ranks = max(1, len(form.peers) * form.stages)
            self._own = SharedFile.make(form.plane_bytes, least=min(_LEAST_BYTES, form.plane_bytes), among=ranks)
        except OSError as error:
            self.why_not = why_not(error)
            log.debug("no shared memory with the orchestrator: %s", self.why_not)  # which says it once
            self.close()
            return
        self._reader = PlaneReader(self._theirs.memory)
        self._writer = ResultWriter(self._own.memory, form.window)

    @property
    def name(self) -> str:
        """The name of this rank's own memory, which the orchestrator takes away; "" where there is none."""
        return self._own.name if self._own is not None else ""

    def filled(self, task: Task) -> Task:
        """A task with all its tensors, as views of the shared memory.

        Raises:
            LockstepError: it speaks of memory that this rank does not have.
        """
        if not any(column.placed for column in task.inputs):
            return task
        if self._theirs is None or task.epoch != self.epoch:
            raise LockstepError(f"step {task.step} of epoch {task.epoch} speaks of shared memory that is not open here")
        return structs.replace(task, inputs=self._reader.columns(task.inputs, copy=False))

    def placed(self, reply: RankReply) -> RankReply:
        """A reply as it is to be sent: what is large is in the shared memory, where there is room."""
        if self._own is None or reply.epoch != self.epoch or not reply.outputs:
            return reply
        return structs.replace(reply, outputs=self._writer.put(reply.step, reply.outputs))

    def close(self) -> None:
        """Lets go of it."""
        for file in (self._theirs, self._own):
            if file is not None:
                file.close()
        self._theirs = self._own = None
