"""A driver, and ranks that compute with numpy in memory: every message is delivered when the test says so.

What crosses between them goes through the codec, in the order that AMQP promises and in no other: first in, first out
from one sender to one queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from rankmq.engine.driver import GroupDriver, RowResult
from rankmq.engine.group import Group, GroupRules, GroupState
from rankmq.engine.servable import Method
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas import codec
from rankmq.schemas.errors import LockstepError, OperatorError, RankmqError
from rankmq.schemas.messages import (
    Column,
    Drain,
    ErrorInfo,
    Form,
    RankReply,
    Refused,
    Repeat,
    Restart,
    Task,
    Welcome,
)
from rankmq.schemas.tensors import from_array, to_array
from rankmq.workers.lockstep import LockstepGuard, Step
from rankmq.workers.repeating import repeat
from rankmq.workers.reply_size import encoded

from tests.unit.engine.graphs_in_memory import (
    BAD,
    DEADLY,
    GRAPHS,
    Array,
    Died,
    a_row,
    expected,
    infos,
    servable,
)
from tests.unit.engine.group_life import GROUP, Clock, exited, heartbeat, leave, ready, register


class Agent:
    """One rank's process."""

    def __init__(self, world: World, rank: int, number: int) -> None:
        self.world = world
        self.rank = rank
        self.name = f"agent{number}"
        self.pid = 10_000 + number
        self.alive = True
        self.leaving = False
        self.inbox: deque[bytes] = deque()
        self.work: deque[tuple[Form | None, int, Step | None]] = deque()
        self.control: deque[Any] = deque()
        self.results: deque[RankReply] = deque()
        self.guard: LockstepGuard | None = None
        self.form: Form | None = None
        self.frozen = False
        self.connection = 1
        self.registers(0)

    def registers(self, epoch: int) -> None:
        queue = f"{self.name}-{self.connection}"
        message = register(self.rank, self.name, pid=self.pid, queue=queue, graphs=self.world.infos, last_epoch=epoch)
        self.control.append(message)

    def reconnects(self, *, sent: bool) -> None:
        """Its queue goes with its connection, and what was in it, and, where it was not `sent`, what it had said."""
        self.inbox.clear()
        if not sent:
            self.control.clear()
            self.results.clear()
        self.connection += 1
        self.guard = None
        self.registers(self.form.epoch if self.form else 0)

    def hears(self) -> None:
        """Takes the next message of its queue."""
        message = codec.decode_to_agent(self.inbox.popleft())
        match message:
            case Task():
                self._task(message)
            case Welcome() if message.agent in (self.name, "*"):
                self.guard = None
                self.registers(self.form.epoch if self.form else 0)
            case Form() if message.agent == self.name:
                self.form = message
                self.guard = LockstepGuard(GROUP, self.rank, message.epoch)
                self.work.append((message, message.epoch, None))
            case Refused() if message.agent in (self.name, "*"):
                self.world.refused.append(message)
                self.world.dies(self)
            case Restart() if message.agent == self.name:
                self.world.dies(self)
            case Drain() if message.agent == self.name:
                assert self.leaving
                self.world.dies(self)

    def _task(self, task: Task) -> None:
        if self.guard is None or self.guard.is_stale(task):
            return
        try:
            step = self.guard.accept(task)
        except LockstepError as error:
            raise AssertionError(f"the driver broke lockstep: {error}") from error
        if step is not None:
            self.work.append((None, task.epoch, step))

    def computes(self) -> None:
        """Does the next piece of its work."""
        form, epoch, step = self.work.popleft()
        if form is not None:
            self.control.append(ready(self.rank, epoch, self.name))
        elif step is not None:
            try:
                reply = self._run(epoch, step)
                self.results.append(codec.decode_to_orchestrator(encoded(reply, self.world.max_reply)))
            except Died:
                self.world.dies(self)

    def _run(self, epoch: int, step: Step) -> RankReply:
        self.world.executed.append((self.rank, epoch, step.step))
        work, error, columns = step.work, None, ()
        outputs: list[list[Array]] = []
        try:
            inputs = [[to_array(tensor) for tensor in column] for column in step.inputs]
            if isinstance(work, Repeat):
                return self._repeat(epoch, step, work, inputs)
            calls = [[column[0] for column in inputs]] if work.stacked else list(zip(*inputs, strict=True))
            for arrays in calls:
                outputs.append(self._call(work.subgraph, arrays))
            columns = tuple(
                Column(index=index, tensors=tuple(from_array(output[index]) for output in outputs))
                for index in self.form.plans[work.subgraph].returns
            )
        except ArithmeticError as failed:
            error = ErrorInfo(code="graph_failed", message=str(failed))
        return RankReply(
            group=GROUP,
            epoch=epoch,
            step=step.step,
            rank=self.rank,
            outputs=columns,
            error=error,
            failed_row=len(outputs) if error is not None and not work.stacked else None,
            ran_us=int(self.world.seconds_per_row * work.rows * 1e6),
        )

    def _repeat(self, epoch: int, step: Step, work: Repeat, inputs: list[list[Array]]) -> RankReply:
        plan = self.form.plans[work.subgraph]
        found = repeat(lambda arrays: self._call(work.subgraph, arrays), work, inputs, plan.unstacked_inputs)
        kept = [(it, found.last[it]) for it in work.last] + [(it, found.collected[it]) for it in work.collect]
        columns = tuple(
            Column(index=index, tensors=tuple(map(from_array, arrays)))
            for index, (output, arrays) in enumerate(kept)
            if output in plan.returns
        )
        took = int(self.world.seconds_per_row * work.rows * max(found.turns) * 1e6)
        turns = tuple(found.turns)
        return RankReply(
            group=GROUP, epoch=epoch, step=step.step, rank=self.rank, outputs=columns, turns=turns, ran_us=took
        )

    def _call(self, subgraph: int, arrays: Sequence[Array]) -> list[Array]:
        if any((array == DEADLY).any() for array in arrays):
            raise Died
        if any((array == BAD).any() for array in arrays):
            raise ArithmeticError("a bad row")
        return GRAPHS[subgraph](self.rank, arrays)


