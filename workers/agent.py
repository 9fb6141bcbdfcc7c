"""One rank: its process has an I/O thread that talks to the broker, and computes on its main thread.

The I/O thread decides what may run (`LockstepGuard`), the compute thread runs it, in order; heartbeats go on meanwhile.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..engine.settings import Settings
from ..schemas.errors import CollectiveFailed, GraphFailed, InternalError, RankmqError
from ..schemas.messages import (
    Column,
    ErrorInfo,
    Form,
    GraphInfo,
    GraphPlan,
    GroupId,
    LoadFailed,
    RankReply,
    Ready,
    Repeat,
)
from ..schemas.tensors import Tensor, from_array, to_array
from .agent_link import AgentLink
from .executor import Executor
from .lockstep import Step
from .rank_blobs import RankBlobs
from .repeating import repeat

__all__ = ["RESTART", "Agent", "AgentConfig", "Alive"]

log = logging.getLogger(__name__)

RESTART = 75
"""Exit code of an agent that asks to be started anew: its communication cannot be used in another epoch."""


class Alive(Protocol):
    """How the I/O thread says that it runs."""

    def __call__(self, *, serving: bool) -> None:
        """Says it; `serving`: whether the next word can be expected soon."""


@dataclass(frozen=True)
class AgentConfig:
    """What an agent needs to know at birth; the rest it hears from the orchestrator.

    Attributes:
        group: the group that it is part of.
        rank: the rank that it holds.
        files: its model files, in the order of the subgraphs.
        settings: the broker's URL and so on.
        host: the name of this host, as in the rank table.
        ranks: how many ranks its launcher has on this host.
        agent: an id that no other process has.
    """

    group: GroupId
    rank: int
    files: tuple[Path, ...]
    settings: Settings
    host: str
    ranks: int = 1
    agent: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


@dataclass(frozen=True, slots=True)
class _Job:
    """A step and what is needed to answer it."""

    epoch: int
    step: Step
    plan: GraphPlan
    arrived: float


class Agent:
    """Holds one rank until it is told to stop.

    Args:
        config: see `AgentConfig`.
        executor: runs the graphs.
        scheduler: where the scheduler of MindSpore's own communication is to run, host:port, if this is rank 0.
        start_scheduler: called on the compute thread before communication through a scheduler begins; has it started.
        alive: called by the I/O thread again and again for as long as it runs.
    """

    def __init__(
        self,
        config: AgentConfig,
        executor: Executor,
        *,
        scheduler: str = "",
        start_scheduler: Callable[[str, int], None] = lambda address, size: None,
        alive: Alive = lambda *, serving: None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._scheduler = scheduler
        self._start_scheduler = start_scheduler
        self.alive = alive
        self._work: queue.SimpleQueue[_Job | Form | None] = queue.SimpleQueue()
        self._failure: RankmqError | None = None
        self._plans: tuple[GraphPlan, ...] = ()
        self._peers: tuple[int, ...] = ()
        self._epoch = 0
        self._ending = False
        self._blobs = RankBlobs(None)

    def run(self) -> None:
        """Serves as its rank.

        Raises:
            OperatorError: a model file cannot be used, the broker cannot be reached, or the orchestrator refused it.
        """
        self._blobs = RankBlobs(self._config.settings.blobs())
        graphs = self._executor.inspect(self._config.files)
        shm = self._offers_shm(graphs)
        link = AgentLink(self._config, graphs, self, scheduler=self._scheduler, device=self._executor.device, shm=shm)
        thread = threading.Thread(target=link.run, name="io", daemon=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which then stops us in order
            signal.signal(signal.SIGTERM, lambda *_: link.leave("told to stop"))
        thread.start()
        try:
            self._compute(link)
        finally:
            link.close()
            thread.join(self._config.settings.connect_timeout)
            self._executor.close()
        if self._failure is not None:
            raise self._failure

    def _offers_shm(self, graphs: tuple[GraphInfo, ...]) -> bool:
        if not any(graph.collectives for graph in graphs):
            return False
        why_not = self._executor.why_not_shared_memory(self._config.files)
        if why_not:
            log.log(
                logging.WARNING if self._config.rank == 0 else logging.DEBUG,
                "collectives do not go through shared memory: %s",
                why_not,
            )
        return not why_not

    # ------------------------------------------------------------------------------------ what the I/O thread says

    def form(self, form: Form) -> None:
        """Load and warm up for an epoch."""
        self._plans = form.plans
        self._epoch = form.epoch  # all that was given before is void
        self._executor.abort()
        self._work.put(form)

    def step(self, epoch: int, step: Step) -> None:
        """Run a step."""
        self._work.put(_Job(epoch, step, self._plans[step.work.subgraph], time.perf_counter()))

    def end(self, failure: RankmqError | None = None) -> None:
        """Finish what was given before, then end."""
        self._failure = failure
        self._ending = True
        self._work.put(None)

    def restart(self) -> None:
        """End at once: the compute thread may be in a collective whose other ranks are gone, and never come back."""
        logging.shutdown()
        os._exit(RESTART)

    # ------------------------------------------------------------------------------------------ the compute thread

    def _compute(self, link: AgentLink) -> None:
        while True:
            # A signal's handler must run at once, and Python runs it only between two waits of the main thread.
            try:
                work = self._work.get(timeout=3600.0)
            except queue.Empty:
                continue
            if work is None:
                return
            if work.epoch != self._epoch:
                log.debug("left: it is of an epoch that is over", extra={"epoch": work.epoch})
            elif isinstance(work, Form):
                self._form(link, work)
            else:
                link.reply(self._run(work), self._blobs)

    def _form(self, link: AgentLink, form: Form) -> None:
        config = self._config

        def stopped() -> bool:
            return self._ending or form.epoch != self._epoch

        log.info("loading for epoch %d, communication %s", form.epoch, form.communication, extra={"epoch": form.epoch})
        try:
            self._peers = form.peers
            self._blobs.form(form)
            place, size = form.peers.index(config.rank), len(form.peers)
            if form.communication == "mccl" and place == 0:
                self._start_scheduler(form.scheduler, size)
            self._executor.load(config.files, form.plans, form.shared_parameters)
            self._executor.open_group(
                form.communication,
                place,
                size,
                form.scheduler,
                form.rank_table,
                config.settings.load_timeout / 2,
                stopped,
            )
            graphs = self._executor.warm_up()
        except RankmqError as error:
            if stopped():
                log.info("left epoch %d: %s", form.epoch, error.message, extra={"epoch": form.epoch})
            else:
                self._load_failed(link, form, error)
            return
        link.ready(
            Ready(
                group=config.group,
                epoch=form.epoch,
                rank=config.rank,
                agent=config.agent,
                graphs=graphs,
                blobs=self._blobs.there,
            )
        )

    def _load_failed(self, link: AgentLink, form: Form, error: RankmqError) -> None:
        config = self._config
        log.error("cannot load: %s", error.message, extra={"epoch": form.epoch})
        info = ErrorInfo(code=error.code, message=error.message, side=error.side)
        link.load_failed(
            LoadFailed(group=config.group, epoch=form.epoch, rank=config.rank, agent=config.agent, error=info)
        )

    def _run(self, job: _Job) -> RankReply:
        began = time.perf_counter()
        row: int | None = None
        outputs: tuple[Column, ...] = ()
        turns: tuple[int, ...] = ()
        error: ErrorInfo | None = None
        suspect: int | None = None
        results: list[list[np.ndarray[Any, Any]]] = []
        try:
            self._executor.begin_step(job.step.step)
            job = replace(job, step=self._blobs.filled(job.step))
            if isinstance(job.step.work, Repeat):
                outputs, turns = self._repeat(job, job.step.work)
            elif job.step.work.stacked:
                results = [self._call(job, [column[0] for column in job.step.inputs])]
            else:
                for row in range(job.step.work.rows):
                    results.append(self._call(job, [column[row] for column in job.step.inputs]))
                row = None
            if results:
                outputs = tuple(
                    Column(index=index, tensors=tuple(from_array(result[index]) for result in results))
                    for index in job.plan.returns
                )
        except CollectiveFailed as failed:
            error = ErrorInfo(code=failed.code, message=failed.message, side=failed.side)
            suspect = self._peers[failed.rank] if failed.rank is not None else None
        except RankmqError as failed:
            error = ErrorInfo(code=failed.code, message=failed.message, side=failed.side)
        except Exception as failed:
            log.exception("step %d failed", job.step.step, extra={"epoch": job.epoch})
            found = InternalError(f"{type(failed).__name__}: {failed}")
            error = ErrorInfo(code=found.code, message=found.message, side=found.side)
        ended = time.perf_counter()
        return RankReply(
            group=self._config.group,
            epoch=job.epoch,
            step=job.step.step,
            rank=self._config.rank,
            outputs=outputs,
            turns=turns,
            error=error,
            suspect=suspect,
            failed_row=row if error is not None else None,
            waited_us=int((began - job.arrived) * 1e6),
            ran_us=int((ended - began) * 1e6),
        )

    def _repeat(self, job: _Job, work: Repeat) -> tuple[tuple[Column, ...], tuple[int, ...]]:
        """The turns of a loop: what this rank sends back of them, and how many each row ran."""

        def run(inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
            if job.epoch != self._epoch:
                raise GraphFailed(f"epoch {job.epoch} is over")
            return self._executor.run(work.subgraph, inputs)

        columns = [[to_array(tensor) for tensor in column] for column in job.step.inputs]
        found = repeat(run, work, columns, job.plan.unstacked_inputs)
        kept = [(output, found.last[output]) for output in work.last]
        kept += [(output, found.collected[output]) for output in work.collect]
        outputs = tuple(
            Column(index=index, tensors=tuple(map(from_array, arrays)))
            for index, (output, arrays) in enumerate(kept)
            if output in job.plan.returns
        )
        return outputs, tuple(found.turns)

    def _call(self, job: _Job, tensors: list[Tensor]) -> list[np.ndarray[Any, Any]]:
        outputs = self._executor.run(job.step.work.subgraph, [to_array(tensor) for tensor in tensors])
        missing = [index for index in job.plan.returns if index >= len(outputs)]
        if missing:
            raise GraphFailed(f"subgraph {job.step.work.subgraph} has {len(outputs)} outputs, not output {missing[0]}")
        return outputs
