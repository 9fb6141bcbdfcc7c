"""An agent's I/O thread: its queue on the broker, its registration, heartbeats and replies."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import psutil
from msgspec import structs

from ..engine import topology
from ..engine.confirms import Outcome
from ..engine.connection import Channel, Connection, Properties
from ..engine.delivery import Delivery
from ..engine.message_limit import MessageLimit
from ..schemas import codec
from ..schemas.errors import ConnectionLost, LockstepError, RankmqError, from_wire
from ..schemas.messages import (
    Drain,
    Form,
    GraphInfo,
    Heartbeat,
    Leave,
    LoadFailed,
    Message,
    RankReply,
    Ready,
    Refused,
    Register,
    Restart,
    Task,
    Welcome,
)
from .lockstep import LockstepGuard, Step
from .rank_blobs import RankBlobs
from .rank_plane import RankPlane
from .reply_size import encoded

if TYPE_CHECKING:
    from .agent import AgentConfig, Alive

__all__ = ["AgentLink", "RankWork"]

log = logging.getLogger(__name__)

_REGISTER_AGAIN_SECONDS = 1.0
_BROKER_HEARTBEAT = 30  # seconds: no thread may run while a graph is compiled; the dead are found faster in other ways
_MESSAGE = Properties(content_type=codec.MSGPACK)


class RankWork(Protocol):
    """The compute side of an agent, called from the I/O thread."""

    def form(self, form: Form) -> None:
        """Load and warm up for an epoch."""

    def step(self, epoch: int, step: Step) -> None:
        """Run a step."""

    def end(self, failure: RankmqError | None = None) -> None:
        """Finish what was given before, then end."""

    @property
    def alive(self) -> Alive:
        """To be called again and again while the I/O thread runs."""

    def restart(self) -> None:
        """End at once, whatever runs; ask to be started anew."""


class AgentLink:
    """Connects an agent to the broker, again and again until it is closed.

    Args:
        config: see `AgentConfig`.
        graphs: what the model files hold.
        work: the compute side.
        scheduler: host:port that rank 0 offers for the scheduler of MindSpore's own communication.
        device: "CPU", "Ascend" or "GPU".
        shm: whether the graphs could talk to each other through shared memory.
    """

    def __init__(
        self,
        config: AgentConfig,
        graphs: tuple[GraphInfo, ...],
        work: RankWork,
        *,
        scheduler: str,
        device: str,
        shm: bool,
    ) -> None:
        self._config = config
        self._graphs = graphs
        self._work = work
        self._scheduler = scheduler
        self._device = device
        self._shm = shm
        self._process = psutil.Process()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._connection: Connection | None = None
        self._connections = 0
        self._queue = ""
        self._channel: Channel | None = None
        self._results: Channel | None = None
        self._guard: LockstepGuard | None = None
        self._plane: RankPlane | None = None
        self._epoch = 0
        self._serving = False
        self._bound = False
        self._step = -1
        self._leaving = ""
        self._max_message = 16 * 1024 * 1024
        self._binding: asyncio.Task[None] | None = None
        self._saying: asyncio.Task[None] | None = None
        self._registering: asyncio.TimerHandle | None = None
        self._heartbeat_seconds = config.settings.heartbeat_seconds

    # ------------------------------------------------------------------------------------------------ for any thread

    def run(self) -> None:
        """The I/O thread."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except RankmqError as error:
            self._work.end(error)
        except Exception as error:
            log.exception("a defect on the I/O thread")
            self._work.end(ConnectionLost(f"the I/O thread ended: {error}"))
        finally:
            if self._plane is not None:
                self._plane.close()
            self._loop.close()

    def close(self) -> None:
        """Ends the I/O thread once everything said before is sent."""
        self._on_loop(self._closing.set)

    def leave(self, reason: str) -> None:
        """Asks the orchestrator for no further steps; the agent ends when what was sent is done."""
        self._on_loop(lambda: self._leave(reason))

    def ready(self, message: Ready) -> None:
        """Says that the rank is ready for the epoch."""

        def say() -> None:
            self._saying = self._loop.create_task(self._say_ready(message))  # a loop itself does not hold its tasks

        self._on_loop(say)

    def load_failed(self, message: LoadFailed) -> None:
        """Says that the rank cannot load."""
        self._on_loop(lambda: self._say(topology.CONTROL, message))

    def reply(self, message: RankReply, blobs: RankBlobs) -> None:
        """Sends what a step gave; called by the thread that computes."""
        plane = self._plane
        message = blobs.written(message if plane is None else plane.placed(message))
        body = encoded(message, self._max_message)
        if message.epoch == self._epoch:
            self._step = message.step
        results, key = self._results, str(self._config.group)
        if results is None or not results.publish_from_thread(topology.RESULTS, key, body, _MESSAGE):
            self._on_loop(lambda: self._send(self._results, topology.RESULTS, body, None))

    def _on_loop(self, work: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    # ---------------------------------------------------------------------------------------------------- connection

    async def _main(self) -> None:
        config, settings = self._config, self._config.settings
        patience, limit = settings.connect_timeout, MessageLimit()
        closing: asyncio.Future[Any] = asyncio.ensure_future(self._closing.wait())
        beating: asyncio.Future[Any] = asyncio.ensure_future(self._beat())
        try:
            while not self._closing.is_set():
                connection = await Connection.open(
                    settings.address(),
                    name=f"rankmq agent {config.group} rank {config.rank}",
                    patience=patience,
                    heartbeat=_BROKER_HEARTBEAT,
                    stopped=self._closing.is_set,
                    limit=limit,
                )
                patience = settings.reconnect_timeout
                try:
                    await self._open(connection)
                    ends: list[asyncio.Future[Any]] = [closing, connection.closed, beating]
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    if connection.closed.done():
                        log.warning("the connection to the broker ended: %s", connection.closed.result())
                        if self._leaving:
                            self._work.end()
                            return
                except ConnectionLost as error:
                    log.warning("the connection to the broker ended: %s", error.message)
                finally:
                    self._channel = self._results = None
                    self._guard = None
                    self._cancel_registering()
                    await connection.close()
                if beating.done():
                    beating.result()  # it ends by an error only
        finally:
            beating.cancel()
            closing.cancel()

    async def _open(self, connection: Connection) -> None:
        config = self._config
        channel = await connection.channel(vital=True)
        count = len(self._graphs)
        self._connections += 1
        queue = self._queue = topology.rank_queue(config.group, config.rank, config.agent, self._connections)
        await channel.declare((*topology.inner(), *topology.group_exchanges(config.group, count)))
        await channel.declare(topology.rank_bindings(config.group, config.rank, queue, count))
        await channel.consume(queue, self._on_message, no_ack=True, exclusive=True, properties=False)
        self._max_message = connection.max_message
        # What a step gave needs no word from the broker: if it is lost, the step is overdue, or the connection gone.
        self._results = await connection.channel(confirm=False, vital=True)
        self._connection, self._channel = connection, channel
        self._register()

    def _register(self) -> None:
        """Asks to hold the rank; while there is no orchestrator, again and again."""
        self._cancel_registering()
        if self._connection is not None and self._connection.blocked:  # it would only pile up
            self._registering = self._loop.call_later(_REGISTER_AGAIN_SECONDS, self._register)
            return
        if self._bound:
            log.warning("starting anew: this process can join its group only once")
            self._work.restart()
            return
        if self._leaving:  # whoever took the group up does not wait for us, and is not to begin now
            self._work.end()
            return
        config = self._config
        message = Register(
            group=config.group,
            rank=config.rank,
            agent=config.agent,
            host=config.host,
            pid=os.getpid(),
            queue=self._queue,
            graphs=self._graphs,
            scheduler=self._scheduler,
            device=self._device,
            shm=self._shm,
            last_epoch=self._epoch,
        )

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.RETURNED and message.last_epoch == self._epoch and not self._closing.is_set():
                self._registering = self._loop.call_later(_REGISTER_AGAIN_SECONDS, self._register)

        self._say(topology.CONTROL, message, then)

    def _cancel_registering(self) -> None:
        if self._registering is not None:
            self._registering.cancel()
            self._registering = None

    # ------------------------------------------------------------------------------------------------- what is heard

    def _on_message(self, delivery: Delivery) -> None:
        try:
            message = codec.decode_to_agent(delivery.body)
        except RankmqError as error:
            log.warning("refused a message: %s", error.message)
            return
        config = self._config
        if message.group != config.group:  # a binding that is not ours: nobody here waits for it
            log.warning("refused a %s of group %s: this is %s", type(message).__name__, message.group, config.group)
        elif isinstance(message, Task):
            self._on_task(message)
        else:
            self._on_control(message)

    def _on_task(self, task: Task) -> None:
        guard = self._guard
        if guard is None or guard.is_stale(task):
            log.debug("dropped step %d of epoch %d", task.step, task.epoch, extra={"epoch": task.epoch})
            return
        try:
            step = guard.accept(self._plane.filled(task) if self._plane is not None else task)
        except LockstepError as error:
            log.error("%s", error.message, extra={"epoch": task.epoch})
            self._guard = None
            self._register()  # which ends the epoch: this rank cannot follow it any more
            return
        if step is not None:
            self._work.step(guard.epoch, step)

    def _on_control(self, message: Welcome | Refused | Form | Drain | Restart) -> None:
        config = self._config
        match message:
            case Welcome() if message.agent in (config.agent, "*"):
                self._guard = None
                self._register()
            case Refused() if message.agent in (config.agent, "*"):
                self._work.end(from_wire(message.error.code, message.error.message))
            case Form() if message.agent == config.agent:
                self._cancel_registering()
                self._join_stage(message)
                self._epoch, self._step = message.epoch, -1
                self._bound = message.communication in ("mccl", "hccl")
                self._heartbeat_seconds = message.heartbeat_seconds
                self._serving = False
                self._work.alive(serving=False)
                self._guard = LockstepGuard(config.group, config.rank, message.epoch)
                self._open_plane(message)
                self._work.form(message)
            case Drain() if self._leaving and message.agent == config.agent:
                self._work.end()
            case Restart() if message.agent == config.agent:
                log.warning("starting anew: %s", message.reason)
                self._work.restart()

    def _open_plane(self, form: Form) -> None:
        before, self._plane = self._plane, None
        if before is not None:
            before.close()
        self._plane = RankPlane(form)

    def _join_stage(self, form: Form) -> None:
        """Adds the tag of the rank's stage to its queue. `Ready` goes over the same channel, so steps come after it."""
        if form.stages > 1 and self._channel is not None:
            bindings = topology.stage_bindings(form.group, self._queue, form.stage, len(self._graphs))
            self._binding = self._loop.create_task(self._channel.declare(bindings))

    # --------------------------------------------------------------------------------------------------- what is said

    def _leave(self, reason: str) -> None:
        if self._leaving:
            return
        self._leaving = reason
        config = self._config
        message = Leave(group=config.group, rank=config.rank, agent=config.agent, reason=reason)

        def then(outcome: Outcome) -> None:
            if outcome is not Outcome.CONFIRMED:
                self._work.end()  # nobody is there who could still send steps

        self._loop.call_later(config.settings.drain_timeout, self._work.end)
        if not self._say(topology.CONTROL, message, then):
            self._work.end()

    async def _say_ready(self, message: Ready) -> None:
        try:
            if self._binding is not None:
                await self._binding  # steps may come as soon as this is said
            self._serving = message.epoch == self._epoch
            self._work.alive(serving=self._serving)
            if self._plane is not None and self._plane.epoch == message.epoch:
                message = structs.replace(message, plane=self._plane.name, no_plane=self._plane.why_not)
            self._say(topology.CONTROL, message)
        except RankmqError as error:  # the rank registers again over the next connection
            log.warning("could not get ready: %s", error.message)
        except Exception as error:
            log.exception("a defect on the I/O thread")
            self._work.end(ConnectionLost(f"the I/O thread ended: {error}"))

    async def _beat(self) -> None:
        config = self._config
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            self._work.alive(serving=self._serving)
            if self._connection is not None and self._connection.blocked:
                continue  # heartbeats would only pile up, and come all at once
            message = Heartbeat(
                group=config.group,
                epoch=self._epoch,
                rank=config.rank,
                agent=config.agent,
                step=self._step,
                rss=self._process.memory_info().rss,
            )
            self._say(topology.CONTROL, message)

    def _say(self, exchange: str, message: Message, then: Callable[[Outcome], None] | None = None) -> bool:
        return self._send(self._channel, exchange, codec.encode(message), then)

    def _send(
        self, channel: Channel | None, exchange: str, body: bytes, then: Callable[[Outcome], None] | None
    ) -> bool:
        if channel is None:
            return False
        confirmed, properties = channel is self._channel, Properties(content_type=codec.MSGPACK)
        try:
            channel.publish(exchange, str(self._config.group), body, properties, mandatory=confirmed, then=then)
        except ConnectionLost:
            return False
        return True