class World:
    """The broker, the launcher and the ranks; the ports of one driver."""

    def __init__(
        self,
        ranks: int = 3,
        *,
        stacked: bool = True,
        rows: int = -1,
        batch_size: int | None = None,
        window: int = 2,
        max_attempts: int = 3,
        max_message: int = 1 << 20,
        max_reply: int = 1 << 30,
        step_timeout: float = 60.0,
        collectives: bool = False,
        slots: int = 0,
        max_wait: float = 0.0,
        kept: bool = False,
        methods: dict[str, Method] | None = None,
    ) -> None:
        self.clock = Clock()
        self.wakes = math.inf
        self.infos = infos(ranks, stacked=stacked, rows=rows, collectives=collectives, kept=kept)
        self.ranks = ranks
        self.window = window
        self.driver = GroupDriver(
            servable(
                ranks,
                stacked=stacked,
                batch_size=batch_size,
                slots=slots,
                max_wait=max_wait,
                kept=kept,
                methods=methods,
            ),
            GROUP,
            GroupRules(size=ranks, window=window),
            self,
            self.clock,
            max_attempts=max_attempts,
            max_message=max_message,
            step_timeout=step_timeout,
        )
        self.seconds_per_row = 0.001
        self.max_reply = max_reply
        self.agents: dict[int, Agent] = {}
        self.launcher: deque[Any] = deque()
        self.returned: deque[str] = deque()
        self.in_flight: list[tuple[str, Any]] = []
        self.refused: list[Refused] = []
        self.gave_up: list[OperatorError] = []
        self.readied = 0
        self.broken: list[str] = []
        self.executed: list[tuple[int, int, int]] = []
        self.tasks: list[tuple[int, str, Task]] = []
        self.answered: dict[tuple[int, int], int] = {}
        self.sizes: list[int] = []
        self.started = 0
        self.deaths = 0

    # ------------------------------------------------------------------------------------------------- GroupPorts

    def send_task(self, subgraph: int, tag: str, task: Task) -> None:
        assert task.epoch == self.driver.group.epoch
        assert self.driver.group.state is GroupState.READY
        before = [it for _, _, it in self.tasks if it.epoch == task.epoch]
        assert task.step - (before[-1].step if before else -1) in (0, 1), "steps are numbered without a gap"
        slowest = min(self.answered.get((task.epoch, rank), 0) for rank in range(self.ranks))
        assert task.step - slowest < self.window, "the lockstep window is kept"
        self.tasks.append((subgraph, tag, task))
        self._publish(tag, task)

    def send_control(self, tag: str, message: Any) -> None:
        self._publish(tag, message)

    def _publish(self, tag: str, message: Any) -> None:
        body = codec.encode(message)
        self.sizes.append(len(body))
        reached = [agent for agent in self.living() if tag in (RANK_ALL, f"rank.{agent.rank}")]
        for agent in reached:
            agent.inbox.append(body)
        if not reached and isinstance(message, Task):
            self.returned.append(tag)

    def plane(self) -> None:
        return None

    def blobs(self) -> None:
        return None

    def pump_soon(self) -> None:
        self.driver.pump()

    def wake_at(self, when: float) -> None:
        assert when > self.clock()
        self.wakes = min(when, self.wakes)

    def group_ready(self, driver: GroupDriver) -> None:
        self.readied += 1

    def group_broken(self, driver: GroupDriver, reason: str) -> None:
        self.broken.append(reason)

    def group_given_up(self, driver: GroupDriver, error: OperatorError) -> None:
        self.gave_up.append(error)

    # ----------------------------------------------------------------------------------------------- what can happen

    def living(self) -> list[Agent]:
        return [agent for agent in self.agents.values() if agent.alive]

    def starts(self, rank: int) -> None:
        """The launcher starts a rank that is not there."""
        if rank not in self.agents or not self.agents[rank].alive:
            self._keep_in_flight(rank)
            self.started += 1
            self.agents[rank] = Agent(self, rank, self.started)

    def _keep_in_flight(self, rank: int) -> None:
        """What a process had published before it died still arrives."""
        agent = self.agents.get(rank)
        if agent is not None:
            self.in_flight += [("result", it) for it in agent.results] + [("control", it) for it in agent.control]

    def dies(self, agent: Agent, *, sent: bool = True) -> None:
        """A process ends; what it had not yet written to its socket is lost with it."""
        if agent.alive:
            agent.alive = False
            agent.inbox.clear()
            agent.work.clear()
            if not sent:
                agent.results.clear()
                agent.control.clear()
            self.deaths += 1
            self.launcher.append(exited(agent.rank, agent.pid))

    def says(self, message: Any) -> None:
        """The orchestrator hears a control message."""

        def happened(group: Group, now: float) -> Any:
            name = {
                "Register": "registered",
                "Ready": "ready",
                "Heartbeat": "heartbeat",
                "Leave": "leaving",
                "RankExited": "exited",
            }[type(message).__name__]
            return getattr(group, name)(message, now)

        self.driver.handle(happened)

    def choices(self) -> list[Callable[[], None]]:
        """Everything that may be next."""
        found: list[Callable[[], None]] = []
        for agent in self.agents.values():
            if agent.alive and not agent.frozen:
                found += [agent.hears] * bool(agent.inbox) + [agent.computes] * bool(agent.work)
            if agent.results:
                found.append(lambda it=agent: self._replies(it.results.popleft()))
            if agent.control:
                found.append(lambda it=agent: self.says(it.control.popleft()))
        if self.launcher:
            found.append(lambda: self.says(self.launcher.popleft()))
        if self.returned:
            found.append(lambda: self.driver.rank_unreachable(self.returned.popleft()))
        if self.in_flight:
            found.append(self._late_news)
        if self.wakes < math.inf:
            found.append(self._wakes)
        return found

    def _late_news(self) -> None:
        kind, message = self.in_flight.pop(0)
        self._replies(message) if kind == "result" else self.says(message)

    def _replies(self, reply: RankReply) -> None:
        if reply.epoch == self.driver.group.epoch:
            self.answered[reply.epoch, reply.rank] = reply.step + 1
        self.driver.replied(reply)

    def _wakes(self) -> None:
        self.clock.now = max(self.clock.now, self.wakes)
        self.wakes = math.inf
        self.driver.pump()

    def late_news(self) -> None:
        """What the dead had still said arrives, all of it: no word is under way for seconds."""
        for agent in self.agents.values():
            if not agent.alive:
                self._keep_in_flight(agent.rank)
                agent.results.clear()
                agent.control.clear()
        while self.in_flight:
            self._late_news()

    def beats(self) -> None:
        for agent in self.living():
            if not agent.frozen:
                epoch = agent.form.epoch if agent.form is not None else 0
                agent.control.append(heartbeat(agent.rank, agent.name, epoch=epoch))

    def is_taken_up(self) -> None:
        """The first word of an orchestrator: who is there already registers again."""
        self.send_control(RANK_ALL, Welcome(group=GROUP, agent="*", orchestrator="o"))

    def leaves(self, agent: Agent) -> None:
        agent.leaving = True
        agent.control.append(leave(agent.rank, agent.name))

    # ------------------------------------------------------------------------------------------------------- at once

    def run(self, random: Random | None = None, most: int = 200_000, *, revive: bool = True) -> None:
        """Delivers whatever there is, in any order, until nothing is left."""
        random = random or Random(0)
        for _ in range(most):
            if revive:
                for rank in range(self.ranks):
                    self.starts(rank)
            found = self.choices()
            if not found:
                return
            random.choice(found)()
        raise AssertionError("it does not come to rest")

    def settle(self, random: Random | None = None, seconds: float = 200.0) -> None:
        """Runs, and lets time pass, until the group serves and has nothing left to do."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.run(random)
            if self.driver.group.state is GroupState.READY and not self.driver.outstanding:
                return
            self.clock.now += 0.5
            self.beats()
            self.driver.tick()
        raise AssertionError(f"the group does not serve again: {self.driver.status()}")


def ready_world(**given: Any) -> World:
    world = World(**given)
    world.run()
    assert world.driver.group.state is GroupState.READY
    return world


class Calls:
    """Makes calls, and holds what becomes of them against the reference."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: list[tuple[int, list[tuple[Array, ...]]]] = []
        self.results: dict[int, list[RowResult]] = {}

    def call(self, subgraph: int, rows: Sequence[tuple[Array, ...]], *, lenient: bool = False, **given: Any) -> int:
        number = len(self.made)
        self.made.append((subgraph, list(rows)))

        def done(results: list[RowResult]) -> None:
            assert number not in self.results, "told once"
            assert len(results) == len(rows)
            self.results[number] = results

        self.world.driver.call(subgraph, rows, done, lenient=lenient, requests=(f"r{number}",), **given)
        return number

    def errors(self, number: int) -> dict[int, type[RankmqError]]:
        """By row, the error that it met."""
        return {
            index: type(result) for index, result in enumerate(self.results[number]) if isinstance(result, RankmqError)
        }

    def check(self, number: int) -> dict[int, type[RankmqError]]:
        """All rows that have no error have the right values."""
        subgraph, rows = self.made[number]
        for row, result in zip(rows, self.results[number], strict=True):
            if not isinstance(result, RankmqError):
                wanted = expected(subgraph, row)
                assert len(result) == len(wanted)
                for got, want in zip(result, wanted, strict=True):
                    np.testing.assert_array_equal(got, want)
                    assert (got.dtype, got.shape) == (want.dtype, want.shape)
        return self.errors(number)


def rows_of(subgraph, count, seed=1, **special):
    """`count` rows; `row3=BAD` puts a special number into row 3."""
    random = Random(seed)
    return [a_row(subgraph, random, special=special.get(f"row{index}")) for index in range(count)]


def steps(world):
    """By step, how many rows it had."""
    return {(task.epoch, task.step): task.work.rows for _, _, task in world.tasks}
