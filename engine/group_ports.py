"""How a group's driver reaches the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..schemas.errors import OperatorError
from ..schemas.messages import Drain, Form, Refused, Restart, Task, Welcome
from .plane import PlaneWriter
from .step_blobs import StepWriter

if TYPE_CHECKING:
    from .driver import GroupDriver

__all__ = ["GroupPorts"]


class GroupPorts(Protocol):
    """How a group reaches the world."""

    def send_task(self, subgraph: int, tag: str, task: Task) -> None:
        """Publishes a task to the subgraph's exchange under a rank tag."""

    def send_control(self, tag: str, message: Welcome | Refused | Form | Drain | Restart) -> None:
        """Publishes a control message to the ranks that the tag reaches."""

    def plane(self) -> PlaneWriter | None:
        """The memory that is shared with all ranks of the epoch that begins; None where there is none."""

    def pump_soon(self) -> None:
        """Has `GroupDriver.pump` called when all that has come at once has been heard: it may share a step."""

    def wake_at(self, when: float) -> None:
        """Has `GroupDriver.pump` called at a time of the driver's clock."""

    def blobs(self) -> StepWriter | None:
        """For what is too large for messages in the epoch that begins; None where there is no blob store."""

    def group_ready(self, driver: GroupDriver) -> None:
        """The group serves."""

    def group_broken(self, driver: GroupDriver, reason: str) -> None:
        """The group does not serve any more, for now."""

    def group_given_up(self, driver: GroupDriver, error: OperatorError) -> None:
        """The group cannot form."""
